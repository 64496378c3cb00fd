"""Actions and their outcomes: the values between ``transfer`` and ``run``.

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
    "Contrast",
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
    """All of it. If there is no content, the head is the whole request."""


# ------------------------------------------------------------------------ actions


@dataclass(frozen=True, slots=True)
class Send:
    """Send the whole request. With *expect*, ask for a 100 before the content."""

    expect: bool = True


@dataclass(frozen=True, slots=True)
class Create:
    """Send the request without its content. It makes an upload that is filled later."""


@dataclass(frozen=True, slots=True)
class Discover:
    """``OPTIONS`` on the request's URL: what does the server speak?"""


@dataclass(frozen=True, slots=True)
class Confirm:
    """``HEAD`` on the request's URL: is the content of a plain PUT there?"""


@dataclass(frozen=True, slots=True)
class Contrast:
    """``HEAD`` on an unused name in the same folder as the request's URL.

    A server says that nothing is there. A network answers as for any other name.
    """


@dataclass(frozen=True, slots=True)
class AskOffset:
    """``HEAD`` *url* (R12)."""

    url: Url


@dataclass(frozen=True, slots=True)
class Append:
    """``PATCH`` *url* with the content of *range* (R15).

    *completes* says that the content ends with it. *declares* says that the server does
    not know the length yet.
    """

    url: Url
    range: ContentRange
    completes: bool = True
    declares: bool = False


@dataclass(frozen=True, slots=True)
class Gather:
    """Wait until *size* bytes from *offset* on, or all that will come, can be appended."""

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

    *final* is the response whose content this completes.
    """

    url: Url
    start: int
    if_range: str | None
    final: Answer | None = field(default=None, compare=False)


@dataclass(frozen=True, slots=True)
class Finish:
    """*answer* is the final response, and its content is whole.

    With *bare* the answer has no content. It is an answer about the upload, because the
    final response cannot be had.
    """

    answer: Answer
    bare: bool = False


WireAction = (
    Send
    | Create
    | Discover
    | Confirm
    | Contrast
    | AskOffset
    | Append
    | FetchMessage
    | FetchResult
)
"""The actions that an exchange with the server performs."""

Action = WireAction | Gather | Finish


@dataclass(frozen=True, slots=True)
class Next:
    """Perform *action* after *delay* seconds."""

    action: Action
    delay: float = 0.0


# ----------------------------------------------------------------------- outcomes


@dataclass(frozen=True, slots=True)
class Answer:
    """The head of a final response, direct or from a response message."""

    status: int
    fields: Fields
    copied: frozenset[str] = frozenset()
    """Names of fields with the same value as in the request. They prove nothing."""

    def __str__(self) -> str:
        """Return the answer for error messages: status, redirection and media type."""
        location = self.fields.get("location")
        if 300 <= self.status <= 399 and location is not None:
            return f"{self.status} to {location}"
        media_type = self.fields.get("content-type")
        return f"{self.status}" if media_type is None else f"{self.status} {media_type}"

    @property
    def ok(self) -> bool:
        """Whether the status means success."""
        return 200 <= self.status <= 299

    @property
    def strong_etag(self) -> str | None:
        """The content's strong ETag. A 201's ETag belongs to another resource (R28)."""
        tag = parse_entity_tag(self.fields.get("etag") or "")
        return None if tag is None or tag.weak or self.status == 201 else str(tag)

    @property
    def refuses_incremental(self) -> bool:
        """Whether a proxy refused the request because it buffers (RFC 10036).

        Such a proxy names the reason in ``Proxy-Status`` (RFC 9209).
        """
        return (
            _INCREMENTAL_REFUSED.search(self.fields.get("proxy-status") or "")
            is not None
        )

    def retry_after(self, wall_time: float) -> float | None:
        """Return ``Retry-After`` in seconds (RFC 9110, section 10.2.3)."""
        value = self.fields.get("retry-after")
        if value is None:
            return None
        seconds = count_of(value)
        if seconds is not None:
            return float(seconds)
        date = parse_http_date(value.strip())
        if date is None:
            return None
        # Both dates come from the server's clock, so a wrong clock here does no harm.
        sent = parse_http_date(self.fields.get("date") or "")
        return max(0.0, date - (wall_time if sent is None else sent))


_INCREMENTAL_REFUSED = re.compile(r";\x20*error=incremental_refused(?![a-z0-9_])")


def count_of(value: str | None) -> int | None:
    """Return a field's value as a number; None if it is absent or malformed."""
    try:
        return None if value is None else parse_integer(value)
    except PeerError:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an action ended.

    *answer* is the head of the final response. For ``FetchMessage`` it is the head in
    the message, once it was read. *whole* says that the content after it is complete.
    If it is not, *cause* says why. *state* is that member of a 202's document.
    *vouched* says that an interim response with a mark of the protocol came before the
    answer. *received* is how many bytes of the final response's content have arrived so
    far.
    """

    answer: Answer | None = None
    whole: bool = False
    sent: Sent = Sent.NOTHING
    received: int = 0
    state: str | None = None
    vouched: bool = False
    cause: Exception | None = None
    now: float = 0.0
    """Monotonic seconds, for the retry budget."""
    wall_time: float = 0.0
    """Unix seconds, for dates from the server."""
