"""Peers that send a byte now and then, and never content: none holds on (G5).

Only bytes of content are progress; what frames them is not. And the deadline of each
connection holds however many there are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import cycle, repeat
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.server.harness import (
    Client,
    Recorder,
    head,
    memory_service,
    socket_service,
)
from tests.server.http.test_many_events import Taking
from trioresume import Config
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.server.async_store.receive_memory import ReceiveMemory
from trioresume.server.http.exchange import ContentCut
from trioresume.server.http.http1.body import Http1Body
from trioresume.testing import memory_transport_pair

Clock = trio.testing.MockClock

TIMEOUT = 60.0
EVERY = 2.0
"""Seconds between two bytes."""
MANY = b"x" * 1000


@dataclass(frozen=True)
class Trickle:
    """What is sent at once, and what follows byte by byte."""

    start: bytes
    rest: bytes
    fields: Mapping[str, str] | None = None
    """Of a PATCH; None: of a new upload."""
    chunked: bool = False


_MULTIPART = {"Content-Type": "multipart/byteranges; boundary=SEP"}
_BINARY = {"Content-Type": "application/byteranges"}
_MESSAGE = {"Content-Type": "message/byterange"}
_PART = b"\r\n--SEP\r\nContent-Range: bytes 0-3/100000\r\n\r\n"

TRICKLES = {
    "extensions": Trickle(b"1;", MANY, chunked=True),
    "more extensions": Trickle(b"4\r\nabcd\r\n5;a=", MANY, chunked=True),
    "spaces before extensions": Trickle(b"1", b" " * 1000, chunked=True),
    "chunk sizes": Trickle(b"", b"0" * 14 + b"1" * 100, chunked=True),
    "trailers": Trickle(b"1\r\nx\r\n0\r\nA: ", MANY, chunked=True),
    "many trailers": Trickle(b"1\r\nx\r\n0\r\n", b"A: b\r\n" * 90, chunked=True),
    "multipart preamble": Trickle(b"", b"\r\n" * 4 + b"-" * 9, _MULTIPART),
    "multipart padding": Trickle(b"\r\n--SEP", b" " * 120, _MULTIPART),
    "padding of the second part": Trickle(
        _PART + b"abcd\r\n--SEP", b" " * 120, _MULTIPART
    ),
    "epilogue": Trickle(_PART + b"abcd\r\n--SEP--", b" " * 120, _MULTIPART),
    "part heads": Trickle(b"\r\n--SEP\r\nA: ", MANY, _MULTIPART),
    "many part fields": Trickle(b"\r\n--SEP\r\n", b"a: b\r\n" * 90, _MULTIPART),
    "message head": Trickle(b"A: ", MANY, _MESSAGE),
    "message fields": Trickle(b"", b"a: b\r\n" * 90, _MESSAGE),
    "binary fields": Trickle(b"\x0a", b"\x01a\x01b" * 90, _BINARY),
    "binary field section": Trickle(b"\x08\x50\x00", b"\x01a\x01b" * 90, _BINARY),
    "binary field value": Trickle(b"\x0a\x01a\x50\x00", MANY, _BINARY),
    "message head in chunks": Trickle(
        b"", b"".join(b"1\r\nx\r\n" for _ in MANY), _MESSAGE, chunked=True
    ),
}


REFUSED = {"multipart preamble"}


async def _begin(client: Client, location: str, trickle: Trickle) -> None:
    fields = dict(trickle.fields or {})
    if trickle.chunked:
        fields["Transfer-Encoding"] = "chunked"
    method, target = ("POST", "/") if trickle.fields is None else ("PATCH", location)
    length = None if trickle.chunked else 100_000
    await client.send(head(method, target, fields, length=length) + trickle.start)


@pytest.mark.parametrize("rate", [256, 0])
@pytest.mark.parametrize("kind", TRICKLES)
async def test_framing_is_no_progress(
    kind: str, rate: int, autojump_clock: Clock
) -> None:
    """Whatever trickles in beside content, the request is cut after one idle timeout."""
    trickle = TRICKLES[kind]
    config = Config(body_timeout=TIMEOUT, min_body_rate=rate)
    async with memory_service(Recorder(), config) as service:
        interim = await service.connect().start(100_000)
        location = interim.fields.get("request-content-location") or ""
        client = service.connect()
        started = trio.current_time()
        await _begin(client, location, trickle)

        async def send() -> None:
            try:
                for byte in cycle(trickle.rest):
                    await trio.sleep(EVERY)
                    await client.send(bytes([byte]))
            except trio.BrokenResourceError:
                pass  # cut

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            reply = await client.reply()
            nursery.cancel_scope.cancel()
        # Some formats have no room for so much, and say so before.
        assert reply.status == (400 if kind in REFUSED else 408), reply
        assert trio.current_time() - started <= TIMEOUT * 1.05


@pytest.mark.parametrize("length", [1000, None])
async def test_waiting_for_memory_does_not_begin_the_time_anew(
    length: int | None, autojump_clock: Clock
) -> None:
    """It stands still: with many connections there always is a wait for memory."""
    memory = ReceiveMemory(1)
    ours, theirs = memory_transport_pair()
    head = RequestHead(
        method="POST", target="/", fields=Fields(), http_version="1.1", length=length
    )
    config = Config(body_timeout=TIMEOUT, min_body_rate=256)
    body = Http1Body(head, ours, bytearray(), memory, config)

    async def trickle() -> None:
        for byte in b"1;" + MANY if length is None else MANY:
            await theirs.send_all(bytes([byte]))
            await trio.sleep(EVERY)

    async def keep_memory_busy() -> None:
        """Somebody else has all of it, and gives it to whoever is next in line."""
        while True:
            held = await memory.take()
            await trio.sleep(EVERY / 4)
            held.release()
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(memory.watch.run)
        nursery.start_soon(trickle)
        nursery.start_soon(keep_memory_busy)
        with pytest.raises(ContentCut) as caught, trio.fail_after(4 * TIMEOUT):
            await body.receive(Taking())
        nursery.cancel_scope.cancel()
    assert caught.value.timed_out
    # It waited for memory for a part of the time, and that is given back.
    assert trio.current_time() <= TIMEOUT * 2


async def test_deadline_holds_for_each_of_many(tmp_path: Path) -> None:
    """Known length and endless extensions in turn, on sockets and with threads."""
    count, timeout = 60, 1.0
    starts = [
        (head("POST", "/", length=100_000), b"x"),
        (head("POST", "/", {"Transfer-Encoding": "chunked"}) + b"1;", b"a"),
    ]
    ended: list[float] = []

    async def trickle(number: int) -> None:
        start, rest = starts[number % 2]
        async with service.connect() as client:
            began = trio.current_time()
            with trio.move_on_after(6 * timeout):
                try:
                    await client.send(start)
                    for byte in repeat(rest):
                        await trio.sleep(0.3)
                        await client.send(byte)
                except trio.BrokenResourceError:
                    ended.append(trio.current_time() - began)

    async with socket_service(
        Recorder(), tmp_path, body_timeout=timeout, drain_timeout=0.2
    ) as service:
        async with trio.open_nursery() as nursery:
            for number in range(count):
                nursery.start_soon(trickle, number)
    assert len(ended) == count
