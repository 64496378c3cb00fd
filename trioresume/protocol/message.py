"""``message/http``: writes a recorded response and reads it (RFC 9112, section 10.1).

The record of a response is its end-to-end part. Hop-by-hop fields describe one
connection, which is gone when the message is read. ``Content-Length`` replaces the
content's framing, whatever it was on the wire (R26). The bytes are the same each time,
also the ``Date``, because nothing here depends on the time of the request.

Statement numbers such as R26 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re

import h11

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.fields import TOKEN, header_safe
from trioresume.protocol.heads import (
    Fields,
    end_to_end_fields,
    has_content,
    reason_phrase,
)

__all__ = [
    "MEDIA_TYPE",
    "parse_response_head",
    "serialise_response",
]

MEDIA_TYPE = "message/http"
"""Exactly this, without parameters (R26)."""

_FIELD_NAME = re.compile(TOKEN)
_MAX_HEAD = 64 * 1024


def serialise_response(
    status: int, fields: Fields, body_length: int, *, reason: str | None = None
) -> bytes:
    """Return the head of a response as ``message/http``. *body_length* bytes follow it.

    Raises :class:`CallerError` for an interim status, for content with a status that
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


def parse_response_head(data: bytes) -> tuple[int, Fields, int] | None:
    """Return status, fields and the body's start in *data*; None if the head goes on.

    *data* is the beginning of a ``message/http`` document. Pass no more than its first
    64 KiB, within which a head must end. Raises :class:`PeerError` if it is not the
    beginning of a final response.
    """
    if not data:
        return None  # h11 would take this for the end of the stream
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    # h11 reads a response only after a request. The request's method would decide how
    # the body is framed, but h11 does not read the body here.
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
        ProblemCode.MALFORMED_REQUEST, "the message is not a final response"
    )
