"""The last part of a content is written and sealed in one job."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.protocol.heads import Fields
from trioresume.server.async_store.storage import Storage
from trioresume.server.uploads.incoming_content import IncomingContent
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port import (
    Content,
    CreateOperation,
    FreezeContent,
    Mutation,
    OperationId,
    OperationRecord,
    OperationState,
    request_key,
)

ID = OperationId("A" * 22)
KEY = request_key(ID)
CHUNK = 64


class _Owner:
    def start(self, function: Callable[..., object], *args: object) -> None:
        """Nobody waits for names here."""


def _opened(path: Path, disk: Disk | None = None) -> DiskStore:
    store = open_store(path, chunk_size=CHUNK, disk=disk)
    record = OperationRecord(
        id=ID,
        state=OperationState.RECEIVING,
        method="POST",
        target="/",
        fields=Fields(),
        created_at=0.0,
        expires_at=1e9,
        keep_incomplete=True,
    )
    assert store.apply([[CreateOperation(record)]]) == [None]
    return store


def _check(
    store: DiskStore, ended: tuple[Content, list[Mutation]], expected: bytes
) -> None:
    """Freeze the content, and read it."""
    content, mutations = ended
    assert content.length == len(expected)
    assert mutations[-1] == FreezeContent(KEY, content)
    assert store.apply([mutations]) == [None]
    found = b""
    with closing(store.open_reader(content)) as reader:
        while part := reader.read(len(found), CHUNK):
            found += part
    assert found == expected


@asynccontextmanager
async def _commits(storage: Storage) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(storage.run_commits)
        yield
        storage.stop()


async def _send(incoming: IncomingContent, first: bytes, last: bytes) -> None:
    async with incoming.writing(await incoming.turns.end_writer()):
        if first:
            incoming.append(memoryview(first))
        incoming.append_last(memoryview(last))
        await incoming.written()


@pytest.mark.parametrize("size", [2, CHUNK, CHUNK + 1, 3 * CHUNK])
async def test_content_is_whole_after_its_last_part(tmp_path: Path, size: int) -> None:
    """It makes no difference whether its last chunk is full."""
    store = _opened(tmp_path)
    storage = Storage(store, threads=1)
    content = bytes(range(size))
    with storage.running():
        incoming = IncomingContent(KEY, 0, storage, _Owner())
        incoming.begin()
        await _send(incoming, content[:1], content[1:])
    with trio.fail_after(5):  # the threads have ended, so a job would never be done
        _check(store, await incoming.finish(), content)
    store.close()


async def test_later_request_completes_what_the_first_one_did_not(
    tmp_path: Path,
) -> None:
    """All bytes are there and are told; the content is sealed already, and stays so."""
    store = _opened(tmp_path)
    storage = Storage(store, threads=1)
    with storage.running():
        incoming = IncomingContent(KEY, 0, storage, _Owner())
        incoming.begin()
        async with _commits(storage):
            await _send(incoming, b"con", b"tent")
            assert await incoming.make_durable() == 7
            async with incoming.writing(await incoming.turns.end_writer()):
                assert incoming.offset == 7
            _check(store, await incoming.finish(), b"content")
    store.close()


async def test_content_that_rested_after_its_last_part_is_completed(
    tmp_path: Path,
) -> None:
    """A writer that is opened anew finds all bytes, and seals them again."""
    store = _opened(tmp_path)
    storage = Storage(store, threads=1)
    with storage.running():
        incoming = IncomingContent(KEY, 0, storage, _Owner())
        incoming.begin()
        await _send(incoming, b"con", b"tent")
        incoming.rest()
        async with incoming.writing(await incoming.turns.end_writer()):
            assert incoming.offset == 7
        _check(store, await incoming.finish(), b"content")
    store.close()


class _FailingOnce(Disk):
    """A disk that fails the first sync of a tail."""

    def __init__(self) -> None:
        super().__init__(durable=True)
        self.fails = True

    def sync_data(self, file: Descriptor) -> None:
        if self.fails:
            self.fails = False
            raise OSError(5, "no")
        super().sync_data(file)


async def test_failed_seal_of_the_last_part_is_told(tmp_path: Path) -> None:
    """Bytes that were not synced do not count; the next writer begins before them."""
    disk = _FailingOnce()
    disk.fails = False
    store = _opened(tmp_path, disk)
    storage = Storage(store, threads=1)
    with storage.running():
        incoming = IncomingContent(KEY, 0, storage, _Owner())
        incoming.begin()
        disk.fails = True
        with pytest.raises(StorageError):
            await _send(incoming, b"con", b"tent")
        async with incoming.writing(await incoming.turns.end_writer()):
            assert incoming.offset == 0
            incoming.append_last(memoryview(b"content"))
            await incoming.written()
        _check(store, await incoming.finish(), b"content")
    store.close()


@pytest.mark.parametrize("append", ["append", "append_last"])
async def test_part_that_comes_after_another_process_took_over_is_refused(
    tmp_path: Path, append: str
) -> None:
    """The claim closes the writer while the request has its turn: a refusal, no bug."""
    store = _opened(tmp_path)
    storage = Storage(store, threads=1)
    with storage.running():
        incoming = IncomingContent(KEY, 0, storage, _Owner())
        incoming.begin()
        with pytest.raises(PeerError) as refused:
            async with incoming.writing(await incoming.turns.end_writer()):
                incoming.close()
                getattr(incoming, append)(memoryview(b"late"))
        assert refused.value.problem is ProblemCode.SUPERSEDED
    store.close()
