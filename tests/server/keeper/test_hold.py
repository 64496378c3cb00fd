"""Holding collection: by a command beside a service, and where none runs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.lowlevel

import trioresume
from tests.server.keeper.test_control_socket import (
    CHUNK,
    garbage,
    left,
    listening,
    running,
)
from trioresume.server.keeper import backup
from trioresume.server.keeper.control_socket import calling, serve_control
from trioresume.server.keeper.conversation import Conversation, Message
from trioresume.server.keeper.hold import Hold, HoldLost, holding, holding_for_others
from trioresume.server.uploads.expiry import Collector
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.testing import MemoryStore


class Counting:
    """A collector's storage whose collection has one step."""

    def __init__(self) -> None:
        self.store = MemoryStore(chunk_size=CHUNK)
        self.steps = 0

    async def run(self, function: Callable[..., object], *args: object) -> object:
        await trio.lowlevel.checkpoint()
        self.steps += function == self.store.collect
        return function(*args)


async def _ignore(done: trioresume.Collected) -> None:
    await trio.lowlevel.checkpoint()


async def test_nothing_is_collected_while_it_is_held() -> None:
    """The step that runs ends before the hold begins; the next one waits for its end."""
    storage = Counting()
    collector = Collector(storage, delay=0.0)  # type: ignore[arg-type]
    ended = trio.Event()

    async def collect() -> None:
        await collector.collect(_ignore)
        ended.set()

    async with trio.open_nursery() as nursery:
        async with collector.held(), collector.held():
            nursery.start_soon(collect)
            await trio.testing.wait_all_tasks_blocked()
            assert storage.steps == 0
        await ended.wait()
    assert storage.steps == 1


async def test_service_collects_when_the_hold_is_over(tmp_path: Path) -> None:
    """``gc`` waits meanwhile."""
    data_dir = tmp_path / "data"
    garbage(data_dir)
    async with running(data_dir):
        await listening(data_dir)
        async with trio.open_nursery() as nursery:
            async with holding(data_dir) as hold:
                there = left(data_dir)
                nursery.start_soon(trioresume.collect, data_dir)
                await trio.testing.wait_all_tasks_blocked(0.05)
                assert left(data_dir) == there
                await hold.confirm()
        assert left(data_dir) == []


@pytest.fixture
def collector() -> Collector:
    return Collector(Counting(), delay=0.0)  # type: ignore[arg-type]


async def serving(
    data_dir: Path,
    command: Callable[[Conversation, Message], Awaitable[None]],
    use: Callable[[], Awaitable[None]],
) -> None:
    """Have *command* obeyed as a service's ``hold`` while *use* runs."""
    with open_lock(data_dir):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(serve_control, data_dir, {"hold": command})
            await listening(data_dir)
            await use()
            nursery.cancel_scope.cancel()


def open_lock(data_dir: Path) -> closing[DiskStore]:
    return closing(open_store(data_dir))


async def test_silent_client_loses_its_hold(
    tmp_path: Path, collector: Collector
) -> None:
    """A backup that hangs does not keep the disk from being freed for ever; it hears so."""

    async def hang() -> None:
        with pytest.raises(HoldLost):
            async with holding(tmp_path) as hold:
                hold.stop_renewing()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_until_let_go, collector)
                await hold.confirm()

    command = holding_for_others(collector, silence=0.05)
    await serving(tmp_path, command, hang)


async def _until_let_go(collector: Collector) -> None:
    await collector.collect(_ignore)


async def test_client_that_goes_away_lets_go(
    tmp_path: Path, collector: Collector
) -> None:
    async def go_away() -> None:
        async with calling(tmp_path) as talk:
            await talk.say({"do": "hold"})
            assert await talk.hear() == {"held": True}
        with trio.fail_after(10):
            await _until_let_go(collector)

    await serving(tmp_path, holding_for_others(collector), go_away)


async def test_lock_is_shared_where_no_service_runs(tmp_path: Path) -> None:
    """Nobody can start one, or collect, meanwhile; a second backup can hold, too."""
    open_store(tmp_path).close()
    async with holding(tmp_path) as one, holding(tmp_path) as two:
        with pytest.raises(trioresume.StoreLocked):
            open_store(tmp_path)
        await one.confirm()
        await two.confirm()
    open_store(tmp_path).close()


async def test_holder_that_does_not_listen_is_reported(tmp_path: Path) -> None:
    with open_lock(tmp_path), pytest.raises(trioresume.StoreLocked):
        async with holding(tmp_path, patience=0.1):
            pass


async def test_backup_is_made_and_restored_by_a_program(tmp_path: Path) -> None:
    """Beside a service; an impossible wish is refused before anything is made."""
    data_dir, backups = tmp_path / "data", tmp_path / "backups"
    garbage(data_dir)
    seen: list[tuple[int, int]] = []
    async with running(data_dir):
        await listening(data_dir)
        async with trioresume.Client():
            pass
        made = await trioresume.backup(
            data_dir, backups, on_progress=lambda *at: seen.append(at)
        )
        assert (made.missing, made.removed) == ((), ())
        with pytest.raises(trioresume.CallerError):
            await trioresume.backup(data_dir, tmp_path / "none", keep=0)
        with pytest.raises(trioresume.StorageError, match="no data directory"):
            await trioresume.backup(tmp_path / "dta", tmp_path / "none")
        assert not (tmp_path / "none").exists()
    restored = await trioresume.restore(backups, tmp_path / "restored")
    assert restored.name == made.name
    second = await trioresume.backup(data_dir, backups, keep=1)
    assert second.removed == (made.name,)
    with pytest.raises(trioresume.StorageError, match="no backup called"):
        await trioresume.restore(backups, tmp_path / "other", name=made.name)


async def test_service_that_ends_during_the_hold_costs_another_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was copied without a hold until the end is not called a backup."""
    data_dir, backups = tmp_path / "data", tmp_path / "backups"
    open_store(data_dir).close()
    tried = 0

    class Lost(Hold):
        async def confirm(self) -> None:
            raise HoldLost("the service ended")

    @asynccontextmanager
    async def unreliable(path: Path) -> AsyncIterator[Hold]:
        nonlocal tried
        tried += 1
        async with holding(path) as hold:
            yield Lost() if tried < 3 else hold

    monkeypatch.setattr(backup, "holding", unreliable)
    made = await trioresume.backup(data_dir, backups)
    assert tried == 3
    assert made.name.startswith("000001-")
    tried = -3
    with pytest.raises(HoldLost):
        await trioresume.backup(data_dir, backups)
    assert len([path for path in backups.iterdir() if path.name[:5] == "00000"]) == 1
