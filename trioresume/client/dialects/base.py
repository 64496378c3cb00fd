"""What a transfer asks of a dialect."""

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
    """What a request says: *fields*, and a *prefix* in front of its content."""

    fields: Fields
    prefix: bytes = b""


class Dialect(ABC):
    """One protocol, or one version of it; see the package's text."""

    name: str
    """As a journal has it; says protocol and version."""
    careful: bool = False
    """Whether an upload is made by a request without content, which is sent then."""
    acknowledges: ClassVar[bool] = False
    """Whether a server can be counted on to tell in between what arrived."""
    explicit_completion: ClassVar[bool] = False
    """Whether reaching the length is not enough: the end has to be said."""
    replays: ClassVar[bool] = False
    """Whether the last append, repeated without content, gets the final response again."""
    settles: ClassVar[bool] = False
    """Whether knowing that the upload is complete will do for an answer."""
    busy: ClassVar[frozenset[int]] = frozenset({408, 425, 429})
    """Statuses that say "not now", besides the 5xx."""
    gone: ClassVar[frozenset[int]] = frozenset({404, 410})
    """Statuses that say that there is no such upload."""
    gone_when_asked: ClassVar[frozenset[int]] = gone
    """The same, in answer to the question how much arrived."""

    @property
    def protocol(self) -> str:
        """The protocol's name, without a version."""
        return self.name.partition("-")[0]

    # Requests.

    @abstractmethod
    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        """The fields of the request that begins: *own*, and what the protocol needs.

        *length* is that of all the content, None if it is not known. *whole* says that
        all of it is in this request. *acknowledge* asks to be told what arrives.
        """

    def query(self) -> Fields:
        """The fields of a question about the upload, a HEAD."""
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
        """What a PATCH with the content of *range_* says.

        *completes* says that the content ends with it, *declares* that the server has
        not been told the length before.
        """

    # Answers.

    def offer(self, base: Url, status: int, fields: Fields) -> Locations | None:
        """What an interim response to a request for *base* offers, if it is an offer."""
        return None

    def acknowledged(self, status: int, fields: Fields) -> int | None:
        """The offset that an interim response tells; None if none."""
        return None

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Where the upload is, from the final response to what began it; None if not said.

        *whole* says that the request had all the content, so that the response may be the
        target's.
        """
        return None

    def append_limit(self, fields: Fields) -> int | None:
        """The most content for one append, if the server has such a limit and tells it."""
        return None

    def offset(self, fields: Fields) -> int | None:
        """``Upload-Offset``, None if absent or malformed."""
        return count_of(fields.get("upload-offset"))

    def held(self, answer: Answer) -> int | None:
        """How much the server has, from the answer to :meth:`query`."""
        return self.offset(answer.fields)

    def completeness(self, fields: Fields) -> bool | None:
        """Whether the upload is complete; None if the fields do not say."""
        return None

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """Whether a 2xx to an append says that the upload goes on.

        If not, it is the final response.
        """
        return not completes

    def recorded(self, answer: Answer) -> bool:
        """Whether *answer* is the target's own, whatever its status."""
        return False

    def of_target(self, answer: Answer, upload: Url) -> Answer:
        """The final *answer* of the upload at *upload*, as the target gave it."""
        return answer

    def troubled(self, answer: Answer) -> bool:
        """Whether the server could not answer now, which says nothing of the request."""
        trouble = answer.status in self.busy or answer.status >= 500
        return trouble and not self.recorded(answer)
