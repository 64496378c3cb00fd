"""A connection that is cut within every frame: what was answered is true, the rest is whole."""

from __future__ import annotations

import itertools
import socket
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from tests.store.helpers import CHUNK, read_content, record, response
from tests.store.remote.proxies import Cutting
from tests.store.remote.stands import PATIENCE, KeeperStand, PlayedWorker
from tests.store.shared import sharing_of
from trioresume.errors import StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    CreateOperation,
    FreezeContent,
    Mutation,
    OperationId,
    RecordResponse,
    SetLength,
    SetReserved,
    SetState,
    request_key,
)

DATA = bytes(range(100, 100 + 2 * CHUNK + 3))


@pytest.fixture
def shared(tmp_path: Path) -> Iterator[KeeperStand]:
    stand = KeeperStand(tmp_path)
    yield stand
    stand.close()


class Upload:
    """An upload from its creation to its response, and what was answered of it so far."""

    def __init__(self, store: PlayedWorker, id: OperationId) -> None:
        self._store = store
        self.id = id
        self.is_created = False
        self.offset = 0
        """Announced as durable."""
        self.length = 0
        """The last length whose submission was answered."""
        self.tried = 0
        self.is_done = False

    def _do(self, *mutations: Mutation) -> None:
        assert self._store.apply([mutations]) == [None]

    def _set_length(self, length: int) -> None:
        self.tried = length
        self._do(SetLength(self.id, length), SetReserved(self.id, length))
        self.length = length

    def run(self) -> None:
        store, key = self._store, request_key(self.id)
        sharing_of(store).listen(lambda notice: None)
        writer = store.new_writer(key)
        self._do(CreateOperation(record(self.id)))
        self.is_created = True
        seals = writer.append(DATA[: CHUNK + 2])
        self._set_length(11)
        self._do(*[seal.run() for seal in seals])
        self.offset = CHUNK
        flush = writer.flush()
        assert flush is not None
        self._do(flush.run())
        self.offset = CHUNK + 2
        writer.close()
        writer = store.open_writer(key)
        self._set_length(12)
        seals = writer.append(DATA[CHUNK + 2 :])
        made = [seal.run() for seal in [*seals, *writer.finish()]]
        self._do(*made)
        content = store.sealed_content(key)
        self._do(
            FreezeContent(key, content), SetState(self.id, OperationState.COMPLETE)
        )
        self.offset = len(DATA)
        assert read_content(store, content) == DATA
        found = store.operation(self.id)
        assert found is not None
        assert not found.is_elsewhere
        self._do(RecordResponse(self.id, response(), 5000.0))
        self.is_done = True
        sharing_of(store).release(self.id)
        store.close()

    def check(self, other: PlayedWorker) -> None:
        """Look at it from another process, which takes it over and brings it to its end."""
        assert sharing_of(other).claim(self.id)
        key = request_key(self.id)
        found = other.operation(self.id)
        if found is None:
            assert not self.is_created
            return
        assert not found.is_elsewhere
        assert (found.length or 0) == found.reserved
        assert found.length in {self.length or None, self.tried or None}
        assert found.durable_offset >= self.offset
        assert not self.is_done or found.state is OperationState.DONE
        if found.content is None:
            writer = other.open_writer(key)
            assert self.offset <= writer.offset <= len(DATA)
            seals = writer.append(DATA[writer.offset :]) + writer.finish()
            assert other.apply([[seal.run() for seal in seals]]) == [None]
            content = other.sealed_content(key)
            assert other.apply([[FreezeContent(key, content)]]) == [None]
            writer.close()
        else:
            content = found.content
        assert read_content(other, content) == DATA


@pytest.mark.parametrize("whole", [False, True])
def test_cut_at_every_frame(shared: KeeperStand, whole: bool) -> None:
    """The worker ends clearly, the next one finds all that was answered, and nothing half."""
    other = shared.join()
    for number in itertools.count(1):
        proxies: list[Cutting] = []
        try:
            worker = shared.join(
                partial(_put_between, proxies, number=number, whole=whole)
            )
        except StorageError:
            assert proxies[0].has_cut
            continue
        upload = Upload(worker, OperationId(f"operation-{number}"))
        try:
            upload.run()
        except StorageError:
            assert proxies[0].has_cut
            assert worker.was_lost.wait(PATIENCE)
            with pytest.raises(StorageError):
                worker.check()
            upload.check(other)
            worker.die()
        else:
            upload.check(other)
            if not proxies[0].has_cut:
                break  # there are no more frames
    assert number > 30


def _put_between(
    proxies: list[Cutting], sock: socket.socket, *, number: int, whole: bool
) -> socket.socket:
    proxy = Cutting(sock, number, whole=whole)
    proxies.append(proxy)
    return proxy.end
