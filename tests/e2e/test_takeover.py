"""The newest writer wins at once, though the old one is silent and open (R21)."""

from __future__ import annotations

import random
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from tests.e2e.carriers import CARRIERS, HTTP1, Carrier
from tests.e2e.command import Service
from tests.e2e.wire import Cut, Wire, ask, request_head
from tests.stopwatch import Stopwatch

OTHERS = 50
TAKEOVERS = 20
MOST_SECONDS = 0.050
SIZE = 1_000_000
RESUMING = (("Expect", "100-continue"), ("Prefer", "resume"))


async def start(
    service: Service, target: str, length: int, carrier: Carrier = HTTP1
) -> tuple[Wire, str]:
    """A connection that was asked for its content, and where that is."""
    wire = await Wire.connect(service.address, carrier)
    fields = [*RESUMING, ("Content-Length", str(length))]
    await wire.send(request_head("PUT", target, fields))
    head = await wire.next_head()
    assert head.status == 100
    return wire, head.fields["request-content-location"]


@asynccontextmanager
async def others(service: Service) -> AsyncIterator[None]:
    """Fifty uploads that go on while the block runs, some 25 MB a second in all."""

    async def upload(number: int) -> None:
        wire, _ = await start(service, f"/files/other-{number}", 1 << 40)
        block = random.Random(number).randbytes(50_000)
        with wire:
            while True:
                await wire.send(block)
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        for number in range(OTHERS):
            nursery.start_soon(upload, number)
        await trio.sleep(0.3)
        yield
        nursery.cancel_scope.cancel()


@pytest.mark.alone
async def test_takeover_of_a_silent_writer_takes_less_than_50_ms(
    service: Service,
) -> None:
    """R21: median of twenty, from the request to the old writer's end and the offset.

    The best of up to three: what else the machine does is not the service's doing.
    """
    medians: list[float] = []
    while len(medians) < 3 and min(medians, default=1) >= MOST_SECONDS:
        seconds = await _takeovers(service, first=len(medians) * TAKEOVERS)
        print(f"median {statistics.median(seconds):.4f} s, max {max(seconds):.4f} s")  # noqa: T201
        medians.append(statistics.median(seconds))
    assert min(medians) < MOST_SECONDS


async def _takeovers(service: Service, first: int) -> list[float]:
    seconds = []
    watch = Stopwatch(service.pid)
    async with others(service):
        for number in range(first, first + TAKEOVERS):
            content = random.Random(number).randbytes(SIZE)
            silent, place = await start(service, f"/files/{number}", SIZE)
            newcomer = await Wire.connect(service.address)
            await silent.send(content[: SIZE // 2])
            await silent.until_read()
            watch.start()
            answer = await newcomer.ask("HEAD", place)
            seconds.append(watch.seconds())
            # What was still on its way to the server when it was asked does not count.
            assert 0 < int(answer.fields["upload-offset"]) <= SIZE // 2
            silent.reset()
            newcomer.close()
    return seconds


async def test_a_superseded_writer_writes_nothing_more(service: Service) -> None:
    """R21: what the old connection sends afterwards is never written, and it is told so."""
    content = random.Random(1).randbytes(SIZE)
    old, place = await start(service, "/files/x", SIZE)
    await old.send(content[:1000])
    new = await Wire.connect(service.address)
    while (await new.ask("HEAD", place)).fields["upload-offset"] != "1000":
        # A HEAD that was faster than the bytes has ended their writer; begin again.
        old.reset()
        old, place = await start(service, "/files/x", SIZE)
        await old.send(content[:1000])
        await old.until_read()
    told = await old.answer("PUT")
    assert told.status == 409
    await old.send(b"\0" * 1000)
    assert (await new.ask("HEAD", place)).fields["upload-offset"] == "1000"

    part = f"Content-Range: bytes 1000-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
    length = len(part) + SIZE - 1000
    fields = [("Content-Type", "message/byterange"), ("Content-Length", str(length))]
    await new.send(request_head("PATCH", place, fields) + part + content[1000:])
    assert (await new.answer("PATCH")).status == 201
    assert (await new.ask("GET", "/files/x")).body == content
    old.close()
    new.close()


async def test_of_many_patches_at_one_offset_one_succeeds(service: Service) -> None:
    """G10: they arrive at once; the content is one of them, whole, and not a mixture."""
    first, place = await start(service, "/files/x", SIZE)
    first.close()
    contents = [bytes([number]) * SIZE for number in range(8)]
    part = f"Content-Range: bytes 0-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
    length = ("Content-Length", str(len(part) + SIZE))
    head = request_head("PATCH", place, [("Content-Type", "message/byterange"), length])
    statuses = []

    async def patch(content: bytes) -> None:
        wire = await Wire.connect(service.address)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_send_until_refused, wire, head + part + content)
            statuses.append((await wire.answer("PATCH")).status)
            nursery.cancel_scope.cancel()
        wire.close()

    async with trio.open_nursery() as nursery:
        for content in contents:
            nursery.start_soon(patch, content)
    assert statuses.count(201) <= 1
    assert set(statuses) <= {201, 409}
    asking = await Wire.connect(service.address)
    offset = int((await asking.ask("HEAD", place)).fields["upload-offset"])
    stored = (await asking.ask("GET", place)).body
    assert stored in [content[:offset] for content in contents]
    asking.close()


async def _send_until_refused(wire: Wire, data: bytes) -> None:
    try:
        await wire.send(data)
    except Cut:
        pass  # refused in the middle; its answer says why


UPLOADS = 6


@pytest.mark.parametrize("carrier", CARRIERS, ids=str)
async def test_many_takeovers_lose_and_mix_nothing(
    carrier: Carrier,
    make_service: Callable[..., Service],
    tmp_path: Path,
    seed: int,
    full: bool,
) -> None:
    """R21, G9: old writers stay connected and go on with bytes that must never count."""
    service = make_service(*carrier.options(tmp_path))
    service.start()
    most = 200 if full else 12
    async with trio.open_nursery() as nursery:
        for number in range(UPLOADS):
            draw = random.Random(f"{seed}/{number}")
            nursery.start_soon(_take_over_often, service, number, draw, carrier, most)
    service.stop()
    assert service.unfinished() == []


async def _take_over_often(
    service: Service, number: int, draw: random.Random, carrier: Carrier, most: int
) -> None:
    content = draw.randbytes(SIZE)
    announced, asked = 0, SIZE
    old, place = await start(service, f"/files/{number}", SIZE, carrier)
    end = draw.randint(0, SIZE // most)
    await old.send(content[:end])
    sent = end
    wires = [old]
    async with trio.open_nursery() as nursery:
        for turn in range(most):
            # Twice or so it comes while the content is on its way, and not after it.
            if draw.random() < 0.8:
                await trio.sleep(draw.uniform(0, 0.03))
            new = await Wire.connect(service.address, carrier)
            answer = await new.ask("HEAD", place)
            offset = int(answer.fields["upload-offset"])
            assert announced <= offset <= sent
            announced = offset
            late = b"\0" * min(50_000, asked - end)
            nursery.start_soon(_send_until_refused, old, late)
            asked = end = SIZE
            if turn < most - 1:
                end = min(SIZE - 1, offset + draw.randint(1, 2 * SIZE // most))
            part = f"Content-Range: bytes {offset}-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
            length = ("Content-Length", str(len(part) + SIZE - offset))
            fields = [("Content-Type", "message/byterange"), length]
            head = request_head("PATCH", place, fields)
            await new.send(head + part + content[offset:end])
            sent = max(sent, end)
            wires.append(new)
            old = new
        assert (await old.answer("PATCH")).status == 201
        nursery.cancel_scope.cancel()
    for wire in wires:
        wire.close()
    file = await ask(service.address, "GET", f"/files/{number}", carrier=carrier)
    assert file.body == content
