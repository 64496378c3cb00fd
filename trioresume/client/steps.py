"""What a transfer wants done, and what came of it: the values between its two halves.

``transfer`` decides on an :data:`Action`, ``run`` performs it and reports an
:class:`Outcome`.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from enum import Enum, auto

from trioresume.client.locations import Url
from trioresume.errors import PeerError
from trioresume.protocol.fields import (
    ContentRange,
    parse_entity_tag,
    parse_http_date,
    parse_integer,
)
from trioresume.protocol.heads import Fields

__all__ = [
    "Action",
    "Answer",
    "Append",
    "AskOffset",
    "Confirm",
    "Create",
    "Discover",
    "FetchMessage",
    "FetchResult",
    "Finish",
    "Gather",
    "Next",
    "Outcome",
    "Send",
    "Sent",
    "WireAction",
    "count_of",
]


class Sent(Enum):
    """How much of a request's content was handed to the connection."""

    NOTHING = auto()
    SOME = auto()
    ALL = auto()
    """Also when there is no content: then the head is the whole request."""


# ------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Send:
    """Send the whole request; *expect* is whether to ask for a 100 before its content."""

    expect: bool = True


@dataclass(frozen=True, slots=True)
class Create:
    """Send the request without its content: it makes an upload, to be filled later."""


@dataclass(frozen=True, slots=True)
class Discover:
    """``OPTIONS`` on the request's URL: what does the server speak?"""


@dataclass(frozen=True, slots=True)
class Confirm:
    """``HEAD`` on the request's URL: is the content of a plain PUT there?"""


@dataclass(frozen=True, slots=True)
class AskOffset:
    """``HEAD`` *url* (R12)."""

    url: Url


@dataclass(frozen=True, slots=True)
class Append:
    """``PATCH`` *url* with the content of *range* (R15).

    *completes* says that the content ends with it, *declares* that its length has not
    been told before.
    """

    url: Url
    range: ContentRange
    completes: bool = True
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Gather:
    """Have *size* bytes from *offset* on at hand, or all there are, to append them."""

    url: Url
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class FetchMessage:
    """``GET`` *url* as ``message/http`` (R26)."""

    url: Url


@dataclass(frozen=True, slots=True)
class FetchResult:
    """``GET`` *url* from *start* on (R28); *if_range* is a strong entity-tag.

    *final* is the response whose content it completes.
    """

    url: Url
    start: int
    if_range: str | None
    final: Answer | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Finish:
    """*answer* is the final response, and its content is whole.

    With *bare* there is no content: it is an answer about the upload, in the place of a
    final response that cannot be had.
    """

    answer: Answer
    bare: bool = False


WireAction = (
    Send | Create | Discover | Confirm | AskOffset | Append | FetchMessage | FetchResult
)
"""What is performed by an exchange with the server."""

Action = WireAction | Gather | Finish


@dataclass(frozen=True, slots=True)
class Next:
    """Perform *action* after *delay* seconds."""

    action: Action
    delay: float = 0.0


# ----------------------------------------------------------------------- outcomes


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a final response, or of the message that records one."""

    status: int
    fields: Fields

    def __str__(self) -> str:
        """As messages name it: the status, and what else tells answers apart."""
        location = self.fields.get("location")
        if 300 <= self.status <= 399 and location is not None:
            return f"{self.status} to {location}"
        media_type = self.fields.get("content-type")
        return f"{self.status}" if media_type is None else f"{self.status} {media_type}"

    @property
    def ok(self) -> bool:
        """Whether the status is one of success."""
        return 200 <= self.status <= 299

    @property
    def strong_etag(self) -> str | None:
        """The content's validator; a 201's is another resource's (R28)."""
        tag = parse_entity_tag(self.fields.get("etag") or "")
        return None if tag is None or tag.weak or self.status == 201 else str(tag)

    @property
    def refuses_incremental(self) -> bool:
        """Whether a proxy did not forward the request because it buffers (RFC 10036).

        Such a proxy names the reason in ``Proxy-Status`` (RFC 9209).
        """
        return (
            _INCREMENTAL_REFUSED.search(self.fields.get("proxy-status") or "")
            is not None
        )

    def retry_after(self, wall_time: float) -> float | None:
        """``Retry-After`` in seconds (RFC 9110, section 10.2.3)."""
        value = self.fields.get("retry-after")
        if value is None:
            return None
        seconds = count_of(value)
        if seconds is not None:
            return float(seconds)
        date = parse_http_date(value.strip())
        if date is None:
            return None
        # Both dates are of the server's clock, so a wrong clock here does not matter.
        sent = parse_http_date(self.fields.get("date") or "")
        return max(0.0, date - (wall_time if sent is None else sent))


_INCREMENTAL_REFUSED = re.compile(r";\x20*error=incremental_refused(?![a-z0-9_])")


def count_of(value: str | None) -> int | None:
    """A field's value as a number of bytes or seconds, None if absent or malformed."""
    try:
        return None if value is None else parse_integer(value)
    except PeerError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an action ended.

    *answer* is the head of its final response, or for ``FetchMessage`` that of the
    message once it was read. *whole* says that the content after it came to its end;
    if it did not, *cause* says why. *state* is the member of a 202's document. *vouched*
    says that an interim response with a mark of the protocol came before the answer.
    *received* counts the bytes of the final response's content held by now.
    """

    answer: Answer | None = None
    whole: bool = False
    sent: Sent = Sent.NOTHING
    received: int = 0
    state: str | None = None
    vouched: bool = False
    cause: Exception | None = None
    now: float = 0.0
    """Monotonic, for the budget."""
    wall_time: float = 0.0
    """Unix seconds, for dates from the server."""
