"""Actions and their outcomes: the values between ``transfer`` and ``run``.

``transfer`` decides on an :data:`Action`, ``run`` performs it and reports an
:class:`Outcome`.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto

from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.ranges import ContentRange
from trioresume.protocol.urls import Url

__all__ = [
    "Action",
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
