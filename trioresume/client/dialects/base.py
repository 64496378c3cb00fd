"""The interface of a client's dialect."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trioresume.client.steps import count_of
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.client.locations import Locations, Url
    from trioresume.client.steps import Answer
    from trioresume.protocol.fields import ContentRange

__all__ = ["Dialect", "Words"]


@dataclass(frozen=True, slots=True)
class Words:
    """The dialect's part of a request: *fields*, and a *prefix* of the content."""

    fields: Fields
    prefix: bytes = b""


class Dialect(ABC):
    """One protocol, or one version of it. The package's docstring explains it."""

    name: str
    """The protocol and its version, as the journal stores them."""
    careful: bool = False
    """Whether a request without content makes the upload, and the content follows."""
    acknowledges: ClassVar[bool] = False
    """Whether every server of the protocol acknowledges content during a request."""
    explicit_completion: ClassVar[bool] = False
    """Whether the end must be said: reaching the length is not enough."""
    replays: ClassVar[bool] = False
    """Whether repeating the last append without content gets the final response again."""
    settles: ClassVar[bool] = False
    """Whether the statement that the upload is complete is enough as an answer."""
    busy: ClassVar[frozenset[int]] = frozenset({408, 425, 429})
    """Statuses other than 5xx that say "not now"."""
    gone: ClassVar[frozenset[int]] = frozenset({404, 410})
    """Statuses that say that there is no such upload."""
    gone_when_asked: ClassVar[frozenset[int]] = gone
    """The same, in an answer to :meth:`query`."""

    @property
    def protocol(self) -> str:
        """The protocol's name, without a version."""
        return self.name.partition("-")[0]

    # Requests.

    @abstractmethod
    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        """Return the fields of the first request: *own*, and those of the protocol.

        *length* is the length of all content; None if it is not known. *whole* says
        that this request has all of it. *acknowledge* asks the server to acknowledge
        content.
        """

    def query(self) -> Fields:
        """Return the fields of a HEAD that asks for the upload's state."""
        return Fields()

    @abstractmethod
    def append(
        self,
        range_: ContentRange,
        *,
        completes: bool,
        declares: bool = False,
        acknowledge: bool = False,
    ) -> Words:
        """Return the fields and the prefix of a PATCH with the content of *range_*.

        *completes* says that the content ends with it. *declares* says that the server
        does not know the length yet.
        """

    # Answers.

    def offer(self, base: Url, status: int, fields: Fields) -> Locations | None:
        """Return what an interim response to a request for *base* offers; None if nothing."""
        return None

    def acknowledged(self, status: int, fields: Fields) -> int | None:
        """Return the offset in an interim response; None if it has none."""
        return None

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Return where the upload is, from the final response to the first request, or None.

        *whole* says that the request had all content, so that the response may be the target's.
        """
        return None

    def append_limit(self, fields: Fields) -> int | None:
        """Return the most content for one append; None if the server states no limit."""
        return None

    def offset(self, fields: Fields) -> int | None:
        """Return ``Upload-Offset``; None if absent or malformed."""
        return count_of(fields.get("upload-offset"))

    def held(self, answer: Answer) -> int | None:
        """Return how much the server has, from its answer to :meth:`query`."""
        return self.offset(answer.fields)

    def completeness(self, fields: Fields) -> bool | None:
        """Whether the upload is complete; None if the fields do not say."""
        return None

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """Whether a 2xx to an append says that the upload goes on.

        Otherwise the 2xx is the final response.
        """
        return not completes

    def recorded(self, answer: Answer) -> bool:
        """Whether *answer* is the target's own, with any status."""
        return False

    def of_target(self, answer: Answer, upload: Url) -> Answer:
        """Return the final *answer* for the upload at *upload* as the target gave it."""
        return answer

    def troubled(self, answer: Answer) -> bool:
        """Whether the server failed for now, which says nothing about the request."""
        trouble = answer.status in self.busy or answer.status >= 500
        return trouble and not self.recorded(answer)
