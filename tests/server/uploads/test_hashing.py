"""Digests that clients ask for: within a budget, in turn, and while somebody wants them."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.server.harness import (
    Client,
    MemoryService,
    Recorder,
    Reply,
    memory_service,
)
from tests.server.tus import MARK, append, b64, create, place, upload
from trioresume import Config, Principal, RequestHead
from trioresume.server.async_store.storage import Storage
from trioresume.server.uploads.hashing import HOUR, WANTED_FOR, Hashing
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

PART = bytes(range(256)) * 4
TIMES = 8
JOINED = PART * TIMES
PARTIAL = {"Upload-Concat": "partial"}
WANT = {"Want-Repr-Digest": "sha-256=1"}
STEP = 512
STEPS = len(JOINED) // STEP
SLOW = 2.0
"""Seconds that each step takes, where hashing is slow."""


def _digest(data: bytes) -> str:
    return f"sha-256=:{b64(hashlib.sha256(data).digest())}:"


CLAIM = {"Repr-Digest": _digest(JOINED)}


class Steps:
    """Counts the steps of hashing in a service, and makes each take a while."""

    def __init__(self, service: MemoryService, seconds: float = 0.0) -> None:
        self.count = 0
        self._hash = service.storage.hash
        self._seconds = seconds
        service.operations.hashing.step = STEP
        service.storage.hash = self._count  # type: ignore[method-assign,assignment]  # counted

    async def _count(self, step: Callable[[], None]) -> None:
        self.count += 1
        await trio.sleep(self._seconds)
        await self._hash(step)


@asynccontextmanager
async def _service(
    budget: int = 1 << 20,
    *,
    seconds: float = 0.0,
    store: MemoryStore | None = None,
    **settings: object,
) -> AsyncIterator[tuple[MemoryService, Steps]]:
    config = Config(digest_budget=budget, **settings)  # type: ignore[arg-type]  # as given
    store = store or MemoryStore(chunk_size=1024)
    async with memory_service(Recorder(), config, store=store) as service:
        yield service, Steps(service, seconds)


async def _join(client: Client, part: str, **fields: str) -> Reply:
    said = {**MARK, "Upload-Concat": "final;" + " ".join([part] * TIMES)}
    for name, value in fields.items():
        said[name.replace("_", "-")] = value
    return await client.request("POST", "/", said)


async def _message(client: Client, joined: Reply) -> Reply:
    """The recorded response, once it is there."""
    message = place(joined).replace("/content", "/message")
    wait = {"Prefer": "wait=5"}
    while (reply := await client.request("GET", message, wait)).status == 202:
        pass
    return reply


async def test_wish_beyond_the_budget_is_not_answered(autojump_clock: Clock) -> None:
    """RFC 9530, section 4: a preference. Not a byte is hashed for it."""
    async with _service(3 * len(JOINED)) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        answered = []
        for _ in range(5):
            reply = await _join(client, part, **_underscored(WANT))
            assert reply.status == 201
            answered.append(
                _digest(JOINED) in (await _message(client, reply)).body.decode()
            )
        assert answered == [True, True, True, False, False]
        assert steps.count == 3 * STEPS


def _underscored(fields: dict[str, str]) -> dict[str, str]:
    return {name.replace("-", "_"): value for name, value in fields.items()}


async def test_claim_beyond_the_budget_is_refused_before_it_is_joined(
    autojump_clock: Clock,
) -> None:
    """429 tells when there is budget again; then it is checked."""
    async with _service(len(JOINED)) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        assert (await _join(client, part, **_underscored(CLAIM))).status == 201
        before = len(service.store._operations)
        refused = await _join(client, part, **_underscored(CLAIM))
        assert (refused.status, refused.code) == (429, "too-many-requests")
        assert len(service.store._operations) == before
        assert 0.9 * HOUR < int(refused["retry-after"]) <= HOUR
        await trio.sleep(int(refused["retry-after"]))
        client = service.connect()
        reply = await _join(client, part, **_underscored(CLAIM))
        assert reply.status == 201
        assert (await _message(client, reply)).status == 200
        assert steps.count == 2 * STEPS


async def test_claim_beyond_any_budget_is_413(autojump_clock: Clock) -> None:
    """To wait would not help."""
    async with _service(len(JOINED) - 1) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        reply = await _join(client, part, **_underscored(CLAIM))
        assert (reply.status, reply.code) == (413, "content-too-large")
        assert (await _join(client, part)).status == 201
        assert steps.count == 0


async def test_false_claim_within_the_budget_is_found(autojump_clock: Clock) -> None:
    """C15: the target is not called for it."""
    async with _service() as (service, _):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        reply = await _join(client, part, Repr_Digest=_digest(b"other"))
        assert b"digest-mismatch" in (await _message(client, reply)).body


async def test_budget_is_each_principal_s(autojump_clock: Clock) -> None:
    """One who spends all of it takes nothing from another."""

    async def authenticate(head: RequestHead) -> Principal:
        return Principal(head.fields.get("authorization") or "")

    async with _service(len(JOINED), authenticate=authenticate) as (service, steps):
        client = service.connect()
        for who, expected in (("a", 1), ("a", 1), ("b", 2)):
            said = {"Authorization": who}
            part = await create(client, len(PART), {**PARTIAL, **said})
            assert (await append(client, part, 0, PART, said)).status == 204
            fields = {**_underscored(WANT), **said}
            assert (await _join(client, part, **fields)).status == 201
            await trio.sleep(1)
            assert steps.count == expected * STEPS


async def test_what_was_sent_needs_no_budget(autojump_clock: Clock) -> None:
    """Whoever sends so many bytes has paid for them."""
    async with _service(0) as (service, steps):
        client = service.connect()
        for fields in (WANT, CLAIM, {**WANT, **CLAIM}):
            reply = await client.request("POST", "/", fields, JOINED)
            assert reply.status == 200
            assert reply.get("repr-digest") == (
                _digest(JOINED) if "Want-Repr-Digest" in fields else None
            )
        assert steps.count == 3 * STEPS


@pytest.mark.parametrize("fields", [WANT, CLAIM])
async def test_deleted_upload_is_not_hashed_on(
    fields: dict[str, str], autojump_clock: Clock
) -> None:
    """DELETE ends it within a step."""
    async with _service(seconds=SLOW) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        reply = await _join(client, part, **_underscored(fields))
        assert reply.status == 201
        await trio.sleep(2.5 * SLOW)
        assert (await client.request("DELETE", place(reply), MARK)).status == 204
        at_most = steps.count + 1
        await trio.sleep(STEPS * SLOW)
        assert steps.count <= at_most < STEPS


async def test_wish_ends_when_nobody_looks_any_more(autojump_clock: Clock) -> None:
    """The upload itself goes on, to its target."""
    async with _service(seconds=SLOW) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        reply = await _join(client, part, **_underscored(WANT))
        await client.aclose()
        await trio.sleep(STEPS * SLOW)
        assert steps.count <= WANTED_FOR / SLOW + 1 < STEPS
        message = await _message(service.connect(), reply)
        assert message.status == 200
        assert b"epr-digest" not in message.body.lower()


async def test_wish_holds_while_somebody_looks(autojump_clock: Clock) -> None:
    """A client that asks now and then is there."""
    async with _service(seconds=SLOW) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        reply = await _join(client, part, **_underscored(WANT))
        assert _digest(JOINED) in (await _message(client, reply)).body.decode()
        assert steps.count == STEPS


async def test_claim_is_checked_whoever_is_there(autojump_clock: Clock) -> None:
    """The target must not be called for anything else."""
    async with _service(seconds=SLOW) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        await _join(client, part, **_underscored(CLAIM))
        await client.aclose()
        await trio.sleep(2 * STEPS * SLOW)
        assert steps.count == STEPS


@pytest.mark.parametrize(("fields", "again"), [(WANT, 0), (CLAIM, STEPS)])
async def test_wish_does_not_survive_a_restart(
    fields: dict[str, str], again: int, autojump_clock: Clock
) -> None:
    """What was joined is processed all the same; a claim is checked."""
    store = MemoryStore(chunk_size=1024)
    async with _service(seconds=SLOW, store=store) as (service, steps):
        client = service.connect()
        part = await upload(client, PART, PARTIAL)
        joined = await _join(client, part, **_underscored(fields))
        await trio.sleep(2.5 * SLOW)
        assert 0 < steps.count < STEPS
    async with _service(store=store) as (service, steps):
        client = service.connect()
        message = await _message(client, joined)
        assert message.status == 200
        assert steps.count == again
        assert b"repr-digest" not in message.body.lower()


async def test_nothing_else_that_asks_is_hashed(autojump_clock: Clock) -> None:
    """Downloads, offsets and replays do not answer ``Want-Repr-Digest``."""
    async with _service() as (service, steps):
        client = service.connect()
        first = await client.request("POST", "/", {"Prefer": "resume", **WANT}, PART)
        assert steps.count == len(PART) // STEP
        steps.count = 0
        for method in ("GET", "HEAD"):
            for target in (first.content, first.message, first.result, "/"):
                await client.request(method, target, WANT)
        assert steps.count == 0


class Zeros:
    """A reader of content that is nowhere."""

    def __init__(self, length: int) -> None:
        self.length = length

    def read(self, offset: int, size: int) -> bytes:
        return bytes(size)

    def extent(self, offset: int, size: int) -> None: ...

    def close(self) -> None: ...


async def test_principals_take_turns() -> None:
    """A few bytes of one do not wait for the many uploads of another."""
    storage = Storage(MemoryStore(), threads=1)
    hashing = Hashing(storage, Config())
    hashing.step = 100
    done: list[str] = []
    steps = 0

    async def count(step: Callable[[], None]) -> None:
        nonlocal steps
        steps += 1
        await trio.lowlevel.checkpoint()
        step()

    storage.hash = count  # type: ignore[method-assign,assignment]  # counted

    async def hash_for(who: str, length: int) -> None:
        await hashing.digests(who, Zeros(length), {"sha-256"}, lambda: True)
        done.append(who)

    async with trio.open_nursery() as nursery:
        for _ in range(50):
            nursery.start_soon(hash_for, "many", 1000)
        await trio.lowlevel.checkpoint()
        began = steps
        await hash_for("few", 300)
        assert steps - began < 20
    assert done[0] == "few"
    assert not hashing._turns
