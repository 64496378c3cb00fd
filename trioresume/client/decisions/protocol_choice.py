"""Choose the dialect of a request.

``auto`` begins in the seed. Its offer comes with the 100 for which the content waits
anyway, so a server that speaks the seed is asked nothing more. Other servers are asked
what they speak, while the content still waits. The request then goes on or begins
again::

    the content may go, no offer      ask; if the server shows no protocol, a plain request
    refused with a mark of tus        tus
    refused, not understood           ask; if the server shows no protocol, it stays refused

tus is tried before RUFH, because it has one version. tus makes uploads by POST only, in
a collection, so it is left out for other methods.

RUFH begins in the newest version. A server that understands the request answers with a
104. For another server it is a plain request::

    the content may go, no 104        ask; if the server does not show RUFH, a plain request
    the same, and it shows RUFH       the version before; after the oldest, make the upload
                                      first: 104s get lost behind many proxies
    refused, not understood           the version before, or the one that was not refused
    creation taken as the whole       a plain request

After an offer none of this happens. The client remembers the result for each place (see
:func:`place_of`) as long as it lives.

Statement numbers such as B13 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trioresume.errors import CallerError
from trioresume.protocol.dialects.client import ClientDialect
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.rufh.client import NEWEST_RUFH, RufhClient
from trioresume.protocol.dialects.seed.client import PLAIN, SEED, SEED_WITH_RANGES
from trioresume.protocol.dialects.tus.client import TUS

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.protocol.dialects.client import Answer
    from trioresume.protocol.urls import Origin, Url

__all__ = ["Place", "ProtocolChoice", "ProtocolName", "place_of"]

ProtocolName = Literal["auto", "seed", "rufh", "tus"]
"""The protocols that a caller can ask for."""

Place = tuple["Origin", str, str]
"""A part of a server: origin, method and folder."""

# The refusals that can mean "I do not understand this" (RFC 9110, section 15.5, and RFC
# 6585): a missing field, an unknown one, a method that needs something else.
_NOT_UNDERSTOOD = frozenset({400, 405, 411, 412, 415, 422, 428, 501})


def place_of(method: str, url: Url) -> Place:
    """Return the place of a request. In another place the server may speak another protocol."""
    folder = url.target.partition("?")[0].rpartition("/")[0]
    return url.origin, method, folder


class ProtocolChoice:
    """The choice of one request's dialect. The module's docstring has the rules.

    *known* is the dialect of the place, if an earlier request found it out. *begun* is
    the dialect of an upload that an earlier run began. *remember* is called with the
    dialect that is found out.
    Raises :class:`CallerError` for a method that the protocol cannot be used with.
    """

    def __init__(
        self,
        protocol: ProtocolName,
        method: str,
        length: int | None,
        *,
        known: ClientDialect | None = None,
        begun: ClientDialect | None = None,
        remember: Callable[[ClientDialect], None] = lambda _: None,
    ) -> None:
        if protocol == "tus" and method != "POST":
            raise CallerError(f"in tus an upload is begun by POST, not by {method}")
        self._protocol = protocol
        self._posts = method == "POST"
        self._length = length
        self._remember = remember
        self._begun = begun is not None
        first: dict[str, ClientDialect] = {"tus": TUS, "rufh": NEWEST_RUFH}
        self.dialect = begun or first.get(protocol, SEED)
        if known is not None and known is not PLAIN and begun is None:
            self.dialect = known
        self.known_to_resume = known is not None and known is not PLAIN
        """Whether the place made an offer before."""
        self.incremental = True
        """Whether the client asks proxies to forward content as it comes (RFC 10036)."""
        self._undecided = known is None and begun is None and self._leaves_open
        self._at_first = (self.dialect, self._undecided)
        self._settled = begun is not None
        self._shows_rufh = False
        self._shows_nothing = False
        """Whether the server was asked and its answer named no protocol."""
        self._unrefused: RufhClient | None = None
        """The first version that met neither an offer nor a refusal."""

    @property
    def _leaves_open(self) -> bool:
        return self._protocol in ("auto", "rufh")

    @property
    def asks(self) -> bool:
        """Whether to ask the server before content goes without an offer."""
        return self._undecided and self._length != 0

    @property
    def searching(self) -> bool:
        """Whether the server shows RUFH, and no version of it has met an offer yet."""
        return self._shows_rufh and not self._settled

    def settle(self) -> None:
        """Note that there is an offer, or an upload."""
        self.known_to_resume = True
        self._undecided = False
        self._settled = True
        self._remember(self.dialect)

    def forget(self) -> None:
        """Note that an earlier run's upload is gone. The server may speak another protocol now."""
        if self._begun and self._protocol == "auto":
            self._begun = self._settled = False
            self._undecided = True
            self.dialect = SEED

    def say_ranges_only(self) -> bool:
        """After a refused append, replace ``Content-Offset`` if it may be the reason.

        Returns whether it was replaced. From then on this place gets the older form (B13).
        """
        if self.dialect is not SEED:
            return False
        self.dialect = SEED_WITH_RANGES
        self._remember(self.dialect)
        return True

    def be_careful(self) -> None:
        """Make uploads before their content is sent."""
        assert isinstance(self.dialect, RufhClient)
        self.dialect = self.dialect.carefully()

    def discover(self, discovery: Discovery | None) -> bool:
        """Take the server's answer; *discovery* is None if there was none.

        Returns whether the request begins again, in another dialect or in another way.
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
        """Turn to another version if content may go and there is no offer.

        Returns whether the request begins again.
        """
        if not self.searching:
            return False
        if not isinstance(self.dialect, RufhClient):
            self.dialect = NEWEST_RUFH
            return True
        self._unrefused = self._unrefused or self.dialect
        self.dialect = self.dialect.older() or self._unrefused.carefully()
        return True

    def give_up(self) -> None:
        """Note that the server took an empty request for the whole: it speaks no protocol."""
        self._undecided = self._shows_rufh = False
        self._shows_nothing = True
        self.dialect = PLAIN

    def note_plain(self) -> None:
        """Note that a plain request was stored: so the server itself showed no protocol."""
        if self._shows_nothing:
            self._remember(PLAIN)

    def reconsider(self) -> None:
        """Forget the answers so far: they came from the network, not from the server."""
        if not self._settled:
            self.dialect, self._undecided = self._at_first
            self._shows_rufh = self._shows_nothing = False
            self._unrefused = None

    def _resumable(self, discovery: Discovery) -> bool:
        """Whether the content is long enough for an upload resource (C13)."""
        least = discovery.limits.min_size
        return self._length is None or least is None or self._length >= least

    def refused(self, answer: Answer) -> Literal["stands", "turned", "ask"]:
        """Decide what follows when the request was refused before its content."""
        if self._settled or answer.status not in _NOT_UNDERSTOOD:
            return "stands"
        if isinstance(self.dialect, RufhClient):
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
        self, dialect: RufhClient, answer: Answer
    ) -> Literal["stands", "turned"]:
        if dialect.understood(answer.fields):
            return "stands"
        following = dialect.older()
        if self._unrefused is not None:
            # The server tells versions apart, so it knows the one that it did not refuse.
            following = None if dialect.careful else self._unrefused.carefully()
        if following is None:
            return "stands"
        self.dialect = following
        return "turned"
