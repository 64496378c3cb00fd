"""The client's side of a dialect: its interface, and the values that it reads and returns.

Statement numbers such as R1 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.fields import (
    maybe_integer,
    parse_entity_tag,
    parse_http_date,
)
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.protocol.ranges import ContentRange
    from trioresume.protocol.urls import Url

__all__ = ["Answer", "AppendRequest", "ClientDialect", "Locations"]


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
        seconds = maybe_integer(value)
        if seconds is not None:
            return float(seconds)
        date = parse_http_date(value.strip())
        if date is None:
            return None
        # Both dates come from the server's clock, so a wrong clock here does no harm.
        sent = parse_http_date(self.fields.get("date") or "")
        return max(0.0, date - (wall_time if sent is None else sent))


_INCREMENTAL_REFUSED = re.compile(r";\x20*error=incremental_refused(?![a-z0-9_])")


@dataclass(frozen=True, slots=True)
class Locations:
    """The resources of an operation (R1); None if one was not offered."""

    content: Url | None = None
    """``Request-Content-Location``: says how much arrived, and takes the rest."""
    message: Url | None = None
    """``Response-Message-Location``: repeats the final response."""
    result: Url | None = None
    """``Content-Location``: the content of the final response, for Range requests."""


@dataclass(frozen=True, slots=True)
class AppendRequest:
    """The dialect's part of an append: *fields*, and a *prefix* of the content."""

    fields: Fields
    prefix: bytes = b""


class ClientDialect(ABC):
    """One protocol, or one version of it. The package's docstring explains it."""

    name: str
    """The protocol and its version, as the journal stores them."""
    careful: bool = False
    """Whether a request without content makes the upload, and the content follows."""
    acknowledges: ClassVar[bool] = False
    """Whether every server of the protocol acknowledges content during a request."""
    tells_processing: ClassVar[bool] = False
    """Whether a server of the protocol may tell how far the processing is (B10)."""
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
    ) -> AppendRequest:
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
        return maybe_integer(fields.get("upload-offset"))

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
