"""Requests that make much work of few bytes, against the real command.

Each attack is sent by a few connections at once, while an innocent client asks for the
offset of an upload of its own and stores small files. In full::

    python -m tests.e2e.many_events

It prints a line for each attack: processor time and the peak of memory of the service,
and the longest wait of an innocent request. ``--attack NAME`` runs one of them.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import h11
import trio

from tests.e2e.command import Service
from tests.e2e.wire import Cut, Wire, request_head

__all__ = ["ATTACKS", "Attack", "Figures", "attack", "bare_h11"]

CONNECTIONS = 4
SIZE = 768 * 1024
"""Bytes that each of the connections sends."""
MOST_SECONDS = 120.0

Fields = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Attack:
    """What each of the hostile connections sends."""

    method: str
    fields: Fields
    body: Callable[[int], bytes] = lambda size: b""
    """Makes content of about so many bytes on the wire."""
    target: str = "/files/"
    on_upload: bool = False
    """Whether it is sent to an upload, which is begun for it."""
    chunked: bool = False
    repeated: bool = False
    """Whether the head is the attack: it is sent over and over, that many bytes in all."""


@dataclass
class Figures:
    """What the service and the innocent client had of it."""

    name: str
    sent: int = 0
    seconds: float = 0.0
    cpu: float = 0.0
    peak: int = 0
    """Bytes of memory beyond those before the attack, at most."""
    waits: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.sent / 1e6:.1f} MB in {self.seconds:.1f} s, "
            f"{self.cpu:.1f} s of CPU, {self.peak / 2**20:+.0f} MiB, longest wait of "
            f"{len(self.waits)} requests {max(self.waits, default=0) * 1000:.0f} ms"
        )


# The content of patches.


def _varint(value: int, width: int) -> bytes:
    exponent = width.bit_length() - 1
    return (exponent << (8 * width - 2) | value).to_bytes(width, "big")


def _binary_head(fields: Fields) -> bytes:
    texts = [text.encode() for line in fields for text in line]
    return b"".join(_varint(len(text), 2) + text for text in texts)


def _one_byte_chunks(width: int) -> Callable[[int], bytes]:
    def body(size: int) -> bytes:
        head = b"\x0a" + _binary_head([("content-range", "bytes 0-/*")]) + b"\0"
        chunk = _varint(1, width) + b"x"
        return head + chunk * (size // len(chunk)) + b"\0"

    return body


def _small_parts(size: int, fields_each: int = 0) -> bytes:
    """Parts of one byte in the binary format, with as many fields as are let through."""
    parts: list[bytes] = []
    total = 0
    while total < size and len(parts) < 1000:
        at = f"bytes {len(parts)}-{len(parts)}/*"
        section = _binary_head([("content-range", at)]) + b"\x01a\x00" * fields_each
        parts.append(b"\x08" + _varint(len(section), 2) + section + b"\x01x")
        total += len(parts[-1])
    return b"".join(parts)


def _indeterminate_fields(size: int) -> bytes:
    parts: list[bytes] = []
    total = 0
    while total < size and len(parts) < 1000:
        at = f"bytes {len(parts)}-{len(parts)}/*"
        section = _binary_head([("content-range", at)]) + b"\x01a\x00" * 99
        parts.append(b"\x0a" + section + b"\0" + b"\x01x\x00")
        total += len(parts[-1])
    return b"".join(parts)


BOUNDARY = "x"


def _multipart(size: int, fields_each: int = 99, padding: int = 0) -> bytes:
    parts: list[bytes] = []
    total = 0
    while total < size and len(parts) < 1000:
        at = len(parts)
        lines = f"Content-Range: bytes {at}-{at}/*\r\n" + "a:\r\n" * fields_each
        head = f"\r\n--{BOUNDARY}{' ' * padding}\r\n{lines}\r\n"
        parts.append(head.encode() + b"x")
        total += len(parts[-1])
    return b"".join(parts) + f"\r\n--{BOUNDARY}--\r\n".encode()


def _line_ends(size: int) -> bytes:
    """Multipart content that is all beginnings of the delimiter."""
    head = f"\r\n--{BOUNDARY}\r\nContent-Range: bytes 0-/*\r\n\r\n".encode()
    return head + b"\r\n--\r\n-" * (size // 7) + f"\r\n--{BOUNDARY}--\r\n".encode()


def _plain(size: int) -> bytes:
    """One byte for each chunk of the transfer coding, which has five more."""
    return b"x" * (size // 6)


def _message(size: int) -> bytes:
    return b"Content-Range: bytes 0-/*\r\n\r\n" + _plain(size)


def chunked(body: bytes, extension: bytes = b"") -> bytes:
    """*body* in chunks of a byte."""
    parts = [b"1%b\r\n%c\r\n" % (extension, byte) for byte in body]
    return b"".join(parts) + b"0\r\n\r\n"


def _list(member: Callable[[int], str], separator: str = ",", most: int = 15000) -> str:
    """A list as long as a head may have one."""
    members: list[str] = []
    total = 0
    while total + len(member(len(members))) + len(separator) < most:
        members.append(member(len(members)))
        total += len(members[-1]) + len(separator)
    return separator.join(members)


_MERGE: Fields = (("Content-Type", "application/byteranges"),)
_PARTS: Fields = (("Content-Type", f"multipart/byteranges; boundary={BOUNDARY}"),)
_TUS: Fields = (("Tus-Resumable", "1.0.0"),)
_SHA = base64.b64encode(hashlib.sha256(b"").digest()).decode()


def _head(*fields: tuple[str, str], method: str = "GET") -> Attack:
    return Attack(method, fields, repeated=True, target="/files/innocent")


ATTACKS: dict[str, Attack] = {
    "byteranges, two-byte lengths": Attack(
        "PATCH", _MERGE, _one_byte_chunks(2), on_upload=True
    ),
    "byteranges, one-byte lengths": Attack(
        "PATCH", _MERGE, _one_byte_chunks(1), on_upload=True
    ),
    "byteranges, eight-byte lengths": Attack(
        "PATCH", _MERGE, _one_byte_chunks(8), on_upload=True
    ),
    "byteranges, atomic": Attack(
        "PATCH",
        (*_MERGE, ("Prefer", "transaction=atomic")),
        _one_byte_chunks(2),
        on_upload=True,
    ),
    "byteranges, fields": Attack(
        "PATCH", _MERGE, lambda size: _small_parts(size, 99), on_upload=True
    ),
    "byteranges, fields of unknown length": Attack(
        "PATCH", _MERGE, _indeterminate_fields, on_upload=True
    ),
    "byteranges, parts": Attack("PATCH", _MERGE, _small_parts, on_upload=True),
    "byteranges in chunks": Attack(
        "PATCH",
        _MERGE,
        lambda size: _one_byte_chunks(2)(size // 6),
        on_upload=True,
        chunked=True,
    ),
    "multipart, fields": Attack("PATCH", _PARTS, _multipart, on_upload=True),
    "multipart, padding": Attack(
        "PATCH", _PARTS, lambda size: _multipart(size, 0, 120), on_upload=True
    ),
    "multipart, line ends": Attack("PATCH", _PARTS, _line_ends, on_upload=True),
    "chunks of a byte": Attack("POST", (), _plain, chunked=True),
    "message/byterange in chunks": Attack(
        "PATCH",
        (("Content-Type", "message/byterange"),),
        _message,
        on_upload=True,
        chunked=True,
    ),
    "tus, chunks, checksum": Attack(
        "POST",
        (
            *_TUS,
            ("Upload-Length", str(SIZE // 6)),
            ("Trailer", "Upload-Checksum"),
            ("Content-Type", "application/offset+octet-stream"),
        ),
        _plain,
        chunked=True,
    ),
    "Prefer": _head(("Prefer", _list(lambda n: f"a{n}"))),
    "Range": _head(("Range", "bytes=" + _list(lambda n: f"{n}-"))),
    "If-None-Match": _head(("If-None-Match", _list(lambda n: '""'))),
    "If-Match": _head(("If-Match", _list(lambda n: '""'))),
    "Expect": _head(("Expect", _list(lambda n: "100-continue"))),
    "Connection": _head(("Connection", _list(lambda n: "a"))),
    "Forwarded": _head(("Forwarded", _list(lambda n: f"a{n}=b", ";"))),
    "Repr-Digest": _head(
        ("Repr-Digest", _list(lambda n: f"a{n}=:aa==:")),
        ("Want-Repr-Digest", "sha-256=1"),
        method="POST",
    ),
    "Upload-Metadata": _head(
        *_TUS,
        ("Upload-Length", "0"),
        ("Upload-Metadata", _list(lambda n: f"{n:x}")),
        method="POST",
    ),
    "Upload-Concat": _head(
        *_TUS, ("Upload-Concat", "final;" + _list(lambda n: "a", " ")), method="POST"
    ),
    "fields": _head(*((f"a{n}", "") for n in range(90))),
}


class _Innocent:
    """Asks for an offset and stores small files, over and over."""

    def __init__(self, service: Service, figures: Figures) -> None:
        self._address = service.address
        self._figures = figures

    async def run(self, task_status: trio.TaskStatus[None]) -> None:
        with await Wire.connect(self._address) as wire:
            length = ("Content-Length", "4")
            await wire.send(request_head("PUT", "/files/innocent", [length]) + b"good")
            assert (await wire.answer("PUT")).status == 201
            task_status.started()
            while True:
                await self._timed(wire, "HEAD", "/files/innocent")
                await self._timed(wire, "PUT", "/files/innocent", b"good")
                await trio.sleep(0.01)

    async def _timed(
        self, wire: Wire, method: str, target: str, body: bytes = b""
    ) -> None:
        began = time.perf_counter()
        try:
            length = [("Content-Length", str(len(body)))]
            await wire.send(request_head(method, target, length) + body)
            answer = await wire.answer(method)
        finally:
            self._figures.waits.append(time.perf_counter() - began)
        assert answer.status in (200, 201, 204), answer


async def attack(service: Service, name: str, size: int = SIZE) -> Figures:
    """Run one attack against a service that was just started."""
    figures = Figures(name)
    what = ATTACKS[name]
    async with trio.open_nursery() as nursery:
        await nursery.start(_Innocent(service, figures).run)
        prepared = [await _prepare(service, what, size) for _ in range(CONNECTIONS)]
        resident = service.resident()
        cpu, began = service.cpu_seconds(), time.perf_counter()
        figures.waits.clear()
        with trio.move_on_after(MOST_SECONDS):
            async with trio.open_nursery() as hostile:
                for data in prepared:
                    figures.sent += len(data)
                    hostile.start_soon(_send, service, data)
        figures.seconds = time.perf_counter() - began
        figures.cpu = service.cpu_seconds() - cpu
        figures.peak = service.peak() - resident
        nursery.cancel_scope.cancel()
    return figures


def bare_h11() -> float:
    """Seconds of processor time that h11 alone takes for an attack's bytes in tiny chunks.

    It is worked out from a sample, and says how fast this machine is now.
    """
    sample, pieces = b"1\r\nx\r\n" * 1024, 12
    connection = h11.Connection(h11.SERVER)
    began = time.thread_time()
    connection.receive_data(
        request_head("POST", "/", [("Transfer-Encoding", "chunked")])
    )
    for _ in range(pieces):
        connection.receive_data(sample)
        while connection.next_event() is not h11.NEED_DATA:
            pass
    taken = time.thread_time() - began
    return taken * CONNECTIONS * SIZE / (pieces * len(sample))


async def _prepare(service: Service, what: Attack, size: int) -> bytes:
    """Every byte that one of the connections sends."""
    body = what.body(size)
    framing = ("Content-Length", str(len(body)))
    if what.chunked:
        body = chunked(body)
        framing = ("Transfer-Encoding", "chunked")
    target = what.target
    if what.on_upload:
        with await Wire.connect(service.address) as wire:
            begin = [("Upload-Complete", "?0"), ("Content-Length", "0")]
            await wire.send(request_head("POST", "/files/", begin))
            target = (await wire.answer("POST")).fields["location"]
            target = target[target.index("/operations/") :]
    data = request_head(what.method, target, [*what.fields, framing]) + body
    if not what.repeated:
        return data
    # Each is another one, so that no cache helps.
    mark = f"\r\n{what.fields[-1][0]}: "
    return b"".join(
        data.replace(mark.encode(), f"{mark}z{number} 1,".encode())
        for number in range(max(1, size // len(data)))
    )


async def _send(service: Service, data: bytes) -> None:
    try:
        with await Wire.connect(service.address) as wire:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_drop_answers, wire)
                await wire.send(data)
                await wire.send_eof()
    except* Cut:
        pass  # refused


async def _drop_answers(wire: Wire) -> None:
    while await wire.drop():
        pass


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--attack", choices=ATTACKS, action="append")
    parser.add_argument("--size", type=int, default=SIZE)
    options = parser.parse_args()
    for name in options.attack or ATTACKS:
        with tempfile.TemporaryDirectory(prefix="trioresume-events-") as directory:
            service = Service(Path(directory) / "data")
            service.start()
            try:
                print(trio.run(attack, service, name, options.size), flush=True)  # noqa: T201
            finally:
                service.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
