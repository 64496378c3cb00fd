"""Collection on request: by the service that has the directory, or where none has."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

import trioresume
from tests.store.helpers import do, put, record, store_content
from trioresume.server.keeper import control_socket as control
from trioresume.server.keeper.control_socket import CONTROL
from trioresume.server.serving import UNTUNED, Tuning, serve_tuned
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    OperationId,
    request_key,
)

DATA = bytes(range(256)) * 40
CHUNK = 256
COLLECTS_WHEN_ASKED = Tuning(collect_delay=3600.0)


async def answer(request: trioresume.Request) -> trioresume.Response:
    return trioresume.Response(200, body=b"ok")


@asynccontextmanager
async def running(
    data_dir: Path, tuning: Tuning = UNTUNED
) -> AsyncIterator[trioresume.Server]:
    config = trioresume.Config(
        bind=["127.0.0.1:0"], data_dir=data_dir, durability="process"
    )
    async with trio.open_nursery() as nursery:
        server: trioresume.Server = await nursery.start(
            serve_tuned, tuning, answer, config
        )
        yield server
        server.shutdown()


def garbage(data_dir: Path) -> None:
    """A store whose process was killed: released content, and files nobody knows."""
    store = open_store(data_dir, chunk_size=CHUNK, durability="process")
    store_content(store, DATA, "released")
    do(store, EndOperation(OperationId("released"), 9e9))
    store.close()
    (data_dir / "chunks" / "00").mkdir(exist_ok=True)
    (data_dir / "chunks" / "00" / ("1e20" + "00" * 32)).write_bytes(b"stray")
    (data_dir / "tails" / "nobodys.0").write_bytes(b"tail")


def left(data_dir: Path) -> list[Path]:
    roots = (data_dir / "chunks", data_dir / "tails")
    return [path for root in roots for path in root.rglob("*") if path.is_file()]


async def listening(data_dir: Path) -> None:
    with trio.fail_after(10):
        while not (data_dir / CONTROL).exists():  # noqa: ASYNC110 - nobody tells
            await trio.sleep(0.01)


async def test_collects_alone_where_no_service_runs(tmp_path: Path) -> None:
    """The whole directory: what was released, and what a crash left."""
    garbage(tmp_path / "data")
    assert len(left(tmp_path / "data")) == 3
    told: list[int] = []
    done = await trioresume.collect(
        tmp_path / "data", lambda done: told.append(done.steps)
    )
    assert left(tmp_path / "data") == []
    assert (done.recipes, done.chunks, done.bytes) == (1, 2, CHUNK + 5)
    assert told == sorted(told)
    assert told[-1] == done.steps
    assert await trioresume.collect(tmp_path / "data") == trioresume.Collected()


async def test_asks_the_service_that_runs(tmp_path: Path) -> None:
    """The service does it, and goes on; its own collector finds nothing then."""
    data_dir = tmp_path / "data"
    garbage(data_dir)
    async with running(data_dir, COLLECTS_WHEN_ASKED) as server:
        done = await trioresume.collect(data_dir)
        assert (done.chunks, done.bytes) == (2, CHUNK + 5)
        assert left(data_dir) == []
        async with trioresume.Client() as client:
            url = server.urls[0] + "/x"
            assert (await client.request("POST", url, body=b"a")).status == 200
    assert not (data_dir / CONTROL).exists()


async def test_only_the_owner_may_ask(tmp_path: Path) -> None:
    """The socket is in a directory of mode 0700 and itself 0600."""
    async with running(tmp_path / "data"):
        await listening(tmp_path / "data")
        mode = os.stat(tmp_path / "data" / CONTROL).st_mode
        assert stat.S_ISSOCK(mode)
        assert stat.S_IMODE(mode) == 0o600


async def test_socket_of_a_killed_service_is_replaced(tmp_path: Path) -> None:
    """A leftover socket neither keeps a service from listening nor fools a keeper."""
    data_dir = tmp_path / "data"
    open_store(data_dir).close()
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(data_dir / CONTROL))
    assert await trioresume.collect(data_dir) == trioresume.Collected()
    async with running(data_dir):
        with trio.fail_after(10):
            done = await trioresume.collect(data_dir)
        assert done.chunks == 0


async def test_directory_may_be_deep(tmp_path: Path) -> None:
    """A socket's address is short, a path need not be."""
    data_dir = tmp_path / ("d" * 100) / ("e" * 100)
    data_dir.parent.mkdir()
    garbage(data_dir)
    async with running(data_dir):
        await trioresume.collect(data_dir)
    assert left(data_dir) == []


async def test_holder_that_does_not_listen_is_reported(tmp_path: Path) -> None:
    """Somebody has the directory and cannot be asked: StoreLocked, after some patience."""
    store = open_store(tmp_path / "data")
    with pytest.raises(trioresume.StoreLocked):
        await trioresume.collect(tmp_path / "data", patience=0.3)
    store.close()


async def test_no_directory_is_made(tmp_path: Path) -> None:
    """A misspelt path is an error, not a new data directory."""
    with pytest.raises(trioresume.StorageError, match="no data directory"):
        await trioresume.collect(tmp_path / "dta")
    assert not (tmp_path / "dta").exists()


async def say(data_dir: Path, line: bytes) -> bytes:
    stream = await trio.open_unix_socket(data_dir / CONTROL)
    async with stream:
        await stream.send_all(line)
        heard = b""
        async for data in stream:
            heard += data
    return heard


@pytest.mark.parametrize(
    "line",
    [b"\n", b"nonsense\n", b'"collect"\n', b'{"do": 5}\n', b"x" * 10_000, b"[1]\n"],
)
async def test_nonsense_is_answered_with_an_error(tmp_path: Path, line: bytes) -> None:
    """What is asked for is one thing; everything else is refused, bounded in size."""
    async with running(tmp_path / "data"):
        await listening(tmp_path / "data")
        try:
            heard = await say(tmp_path / "data", line)
        except trio.BrokenResourceError:
            assert len(line) > control.MAX_LINE  # closed with some of it unread
        else:
            assert "error" in json.loads(heard)
        assert (await trioresume.collect(tmp_path / "data")).chunks == 0


async def _say_nothing(data_dir: Path) -> None:
    async with await trio.open_unix_socket(data_dir / CONTROL) as stream:
        assert await stream.receive_some() == b""


async def test_silent_client_is_sent_away(tmp_path: Path) -> None:
    """Who asks nothing does not hold a place for ever, and many do not stop the others."""
    async with running(tmp_path / "data", Tuning(keeper_timeout=0.2)):
        await listening(tmp_path / "data")
        async with trio.open_nursery() as nursery:
            for _ in range(3 * control.MAX_CLIENTS):
                nursery.start_soon(_say_nothing, tmp_path / "data")
            with trio.fail_after(10):
                await trioresume.collect(tmp_path / "data")


async def test_error_of_the_service_is_the_keepers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that fails says so to whoever asked; the service lives on."""

    def fail(self: DiskStore, limit: int) -> trioresume.Collected:
        raise trioresume.StorageError("the disk is on fire")

    async with running(tmp_path / "data"):
        await listening(tmp_path / "data")
        with monkeypatch.context() as patch:
            patch.setattr(DiskStore, "collect", fail)
            with pytest.raises(trioresume.StorageError, match="on fire"):
                await trioresume.collect(tmp_path / "data")
        await trioresume.collect(tmp_path / "data")


class Steps:
    """A collection that does not end by itself: how many steps it has made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0

        def step(store: DiskStore, limit: int) -> trioresume.Collected:
            self.count += 1
            return trioresume.Collected(steps=1)

        monkeypatch.setattr(DiskStore, "collect", step)

    async def more(self) -> None:
        """Wait for another step."""
        before = self.count
        with trio.fail_after(20):
            while self.count == before:  # noqa: ASYNC110 - a thread makes them
                await trio.sleep(0.01)


async def test_service_that_ends_meanwhile_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """CollectionCut: what was done is done; ask again."""
    steps = Steps(monkeypatch)
    with pytest.RaisesGroup(trioresume.CollectionCut):
        async with trio.open_nursery() as nursery:
            async with running(tmp_path / "data") as server:
                await listening(tmp_path / "data")
                nursery.start_soon(trioresume.collect, tmp_path / "data")
                await steps.more()
                server.shutdown()


async def test_keeper_that_goes_away_ends_what_it_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Cancelled or killed: the service stops after the step it is at."""
    steps = Steps(monkeypatch)
    async with running(tmp_path / "data", COLLECTS_WHEN_ASKED):
        await listening(tmp_path / "data")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trioresume.collect, tmp_path / "data")
            await steps.more()
            nursery.cancel_scope.cancel()
        with trio.fail_after(20):
            before = -1
            while steps.count != before:  # the service hears of it a little later
                before = steps.count
                await trio.testing.wait_all_tasks_blocked(0.1)


async def test_unfinished_upload_survives_a_lone_collection(tmp_path: Path) -> None:
    """What is being written is spoken of, tails included."""
    store = open_store(tmp_path / "data", chunk_size=CHUNK, durability="process")
    do(store, CreateOperation(record("open")))
    writer = store.open_writer(request_key(OperationId("open")))
    put(store, writer, DATA[:700])
    store.close()
    await trioresume.collect(tmp_path / "data")
    store = open_store(tmp_path / "data", chunk_size=CHUNK, durability="process")
    assert store.offset(request_key(OperationId("open"))) == 700
    store.close()
