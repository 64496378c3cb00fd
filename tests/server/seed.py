"""The seed protocol for tests: an upload that is cut, and patches in each media type."""

from __future__ import annotations

import trio.testing

from tests.server.harness import BYTERANGE, MemoryService, byterange

BODY = bytes(range(256)) * 2


async def cut_upload(
    service: MemoryService, body: bytes, sent: int, *, prefer: str = "resume"
) -> str:
    """Start an upload of *body*, cut it after *sent* bytes; where its content is."""
    client = service.connect()
    interim = await client.start(len(body), body[:sent], prefer=prefer)
    await trio.testing.wait_all_tasks_blocked()
    await client.aclose()
    await trio.testing.wait_all_tasks_blocked()
    location = interim.fields.get("request-content-location")
    assert location is not None
    return location


def _application_byteranges(first: int, body: bytes, total: int) -> bytes:
    """``application/byteranges`` with one part of known length (B12)."""
    name, value = (
        b"content-range",
        b"bytes %d-%d/%d"
        % (
            first,
            first + len(body) - 1,
            total,
        ),
    )
    line = bytes([len(name)]) + name + bytes([len(value)]) + value
    length = (0x4000 | len(body)).to_bytes(2, "big")
    return b"\x08" + bytes([len(line)]) + line + length + body


def multipart(first: int, *bodies: bytes, total: int) -> bytes:
    """``multipart/byteranges`` whose parts follow each other from *first* on."""
    parts = []
    for body in bodies:
        parts.append(b"--sep\r\n" + byterange(first, body, total) + b"\r\n")
        first += len(body)
    return b"".join(parts) + b"--sep--\r\n"


MULTIPART = {"Content-Type": "multipart/byteranges; boundary=sep"}


def patches(first: int, body: bytes, total: int) -> list[tuple[dict[str, str], bytes]]:
    """A patch in each media type that R15 names."""
    middle = len(body) // 2
    return [
        (BYTERANGE, byterange(first, body, total)),
        (MULTIPART, multipart(first, body[:middle], body[middle:], total=total)),
        (
            {"Content-Type": "application/byteranges"},
            _application_byteranges(first, body, total),
        ),
        (
            {
                "Content-Type": "application/partial-upload",
                "Upload-Offset": str(first),
                "Upload-Complete": "?1",
            },
            body,
        ),
        (
            {
                "Content-Type": "application/offset+octet-stream",
                "Upload-Offset": str(first),
            },
            body,
        ),
    ]
