"""Hostile and unlucky input on real sockets: G1 to G4, G6, G10, G12, G13, G16.

Each malformed case has its status and the connection's fate, and changes nothing.
"""

from __future__ import annotations

import logging
from pathlib import Path

import h11
import pytest
import trio
import trio.lowlevel
import trio.testing

from tests.server.harness import (
    RESUME,
    Client,
    Recorder,
    head,
    memory_service,
    socket_service,
)
from tests.server.seed import BODY
from trioresume import Config, Response

Clock = trio.testing.MockClock


def _post(*lines: str, version: str = "1.1", target: str = "/") -> bytes:
    start = f"POST {target} HTTP/{version}\r\nHost: x\r\n"
    return (start + "".join(f"{line}\r\n" for line in lines) + "\r\n").encode("latin-1")


MALFORMED = {
    # G1
    "length and coding": (
        _post("Content-Length: 3", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        400,
    ),
    "coding and length": (
        _post("Transfer-Encoding: chunked", "Content-Length: 3") + b"0\r\n\r\n",
        400,
    ),
    "coding on 1.0": (_post("Transfer-Encoding: chunked", version="1.0"), 400),
    "two equal lengths": (_post("Content-Length: 1", "Content-Length: 1") + b"x", 400),
    "two lengths": (_post("Content-Length: 1", "Content-Length: 2") + b"xx", 400),
    "lengths in a list": (_post("Content-Length: 1, 1") + b"x", 400),
    "unknown coding": (_post("Transfer-Encoding: gzip"), 501),
    "chunked is not the last": (_post("Transfer-Encoding: chunked, gzip"), 501),
    "identity": (_post("Transfer-Encoding: identity"), 501),
    "coding in quotes": (_post('Transfer-Encoding: "chunked"'), 501),
    "coding with a parameter": (_post("Transfer-Encoding: chunked;a=b"), 501),
    "nearly chunked": (_post("Transfer-Encoding: xchunked"), 501),
    "empty coding": (_post("Transfer-Encoding: "), 501),
    "coding in two lines": (
        _post("Transfer-Encoding: chunked", "Transfer-Encoding: identity"),
        501,
    ),
    "vertical tab before chunked": (_post("Transfer-Encoding:\x0bchunked"), 400),
    "coding before the colon": (_post("Transfer-Encoding : chunked"), 400),
    "coding after a space": (_post(" Transfer-Encoding: chunked"), 400),
    "coding after a bare CR": (_post("A: b\rTransfer-Encoding: chunked"), 400),
    "length after a bare LF": (_post("A: b\nContent-Length: 5"), 400),
    "folded coding": (_post("Transfer-Encoding:", " chunked"), 400),
    "length with a space": (_post("Content-Length: 1 1") + b"x", 400),
    "length with an underscore": (_post("Content-Length: 1_0") + b"x", 400),
    "CONNECT": (b"CONNECT x:80 HTTP/1.1\r\nHost: x:80\r\n\r\n", 501),
    "line of a space": (_post("A: b", " "), 400),
    "line without a colon": (_post("AB"), 400),
    "tab in the request line": (b"POST\t/\tHTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "host with a slash": (b"POST / HTTP/1.1\r\nHost: x/y\r\n\r\n", 400),
    "relative target": (b"POST a/b HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "empty lines without end": (b"\r\n" * 20, 400),
    "coding twice": (_post("Transfer-Encoding: chunked, chunked"), 501),
    # G2
    "folded field": (_post("X: a", " b"), 400),
    "bare LF": (b"POST / HTTP/1.1\nHost: x\n\n", 400),
    "bare LF in a field": (b"POST / HTTP/1.1\r\nHost: x\r\nA: b\nC: d\r\n\r\n", 400),
    "bare CR": (b"POST / HTTP/1.1\r\nHost: x\r\nA: b\rC: d\r\n\r\n", 400),
    "version 2.0": (_post(version="2.0"), 505),
    "version 1.2": (_post(version="1.2"), 505),
    "version 0.9": (_post(version="0.9"), 505),
    "no version": (b"POST /\r\n\r\n", 400),
    "lower-case version": (b"POST / http/1.1\r\nHost: x\r\n\r\n", 400),
    "fragment in the target": (_post(target="/a#b"), 400),
    "control byte in the target": (_post(target="/a\x01b"), 400),
    "raw byte in the target": (_post(target="/\xe9"), 400),
    "NUL in a field": (_post("A: b\0c"), 400),
    "space before the colon": (_post("A : b"), 400),
    "empty name": (_post(": b"), 400),
    "no host": (b"POST / HTTP/1.1\r\n\r\n", 400),
    "two hosts": (_post("Host: y"), 400),
    "spaces in the request line": (b"POST  /  HTTP/1.1\r\nHost: x\r\n\r\n", 400),
    "TLS hello": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400),
    # G3
    "large header block": (_post("A: " + "b" * 17_000), 431),
    "many fields": (_post(*["A: b"] * 101), 431),
    "endless field": (b"POST / HTTP/1.1\r\nA: " + b"b" * 40_000, 431),
    "endless target": (b"POST /" + b"b" * 40_000, 414),
    # G6
    "16 digits": (_post("Content-Length: 1000000000000000"), 400),
    "negative length": (_post("Content-Length: -1"), 400),
    "signed length": (_post("Content-Length: +1") + b"x", 400),
    "hexadecimal length": (_post("Content-Length: 0x1") + b"x", 400),
    "empty length": (_post("Content-Length: "), 400),
    "Unicode digit": (_post("Content-Length: \xb2"), 400),
}


@pytest.mark.parametrize("case", MALFORMED)
async def test_malformed_head_is_refused_and_the_connection_closed(
    case: str, tmp_path: Path
) -> None:
    """G1, G2, G3, G6: a problem document that can be read, and no handler has run."""
    data, status = MALFORMED[case]
    smuggled = head("POST", "/smuggled", length=0)
    async with socket_service(handler := Recorder(), tmp_path) as service:
        async with service.connect() as client:
            await client.send(data + smuggled)
            reply = await client.reply()
            assert reply.status == status, reply
            assert reply["content-type"] == "application/problem+json"
            assert reply["connection"] == "close"
            assert await client.rest() == b""
        async with service.connect() as client:
            assert (await client.request("POST", "/", {}, b"x")).status == 200
    assert handler.bodies == [b"x"]


_HOST = b"Host: x\r\n"


@pytest.mark.parametrize(
    "case", [c for c, (data, _) in MALFORMED.items() if _HOST in data]
)
async def test_refusal_of_a_malformed_head_is_said_in_tus(case: str) -> None:
    """D1: where the request was marked, in any case of letters, and only there."""
    data, status = MALFORMED[case]
    for line in (b"Tus-Resumable: 1.0.0\r\n", b"tus-resumable:1.0.0\r\n", b""):
        async with memory_service(Recorder()) as service:
            client = service.connect()
            await client.send(data.replace(_HOST, _HOST + line, 1))
            reply = await client.reply()
            assert reply.status == status
            assert reply.get("tus-resumable") == ("1.0.0" if line else None)


async def test_refusals_before_any_dialect_is_looked_for_are_said_in_tus(
    autojump_clock: Clock,
) -> None:
    """D1: 417, and 408 for a head that never ends."""
    mark = {"Tus-Resumable": "1.0.0"}
    async with memory_service(Recorder()) as service:
        reply = await service.connect().request("POST", "/", {**mark, "Expect": "tea"})
        assert (reply.status, reply["tus-resumable"]) == (417, "1.0.0")
        client = service.connect()
        await client.send(head("POST", "/", mark)[:-2])
        reply = await client.reply()
        assert (reply.status, reply["tus-resumable"]) == (408, "1.0.0")


@pytest.mark.parametrize(
    "chunks",
    [
        b"x\r\n",
        b"-1\r\nx\r\n0\r\n\r\n",
        b"0x1\r\nx\r\n0\r\n\r\n",
        b"1\r\nxx\r\n0\r\n\r\n",
        b"1" * 16 + b"\r\nx",
        b"f" * 20 + b"\r\nx",
        b"f" * 21 + b"\r\nx\r\n",
        b"1 \r\nx\r\n0\r\n\r\n",
        b"1\nx\n0\n\n",
        b"1;a\nb\r\nx\r\n0\r\n\r\n",
        b"1\r\nx\r\n0\r\nA: b\n\r\n",
        b"1\r\nx\r\n0\r\nGET / HTTP/1.1\r\n\r\n",
        b"1" * 20_000,
    ],
)
async def test_malformed_chunk_is_400_and_keeps_what_came_before(
    chunks: bytes, tmp_path: Path
) -> None:
    """G1, G2, G6: answered at once, and closed; the upload stays and can go on."""
    async with socket_service(handler := Recorder(), tmp_path) as service:
        async with service.connect() as client:
            fields = {"Transfer-Encoding": "chunked", **RESUME}
            await client.send(head("POST", "/", fields) + b"3\r\nabc\r\n" + chunks)
            reply = await client.reply()
            location = reply.content
            assert (reply.status, reply["connection"]) == (400, "close")
        async with service.connect() as client:
            shown = await client.request("HEAD", location)
            assert shown["upload-offset"] in ("3", "4")
            at = int(shown["upload-offset"])
            reply = await client.patch(location, at, b"d", at + 1)
            assert reply.status == 200
    assert handler.bodies[0][:3] == b"abc"


SMUGGLED = head("POST", "/smuggled", length=0)


@pytest.mark.parametrize(
    "start",
    [
        head("POST", "/", length=len(SMUGGLED)) + SMUGGLED,
        head("GET", "/", length=len(SMUGGLED)) + SMUGGLED,
        head("PUT", "/", {"Transfer-Encoding": "chunked"})
        + b"%x\r\n%b\r\n0\r\n\r\n" % (len(SMUGGLED), SMUGGLED),
        head("PUT", "/", {"Transfer-Encoding": "chunked"})
        + b"0;%b\r\nX: y\r\n\r\n" % (b"a" * 40),
    ],
    ids=["length", "length on GET", "chunk", "trailers"],
)
async def test_content_is_never_read_as_a_request(start: bytes, tmp_path: Path) -> None:
    """G1, R33: the next request on the connection is the one after the content."""
    async with socket_service(handler := Recorder(), tmp_path) as service:
        async with service.connect() as client:
            await client.send(start + head("POST", "/next", length=1) + b"x")
            assert (await client.reply()).status == 200
            assert (await client.reply()).status == 200
    assert [target for _, target, _ in handler.requests] == ["/", "/next"]


async def test_takeover_storm_leaves_every_accepted_byte(tmp_path: Path) -> None:
    """G10, R21: thirty clients want one upload; what a success says is in the content."""
    size, step = 30_000, 1000
    accepted: list[tuple[int, bytes]] = []
    async with socket_service(handler := Recorder(), tmp_path) as service:
        async with service.connect() as client:
            interim = await client.start(size)
        location = interim.fields.get("request-content-location") or ""

        async def contend(fill: bytes) -> None:
            while True:
                async with service.connect() as client:
                    try:
                        shown = await client.request("HEAD", location)
                        offset = int(shown["upload-offset"])
                        data = fill * min(step, size - offset)
                        if not data:
                            return
                        reply = await client.patch(location, offset, data, size)
                    except (h11.RemoteProtocolError, trio.BrokenResourceError):
                        continue
                    assert reply.status in (200, 204, 409), reply
                    if reply.status != 409:
                        accepted.append((offset, data))
                        await trio.lowlevel.checkpoint()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for number in range(30):
                    nursery.start_soon(contend, bytes([number]))
        # The connection of the last byte may end before the handler does.
        async with service.connect() as client:
            message = interim.fields.get("response-message-location") or ""
            reply = await client.request("GET", message, {"Prefer": "wait=60"})
            assert reply.status == 200
    (body,) = handler.bodies
    assert len(body) == size
    assert len({offset for offset, _ in accepted}) == len(accepted)
    for offset, data in accepted:
        assert body[offset : offset + len(data)] == data


async def test_absolute_form_is_served_and_host_not_believed(tmp_path: Path) -> None:
    """G13: neither Host, nor the target's authority, nor X-Forwarded-* is echoed."""
    async with socket_service(Recorder(), tmp_path) as service:
        async with service.connect() as client:
            await client.send(
                b"POST http://evil.example/x HTTP/1.1\r\nHost: evil.example\r\n"
                b"X-Forwarded-Host: evil.example\r\nX-Forwarded-Proto: https\r\n"
                b"Forwarded: host=evil.example\r\nPrefer: resume\r\n"
                b"Content-Length: 1\r\n\r\nx"
            )
            reply = await client.reply()
            assert reply.status == 200
            assert b"evil" not in reply.raw


@pytest.mark.parametrize(
    "path",
    [
        "/operations/",
        "/operations/../operations/x",
        "/operations/AAAA/content",
        "/operations/" + "A" * 22,
        "/operations/" + "A" * 22 + "/",
        "/operations/" + "A" * 22 + "/content/",
        "/operations/" + "A" * 22 + "/content/x",
        "/operations/" + "A" * 22 + "%2Fcontent",
        "/operations/" + "A" * 21 + "%41/content",
        "/operations/..%2f..%2fetc%2fpasswd",
        "/operations/%00" + "A" * 19 + "/content",
        "/operations//content",
        "/operations/" + "A" * 300 + "/content",
        "/operations/" + "A" * 20 + ".r/content",
    ],
)
@pytest.mark.parametrize("method", ["GET", "PATCH", "DELETE"])
async def test_strange_tokens_are_404(
    path: str, method: str, autojump_clock: Clock
) -> None:
    """G12: nothing but a token in its strict form leads anywhere."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        reply = await client.request(method, path)
        assert (reply.status, reply.code) == (404, "not-found")
        assert not await client.is_closed()
    assert handler.started == 0


@pytest.mark.parametrize("length", [10**15 - 1, 10**14])
async def test_declared_length_allocates_nothing(
    length: int, autojump_clock: Clock
) -> None:
    """G6: a petabyte announced is a petabyte awaited, no more."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        interim = await client.start(length, b"abc")
        reply = await service.connect().request(
            "HEAD", interim.fields.get("request-content-location") or ""
        )
        assert (reply["upload-offset"], reply["upload-length"]) == ("3", str(length))
        assert service.store.stored_bytes == 3


@pytest.mark.parametrize(
    ("ranges", "status"),
    [
        (",".join(f"{n}-{n}" for n in range(0, 32, 2)), 206),
        (",".join(f"{n}-{n}" for n in range(0, 34, 2)), 200),
        (",".join(["0-"] * 1000), 200),
        ("0-511,0-511,0-511", 206),  # one, when joined
    ],
)
async def test_ranges_are_capped(
    ranges: str, status: int, autojump_clock: Clock
) -> None:
    """G16: more than max_ranges, or overlapping ones, are answered with the whole."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        first = await client.request("POST", "/", RESUME, BODY)
        reply = await client.request("GET", first.content, {"Range": f"bytes={ranges}"})
        assert reply.status == status
        assert len(reply.body) < 4 * len(BODY)
        if status == 200:
            assert reply.body == BODY


async def test_two_patches_at_one_offset_at_most_one_succeeds(
    autojump_clock: Clock,
) -> None:
    """G10: whatever the order, the bytes of one of them are there, whole."""
    async with memory_service(handler := Recorder()) as service:
        client = service.connect()
        interim = await client.start(512)
        await client.aclose()
        location = interim.fields.get("request-content-location") or ""
        statuses: list[int] = []

        async def patch(fill: bytes) -> None:
            reply = await service.connect().patch(location, 0, fill * 512, 512)
            statuses.append(reply.status)

        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(patch, bytes([number]))
        assert statuses.count(200) == 1
        assert statuses.count(409) == 9
    (body,) = handler.bodies
    assert body == body[:1] * 512


async def test_silent_head_is_408(autojump_clock: Clock) -> None:
    """G5: a head has to be whole within its time, however slowly it trickles."""
    async with memory_service(Recorder(), Config(header_timeout=15)) as service:
        theirs, ours = service.transports()
        client = Client(ours)
        for byte in b"POST / HTTP/1.1\r\n":
            try:
                await ours.send_all(bytes([byte]))
            except trio.BrokenResourceError:
                break
            await trio.sleep(1)
        reply = await client.reply()
        assert (reply.status, reply.code) == (408, "request-timeout")
        await trio.sleep(5)
        assert theirs.closed


async def test_idle_connection_is_closed_without_a_word(autojump_clock: Clock) -> None:
    """G5: before a first request and between two."""
    async with memory_service(Recorder(), Config(keep_alive_timeout=75)) as service:
        started = trio.current_time()
        client = service.connect()
        assert await client.rest() == b""
        assert trio.current_time() - started == pytest.approx(75)
        client = service.connect()
        await client.request("GET", "/")
        assert await client.rest() == b""


@pytest.mark.parametrize("seconds", [0.3, 60.0])
async def test_content_without_progress_is_cut(
    seconds: float, autojump_clock: Clock
) -> None:
    """G5: 408 after the time without progress; what came is kept; progress renews."""
    config = Config(body_timeout=seconds, min_body_rate=0)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        interim = await client.start(512)
        for at in range(20):
            await trio.sleep(seconds / 2)
            await client.send(BODY[at : at + 1])
        started = trio.current_time()
        reply = await client.reply()
        assert (reply.status, reply.code) == (408, "request-timeout")
        assert seconds * 0.99 <= trio.current_time() - started <= seconds * 1.26
        location = interim.fields.get("request-content-location") or ""
        shown = await service.connect().request("HEAD", location)
        assert shown["upload-offset"] == "20"


@pytest.mark.parametrize("chunks", [False, True])
async def test_trickling_content_is_cut(chunks: bool, autojump_clock: Clock) -> None:
    """G5: content slower than min_body_rate has used up what it saved, and is cut."""
    config = Config(body_timeout=60, min_body_rate=100)
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        started = trio.current_time()
        fields = {"Transfer-Encoding": "chunked", **RESUME}
        start = (
            head("POST", "/", fields)
            if chunks
            else head("POST", "/", RESUME, length=5000)
        )
        await client.send(start)
        location = (await client.interim()).fields.get("request-content-location") or ""
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(500):  # 10 bytes a second: each second saves a tenth of one
                await client.send(b"a\r\n%b\r\n" % bytes(10) if chunks else bytes(10))
                await trio.sleep(1)
        assert trio.current_time() - started == pytest.approx(60 / 0.9, abs=5)
        shown = await service.connect().request("HEAD", location)
        assert int(shown["upload-offset"]) == pytest.approx(600 / 0.9, abs=50)


async def test_content_at_the_least_rate_is_not_cut(autojump_clock: Clock) -> None:
    """G5: who keeps to the rate may take as long as it takes; bursts save time up."""
    config = Config(body_timeout=60, min_body_rate=10)
    async with memory_service(handler := Recorder(), config) as service:
        client = service.connect()
        await client.start(10_000)
        for _ in range(20):
            await trio.sleep(49)
            await client.send(bytes(500))
        assert (await client.reply()).status == 200
    assert handler.bodies == [bytes(10_000)]


async def test_peer_that_never_reads_its_response_is_dropped(
    autojump_clock: Clock,
) -> None:
    """G5: a response that makes no progress holds its connection no longer."""
    handler = Recorder(response=lambda _: Response(200, {}, bytes(1_000_000)))
    async with memory_service(handler, Config(send_timeout=60)) as service:
        theirs, ours = service.transports()
        await ours.send_all(head("GET", "/"))
        await trio.sleep(61)
        assert theirs.closed


async def test_reset_in_any_phase_hurts_nobody_else(
    autojump_clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 10: heads, contents and responses cut by resets; the service lives on."""
    whole = head("POST", "/", RESUME, length=len(BODY)) + BODY
    async with memory_service(Recorder()) as service:
        for cut in range(0, len(whole), 13):
            theirs, ours = service.transports()
            await ours.send_all(whole[:cut])
            await trio.testing.wait_all_tasks_blocked()
            ours.reset()
            await trio.testing.wait_all_tasks_blocked()
            assert theirs.closed
        assert service.used == 0
        assert (await service.connect().request("GET", "/")).status == 200
    assert [r for r in caplog.records if r.levelno > logging.INFO] == []


async def test_half_close_after_the_request_still_gets_the_response(
    autojump_clock: Clock,
) -> None:
    """A client that ends its side once all is sent is not gone."""
    async with memory_service(Recorder()) as service:
        _, ours = service.transports()
        await ours.send_all(head("POST", "/", RESUME, length=3) + b"abc")
        await ours.send_eof()
        client = Client(ours)
        assert (await client.reply()).body == b"got 3 bytes"
        assert await client.rest() == b""


async def test_connect_is_refused_and_upgrade_ignored(tmp_path: Path) -> None:
    """G2: nothing is tunnelled, nothing is switched to."""
    async with socket_service(Recorder(), tmp_path) as service:
        async with service.connect() as client:
            await client.send(b"CONNECT a.b:1 HTTP/1.1\r\nHost: a.b:1\r\n\r\n")
            assert (await client.reply()).status == 501
        async with service.connect() as client:
            reply = await client.request(
                "GET", "/", {"Upgrade": "h2c", "Connection": "upgrade"}
            )
            assert reply.status == 200
