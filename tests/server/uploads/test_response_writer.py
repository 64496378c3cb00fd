"""Response content on its way into chunks."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
import trio
import trio.testing

from tests.server.held import HeldStore
from trioresume import Config, Fields
from trioresume.errors import StorageError, StorageFull
from trioresume.protocol.operation import OperationState
from trioresume.server.serving import running_storage
from trioresume.server.uploads.target_call import ResponseWriter
from trioresume.store.port import CreateOperation, OperationId, OperationRecord
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

ID = OperationId("A" * 22)
BODY = bytes(range(256)) * 400


RECORD = OperationRecord(
    id=ID,
    method="POST",
    target="/",
    fields=Fields(),
    created_at=0.0,
    expires_at=1e9,
    state=OperationState.PROCESSING,
)


def held_store(chunk_size: int = 1024) -> HeldStore:
    """A store that has the operation."""
    store = MemoryStore(chunk_size=chunk_size)
    store.apply([[CreateOperation(RECORD)]])
    return HeldStore(store)


async def blocks(body: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def test_cancelled_writer_is_closed_after_its_last_job(
    autojump_clock: Clock,
) -> None:
    """A thread may still be at work with its files."""
    held = held_store(64)
    scope = trio.CancelScope()
    async with (
        running_storage(held.port, Config(), held.workers) as storage,
        trio.open_nursery() as nursery,
    ):

        async def write() -> None:
            with scope:
                await ResponseWriter(ID, storage).write(BODY)

        appending = held.hold("writer.append")
        nursery.start_soon(write)
        await appending.reached()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        assert "writer.close" not in held.calls
        appending.release()
    assert scope.cancelled_caught
    assert held.calls[-1] == "writer.close"


@pytest.mark.parametrize("size", [1, 1000, len(BODY)])
async def test_small_blocks_are_appended_together(
    size: int, autojump_clock: Clock
) -> None:
    """Each append is a job for a thread, and a handler may yield single bytes."""
    held = held_store()
    async with running_storage(held.port, Config(), held.workers) as storage:
        writer = ResponseWriter(ID, storage)
        content, _ = await writer.write(blocks(BODY, size))
        assert content.length == len(BODY)
    assert held.count("writer.append") == 1


async def test_full_disk_is_waited_for(autojump_clock: Clock) -> None:
    """G8: the target is not called again, so its response must not be lost."""
    held = held_store()
    held.fail("writer.append", StorageFull("no room"), times=3)
    async with running_storage(held.port, Config(), held.workers) as storage:
        content, _ = await ResponseWriter(ID, storage).write(BODY)
    assert content.length == len(BODY)
    assert held.count("writer.append") == 4


async def test_chunk_that_could_not_be_synced_is_an_error(
    autojump_clock: Clock,
) -> None:
    """Not even a full disk is waited for then: the data is suspect."""
    held = held_store()
    held.fail("seal.run", StorageFull("no room"))
    async with running_storage(held.port, Config(), held.workers) as storage:
        with pytest.raises(StorageError):
            await ResponseWriter(ID, storage).write(BODY)
    assert held.calls[-1] == "writer.close"
