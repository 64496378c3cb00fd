"""Serve stored bytes: check preconditions, choose ranges, send the bytes.

The same code serves four kinds of content: a request's content, a recorded response message,
a result, and a file of the file service.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.conditional import Outcome, evaluate, range_applies
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.ranges import ByteRange, multipart_ranges, parse_range
from trioresume.server.http.stored_body import StoredBody, StoredPart

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.http.exchange import Exchange
    from trioresume.store.port import ContentReader, FileExtent

__all__ = ["SANDBOX", "PrefixedReader", "Served", "serve_bytes"]

# G14 (docs/supported-protocols.md): an uploaded file must not act in another user's browser.
SANDBOX = {
    "x-content-type-options": "nosniff",
    "content-security-policy": "sandbox; default-src 'none'",
}


class PrefixedReader:
    """Some bytes in memory followed by stored content, read as one content."""

    def __init__(self, prefix: bytes, rest: ContentReader) -> None:
        self._prefix = prefix
        self._rest = rest
        self.length = len(prefix) + rest.length

    def read(self, offset: int, size: int) -> bytes:
        if offset < len(self._prefix):
            return self._prefix[offset : offset + size]
        return self._rest.read(offset - len(self._prefix), size)

    def extent(self, offset: int, size: int) -> FileExtent | None:
        if offset < len(self._prefix):
            return None
        return self._rest.extent(offset - len(self._prefix), size)

    def close(self) -> None:
        self._rest.close()


@dataclass(frozen=True, slots=True)
class Served:
    """A representation to be served: its fields, its validators, its bytes.

    ``etag`` is strong, with its quotes; ``last_modified`` is in Unix seconds.
    """

    fields: Fields
    reader: ContentReader
    etag: str
    last_modified: float | None = None


async def serve_bytes(
    exchange: Exchange, storage: Storage, served: Served, *, max_ranges: int
) -> None:
    """Answer a GET or HEAD for *served*, and close it.

    The status is 200, 206 (one range or ``multipart/byteranges``), 304, 412 or 416, after
    RFC 9110, sections 13.2.2 and 14. HEAD has no ranges (section 14.2).
    """
    try:
        await _serve(exchange, storage, served, max_ranges)
    finally:
        served.reader.close()


async def _serve(
    exchange: Exchange, storage: Storage, served: Served, max_ranges: int
) -> None:
    head, reader = exchange.head, served.reader
    validators = {"etag": served.etag, "accept-ranges": "bytes"}
    if served.last_modified is not None:
        validators["last-modified"] = format_http_date(int(served.last_modified))
    outcome = evaluate(
        head.method, head.fields, etag=served.etag, last_modified=served.last_modified
    )
    if outcome is Outcome.FAILED:
        raise PeerError(ProblemCode.PRECONDITION_FAILED)
    fields = served.fields.without(*validators).plus(validators)
    if outcome is Outcome.NOT_MODIFIED:
        await exchange.respond(304, fields.without("content-type", "content-length"))
        return
    ranges = None
    if head.method == "GET" and range_applies(head.fields, etag=served.etag):
        ranges = parse_range(
            head.fields.get("range"), reader.length, max_ranges=max_ranges
        )
    if ranges is None:
        fields = fields.without("content-length").plus(
            {"content-length": str(reader.length)}
        )
        body = StoredBody(storage, StoredPart(reader, 0, reader.length))
        await exchange.respond(200, fields, body)
    elif len(ranges) == 1:
        await _serve_one_range(exchange, storage, reader, fields, ranges[0])
    else:
        await _serve_ranges(exchange, storage, reader, fields, ranges)


async def _serve_one_range(
    exchange: Exchange,
    storage: Storage,
    reader: ContentReader,
    fields: Fields,
    range_: ByteRange,
) -> None:
    fields = fields.without("content-length").plus(
        {
            "content-length": str(range_.length),
            "content-range": f"bytes {range_.first}-{range_.last}/{reader.length}",
        }
    )
    part = StoredPart(reader, range_.first, range_.last + 1)
    await exchange.respond(206, fields, StoredBody(storage, part))


async def _serve_ranges(
    exchange: Exchange,
    storage: Storage,
    reader: ContentReader,
    fields: Fields,
    ranges: list[ByteRange],
) -> None:
    framing = multipart_ranges(
        ranges, reader.length, fields.get("content-type"), secrets.token_hex(16)
    )
    pieces: list[bytes | StoredPart] = []
    for part_head, range_ in framing.parts:
        pieces += [part_head, StoredPart(reader, range_.first, range_.last + 1)]
    fields = fields.without("content-length", "content-type").plus(
        {"content-length": str(framing.length), "content-type": framing.content_type}
    )
    body = StoredBody(storage, *pieces, framing.closing)
    await exchange.respond(206, fields, body)
