"""HTTP/2 in the client: what its streams share, how they end, and bad servers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import hpack
import pytest
import trio
import trio.testing
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PushPromiseFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from tests.client.http2_server import (
    Http2Peer,
    Http2Server,
    serving_http2,
)
from tests.client.test_sockets import MIB
from trioresume import (
    Client,
    ClientResponse,
    RetryPolicy,
    TransferFailed,
)

Clock = trio.testing.MockClock

ROOT = "https://peer.test/"
OFFER = {
    "request-content-location": "/op/content",
    "response-message-location": "/op/message",
    "content-location": "/op/result",
}
RECORDED = {"preference-applied": "resume=save-incomplete", **OFFER}


def client(server: Http2Server, attempts: int = 5, **config: object) -> Client:
    config = {
        "connector": server,
        "protocol": "seed",
        "retry": RetryPolicy(attempts=attempts),
        "release": False,
        **config,
    }
    return Client(**config)  # type: ignore[arg-type]


async def answering(peer: Http2Peer) -> None:
    """Answer each request when it is whole."""
    await peer.start()
    while True:
        for request in [*peer.new]:
            if request.ended:
                peer.new.remove(request)
                await peer.respond(request.stream)
        if not await peer.read():
            return


async def many(c: Client, count: int, body: bytes = b"content") -> None:
    """Send *count* requests at once; all must be answered with 201."""

    async def once(number: int) -> None:
        response = await c.request("PUT", f"{ROOT}{number}", body=body)
        assert response.status == 201

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(once, number)


# What the streams share.


async def test_requests_share_a_connection(autojump_clock: Clock) -> None:
    """Ten at once, and then one more: one connection."""
    async with serving_http2(answering) as server, client(server) as c:
        await many(c, 10)
        await many(c, 1)
    assert len(server.peers) == 1
    assert server.peers[0].most_at_once > 1
    sent = [bytes(r.content) for r in server.peers[0].requests.values()]
    assert sent == [b"content"] * 11


async def test_limit_of_streams_is_kept(autojump_clock: Clock) -> None:
    """A server that takes two at a time gets two; for the others there are connections."""

    async def two_at_a_time(peer: Http2Peer) -> None:
        await peer.start({SettingCodes.MAX_CONCURRENT_STREAMS: 2})
        while await peer.read():
            ready = [r for r in peer.requests.values() if r.ended]
            for request in ready:
                del peer.requests[request.stream]
                await trio.sleep(1)
                await peer.respond(request.stream)

    async with serving_http2(two_at_a_time) as server, client(server) as c:
        await many(c, 6)
    assert all(peer.most_at_once <= 2 for peer in server.peers)
    assert len(server.peers) == 3


@pytest.mark.parametrize("window", [1, 1000, 70_000, 1 << 20])
@pytest.mark.parametrize("frame", [16_384, 1 << 20])
async def test_windows_and_frame_sizes_are_kept(
    autojump_clock: Clock, window: int, frame: int
) -> None:
    """h2 at the other end refuses more than it allowed; all content arrives."""
    data = bytes(range(256)) * (1 if window == 1 else 2000)

    async def narrow(peer: Http2Peer) -> None:
        await peer.start(
            {
                SettingCodes.INITIAL_WINDOW_SIZE: window,
                SettingCodes.MAX_FRAME_SIZE: frame,
            }
        )
        request = await peer.request()
        assert await peer.whole(request) == data
        await peer.respond(request.stream)
        await peer.until_closed()

    async with serving_http2(narrow) as server, client(server) as c:
        response = await c.request("PUT", ROOT, body=data)
    assert response.status == 201
    (request,) = server.peers[0].requests.values()
    assert max(request.frames) <= min(window, frame)
    if window == frame:
        # As large as windows allow: of the connection, here, which begins with 64 KiB.
        assert max(request.frames) > 16_384


async def test_stalled_stream_stalls_nobody(autojump_clock: Clock) -> None:
    """A server that takes nothing of one upload still gets the others."""
    done = trio.Event()

    async def stalls_first(peer: Http2Peer) -> None:
        peer.credits = False
        await peer.start()
        stalled = await peer.request()
        while len(stalled.content) < 60_000:
            await peer.read()
        peer.h2.increment_flow_control_window(1 << 20)
        while len(peer.requests) < 4 or not all(
            r.ended for r in peer.requests.values() if r is not stalled
        ):
            await peer.read()
        for request in peer.requests.values():
            if request is not stalled:
                await peer.respond(request.stream)
        await done.wait()
        peer.credits = True
        peer.h2.increment_flow_control_window(1 << 20, stalled.stream)
        await peer.flush()
        await peer.whole(stalled)
        await peer.respond(stalled.stream)
        await peer.until_closed()

    async with serving_http2(stalls_first) as server, client(server) as c:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(c.request, "PUT", ROOT, body=b"x" * 200_000))
            await trio.sleep(1)
            await many(c, 3)
            done.set()
    assert len(server.peers) == 1


async def test_credentials_are_kept_out_of_hpacks_tables(
    autojump_clock: Clock,
) -> None:
    """RFC 7541, section 7.1.3: literals that are never indexed."""
    seen: list[hpack.HeaderTuple] = []

    async def looking(peer: Http2Peer) -> None:
        decoder = peer.h2.decoder

        class Looking(hpack.Decoder):
            def decode(self, data: bytes, raw: bool = False) -> object:  # type: ignore[override]
                headers = decoder.decode(data, raw=raw)
                seen.extend(headers)
                return headers

        peer.h2.decoder = Looking()
        await answering(peer)

    async with serving_http2(looking) as server:
        async with client(server, token="secret", headers={"Cookie": "a=b"}) as c:
            await many(c, 1)
    indexable = {h[0] for h in seen if h.indexable}
    assert b"user-agent" in indexable
    assert {h[0] for h in seen if not h.indexable} == {b"authorization", b"cookie"}


# How streams end.


async def test_refused_stream_is_sent_again(autojump_clock: Clock) -> None:
    """RFC 9113, section 8.7: it was not processed, so even a POST may be repeated."""

    async def refusing(peer: Http2Peer) -> None:
        await peer.start()
        first = await peer.request()
        await peer.whole(first)
        await peer.reset(first.stream, ErrorCodes.REFUSED_STREAM)
        second = await peer.request()
        assert await peer.whole(second) == b"once"
        await peer.respond(second.stream)
        await peer.until_closed()

    async with serving_http2(refusing) as server, client(server) as c:
        response = await c.request("POST", ROOT, body=b"once")
    assert response.status == 201
    assert len(server.peers) == 1


async def test_other_resets_are_cuts(autojump_clock: Clock) -> None:
    """A POST whose content was sent may have been processed: it is not repeated."""

    async def cancelling(peer: Http2Peer) -> None:
        await peer.start()
        request = await peer.request()
        await peer.whole(request)
        await peer.reset(request.stream, ErrorCodes.CANCEL)
        await peer.until_closed()

    async with serving_http2(cancelling) as server, client(server) as c:
        with pytest.raises(TransferFailed, match="may or may not have acted") as caught:
            await c.request("POST", ROOT, body=b"once")
    assert "CANCEL" in str(caught.value.__cause__)


async def test_reset_upload_is_resumed_beside_the_others(
    autojump_clock: Clock,
) -> None:
    """A newer writer's takeover ends a stream, and not the connection."""
    data = b"x" * 200_000

    async def taking_over(peer: Http2Peer) -> None:
        peer.credits = False
        await peer.start()
        upload, other = await peer.request(), await peer.request()
        if upload.fields[":path"] != "/upload":
            upload, other = other, upload
        await peer.interim(upload.stream, 100, OFFER)
        await peer.interim(other.stream, 100, OFFER)
        while len(upload.content) < 60_000:
            await peer.read()
        await peer.reset(upload.stream, ErrorCodes.CANCEL)
        peer.credits = True
        peer.h2.increment_flow_control_window(MIB)
        head = await peer.request()
        assert head.line == "HEAD /op/content"
        await peer.respond(
            head.stream,
            200,
            fields={"upload-offset": str(len(upload.content))},
        )
        patch = await peer.request()
        rest = await peer.whole(patch)
        assert rest.endswith(data[len(upload.content) :])
        assert len(rest) < len(data) - len(upload.content) + 1000
        await peer.respond(patch.stream, fields=RECORDED)
        await peer.whole(other)
        await peer.respond(other.stream, fields=RECORDED)
        await peer.until_closed()

    async with serving_http2(taking_over) as server, client(server) as c:
        responses: list[ClientResponse] = []

        async def send(path: str, body: bytes) -> None:
            responses.append(await c.request("POST", ROOT + path, body=body))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, "upload", data)
            nursery.start_soon(send, "other", b"other")
    assert sorted(r.attempts for r in responses) == [1, 2]
    assert len(server.peers) == 1


async def test_early_answer_ends_the_stream_only(autojump_clock: Clock) -> None:
    """R10: the refusal arrives, the rest is not sent, the connection goes on."""

    async def refusing(peer: Http2Peer) -> None:
        peer.credits = False
        await peer.start()
        request = await peer.request()
        while not request.content:
            await peer.read()
        await peer.respond(request.stream, 413, b"too large")
        while request.reset is None:
            assert await peer.read()
        request = await peer.request()
        await peer.whole(request)
        await peer.respond(request.stream)
        await peer.until_closed()

    async with serving_http2(refusing) as server, client(server) as c:
        refused = await c.request("POST", ROOT, body=b"x" * MIB)
        assert (refused.status, refused.body) == (413, b"too large")
        assert (await c.request("PUT", ROOT, body=b"")).status == 201
    assert len(server.peers) == 1


async def test_reset_after_a_whole_answer_is_no_cut(autojump_clock: Clock) -> None:
    """RFC 9113, section 8.1: NO_ERROR only says that the rest is not wanted."""

    async def early(peer: Http2Peer) -> None:
        peer.credits = False
        await peer.start()
        request = await peer.request()
        peer.h2.send_headers(request.stream, [(":status", "401")], end_stream=True)
        peer.h2.reset_stream(request.stream, ErrorCodes.NO_ERROR)
        await peer.flush()
        await peer.until_closed()

    async with serving_http2(early) as server, client(server) as c:
        before = trio.current_time()
        response = await c.request("POST", ROOT, body=b"x" * MIB)
        assert trio.current_time() - before < 2
    assert response.status == 401
    assert response.attempts == 1


async def test_goaway_sends_what_was_not_processed_elsewhere(
    autojump_clock: Clock,
) -> None:
    """RFC 9113, section 6.8: streams up to the last one go on; the others begin again."""

    async def leaving(peer: Http2Peer) -> None:
        await peer.start()
        first, second = await peer.request(), await peer.request()
        await peer.whole(first)
        await peer.whole(second)
        await peer.send_frames(GoAwayFrame(0, last_stream_id=first.stream))
        await trio.sleep(5)
        await peer.respond(first.stream)
        await peer.until_closed()

    async with serving_http2(leaving, answering) as server, client(server) as c:
        async with trio.open_nursery() as nursery:
            for number in range(2):
                nursery.start_soon(
                    partial(c.request, "POST", f"{ROOT}{number}", body=b"once")
                )
    assert len(server.peers) == 2
    (again,) = server.peers[1].requests.values()
    assert bytes(again.content) == b"once"


async def test_goaway_lets_an_upload_end(autojump_clock: Clock) -> None:
    """In the middle of the content; the next request has a new connection."""
    data = b"x" * 300_000

    async def leaving(peer: Http2Peer) -> None:
        await peer.start()
        request = await peer.request()
        while len(request.content) < 100_000:
            await peer.read()
        await peer.send_frames(GoAwayFrame(0, last_stream_id=2**31 - 1))
        await peer.send_frames(GoAwayFrame(0, last_stream_id=request.stream))
        assert await peer.whole(request) == data
        await peer.respond(request.stream)
        await peer.until_closed()

    async with serving_http2(leaving, answering) as server, client(server) as c:
        response = await c.request("POST", ROOT, body=data)
        assert response.attempts == 1
        await many(c, 1)
    assert len(server.peers) == 2


async def test_reason_of_a_goaway_is_told(autojump_clock: Clock) -> None:
    """Its code, and the server's own words."""

    async def throwing_out(peer: Http2Peer) -> None:
        await peer.start()
        await peer.whole(await peer.request())
        words = b"you are too fast"
        code = ErrorCodes.ENHANCE_YOUR_CALM
        await peer.send_frames(
            GoAwayFrame(0, last_stream_id=1, error_code=code, additional_data=words)
        )

    async with serving_http2(throwing_out) as server, client(server) as c:
        with pytest.raises(TransferFailed) as caught:
            await c.request("POST", ROOT, body=b"x")
    assert "ENHANCE_YOUR_CALM: you are too fast" in str(caught.value.__cause__)


@pytest.mark.parametrize("alive", [True, False])
async def test_ping_tells_a_silent_stream_from_a_dead_connection(
    autojump_clock: Clock, alive: bool
) -> None:
    """A silent stream is reset; only a connection that does not answer is left."""

    async def silent(peer: Http2Peer) -> None:
        peer.answers_pings = alive
        await peer.start()
        await peer.whole(await peer.request())
        again = await peer.request() if alive else None
        if again is not None:
            await peer.whole(again)
            await peer.respond(again.stream)
        await peer.until_closed()

    async with serving_http2(silent, answering) as server:
        async with client(server, idle_timeout=10) as c:
            response = await c.request("PUT", ROOT, body=b"x")
            assert 10 <= trio.current_time() < 13
    assert response.attempts == 2
    assert server.peers[0].pings >= 1
    assert len(server.peers) == (1 if alive else 2)
    if alive:
        assert server.peers[0].requests[1].reset == ErrorCodes.CANCEL


async def test_cancelled_request_resets_its_stream(autojump_clock: Clock) -> None:
    """And nothing of it is sent after that; the others go on."""
    cancelled = trio.Event()

    async def slow(peer: Http2Peer) -> None:
        peer.credits = False
        await peer.start()
        request = await peer.request()
        while not request.content:
            await peer.read()
        await cancelled.wait()
        while request.reset is None:
            await peer.read()
        size = len(request.content)
        peer.credits = True
        peer.h2.increment_flow_control_window(MIB)
        await answering_on(peer)
        assert len(request.content) == size

    async def answering_on(peer: Http2Peer) -> None:
        await peer.flush()
        request = await peer.request()
        assert await peer.whole(request) == b"y" * 100_000
        await peer.respond(request.stream)

    async with serving_http2(slow) as server, client(server) as c:
        with trio.move_on_after(5):
            await c.request("PUT", ROOT, body=b"x" * MIB)
        cancelled.set()
        await many(c, 1, b"y" * 100_000)
    assert len(server.peers) == 1


# Bad servers. Each attempt ends at once, the memory is bounded, and the reason is told.


def head(*pairs: tuple[str, str], stream: int = 1, ends: bool = False) -> HeadersFrame:
    flags = ["END_HEADERS", *(["END_STREAM"] if ends else [])]
    return HeadersFrame(stream, data=hpack.Encoder().encode(pairs), flags=flags)


def interims() -> bytes:
    # The same bytes each time: nothing of them enters the table.
    block = hpack.Encoder().encode(
        [hpack.NeverIndexedHeaderTuple(b":status", b"102")], huffman=False
    )
    return HeadersFrame(1, data=block, flags=["END_HEADERS"]).serialize()


def bomb() -> HeadersFrame:
    """A field that is 4000 bytes in the table, named a thousand times."""
    encoder = hpack.Encoder()
    block = encoder.encode([(":status", "200"), ("a", "b" * 4000)])
    return HeadersFrame(1, data=block + b"\xbe" * 1000, flags=["END_HEADERS"])


ATTACKS: dict[str, tuple[Callable[[], list[Frame | bytes]], str]] = {
    "no HTTP/2": (lambda: [b"HTTP/1.1 400 Bad Request\r\n\r\n"], "too large"),
    "window beyond its most": (
        lambda: [WindowUpdateFrame(0, window_increment=2**31 - 1)],
        "breaks HTTP/2's rules",
    ),
    "window of nothing": (
        lambda: [b"\0\0\4\x08\0\0\0\0\0\0\0\0\0"],
        "breaks HTTP/2's rules",
    ),
    "too large a frame": (lambda: [b"\xff\xff\xff\0\0\0\0\0\1"], "too large"),
    "pushed stream": (
        lambda: [PushPromiseFrame(1, promised_stream_id=2, flags=["END_HEADERS"])],
        "breaks HTTP/2's rules",
    ),
    "endless head": (
        lambda: [
            HeadersFrame(1, data=bytes(1000)),
            *[ContinuationFrame(1, data=bytes(16_000))] * 100,
        ],
        "too large",
    ),
    "head of empty frames": (
        lambda: [HeadersFrame(1), *[ContinuationFrame(1)] * 1000],
        "HTTP/2's rules",
    ),
    "small head that decodes to much": (lambda: [bomb()], "breaks HTTP/2's rules"),
    "flood of settings": (
        lambda: [SettingsFrame(0, settings={4: 70_000})] * 3000,
        "useless frames",
    ),
    "flood of pings": (lambda: [PingFrame(0, b"12345678")] * 3000, "useless frames"),
    "flood of empty content": (
        lambda: [head((":status", "200")), *[DataFrame(1)] * 3000],
        "useless frames",
    ),
    "unknown frames": (lambda: [b"\0\0\0\xee\0\0\0\0\0"] * 3000, "useless frames"),
    "endless interim responses": (lambda: [interims()] * 3000, "interim responses"),
    "content before the head": (
        lambda: [DataFrame(1, data=b"x")],
        "before the head",
    ),
    "no status": (lambda: [head(("server", "x"), ends=True)], "malformed"),
    "status 101": (lambda: [head((":status", "101"))], "malformed"),
    "name in upper case": (
        lambda: [head((":status", "200"), ("Server", "x"))],
        "malformed",
    ),
    "line break in a value": (
        lambda: [head((":status", "200"), ("server", "x\r\ny"))],
        "malformed",
    ),
    "field of the connection": (
        lambda: [head((":status", "200"), ("connection", "close"))],
        "malformed",
    ),
    "too little content": (
        lambda: [
            head((":status", "403"), ("content-length", "5")),
            DataFrame(1, data=b"1234", flags=["END_STREAM"]),
        ],
        "less content",
    ),
    "too much content": (
        lambda: [
            head((":status", "403"), ("content-length", "5")),
            DataFrame(1, data=b"123456"),
        ],
        "more content",
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
async def test_bad_server_is_left_with_a_reason(
    autojump_clock: Clock, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A POST that was sent fails once; its cause names what the server did."""
    frames, reason = ATTACKS[attack]

    async def attacking(peer: Http2Peer) -> None:
        await peer.start()
        await peer.whole(await peer.request())
        async with trio.open_nursery() as nursery:
            nursery.start_soon(peer.until_closed)
            await peer.send_frames(*frames())

    async with serving_http2(attacking) as server, client(server) as c:
        with pytest.raises(TransferFailed) as caught:
            await c.request("POST", ROOT, body=b"x")
    causes = []
    cause: BaseException | None = caught.value
    while cause is not None:
        causes.append(str(cause))
        cause = cause.__cause__
    assert reason in " ".join(causes)
    assert len(server.peers) == 1
    assert not caplog.records, caplog.text


async def test_server_that_does_not_answer_in_http2_is_hopeless(
    autojump_clock: Clock,
) -> None:
    """Prior knowledge that is wrong: no further attempt can mend it."""

    async def old(peer: Http2Peer) -> None:
        await peer.wire.receive_some()
        await peer.wire.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")

    async with serving_http2(old) as server, client(server) as c:
        with pytest.raises(TransferFailed, match="does not answer in HTTP/2") as caught:
            await c.request("PUT", ROOT, body=b"x")
    assert not caught.value.resumable
    assert len(server.peers) == 1


# Bounds that need several requests.


async def test_redirect_to_another_origin_has_its_own_connection(
    autojump_clock: Clock,
) -> None:
    """And no credentials on it: connections are kept apart by origin."""

    async def redirecting(peer: Http2Peer) -> None:
        await peer.start()
        request = await peer.request()
        location = {"location": "https://other.test/there"}
        await peer.respond(request.stream, 307, fields=location)
        await peer.until_closed()

    async with serving_http2(redirecting, answering) as server:
        async with client(
            server, token="secret", redirect_origins=["https://other.test"]
        ) as c:
            response = await c.request("PUT", ROOT, body=b"x")
    assert response.status == 201
    first, second = server.peers
    (asked,), (moved,) = first.requests.values(), second.requests.values()
    assert asked.fields["authorization"] == "Bearer secret"
    assert "authorization" not in moved.fields
    assert moved.fields[":authority"] == "other.test"
    assert bytes(moved.content) == b"x"


async def test_many_streams_take_turns(autojump_clock: Clock) -> None:
    """A server with a small window for the connection gets all of 100 uploads."""
    data = b"x" * 20_000

    async with serving_http2(answering) as server, client(server) as c:
        await many(c, 100, data)
    assert len(server.peers) == 1
    sent = [bytes(r.content) for r in server.peers[0].requests.values()]
    assert sent == [data] * 100
