"""A complete request reaches its backend once, and what came of it is told honestly.

Real sockets on both sides; the backend keeps every byte (:mod:`.backend`).
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.certificates import client_context, server_context
from tests.server.harness import (
    RESUME,
    Client,
    Interim,
    Reply,
    SocketService,
    chunked,
    head,
    socket_service,
)
from tests.server.rufh import NEWEST, appends, says
from tests.targets.upstream.backend import Backend, Seen, backend, ok, raw
from trioresume import UpstreamTarget
from trioresume.errors import ProblemCode

BODY = bytes(range(256)) * 1500  # several chunks of the service's store
LARGE = bytes(reversed(range(256))) * 4096


@asynccontextmanager
async def front(
    path: Path, *urls: str, config: dict[str, Any] | None = None, **settings: Any
) -> AsyncIterator[SocketService]:
    """A service with the backends at *urls*."""
    target = UpstreamTarget(*urls, **settings)
    with trio.fail_after(20):  # no test waits for ever
        async with socket_service(target, path / "data", **(config or {})) as service:
            yield service


async def resumable(
    client: Client, method: str = "POST", path: str = "/a?b=c"
) -> Reply:
    """Send BODY in a resumable request; return the response."""
    return await client.request(method, path, RESUME, BODY)


async def ended(client: Client, place: str) -> Reply:
    """Say once more that all content was sent (R24)."""
    return await client.request("PATCH", place, appends(NEWEST, len(BODY), True), b"")


async def message(service: SocketService, reply: Reply, wait: int = 20) -> Reply:
    """Ask for the recorded response."""
    async with service.connect() as client:
        return await client.request("GET", reply.message, {"Prefer": f"wait={wait}"})


async def test_request_comes_whole_and_once(tmp_path: Path) -> None:
    """Method, target, fields and content; a key and the sender's fields are added."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            fields = {**RESUME, "Content-Type": "text/x", "Cookie": "a=b"}
            reply = await client.request("POST", "/a?b=c", fields, BODY)
        assert (reply.status, reply.body) == (200, b"done")
        (seen,) = behind.seen
        assert (seen.line, seen.body) == ("POST /a?b=c HTTP/1.1", BODY)
        assert seen.lines[0] == ("host", "test")
        assert seen.get("content-type") == "text/x"
        assert seen.get("cookie") == "a=b"
        assert seen.get("x-forwarded-for") == "127.0.0.1"
        assert seen.get("idempotency-key") == f'"{reply.message.split("/")[-2]}"'
        assert seen.get("prefer") is None


async def test_own_key_of_the_client_is_kept(tmp_path: Path) -> None:
    """It may have used it before."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            fields = {**RESUME, "Idempotency-Key": '"mine"'}
            await client.request("POST", "/", fields, BODY)
        assert behind.seen[0].get("idempotency-key") == '"mine"'


@pytest.mark.parametrize("cut", [0, 1, 70_000, len(BODY) - 1])
async def test_cut_upload_is_resumed_and_sent_once(cut: int, tmp_path: Path) -> None:
    """Wherever the cut is. A replay is answered from the record."""
    async with backend(ok(LARGE)) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            begun = await client.start(len(BODY), BODY[:cut], target="/x")
            place = begun.fields.get("request-content-location") or ""
        async with service.connect() as client:
            offset = int((await client.request("HEAD", place))["upload-offset"])
            assert offset <= cut
            reply = await client.patch(place, offset, BODY[offset:], len(BODY))
            assert (reply.status, reply.body) == (200, LARGE)
            again = await ended(client, place)
            assert again.body == LARGE
        assert [seen.body for seen in behind.seen] == [BODY]


async def test_rufh_and_tus_uploads_come_as_ordinary_requests(tmp_path: Path) -> None:
    """Their fields stay here, and tus's metadata becomes HTTP's fields."""
    async with backend(ok(b"made", "201 Created")) as behind:
        async with front(tmp_path, behind.url) as service, service.connect() as client:
            fields = {**says(NEWEST, False), "Upload-Length": "10"}
            made = await client.request("POST", "/rufh", fields, b"01234")
            fields = appends(NEWEST, 5, True)
            place = made["location"].partition("test")[2]
            reply = await client.request("PATCH", place, fields, b"56789")
            assert (reply.status, reply.body) == (201, b"made")
            tus = {
                "Tus-Resumable": "1.0.0",
                "Upload-Length": "3",
                "Upload-Metadata": "filename YS50eHQ=,filetype dGV4dC9wbGFpbg==",
            }
            made = await client.request("POST", "/tus", tus, b"")
            append = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
            }
            place = made["location"].partition("test")[2]
            assert (await client.request("PATCH", place, append, b"abc")).status == 204
            await message(service, made)
        one, two = behind.seen
        assert (one.line, one.body) == ("POST /rufh HTTP/1.1", b"0123456789")
        assert (two.line, two.body) == ("POST /tus HTTP/1.1", b"abc")
        assert two.get("content-type") == "text/plain"
        assert "a.txt" in (two.get("content-disposition") or "")
        for seen in behind.seen:
            names = [name for name, _ in seen.lines]
            assert not any(n.startswith(("upload-", "tus-")) for n in names)


async def test_chunked_content_gets_a_length(tmp_path: Path) -> None:
    """The backend need not read chunks."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            start = head("PUT", "/c", {"Transfer-Encoding": "chunked"})
            await client.send(start + chunked(BODY, 50_000))
            assert (await client.reply("PUT")).status == 200
        assert behind.seen[0].body == BODY
        assert behind.seen[0].get("content-length") == str(len(BODY))


async def test_response_is_ranged_and_its_location_is_public(tmp_path: Path) -> None:
    """R28: a response that was cut is completed with a Range."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        behind.answer = ok(LARGE, "201 Created", (f"Location: {behind.url}/made",))
        async with service.connect() as client:
            reply = await resumable(client)
            assert (reply.status, reply["location"]) == (201, "/made")
            part = await client.request("GET", reply.result, {"Range": "bytes=7-99999"})
            assert (part.status, part.body) == (206, LARGE[7:100_000])


async def test_response_without_a_length_is_recorded_whole(tmp_path: Path) -> None:
    """Chunked, and up to the end of the connection."""
    whole = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: x\r\n\r\n"
    trailers = b"X: y\r\n\r\n"
    sent = whole + chunked(LARGE, 70_000)[:-2] + trailers

    async def until_the_end(seen: Seen, stream: trio.abc.Stream) -> None:
        await stream.send_all(b"HTTP/1.0 200 OK\r\n\r\n" + LARGE)
        await stream.aclose()

    async with backend(raw(sent)) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            assert (await resumable(client)).body == LARGE
            behind.answer = until_the_end
            assert (await resumable(client)).body == LARGE


async def test_trailers_of_a_response_are_dropped(tmp_path: Path) -> None:
    """Those of a recorded response and of one that streams through; ``Trailer``, too.

    They may be dropped (RFC 9110, section 6.5.1), and a replay or a range has no place for them.
    """
    sent = (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n"
        b"5\r\n12345\r\n0\r\nX-Sum: 15\r\nLocation: /elsewhere\r\n\r\n"
    )
    async with backend(raw(sent)) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            recorded = await resumable(client)
            replayed = await client.request("GET", recorded.result)
            streamed = await client.request("GET", "/stream")
            after = await client.request("GET", "/stream")
    for reply in (recorded, replayed, streamed, after):
        assert (reply.status, reply.body) == (200, b"12345")
        told = {name.lower() for name, _ in reply.fields}
        assert not told & {"trailer", "x-sum", "location"}


async def test_interim_responses_reach_the_client(tmp_path: Path) -> None:
    """RFC 9110, section 15.2; a 100 is between the two servers."""
    early = (
        b"HTTP/1.1 100 Continue\r\n\r\n"
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>\r\n\r\n"
        b"HTTP/1.1 102 Processing\r\n\r\n"
    )
    last = b"HTTP/1.1 204 No Content\r\n\r\n"
    async with backend(raw(early + last)) as behind:
        async with front(tmp_path, behind.url) as service, service.connect() as client:
            reply = await resumable(client)
            assert reply.status == 204
            statuses = [each.status for each in reply.interims]
            assert statuses == [100, 103, 102]
            assert reply.interims[1].fields.get("link") == "</a.css>"


async def test_early_response_is_the_answer(tmp_path: Path) -> None:
    """RFC 9112, section 9.3: the rest is not sent, and the connection is not used again."""

    async def refuse(seen: Seen, stream: trio.abc.Stream) -> None:
        await stream.send_all(
            b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 3\r\n\r\nbig"
        )
        await trio.sleep_forever()

    async with backend(early=refuse) as behind:
        async with front(tmp_path, behind.url) as service, service.connect() as client:
            large = bytes(16 * 1024 * 1024)
            reply = await client.request("PUT", "/", RESUME, large)
            assert (reply.status, reply.body) == (413, b"big")
            behind.early = None
            assert (await client.request("GET", "/")).status == 200
            assert behind.connections == 2


async def test_tls_and_unix_sockets(tmp_path: Path) -> None:
    """The same over both."""
    async with backend(tls=server_context()) as behind:
        async with front(tmp_path, behind.url, tls=client_context()) as service:
            async with service.connect() as client:
                assert (await resumable(client)).status == 200
        assert behind.seen[0].body == BODY
        async with front(tmp_path / "2", behind.url) as service:
            async with service.connect() as client:  # an authority nobody knows
                assert (await resumable(client)).status == 503
    path = tmp_path / "app.sock"
    behind = Backend()
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        serve = trio.serve_listeners
        listeners = [trio.SocketListener(listener)]
        nursery.start_soon(serve, behind.serve, listeners)
        async with front(tmp_path / "3", f"unix:{path}") as service:
            async with service.connect() as client:
                assert (await resumable(client)).status == 200
        nursery.cancel_scope.cancel()
    assert behind.seen[0].body == BODY


async def test_routes_lead_to_their_backends(tmp_path: Path) -> None:
    """The longest prefix decides; a base path precedes the target; the rest is 404."""
    async with backend(ok(b"one")) as one, backend(ok(b"two")) as two:
        routes = {"/api": f"{one.url}/base", "/api/deep": two.url}
        async with front(tmp_path, routes=routes) as service:
            async with service.connect() as client:
                assert (await client.request("GET", "/api/x")).body == b"one"
                assert (await client.request("GET", "/api/deep/x")).body == b"two"
                assert (await client.request("GET", "/other")).status == 404
                refused = await client.request("POST", "/other", RESUME, BODY)
                assert refused.status == 404
        assert one.seen[0].target == "/base/api/x"
        assert two.seen[0].target == "/api/deep/x"


# At most once.


async def dead_end() -> str:
    """A URL where nothing listens."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    return f"http://127.0.0.1:{port}"


async def test_backend_that_is_down_is_passed_over(tmp_path: Path) -> None:
    """No byte had left, so another one gets the request."""
    async with backend() as behind:
        async with front(tmp_path, await dead_end(), behind.url) as service:
            async with service.connect() as client:
                for _ in range(3):
                    assert (await resumable(client)).status == 200
        assert [seen.body for seen in behind.seen] == [BODY] * 3


async def test_request_waits_while_the_backend_is_down(tmp_path: Path) -> None:
    """503 with Retry-After; the client's next visit completes it, with nothing sent again."""
    url = await dead_end()
    port = int(url.rpartition(":")[2])
    config = {"retry_interval": 0}
    async with front(tmp_path, url, config=config) as service:
        async with service.connect() as client:
            reply = await resumable(client)
            assert (reply.status, reply.code) == (503, "service-unavailable")
            assert int(reply["retry-after"]) > 0
            again = await client.request("GET", reply.message)
            assert again.status == 202
        async with backend(ok(b"at last"), port=port) as behind:
            async with service.connect() as client:
                place = reply.content
                told = await ended(client, place)
                assert (told.status, told.body) == (200, b"at last")
            assert [seen.body for seen in behind.seen] == [BODY]


async def test_server_completes_it_when_the_backend_is_back(tmp_path: Path) -> None:
    """Without a visit, and also after a restart of the service."""
    url = await dead_end()
    port = int(url.rpartition(":")[2])
    async with front(tmp_path, url, config={"retry_interval": 0}) as service:
        async with service.connect() as client:
            reply = await resumable(client)
            assert reply.status == 503
    async with front(tmp_path, url, config={"retry_interval": 0.05}) as service:
        async with backend(port=port) as behind:
            with trio.fail_after(20):
                await behind.got.wait()
            told = await message(service, reply)
            assert told.body.startswith(b"HTTP/1.1 200 OK\r\n")
            assert [seen.body for seen in behind.seen] == [BODY]


async def test_requests_that_wait_count_as_open_uploads(tmp_path: Path) -> None:
    """G5: 429 at the limit, also after a restart, until the backend has taken them."""
    url = await dead_end()
    port = int(url.rpartition(":")[2])
    limit = {"max_open_uploads_per_principal": 2}
    async with front(tmp_path, url, config={**limit, "retry_interval": 0}) as service:
        async with service.connect() as client:
            waiting = [await resumable(client) for _ in range(2)]
            assert [reply.status for reply in waiting] == [503, 503]
    async with front(tmp_path, url, config={**limit, "retry_interval": 0}) as service:
        async with service.connect() as client:
            refused = await resumable(client)
            assert (refused.status, refused.code) == (429, "too-many-uploads")
    async with front(
        tmp_path, url, config={**limit, "retry_interval": 0.05}
    ) as service:
        async with backend(port=port) as behind:
            for reply in waiting:
                assert (await message(service, reply)).body.startswith(b"HTTP/1.1 200 ")
            assert len(behind.seen) == 2
            async with service.connect() as client:
                assert (await resumable(client)).status == 200


async def test_request_waits_if_the_service_ends_while_it_connects(
    tmp_path: Path,
) -> None:
    """No byte had left: it is not indeterminate, and the next start sends it."""
    # The system completes no more connections than fit into the queue.
    full = socket.socket()
    full.bind(("127.0.0.1", 0))
    full.listen(0)
    port = full.getsockname()[1]
    queued = [socket.socket() for _ in range(8)]
    for each in queued:
        each.setblocking(False)
        each.connect_ex(("127.0.0.1", port))
    url = f"http://127.0.0.1:{port}"
    begun: Interim | None = None
    async with front(tmp_path, url, config={"retry_interval": 0}) as service:
        async with service.connect() as client:
            begun = await client.start(len(BODY), BODY)
            place = begun.fields.get("request-content-location") or ""
            async with service.connect() as other:
                while True:
                    shown = await other.request("HEAD", place)
                    if shown["upload-offset"] == str(len(BODY)):
                        break
            message_place = begun.fields.get("response-message-location") or ""
            async with service.connect() as other:
                shown = await other.request("GET", message_place, {"Prefer": "wait=1"})
                assert shown.json["state"] == "processing"
    for each in (full, *queued):
        each.close()
    async with backend(port=port) as behind:
        async with front(tmp_path, url, config={"retry_interval": 0.05}) as service:
            with trio.fail_after(20):
                await behind.got.wait()
        assert [seen.body for seen in behind.seen] == [BODY]


async def test_waiting_request_can_be_given_up(tmp_path: Path) -> None:
    """R25: it never comes to the backend."""
    url = await dead_end()
    async with front(tmp_path, url, config={"retry_interval": 0}) as service:
        async with service.connect() as client:
            reply = await resumable(client)
            assert (await client.request("DELETE", reply.content)).status == 204
            assert (await client.request("GET", reply.message)).status == 410


async def hang_up(seen: Seen, stream: trio.abc.Stream) -> None:
    """Close the connection instead of answering."""
    await trio.aclose_forcefully(stream)


async def test_lost_connection_leaves_the_outcome_unknown(tmp_path: Path) -> None:
    """502 ``indeterminate``, recorded; no second try by itself, and the content is kept."""
    config = {"retain_content": False, "retry_interval": 0.05}
    async with backend(hang_up) as behind:
        async with front(tmp_path, behind.url, config=config) as service:
            async with service.connect() as client:
                reply = await resumable(client)
                assert (reply.status, reply.code) == (502, "indeterminate")
                again = await ended(client, reply.content)
                assert (again.status, again.code) == (502, "indeterminate")
        assert [seen.body for seen in behind.seen] == [BODY]


@pytest.mark.parametrize("key", [False, True])
async def test_repeatable_request_is_sent_again(key: bool, tmp_path: Path) -> None:
    """An idempotent method (RFC 9110, section 9.2.2), or a key that the backend respects."""

    calls = 0

    async def once(seen: Seen, stream: trio.abc.Stream) -> None:
        nonlocal calls
        calls += 1
        if calls == 1:
            await trio.aclose_forcefully(stream)
        else:
            await ok()(seen, stream)

    async with backend(once) as first, backend(once) as second:
        urls = (first.url, second.url)
        async with front(tmp_path, *urls, repeats_with_key=key) as service:
            async with service.connect() as client:
                method = "POST" if key else "PUT"
                assert (await resumable(client, method)).status == 200
        both = first.seen + second.seen
        assert [seen.body for seen in both] == [BODY] * 2
        keys = {seen.get("idempotency-key") for seen in both}
        assert len(keys) == 1


async def test_request_that_breaks_every_backend_is_not_sent_for_ever(
    tmp_path: Path,
) -> None:
    """Each gets it once."""
    config = {"retry_interval": 0.05}
    async with backend(hang_up) as one, backend(hang_up) as two:
        async with front(tmp_path, one.url, two.url, config=config) as service:
            async with service.connect() as client:
                reply = await resumable(client, "PUT")
                assert (reply.status, reply.code) == (502, "indeterminate")
        assert len(one.seen) == len(two.seen) == 1


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n12345",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100000\r\n\r\n" + LARGE[:90_000],
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n12345\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\n123",
        b"HTTP/1.1 200 OK\r\nContent-Len",
        b"HTTP/1.1 103 Early Hints\r\n\r\n",
        b"",
    ],
)
async def test_cut_response_is_never_taken_for_whole(
    sent: bytes, tmp_path: Path
) -> None:
    """Wherever it was cut. A request that may be repeated gets another one."""

    async def cut(seen: Seen, stream: trio.abc.Stream) -> None:
        if len(behind.seen) > 1:
            await ok(b"whole")(seen, stream)
            return
        await stream.send_all(sent)
        await stream.aclose()

    async with backend(cut) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            reply = await resumable(client)
            assert (reply.status, reply.code) == (502, "indeterminate")
    async with backend(cut) as behind, backend(cut) as other:
        async with front(tmp_path / "2", behind.url, other.url) as service:
            async with service.connect() as client:
                first = await resumable(client, "PUT")
                assert first.status in (200, 502)
                if first.status == 200:
                    assert first.body == b"whole"


@pytest.mark.parametrize(
    "sent",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 999 Odd\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 300_000 + b"\r\n\r\n",
        b"HTTP/1.1 102 Processing\r\n\r\n" * 2000,
    ],
)
async def test_response_that_makes_no_sense_is_not_passed_on(
    sent: bytes, tmp_path: Path
) -> None:
    """502; the next request has a connection of its own."""
    async with backend(raw(sent)) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            reply = await resumable(client)
            assert reply.status == 502
            behind.answer = ok()
            assert (await client.request("GET", "/")).body == b"done"


async def test_backend_that_is_silent_is_a_504(tmp_path: Path) -> None:
    """In the response's head, in its content, and in taking the request's content."""

    async def silent(seen: Seen, stream: trio.abc.Stream) -> None:
        await trio.sleep_forever()

    started = b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n123"
    async with backend(silent) as behind:
        async with front(tmp_path, behind.url, timeout=0.3) as service:
            async with service.connect() as client:
                reply = await resumable(client)
                assert (reply.status, reply.code) == (504, "gateway-timeout")

                async def stall(seen: Seen, stream: trio.abc.Stream) -> None:
                    await stream.send_all(started)
                    await trio.sleep_forever()

                behind.answer = stall
                reply = await resumable(client)
                assert reply.status == 502
                behind.early = silent
                large = bytes(16 * 1024 * 1024)
                reply = await client.request("POST", "/", RESUME, large)
                assert reply.status in (502, 504)


async def test_connection_that_was_used_carries_only_what_may_be_sent_twice(
    tmp_path: Path,
) -> None:
    """The keep-alive race: the backend may close it at the moment of the request."""
    async with backend() as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            await client.request("GET", "/1")
            await client.request("GET", "/2")
            await resumable(client)
            await client.request("POST", "/3", {}, b"small")
            await client.request("GET", "/4")
        used = [(seen.target, seen.connection) for seen in behind.seen]
        assert used == [("/1", 1), ("/2", 1), ("/a?b=c", 2), ("/3", 3), ("/4", 3)]


async def test_reused_connection_that_closes_under_a_request_costs_nothing(
    tmp_path: Path,
) -> None:
    """The request is sent again on a new one."""

    async def fail_second(seen: Seen, stream: trio.abc.Stream) -> None:
        if seen.connection == 1 and len(behind.seen) == 2:
            await trio.aclose_forcefully(stream)
        else:
            await ok()(seen, stream)

    async with backend(fail_second) as behind, front(tmp_path, behind.url) as service:
        async with service.connect() as client:
            for path in ("/1", "/2", "/3"):
                assert (await client.request("GET", path)).status == 200
        used = [(seen.target, seen.connection) for seen in behind.seen]
        assert used == [("/1", 1), ("/2", 1), ("/2", 2), ("/3", 2)]


def test_indeterminate_has_one_code() -> None:
    """Whether the server itself or its backend was lost."""
    codes = {ProblemCode.INDETERMINATE.code, ProblemCode.OUTCOME_UNKNOWN.code}
    assert codes == {"indeterminate"}
