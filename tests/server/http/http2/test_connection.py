"""A connection of HTTP/2 to a service in memory: requests, answers, cuts, takeovers, bounds."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from hyperframe.frame import DataFrame, HeadersFrame

from tests.server.harness import MemoryService, Recorder, memory_service
from tests.server.http2_client import Answer, Peer
from trioresume import Config, Principal, Request, Response
from trioresume.protocol.heads import RequestHead
from trioresume.testing import MemoryTransport
from trioresume.testing.memory_store import MemoryStore

PREFER = {"prefer": "resume"}


@asynccontextmanager
async def peer_of(service: MemoryService) -> AsyncIterator[Peer]:
    """A peer with a new connection, started."""
    peer = Peer(service.transports()[1])
    await peer.start()
    try:
        yield peer
    finally:
        await peer.wire.aclose()


async def test_upload_is_answered(autojump_clock: trio.testing.MockClock) -> None:
    """A request with content gets the target's response."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(length=200_000)
        await peer.content(stream, b"x" * 200_000, ends=True)
        answer = await peer.answer(stream)
    assert answer.status == 200
    assert bytes(answer.body) == b"got 200000 bytes"
    assert handler.bodies == [b"x" * 200_000]


@pytest.mark.parametrize("length", [65_535, 65_536, 200_000, 1_000_000])
async def test_all_content_leaves_credit_for_its_end(
    length: int, autojump_clock: trio.testing.MockClock
) -> None:
    """nghttp2 (Node, curl) sends no empty DATA frame without credit, though it may."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(length=length)
        await peer.content(stream, bytes(length))
        with trio.fail_after(30):
            while not peer.h2.local_flow_control_window(stream):
                assert await peer.read()
        await peer.content(stream, b"", ends=True)
        assert (await peer.answer(stream)).status == 200
    assert handler.bodies == [bytes(length)]


async def test_streams_beyond_the_limit_are_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A refused request was not processed, and the others go on (RFC 9113, section 8.7)."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True, max_streams=2)) as service,
        peer_of(service) as peer,
    ):
        peer.h2.remote_settings.max_concurrent_streams = 100
        first = await peer.begin(length=5)
        second = await peer.begin(length=5)
        third = await peer.begin(length=5)
        assert (await peer.answer(third)).reset == ErrorCodes.REFUSED_STREAM
        for stream in (first, second):
            await peer.content(stream, b"12345", ends=True)
            assert (await peer.answer(stream)).status == 200
    assert len(handler.bodies) == 2


async def test_streams_of_one_connection_count_as_connections() -> None:
    """One connection with many streams does not get around the limit of connections."""
    config = Config(h2c=True, max_connections=2)
    async with memory_service(Recorder(), config) as service, peer_of(service) as peer:
        await peer.begin(length=5)
        await peer.begin(length=5)
        await trio.testing.wait_all_tasks_blocked()  # both have got their place
        third = await peer.begin(length=5)
        assert (await peer.answer(third)).status == 503


async def test_stalled_stream_stalls_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A request that sends nothing more waits alone."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stalled = await peer.begin(length=100_000)
        await peer.content(stalled, b"x" * 50_000)
        for _ in range(20):
            stream = await peer.begin(length=100_000)
            await peer.content(stream, b"y" * 100_000, ends=True)
            assert (await peer.answer(stream)).status == 200
        await peer.content(stalled, b"x" * 50_000, ends=True)
        assert (await peer.answer(stalled)).status == 200


@pytest.mark.parametrize("largest", [1, 70_000, 150_000])
async def test_many_streams_with_turns_arrive_whole(
    autojump_clock: trio.testing.MockClock, largest: int
) -> None:
    """Streams that wait for credit in turns lose nothing and mix nothing up."""
    handler = Recorder()
    config = Config(h2c=True, receive_memory=256 * 1024)
    store = MemoryStore(chunk_size=100_000)
    async with (
        memory_service(handler, config, store=store) as service,
        peer_of(service) as peer,
    ):
        dice = random.Random(largest)
        sent = {
            await peer.begin(): dice.randbytes(dice.randint(1, largest))
            for _ in range(12)
        }
        left = dict(sent)
        while left:
            moved = False
            for stream, data in list(left.items()):
                room = peer.h2.local_flow_control_window(stream)
                size = min(room, len(data), dice.randint(1, 16384))
                moved = moved or size > 0
                rest = data[size:]
                left[stream] = rest
                if size:
                    peer.h2.send_data(stream, data[:size], end_stream=not rest)
                if not rest:
                    del left[stream]
            await peer.flush()
            if not moved:
                assert await peer.read()
        for stream, data in sent.items():
            assert (await peer.answer(stream)).body == b"got %d bytes" % len(data)
    assert sorted(handler.bodies) == sorted(sent.values())


async def test_reader_waits_for_much_only_while_much_comes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The low-water mark rises with the rate, and never above the rest of the content."""
    marks: list[tuple[int, int]] = []
    sent = 0

    def note(transport: MemoryTransport, size: int) -> None:
        marks.append((size, length - sent))

    monkeypatch.setattr(MemoryTransport, "set_low_water", note)
    length = 3_000_000
    store = MemoryStore(chunk_size=1 << 20)
    async with (
        memory_service(Recorder(), Config(h2c=True), store=store) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(length=length)
        while sent < length:
            part = min(60_000, length - sent)
            await peer.content(stream, bytes(part), ends=sent + part == length)
            sent += part
            await peer.ping()
            autojump_clock.jump(0.005)
        assert (await peer.answer(stream)).status == 200
        again = await peer.begin(length=5)
        await peer.content(again, b"12345", ends=True)
        assert (await peer.answer(again)).status == 200
    assert max(mark for mark, _ in marks) >= 64 * 1024
    assert all(mark <= left for mark, left in marks if mark > 1)
    assert marks[-1][0] == 1


async def test_stalled_streams_lose_their_turns(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Streams that got credit and do not use it let the others go on, within seconds."""
    config = Config(h2c=True, receive_memory=64 * 1024)
    store = MemoryStore(chunk_size=100_000)
    async with (
        memory_service(Recorder(), config, store=store) as service,
        peer_of(service) as peer,
    ):
        for _ in range(5):
            stalled = await peer.begin(length=10_000_000)
            await peer.content(stalled, b"x" * 65_535)  # all of its credit
        await peer.ping()
        begun = trio.current_time()
        stream = await peer.begin(length=200_000)
        await peer.content(stream, b"y" * 200_000, ends=True)
        assert (await peer.answer(stream)).status == 200
        assert trio.current_time() - begun < 10


async def test_rest_of_a_page_does_not_wait_for_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """All that came counts soon, although large parts end on a page."""
    async with (
        memory_service(Recorder(), Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(fields=PREFER, length=10_000_000)
        place = (await peer.interim(stream))["request-content-location"]
        await trio.testing.wait_all_tasks_blocked()  # it receives
        for size in (16_384, 16_384, 16_384, 16_383):
            peer.h2.send_data(stream, bytes(size))
        await peer.flush()
        await peer.ping()
        (operation,) = service.operations._loaded.values()
        await trio.sleep(1)
        assert operation.incoming.offset == 65_535
        asked = await peer.begin("HEAD", place, ends=True)
        assert (await peer.answer(asked)).fields["upload-offset"] == "65535"


async def test_cut_stream_keeps_the_rest_of_a_page(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A reset and a newcomer leave what came, to the last byte."""
    async with (
        memory_service(Recorder(), Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        for resets in (True, False):
            stream = await peer.begin(fields=PREFER, length=10_000_000)
            place = (await peer.interim(stream))["request-content-location"]
            await peer.content(stream, b"x" * 65_535)
            if resets:
                peer.h2.reset_stream(stream, ErrorCodes.CANCEL)
            asked = await peer.begin("HEAD", place, ends=True)
            assert (await peer.answer(asked)).fields["upload-offset"] == "65535"


async def test_response_that_is_not_read_stalls_no_other(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Its stream's window is empty; the window of the connection is not."""

    async def answer(request: Request) -> Response:
        return Response(200, {}, b"z" * (200_000 if request.path == "/large" else 10))

    async with memory_service(answer, Config(h2c=True)) as service:
        peer = Peer(service.transports()[1], credits_at_once=False)
        await peer.start()
        peer.h2.increment_flow_control_window(2**20)
        await peer.flush()
        large = await peer.begin("GET", "/large", ends=True)
        while len(peer.answers[large].body) < 65_535:
            assert await peer.read()
        small = await peer.begin("GET", "/small", ends=True)
        assert bytes((await peer.answer(small)).body) == b"z" * 10
        assert not peer.answers[large].ended
        peer.h2.increment_flow_control_window(2**20, large)
        await peer.flush()
        assert len((await peer.answer(large)).body) == 200_000
        await peer.wire.aclose()


async def test_response_that_is_never_read_ends(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A stream whose window stays empty for ``send_timeout`` is reset."""

    async def answer(request: Request) -> Response:
        return Response(200, {}, b"z" * 200_000)

    config = Config(h2c=True, send_timeout=5.0)
    async with memory_service(answer, config) as service:
        peer = Peer(service.transports()[1], credits_at_once=False)
        await peer.start()
        stream = await peer.begin("GET", "/", ends=True)
        answered = await peer.answer(stream)
        assert (answered.status, answered.ended) == (200, False)
        assert answered.reset is not None
        await peer.ping()  # the connection goes on
        await peer.wire.aclose()


async def test_content_after_an_early_response_harms_nothing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A 413 comes before the content; what is still sent is dropped, and others go on."""
    handler = Recorder()
    config = Config(h2c=True, max_upload_size=1000)
    async with memory_service(handler, config) as service, peer_of(service) as peer:
        stream = await peer.begin(length=500_000)
        frames = [DataFrame(stream, b"x" * 16_000) for _ in range(4)]
        await peer.send_frames(*frames)
        assert (await peer.answer(stream)).status == 413
        again = await peer.begin(length=5)
        await peer.content(again, b"12345", ends=True)
        assert (await peer.answer(again)).status == 200
    assert handler.bodies == [b"12345"]


async def test_reset_request_keeps_what_arrived(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A RST_STREAM of the client is a cut: the upload can be asked and goes on."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(fields=PREFER, length=100)
        interim = await peer.interim(stream)
        await peer.content(stream, b"a" * 40)
        peer.h2.reset_stream(stream, ErrorCodes.CANCEL)
        await peer.flush()
        place = interim["request-content-location"]
        asked = await peer.begin("HEAD", place, ends=True)
        assert (await peer.answer(asked)).fields["upload-offset"] == "40"
        rest = await peer.begin("PATCH", place, {"content-type": "message/byterange"})
        head = b"Content-Range: bytes 40-99/100\r\n\r\n"
        await peer.content(rest, head + b"b" * 60, ends=True)
        assert (await peer.answer(rest)).status == 200
    assert handler.bodies == [b"a" * 40 + b"b" * 60]


async def test_newcomer_ends_the_stream_of_the_old_writer_only(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The old writer is answered on its stream; its connection goes on."""
    async with (
        memory_service(Recorder(), Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        old = await peer.begin(fields=PREFER, length=100)
        interim = await peer.interim(old)
        await peer.content(old, b"a" * 40)
        place = interim["request-content-location"]
        asked = await peer.begin("HEAD", place, ends=True)
        assert (await peer.answer(asked)).fields["upload-offset"] == "40"
        ended = await peer.answer(old)
        assert ended.status == 409
        await peer.ping()
    assert not peer.goaways


async def test_shutdown_finds_a_connection_that_is_over(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A connection that only waits for its peer's close needs no GOAWAY, and has had one."""
    async with (
        memory_service(Recorder(), Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        await peer.ping()
        (connection,) = service.doorman._connections
        await peer.send_frames(DataFrame(99, data=b"of no request"))
        while not peer.goaways:
            await peer.read()
        connection.stop(trio.current_time() + 30)
        assert len(peer.goaways) == 1


async def test_shutdown_lets_the_requests_end(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """GOAWAY says that no further request is taken; a request that runs is answered."""
    handler = Recorder()
    async with (
        memory_service(handler, Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = await peer.begin(length=10)
        await peer.content(stream, b"12345")
        await peer.ping()
        (connection,) = service.doorman._connections
        connection.stop(trio.current_time() + 30)
        while len(peer.goaways) < 2:
            assert await peer.read()
        assert [code for _, code in peer.goaways] == [0, 0]
        assert peer.goaways[1][0] == stream
        await peer.content(stream, b"67890", ends=True)
        assert (await peer.answer(stream)).status == 200
        await peer.until_closed()
    assert handler.bodies == [b"1234567890"]


@pytest.mark.parametrize("ends_by", ["leaving", "a fault"])
async def test_shutdown_beside_a_connection_that_ends(
    ends_by: str, caplog: pytest.LogCaptureFixture
) -> None:
    """At each step of that: where it took no task any more, the shutdown failed."""
    async with memory_service(Recorder(), Config(h2c=True)) as service:
        for steps in range(12):
            async with peer_of(service) as peer:
                await peer.begin(length=10)
                await peer.ping()
                (connection,) = service.doorman._connections
                if ends_by == "leaving":
                    await peer.wire.aclose()
                else:
                    await peer.wire.send_all(bytes(9))  # DATA of no stream
                for _ in range(steps):
                    await trio.lowlevel.checkpoint()
                connection.stop(trio.current_time() + 30)
                if ends_by == "a fault":
                    await peer.until_closed()
                    await peer.wire.aclose()
                with trio.fail_after(10):
                    while service.doorman._connections:
                        await trio.lowlevel.checkpoint()
    assert not [r for r in caplog.records if r.levelname == "ERROR"]


async def test_tunnels_are_refused(autojump_clock: trio.testing.MockClock) -> None:
    """There is nothing to tunnel to."""
    async with (
        memory_service(Recorder(), Config(h2c=True)) as service,
        peer_of(service) as peer,
    ):
        stream = peer.h2.get_next_available_stream_id()
        peer.answers[stream] = Answer()
        peer.h2.send_headers(stream, [(":method", "CONNECT"), (":authority", "a:1")])
        await peer.flush()
        answer = await peer.answer(stream)
        assert answer.reset is not None or answer.status >= 400
        await peer.ping()


async def test_head_that_does_not_end_is_cut(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """A field section has as much time as a head of HTTP/1.1."""
    config = Config(h2c=True, header_timeout=3.0)
    async with memory_service(Recorder(), config) as service, peer_of(service) as peer:
        await peer.ping()
        started = trio.current_time()
        await peer.send_frames(HeadersFrame(1, b"\x82"))  # without END_HEADERS
        await peer.until_closed()
        assert trio.current_time() - started <= 5.0


async def test_idle_connection_ends(autojump_clock: trio.testing.MockClock) -> None:
    """A connection without requests has as much time as one of HTTP/1.1."""
    config = Config(h2c=True, keep_alive_timeout=7.0)
    async with memory_service(Recorder(), config) as service, peer_of(service) as peer:
        started = trio.current_time()
        await peer.until_closed()
        assert 6.0 <= trio.current_time() - started <= 10.0
    assert peer.goaways[-1][1] == ErrorCodes.NO_ERROR


async def test_content_that_comes_early_is_kept_whole() -> None:
    """Many requests may send all that their windows allow before any of them is routed."""
    routed = trio.Event()

    async def authenticate(head: RequestHead) -> Principal:
        await routed.wait()
        return Principal("somebody")

    config = Config(h2c=True, authenticate=authenticate, receive_memory=256 * 1024)
    handler = Recorder()
    async with (
        memory_service(handler, config) as service,
        peer_of(service) as peer,
        trio.open_nursery() as nursery,
    ):
        bodies = {
            await peer.begin(length=40_000): bytes([number]) * 40_000
            for number in range(10)
        }

        async def send() -> None:
            for stream, body in bodies.items():
                await peer.content(stream, body, ends=True)

        nursery.start_soon(send)
        await trio.testing.wait_all_tasks_blocked()
        routed.set()
        for stream in bodies:
            assert (await peer.answer(stream)).status == 200
    assert sorted(handler.bodies) == sorted(bodies.values())
