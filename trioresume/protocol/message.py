"""``message/http``: a recorded response as bytes, and read back (RFC 9112, section 10.1).

What is recorded of a response is its end-to-end part. Hop-by-hop fields describe
one connection, which is gone by the time the message is read; the content's framing
is rewritten as ``Content-Length``, whatever it was on the wire (R26). The same
bytes come out each time, the ``Date`` included, because nothing here depends on
when it is asked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus

import h11

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.fields import TOKEN, header_safe, split_list
from trioresume.protocol.heads import Fields

__all__ = [
    "MEDIA_TYPE",
    "ResponseMessage",
    "end_to_end_fields",
    "has_content",
    "parse_response_head",
    "serialise_response",
]

MEDIA_TYPE = "message/http"
"""Exactly this, without parameters (R26)."""

UPLOAD_RESUMPTION_SUPPORTED = 104
"""An interim status of Resumable Uploads for HTTP, in drafts since 2022."""

_UNREGISTERED = {
    UPLOAD_RESUMPTION_SUPPORTED: "Upload Resumption Supported",
    460: "Checksum Mismatch",  # tus 1.0.0, checksum extension
}

# RFC 9110, section 7.6.1, and those that only ever meant one connection.
_HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)
_FIELD_NAME = re.compile(TOKEN)
_MAX_HEAD = 64 * 1024


def has_content(status: int) -> bool:
    """Whether a final response of this status has content (RFC 9112, section 6.3)."""
    return status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def end_to_end_fields(fields: Fields) -> Fields:
    """*fields* without the hop-by-hop ones and those that ``Connection`` names."""
    named = split_list(fields.get("connection") or "")
    return fields.without(*_HOP_BY_HOP, *named)


def reason_phrase(status: int) -> str:
    """The usual words for *status*; empty for one that is not registered."""
    if status in _UNREGISTERED:
        return _UNREGISTERED[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def serialise_response(
    status: int, fields: Fields, body_length: int, *, reason: str | None = None
) -> bytes:
    """The head of a response as ``message/http``; its *body_length* bytes follow.

    Raises :class:`CallerError` for an interim status, for content where the status
    has none, and for a field that would not stay on its line (G4).
    """
    if not 200 <= status <= 599:
        raise CallerError(f"{status} is not the status of a final response")
    if body_length and not has_content(status):
        raise CallerError(f"a response with status {status} has no content")
    kept = end_to_end_fields(fields).without("content-length")
    if has_content(status):
        kept = kept.plus({"content-length": str(body_length)})
    for name, value in kept:
        if _FIELD_NAME.fullmatch(name) is None or not header_safe(value):
            raise CallerError(f"the field {name!r} cannot be sent")
    phrase = reason_phrase(status) if reason is None else reason
    if not header_safe(phrase):
        raise CallerError("the reason phrase cannot be sent")
    lines = [f"HTTP/1.1 {status} {phrase}".encode("latin-1")]
    lines += [name + b": " + value for name, value in kept.to_wire()]
    return b"\r\n".join((*lines, b"", b""))


@dataclass(frozen=True)
class ResponseMessage:
    """A recorded response as one resource of bytes: its head, then its body."""

    status: int
    fields: Fields
    body_length: int
    reason: str | None = None

    @cached_property
    def head(self) -> bytes:
        """See :func:`serialise_response`."""
        return serialise_response(
            self.status, self.fields, self.body_length, reason=self.reason
        )

    @property
    def length(self) -> int:
        """Bytes of the whole message."""
        return len(self.head) + self.body_length


def parse_response_head(data: bytes) -> tuple[int, Fields, int] | None:
    """Status, fields and where the body begins in *data*; None if the head goes on.

    *data* is the beginning of a ``message/http`` document; pass no more than its
    first 64 KiB, within which a head must end. Raises :class:`PeerError` when it
    is not that of a final response.
    """
    if not data:
        return None  # which h11 would take for the end of the stream
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    # h11 reads a response only after a request was sent. Which one decides how it
    # would frame the body; that is not asked of it.
    connection.send(h11.Request(method="GET", target="/", headers=[("Host", "-")]))
    try:
        connection.receive_data(data)
        event = connection.next_event()
    except h11.RemoteProtocolError as error:
        raise _not_a_response() from error
    if event is h11.NEED_DATA and len(data) < _MAX_HEAD:
        return None
    if not isinstance(event, h11.Response):
        raise _not_a_response()
    unread, _ = connection.trailing_data
    fields = Fields.from_wire(event.headers)
    return event.status_code, fields, len(data) - len(unread)


def _not_a_response() -> PeerError:
    return PeerError(
        ProblemCode.MALFORMED_REQUEST, "the message is not a final response's"
    )
