"""Which dialect a request is made in, and how that is found out.

``auto`` begins in the seed, whose offer comes with the 100 that the content waits for
anyway: a server that speaks the seed is asked nothing more. A server that does not is
asked what else it speaks, while the content still waits, and the request goes on, or
begins again, accordingly::

    the content may go, no offer      ask; what it says decides, nothing: a plain request
    refused with a mark of tus        tus
    refused, not understood           ask; what it says decides, nothing: the refusal stands

tus goes before RUFH, since it has one version and a server of both means it. It makes
uploads by POST only, in a collection, so that any other method passes it over.

RUFH begins in the newest version, as a request that is answered with a 104 where it is
understood, and is a plain one where it is not::

    the content may go, no 104        ask; if the server does not show RUFH, a plain request
    the same, and it shows RUFH       the version before; after the oldest, make the upload
                                      first: 104s get lost behind many proxies
    refused, not understood           the version before, or the one that was not refused
    made an upload, not understood    a plain request

Nothing of this happens once there was an offer. What was found out holds for the place,
see :func:`place_of`, as long as the client lives.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trioresume.client.dialects import (
    NEWEST_RUFH,
    PLAIN,
    SEED,
    SEED_WITH_RANGES,
    TUS,
    Dialect,
    Discovery,
    Rufh,
)
from trioresume.errors import CallerError

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.client.locations import Origin, Url
    from trioresume.client.steps import Answer

__all__ = ["Choice", "Place", "ProtocolName", "place_of"]

ProtocolName = Literal["auto", "seed", "rufh", "tus"]
"""What an upload can be made in, as far as whoever asks for it cares."""

Place = tuple["Origin", str, str]
"""Requests that one part of a server answers: origin, method and folder."""

# What says "I do not understand this", among the refusals (RFC 9110, section 15.5, and
# RFC 6585): a missing field, an unknown one, a method that needs something else.
_NOT_UNDERSTOOD = frozenset({400, 405, 411, 412, 415, 422, 428, 501})


def place_of(method: str, url: Url) -> Place:
    """What a server speaks in one place it may not speak in another."""
    folder = url.target.partition("?")[0].rpartition("/")[0]
    return url.origin, method, folder


class Choice:
    """The choice of one request's dialect; see the module's table.

    *known* is what the place speaks, if that was found out before, *begun* the dialect
    of an upload that an earlier run began. *remember* is told what is found out.
    Raises :class:`CallerError` for a method that the protocol cannot be used with.
    """

    def __init__(
        self,
        protocol: ProtocolName,
        method: str,
        length: int | None,
        *,
        known: Dialect | None = None,
        begun: Dialect | None = None,
        remember: Callable[[Dialect], None] = lambda _: None,
    ) -> None:
        if protocol == "tus" and method != "POST":
            raise CallerError(f"in tus an upload is begun by POST, not by {method}")
        self._protocol = protocol
        self._posts = method == "POST"
        self._length = length
        self._remember = remember
        self._begun = begun is not None
        first: dict[str, Dialect] = {"tus": TUS, "rufh": NEWEST_RUFH}
        self.dialect = begun or first.get(protocol, SEED)
        if known is not None and known is not PLAIN and begun is None:
            self.dialect = known
        self.known_to_resume = known is not None and known is not PLAIN
        """Whether the place made an offer before."""
        self.incremental = True
        """Whether proxies are asked to forward content as it comes (RFC 10036)."""
        self._undecided = known is None and begun is None and self._leaves_open
        self._at_first = (self.dialect, self._undecided)
        self._settled = begun is not None
        self._shows_rufh = False
        self._shows_nothing = False
        """Whether the server was asked, and its answer names no protocol."""
        self._unrefused: Rufh | None = None
        """The first version that met neither an offer nor a refusal."""

    @property
    def _leaves_open(self) -> bool:
        return self._protocol in ("auto", "rufh")

    @property
    def asks(self) -> bool:
        """Whether the server is to be asked before content goes without an offer."""
        return self._undecided and self._length != 0

    @property
    def searching(self) -> bool:
        """Whether the server shows RUFH, and no version of it has met an offer yet."""
        return self._shows_rufh and not self._settled

    def settle(self) -> None:
        """There is an offer, or an upload."""
        self.known_to_resume = True
        self._undecided = False
        self._settled = True
        self._remember(self.dialect)

    def forget(self) -> None:
        """The upload that an earlier run began is gone; so may be what its server spoke."""
        if self._begun and self._protocol == "auto":
            self._begun = self._settled = False
            self._undecided = True
            self.dialect = SEED

    def say_ranges_only(self) -> bool:
        """An append was refused; whether ``Content-Offset`` may be why, and goes.

        From then on the older form is used in this place (B13).
        """
        if self.dialect is not SEED:
            return False
        self.dialect = SEED_WITH_RANGES
        self._remember(self.dialect)
        return True

    def be_careful(self) -> None:
        """Make uploads before their content is sent."""
        assert isinstance(self.dialect, Rufh)
        self.dialect = self.dialect.carefully()

    def discover(self, discovery: Discovery | None) -> bool:
        """The server was asked; *discovery* is None if it did not say anything.

        Whether the request is to begin again, in another dialect or in another way.
        """
        self._undecided = False
        if discovery is None:
            return False
        tus = self._protocol == "auto" and self._posts
        if tus and discovery.takes_tus(self._length):
            self.dialect = TUS
            return True
        self._shows_rufh = discovery.rufh and self._resumable(discovery)
        if self._shows_rufh:
            return self.turn_unoffered()
        self._shows_nothing = True
        return False

    def turn_unoffered(self) -> bool:
        """The content may go, and there is no offer; whether to begin again otherwise."""
        if not self.searching:
            return False
        if not isinstance(self.dialect, Rufh):
            self.dialect = NEWEST_RUFH
            return True
        self._unrefused = self._unrefused or self.dialect
        self.dialect = self.dialect.older() or self._unrefused.carefully()
        return True

    def give_up(self) -> None:
        """The server took an empty request for all there is: it speaks nothing."""
        self._undecided = self._shows_rufh = False
        self._shows_nothing = True
        self.dialect = PLAIN

    def note_plain(self) -> None:
        """A plain request was stored, so it was the server that showed no protocol."""
        if self._shows_nothing:
            self._remember(PLAIN)

    def reconsider(self) -> None:
        """The answers so far were not the server's: find out anew what it speaks."""
        if not self._settled:
            self.dialect, self._undecided = self._at_first
            self._shows_rufh = self._shows_nothing = False
            self._unrefused = None

    def _resumable(self, discovery: Discovery) -> bool:
        """C13: what is shorter than the minimum gets no upload resource."""
        least = discovery.limits.min_size
        return self._length is None or least is None or self._length >= least

    def refused(self, answer: Answer) -> Literal["stands", "turned", "ask"]:
        """The request was refused before its content; what to do about it."""
        if self._settled or answer.status not in _NOT_UNDERSTOOD:
            return "stands"
        if isinstance(self.dialect, Rufh):
            return self._refused_rufh(self.dialect, answer)
        if not self._undecided:
            return "stands"
        marked = "tus-resumable" in answer.fields or "tus-version" in answer.fields
        if self._posts and marked:
            self._undecided = False
            self.dialect = TUS
            return "turned"
        return "ask" if self.asks else "stands"

    def _refused_rufh(
        self, dialect: Rufh, answer: Answer
    ) -> Literal["stands", "turned"]:
        if dialect.understood(answer.fields):
            return "stands"
        following = dialect.older()
        if self._unrefused is not None:
            # It tells versions apart, and so it knows that one.
            following = None if dialect.careful else self._unrefused.carefully()
        if following is None:
            return "stands"
        self.dialect = following
        return "turned"
