"""Every dialect with every other, on one record, over real sockets (section E).

The table of conflicts, a row at a time, and the matrix: what was begun in one dialect
and fell silent is looked at and finished in another, at once.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.speakers import CHUNKED, SPEAKERS, Rufh, Seed, Speaker, Tus, Visitor
from tests.e2e.wire import parse_message
from tests.server.harness import Reply

SIZE = 90_000
THIRD = SIZE // 3
AT_ONCE_SECONDS = 5.0
"""Where waiting for the old connection would be a minute's wait."""
REFUSED = {409, 423}

EACH = pytest.mark.parametrize("speaker", SPEAKERS, ids=str)
# Drafts that differ from a neighbour in words that are not of interest here.
SAME = ("RUFH 4", "RUFH 8")
MATRIX = [speaker for speaker in SPEAKERS if speaker.name not in SAME]


@pytest.fixture
def visitor(shared_service: Service) -> Visitor:
    return Visitor(shared_service)


@pytest.fixture
def content() -> bytes:
    """What no other test uploads."""
    return os.urandom(SIZE)


async def patch(
    visitor: Visitor,
    speaker: Speaker,
    path: str,
    offset: int,
    data: bytes,
    length: int | None = SIZE,
    *,
    last: bool = True,
) -> Reply:
    said = speaker.patch(offset, len(data), length, last=last)
    return await visitor.ask("PATCH", path, said.fields, said.before + data)


async def look(visitor: Visitor, speaker: Speaker, path: str) -> Reply:
    """HEAD, which is answered as the dialect has it."""
    reply = await visitor.ask("HEAD", path, speaker.marks)
    assert reply.status == speaker.head_status
    return reply


async def begun(
    visitor: Visitor, speaker: Speaker, sent: bytes, length: int = SIZE
) -> str:
    """An upload with *sent* in it, and nobody writing; where it is."""
    async with visitor.connect() as client:
        path = await speaker.silent(visitor, client, length, b"")
    await look(visitor, speaker, path)
    if sent:
        reply = await patch(visitor, speaker, path, 0, sent, length, last=False)
        assert reply.status == speaker.partial_status
    return path


async def check_stored(
    visitor: Visitor, speaker: Speaker, path: str, reply: Reply, content: bytes
) -> None:
    """E4: *reply* is the file service's own, or a 204 whose RML has that one."""
    assert reply.status == speaker.completing_status
    if reply.status == 204:
        assert reply["upload-offset"] == str(len(content))
        message = await visitor.ask("GET", reply.message, {"Prefer": "wait=10"})
        recorded = parse_message(message.body)
        described = json.loads(recorded.body)
    else:
        described = json.loads(reply.body)
    assert described["length"] == len(content)
    assert (await visitor.ask("GET", described["location"])).body == content
    assert (await visitor.ask("GET", path)).body == content


@pytest.mark.parametrize("speaker", MATRIX, ids=str)
@pytest.mark.parametrize("beginner", MATRIX, ids=str)
async def test_upload_of_one_dialect_is_finished_in_another(
    beginner: Speaker, speaker: Speaker, visitor: Visitor, content: bytes
) -> None:
    """E9, E3, E4, R21: at once, while the connection that began it is open and silent."""
    async with visitor.connect() as silent:
        path = await beginner.silent(visitor, silent, SIZE, content[:THIRD])
        with trio.fail_after(AT_ONCE_SECONDS):
            seen = await look(visitor, speaker, path)
            offset = int(seen["upload-offset"])
            assert 0 <= offset <= THIRD
            assert not speaker.is_complete(seen)
            part = content[offset : 2 * THIRD]
            reply = await patch(visitor, speaker, path, offset, part, last=False)
            assert reply.status == speaker.partial_status
            assert reply["upload-offset"] == str(2 * THIRD)
            assert (await silent.reply()).status == 409  # it has lost its turn
        # Whoever began it is told the same, in its own words.
        seen = await look(visitor, beginner, path)
        assert seen["upload-offset"] == str(2 * THIRD)
        assert not beginner.is_complete(seen)
        reply = await patch(visitor, speaker, path, 2 * THIRD, content[2 * THIRD :])
        await check_stored(visitor, speaker, path, reply, content)
        for each in (speaker, beginner):
            assert each.is_complete(await look(visitor, each, path))


UNKNOWN = (Seed(), Tus(), Rufh(8))


@pytest.mark.parametrize("speaker", UNKNOWN, ids=str)
@pytest.mark.parametrize("beginner", UNKNOWN, ids=str)
async def test_length_that_one_dialect_left_open_is_told_in_another(
    beginner: Speaker, speaker: Speaker, visitor: Visitor, content: bytes
) -> None:
    """E9, R18, D7: chunked, deferred, or simply not said."""
    fields = beginner.creation(None)
    async with visitor.connect() as client:
        await client.send(visitor.head("POST", "/files/", fields, 0))
        if fields.items() >= CHUNKED.items():
            place = (await client.interim()).fields.get("request-content-location")
        else:
            place = (await client.reply("POST"))["location"]
    path = "/operations/" + str(place).partition("/operations/")[2]
    assert (await look(visitor, speaker, path)).get("upload-length") is None
    part = content[:THIRD]
    reply = await patch(visitor, speaker, path, 0, part, None, last=False)
    assert reply.status == speaker.partial_status
    reply = await patch(visitor, speaker, path, THIRD, content[THIRD:])
    await check_stored(visitor, speaker, path, reply, content)


# Takeover.


@asynccontextmanager
async def silent_upload(
    visitor: Visitor, speaker: Speaker, sent: bytes
) -> AsyncIterator[str]:
    """An upload whose writer's connection stays open after *sent* has arrived."""
    async with visitor.connect() as client:
        path = await speaker.silent(visitor, client, SIZE, sent)
        await visitor.service.wait_for_tail(len(sent))
        yield path


@EACH
@pytest.mark.parametrize("method", ["HEAD", "PATCH"])
async def test_client_that_comes_back_at_once_is_served_at_once(
    method: str, speaker: Speaker, visitor: Visitor
) -> None:
    """R21, C7, D5: never a 423 or a 409, and no timeout; nor is the one after that."""
    content = os.urandom(SIZE)
    # A length of its own, by which the disk shows that it has arrived.
    size = 10_007 + 2 * SPEAKERS.index(speaker) + (method == "PATCH")
    async with silent_upload(visitor, speaker, content[:size]) as path:
        with trio.fail_after(AT_ONCE_SECONDS):
            if method == "HEAD":
                seen = await look(visitor, speaker, path)
                assert seen["upload-offset"] == str(size)
            async with visitor.connect() as second:
                # Sent in part, and silent again: the next one ends that one, too.
                said = speaker.patch(size, 2000, SIZE, last=False)
                head = visitor.head("PATCH", path, said.fields, len(said.before) + 2000)
                await second.send(head + said.before + content[size : size + 1000])
                await visitor.service.wait_for_tail(size + 1000)
                reply = await patch(
                    visitor, speaker, path, size + 1000, content[size + 1000 :]
                )
                assert reply.status not in REFUSED
    await check_stored(visitor, speaker, path, reply, content)


# The table of conflicts.


@EACH
async def test_completion(speaker: Speaker, visitor: Visitor, content: bytes) -> None:
    """E2: at the length, or when it is said."""
    path = await begun(visitor, speaker, content[:THIRD])
    reply = await patch(visitor, speaker, path, THIRD, content[THIRD:], last=False)
    if isinstance(speaker, Rufh):
        assert reply.status == speaker.partial_status
        assert not speaker.is_complete(await look(visitor, speaker, path))
        reply = await patch(visitor, speaker, path, SIZE, b"")
    await check_stored(visitor, speaker, path, reply, content)


@EACH
async def test_head(speaker: Speaker, visitor: Visitor, content: bytes) -> None:
    """E3: 200 with the count, explicit 0 included; 204 without, where a draft demands it."""
    for sent in (b"", content[:THIRD]):
        path = await begun(visitor, speaker, sent)
        seen = await look(visitor, speaker, path)
        assert seen["upload-offset"] == str(len(sent))
        assert seen["cache-control"] == "no-store"
        if speaker.head_status == 204:
            assert seen.get("content-length") is None
        else:
            assert seen["content-length"] == str(len(sent))


@EACH
async def test_wrong_offset(speaker: Speaker, visitor: Visitor, content: bytes) -> None:
    """E5: a 409 with the right one, and nothing changed."""
    path = await begun(visitor, speaker, content[:THIRD])
    for wrong in (0, THIRD - 1, THIRD + 1):
        reply = await patch(visitor, speaker, path, wrong, content[wrong:])
        assert (reply.status, reply["upload-offset"]) == (409, str(THIRD))
    reply = await patch(visitor, speaker, path, THIRD, content[THIRD:])
    await check_stored(visitor, speaker, path, reply, content)


@EACH
async def test_too_long(speaker: Speaker, visitor: Visitor, content: bytes) -> None:
    """E6, C10, B13: 413 in tus, 422 for a range, else 400; newer drafts of RUFH end the upload."""
    path = await begun(visitor, speaker, content[:THIRD])
    much = content[THIRD:] + b"more"
    said = speaker.patch(THIRD, len(much), None, last=False)
    reply = await visitor.ask("PATCH", path, said.fields, said.before + much)
    expected = {Tus: 413, Seed: 422}.get(type(speaker), 400)
    assert reply.status == expected
    if isinstance(speaker, Rufh) and (speaker.number or 99) >= 7:
        gone = await visitor.ask("HEAD", path, speaker.marks)
        assert gone.status == 410
        return
    seen = await look(visitor, speaker, path)
    assert seen["upload-offset"] == str(THIRD)
    reply = await patch(visitor, speaker, path, THIRD, content[THIRD:])
    await check_stored(visitor, speaker, path, reply, content)


@EACH
async def test_interim_responses(speaker: Speaker, visitor: Visitor) -> None:
    """E7: a 104 to those who named a draft, a 100 to those who asked; to others none."""
    fields = speaker.creation(5)
    body = b"" if isinstance(speaker, Tus) else b"hello"
    reply = await visitor.ask("POST", "/files/", fields, body)
    assert reply.status == 201
    expected = []
    if isinstance(speaker, Seed):
        expected = [100]
    elif isinstance(speaker, Rufh) and speaker.number is not None:
        expected = [104]
    assert [interim.status for interim in reply.interims] == expected


@EACH
async def test_integers(speaker: Speaker, visitor: Visitor, content: bytes) -> None:
    """E8, G6: sixteen digits are refused, and nothing is changed by them."""
    path = await begun(visitor, speaker, content[:THIRD])
    reply = await patch(visitor, speaker, path, 10**15, b"", None, last=False)
    assert reply.status == 400
    most = await begun(visitor, speaker, b"", 10**15 - 1)
    assert (await look(visitor, speaker, most))["upload-length"] == "9" * 15
    seen = await look(visitor, speaker, path)
    assert seen["upload-offset"] == str(THIRD)
