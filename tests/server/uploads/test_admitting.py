"""What a target is asked before an upload: the whole upload's head, in every dialect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from tests.server.harness import (
    BYTERANGE,
    RESUME,
    Client,
    MemoryService,
    Reply,
    byterange,
    chunked,
    head,
    memory_service,
)
from tests.server.rufh import NEWEST, appends, path_of, says
from tests.server.tus import MARK, OCTETS, append, b64, create, place, receiving, upload
from trioresume import PeerError, ProblemCode, Request, RequestHead, Response
from trioresume.server.api.handler import CallPolicy

BODY = b"The quick brown fox jumps over the lazy dog." * 5
NAME = "fox \u202f\u200d.png"
ABOUT = {
    "Content-Type": "Image/PNG; a=b",
    "Content-Disposition": "attachment; filename*=UTF-8''fox%20%E2%80%AF%E2%80%8D.png",
}
METADATA = {
    "Upload-Metadata": f"filename {b64(NAME.encode())},filetype {b64(b'Image/PNG; a=b')}"
}
SEEN = ("image/png", NAME, len(BODY))
UNKNOWN = ("image/png", NAME, None)
CHUNKED = {"Transfer-Encoding": "chunked"}


@dataclass
class Gate:
    """A target that takes small pictures, as somebody writes it who knows no dialect."""

    policy = CallPolicy.AT_MOST_ONCE
    most: int = 10_000
    types: tuple[str, ...] = ("image/png",)
    asked: list[tuple[str, str | None, int | None]] = field(default_factory=list)
    taken: list[bytes] = field(default_factory=list)

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        self.asked.append((head.media_type, head.filename, head.length))
        if head.media_type not in self.types:
            raise PeerError(ProblemCode.UNSUPPORTED_MEDIA_TYPE, "pictures only")
        if head.length is not None and head.length > self.most:
            raise PeerError(ProblemCode.CONTENT_TOO_LARGE, "small ones only")

    async def respond(self, request: Request) -> Response:
        self.taken.append(await request.body.read())
        return Response(200)


async def plain(client: Client) -> Reply:
    return await client.request("POST", "/", ABOUT, BODY)


async def plain_chunked(client: Client) -> Reply:
    await client.send(head("POST", "/", {**ABOUT, **CHUNKED}) + chunked(BODY))
    return await client.reply()


async def seed(client: Client) -> Reply:
    return await client.request("PUT", "/x", {**ABOUT, **RESUME}, BODY)


async def seed_resumed(client: Client) -> Reply:
    await client.send(head("PUT", "/x", {**ABOUT, **RESUME}, length=len(BODY)))
    offer = await client.interim()
    await client.send(BODY[:20])
    path = offer.fields.get("request-content-location") or ""
    await client.aclose()
    return Reply(0, offer.fields, path.encode())


async def rufh(client: Client) -> Reply:
    return await client.request("POST", "/", {**ABOUT, **says(NEWEST, True)}, BODY)


async def rufh_in_steps(client: Client, first: bytes = b"") -> Reply:
    about = {**ABOUT, "Upload-Length": str(len(BODY))}
    reply = await client.request("POST", "/", {**about, **says(NEWEST, False)}, first)
    if not reply.status < 300:
        return reply
    fields = appends(NEWEST, len(first), True)
    path = path_of(reply["location"])
    return await client.request("PATCH", path, fields, BODY[len(first) :])


async def rufh_in_parts(client: Client) -> Reply:
    return await rufh_in_steps(client, BODY[:30])


async def rufh_of_unknown_length(client: Client) -> Reply:
    reply = await client.request("POST", "/", {**ABOUT, **says(NEWEST, False)}, b"")
    if not reply.status < 300:
        return reply
    path = path_of(reply["location"])
    return await client.request("PATCH", path, appends(NEWEST, 0, True), BODY)


async def tus(client: Client) -> Reply:
    stated = {**MARK, **METADATA, "Upload-Length": str(len(BODY))}
    reply = await client.request("POST", "/", stated, b"")
    return await append(client, place(reply), 0, BODY) if reply.status < 300 else reply


async def tus_with_upload(client: Client) -> Reply:
    stated = {**OCTETS, **METADATA, "Upload-Length": str(len(BODY))}
    return await client.request("POST", "/", stated, BODY)


async def tus_with_a_piece(client: Client) -> Reply:
    stated = {**OCTETS, **METADATA, "Upload-Length": str(len(BODY))}
    reply = await client.request("POST", "/", stated, BODY[:9])
    if not reply.status < 300:
        return reply
    return await append(client, place(reply), 9, BODY[9:])


async def tus_deferred(client: Client) -> Reply:
    stated = {**MARK, **METADATA, "Upload-Defer-Length": "1"}
    reply = await client.request("POST", "/", stated, b"")
    if not reply.status < 300:
        return reply
    length = {"Upload-Length": str(len(BODY))}
    return await append(client, place(reply), 0, BODY, length)


async def tus_in_parallel(client: Client) -> Reply:
    partial = {"Upload-Concat": "partial"}
    paths = [await upload(client, data, partial) for data in (BODY[:50], BODY[50:])]
    final = {**MARK, **METADATA, "Upload-Concat": "final;" + " ".join(paths)}
    return await client.request("POST", "/", final, b"")


Way = Callable[[Client], Awaitable[Reply]]
AT_ONCE: Mapping[Way, list[tuple[str, str | None, int | None]]] = {
    plain: [SEEN],
    plain_chunked: [UNKNOWN, SEEN],
    seed: [SEEN],
    rufh: [SEEN],
    rufh_in_steps: [SEEN, SEEN],
    rufh_in_parts: [SEEN, SEEN],
    rufh_of_unknown_length: [UNKNOWN, SEEN],
    tus: [SEEN, SEEN],
    tus_with_upload: [SEEN],
    tus_with_a_piece: [SEEN, SEEN],
    tus_deferred: [UNKNOWN, SEEN],
    tus_in_parallel: [SEEN],
}
ways = pytest.mark.parametrize("way", AT_ONCE, ids=lambda way: way.__name__)


@asynccontextmanager
async def gate(target: Gate) -> AsyncIterator[MemoryService]:
    async with memory_service(target) as service:
        yield service


@ways
async def test_target_is_asked_about_the_whole_upload(way: Way) -> None:
    """C16, D6: type, name and length, before the content. Again only if a later request
    completes it, or if the length was not known before.
    """
    target = Gate()
    async with gate(target) as service:
        reply = await way(service.connect())
        assert reply.status < 300, reply
        while service.used:
            await service.storage.run(lambda: None)
    assert target.asked == AT_ONCE[way]
    assert target.taken == [BODY]


async def test_target_is_asked_about_a_seed_upload_that_was_cut() -> None:
    """C16, R15: the head that began it, at its beginning and at its end."""
    target = Gate()
    async with gate(target) as service:
        cut = await seed_resumed(service.connect())
        client = service.connect()
        path = cut.body.decode()
        offset = int((await client.request("HEAD", path))["upload-offset"])
        rest = byterange(offset, BODY[offset:], len(BODY))
        assert (await client.request("PATCH", path, BYTERANGE, rest)).status == 200
    assert target.asked == [SEEN, SEEN]
    assert target.taken == [BODY]


@ways
async def test_refused_type_is_refused_in_every_dialect(way: Way) -> None:
    """R10: before the content where there is any; no record is left, no handler runs."""
    target = Gate(types=("text/plain",))
    async with gate(target) as service:
        reply = await way(service.connect())
        assert (reply.status, reply.code) == (415, "unsupported-media-type")
        assert len(target.asked) == 1
        assert receiving(service) == []
    assert target.taken == []


@ways
async def test_refused_length_is_refused_in_every_dialect(way: Way) -> None:
    """At once where the length is known; else when it is, and before the handler."""
    target = Gate(most=len(BODY) - 1)
    async with gate(target) as service:
        client = service.connect()
        reply = await way(client)
        known_late = AT_ONCE[way][0] == UNKNOWN
        if way is tus_deferred:
            # D8: tus's answer is about the content; the target's has a place of its own.
            assert reply.status == 204
            told = await client.request(
                "GET", reply["response-message-location"], {"Prefer": "wait=5"}
            )
            assert told.body.startswith(b"HTTP/1.1 413 ")
        else:
            assert (reply.status, reply.code) == (413, "content-too-large")
        assert target.asked == ([UNKNOWN, SEEN] if known_late else [SEEN])
        assert receiving(service) == []
    assert target.taken == []


async def test_refusal_replaces_the_100() -> None:
    """R10: nobody sends content that is not taken."""
    async with gate(Gate(types=())) as service:
        for fields in (RESUME, says(NEWEST, True), {**OCTETS, "Upload-Length": "220"}):
            client = service.connect()
            waits = {**ABOUT, **fields, "Expect": "100-continue"}
            await client.send(head("POST", "/", waits, length=len(BODY)))
            reply = await client.reply()
            assert (reply.status, reply.interims) == (415, [])


async def test_partial_uploads_are_no_uploads_to_the_target() -> None:
    """D7: a client that sends parts in parallel tells name and type only with the whole."""
    target = Gate(most=0)
    async with gate(target) as service:
        client = service.connect()
        path = await create(client, len(BODY), {"Upload-Concat": "partial"})
        assert (await append(client, path, 0, BODY)).status == 204
        assert target.asked == []
        final = {**MARK, **METADATA, "Upload-Concat": f"final;{path} {path}"}
        reply = await client.request("POST", "/", final, b"")
        assert (reply.status, reply.code) == (413, "content-too-large")
    assert target.asked == [("image/png", NAME, 2 * len(BODY))]


@pytest.mark.parametrize(
    ("fields", "seen"),
    [
        ({}, ("", None)),
        ({"Content-Type": "nonsense"}, ("", None)),
        ({"Content-Type": "TEXT/Plain;charset=x"}, ("text/plain", None)),
        ({"Content-Disposition": 'inline; filename="../a"'}, ("", "a")),
        ({"Content-Disposition": "inline"}, ("", None)),
    ],
)
async def test_head_tells_type_and_name(
    fields: dict[str, str], seen: tuple[str, str | None]
) -> None:
    """So that no target has to parse fields."""
    target = Gate(types=("", "text/plain"))
    async with gate(target) as service:
        reply = await service.connect().request("POST", "/", fields, BODY)
        assert reply.status == 200
    assert target.asked == [(*seen, len(BODY))]
