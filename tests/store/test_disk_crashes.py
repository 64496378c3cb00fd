"""The disk store, stopped before each of its steps: by a kill and by a power loss.

A scenario runs once on a watched disk. Before every change that the disk store makes,
a copy of its directory is taken together with what had been announced by then. Each
copy is then opened by a new store, which must keep every promise made so far, be able
to go on, and leave nothing behind in the end.
"""

from __future__ import annotations

import copy
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.store.crashing import StepDisk, WatchedDisk
from tests.store.helpers import (
    CHUNK,
    FaultyDisk,
    boot_setter,
    collect_all,
    file_record,
    read_content,
    read_from,
    record,
    response,
)
from trioresume.errors import StorageConflict, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.disk import DiskStore, open_store
from trioresume.store.port import (
    Collected,
    Content,
    CreateOperation,
    EndOperation,
    FreezeContent,
    Mutation,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SealChunk,
    SetState,
    request_key,
)
from trioresume.store.recipe import Recipe

# Chunks 0 and 3 are equal, and so are the first chunks of both uploads.
ONE = b"equal 8 " + b"chunk 1 " + b"chunk 2 " + b"equal 8 " + b"end"
TWO = ONE[:24] + b"otherwise"
DATA = {"one": ONE, "two": TWO}


@dataclass
class Announced:
    """What the outside world was told, or sees, at one moment."""

    accepted: dict[str, int] = field(default_factory=dict)
    """Bytes that append has returned for: they survive a kill."""
    durable: dict[str, int] = field(default_factory=dict)
    """Bytes that were announced: they survive everything."""
    frozen: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Moment:
    name: str
    announced: Announced
    killed: Path
    unpowered: Path


class World:
    """A store on a watched disk, and the moments recorded while it was used."""

    def __init__(self, path: Path, data_dir: Path, announced: Announced) -> None:
        self.announced = announced
        self.moments: list[Moment] = []
        self._path = path
        self._data_dir = data_dir
        self._disk = WatchedDisk(data_dir, path / "graveyard", self._step)
        self.store = open_store(data_dir, chunk_size=CHUNK, disk=self._disk)

    def _step(self, name: str) -> None:
        at = self._path / f"{len(self.moments)}"
        shutil.copytree(self._data_dir, at / "killed")
        shutil.copytree(self._data_dir, at / "unpowered")
        self._disk.lose_power(at / "unpowered")
        announced = copy.deepcopy(self.announced)
        self.moments.append(Moment(name, announced, at / "killed", at / "unpowered"))

    def finish(self) -> list[Moment]:
        self._step("the end")
        self.store.close()
        return self.moments


def do(store: DiskStore, *mutations: Mutation) -> None:
    assert store.apply([mutations]) == [None]


def upload(world: World, name: str, sizes: list[int]) -> None:
    """Receive *name* in pieces, with seals applied late and flushes between."""
    store, announced, operation = world.store, world.announced, OperationId(name)
    if store.operation(operation) is None:
        do(store, CreateOperation(record(name)))
        announced.durable[name] = 0
    writer = store.open_writer(request_key(operation))
    late: list[SealChunk] = []
    for size in sizes:
        at = writer.offset
        seals = writer.append(DATA[name][at : at + size])
        announced.accepted[name] = writer.offset
        late += [seal.run() for seal in seals]
        if len(late) > 1:  # the newest first, the oldest together with the flush
            do(store, late.pop())
        flush = writer.flush()
        if flush is not None:
            recorded = flush.run()
            do(store, *late, recorded)
            late = []
            announced.durable[name] = recorded.offset
    do(store, *late)
    writer.close()


def complete(world: World, name: str) -> None:
    store, operation = world.store, OperationId(name)
    key = request_key(operation)
    writer = store.open_writer(key)
    do(store, *[seal.run() for seal in writer.append(DATA[name][writer.offset :])])
    world.announced.accepted[name] = writer.offset
    last = [seal.run() for seal in writer.finish()]
    digests = [*store.chunk_digests(key), *(seal.digest for seal in last)]
    recipe = Recipe.build(CHUNK, writer.offset, digests)
    state = SetState(operation, OperationState.COMPLETE)
    do(store, *last, FreezeContent(key, recipe), state)
    world.announced.frozen.add(name)
    writer.close()


def publish(world: World, name: str) -> None:
    found = world.store.operation(OperationId(name))
    assert found is not None
    assert found.content is not None
    file = PublishFile(file_record(name, found.content))
    answer = RecordResponse(found.id, response(), 9.0, keep_content=False)
    do(world.store, file, answer)
    world.announced.files[name] = name
    world.announced.answered.add(name)


def end(world: World, name: str) -> None:
    world.announced.ended.add(name)  # it may happen from now on
    do(world.store, EndOperation(OperationId(name), 9.0))


def receive(world: World) -> None:
    """Two uploads that share chunks, interleaved."""
    upload(world, "one", [3, 9, 10])
    upload(world, "two", [20])
    upload(world, "one", [4])
    upload(world, "two", [9])


def finish_both(world: World) -> None:
    """Completion, a file, a takeover and an end."""
    upload(world, "one", [26])
    upload(world, "two", [18])
    world.store.open_writer(request_key(OperationId("one"))).append(ONE[26:30])
    complete(world, "one")
    publish(world, "one")
    complete(world, "two")


def clear_away(world: World) -> None:
    """Endings, also of what is unfinished, and collection in small steps."""
    upload(world, "one", [20, 6])
    complete(world, "one")
    upload(world, "two", [13, 4])
    end(world, "one")
    while world.store.collect(3) != Collected():
        pass
    complete(world, "two")
    end(world, "two")
    while world.store.collect(3) != Collected():
        pass


def go_on(world: World) -> None:
    """What recovery does after a crash, to be interrupted in its turn."""
    for name in list(world.announced.durable):
        upload(world, name, [2])
        complete(world, name)
    collect_all(world.store)


@pytest.fixture
def set_boot(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    set_ = boot_setter(monkeypatch.setattr)
    set_("first boot")
    return set_


def check(data_dir: Path, announced: Announced, *, killed: bool) -> None:
    """Every promise is kept, the work can go on, and in the end nothing is left."""
    store = open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk(durable=False))
    try:
        for name in announced.durable:
            found = store.operation(OperationId(name))
            assert found is not None
            if found.state is OperationState.GONE:
                assert name in announced.ended
            elif found.state is OperationState.RECEIVING:
                assert name not in announced.frozen
                check_receiving(store, name, announced, killed=killed)
            elif found.state is OperationState.COMPLETE:
                assert name not in announced.answered
                assert found.content is not None
                assert read_content(store, found.content) == DATA[name]
            else:
                assert found.response == response()
        check_files(store, announced)
        check_leaks(store, data_dir, announced)
    finally:
        store.close()


def check_receiving(
    store: DiskStore, name: str, announced: Announced, *, killed: bool
) -> None:
    key, data = request_key(OperationId(name)), DATA[name]
    offset = store.offset(key)
    assert offset >= announced.durable[name]
    if killed:
        assert offset >= announced.accepted.get(name, 0)
    assert read_from(store.open_prefix(key, offset)) == data[:offset]
    writer = store.open_writer(key)
    assert writer.offset == offset
    do(store, *[seal.run() for seal in writer.append(data[offset:])])
    do(store, *[seal.run() for seal in writer.finish()])
    recipe = Recipe.build(CHUNK, len(data), store.chunk_digests(key))
    do(store, FreezeContent(key, recipe))
    writer.close()
    content = Content(len(data), digest=recipe.digest)
    assert read_content(store, content) == data


def check_files(store: DiskStore, announced: Announced) -> None:
    for name, data in DATA.items():
        file = store.file(None, name)
        assert file is not None or name not in announced.files
        if file is not None:
            assert read_content(store, file.content) == data
            do(store, RemoveFile(None, name))


def check_leaks(store: DiskStore, data_dir: Path, announced: Announced) -> None:
    do(store, *[EndOperation(OperationId(name), 1.0) for name in announced.durable])
    collect_all(store)
    left = [p for under in ("chunks", "tails") for p in (data_dir / under).rglob("*")]
    assert [path for path in left if path.is_file()] == []


def start(path: Path) -> Path:
    """An empty store's directory."""
    path.mkdir()
    open_store(path / "data", chunk_size=CHUNK, disk=FaultyDisk()).close()
    return path / "data"


@pytest.fixture
def no_leftovers(tmp_path: Path) -> Iterator[Path]:
    """Hundreds of copies of a directory with 256 in it are not for keeping."""
    yield tmp_path
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize("scenario", [receive, finish_both, clear_away])
def test_every_step_can_be_the_last(
    scenario: Callable[[World], None],
    no_leftovers: Path,
    set_boot: Callable[[str], None],
) -> None:
    """Killed or without power before any step, the store keeps its promises (G9)."""
    world = World(no_leftovers / "world", start(no_leftovers / "world"), Announced())
    scenario(world)
    moments = world.finish()
    assert len({moment.name.split()[0] for moment in moments}) > 6
    for moment in moments:
        set_boot("first boot")
        check(moment.killed, moment.announced, killed=True)
        set_boot("second boot")
        check(moment.unpowered, moment.announced, killed=False)


def test_every_step_of_recovery_can_be_the_last(
    no_leftovers: Path, set_boot: Callable[[str], None]
) -> None:
    """A second crash while the first one is repaired loses nothing more (G9)."""
    world = World(no_leftovers / "first", start(no_leftovers / "first"), Announced())
    receive(world)
    moments = world.finish()
    # Crashes with a tail, with full tails, and between link and commit among them.
    for number, moment in enumerate(moments[5::9]):
        announced = moment.announced
        announced.accepted.clear()
        set_boot("second boot")
        path = no_leftovers / f"second{number}"
        path.mkdir()
        again = World(path, moment.unpowered, announced)
        go_on(again)
        for second in again.finish()[::3]:
            set_boot("second boot")
            check(second.killed, second.announced, killed=True)
            set_boot("third boot")
            check(second.unpowered, second.announced, killed=False)


# A step that fails, instead of the world's end.


class Failing:
    """Fails the step with a given number, once."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.steps = 0
        self.armed = False
        self.disk = StepDisk(self.step)

    def step(self, name: str) -> None:
        if self.armed:
            self.steps += 1
            if self.steps == self.at:
                if name == "commit":
                    raise sqlite3.OperationalError("disk I/O error")
                raise OSError(5, "Input/output error", name)


def persist(store: DiskStore, *mutations: Mutation) -> None:
    """Apply, and once more if it failed, as a server does."""
    try:
        do(store, *mutations)
    except StorageError:
        do(store, *mutations)


def upload_stubbornly(store: DiskStore, name: str) -> Content:
    """Upload *name* whole, going on from the offset after every error."""
    key, data = request_key(OperationId(name)), DATA[name]
    persist(store, CreateOperation(record(name)))
    for _ in range(4):
        try:
            writer = store.open_writer(key)
            for at in range(writer.offset, len(data), 5):
                seals = writer.append(data[at : at + 5])
                persist(store, *[seal.run() for seal in seals])
            flush = writer.flush()
            if flush is not None:
                persist(store, flush.run())
            persist(store, *[seal.run() for seal in writer.finish()])
        except StorageConflict:
            raise
        except StorageError:
            continue
        recipe = Recipe.build(CHUNK, writer.offset, store.chunk_digests(key))
        persist(store, FreezeContent(key, recipe))
        writer.close()
        return Content(len(data), digest=recipe.digest)
    raise AssertionError("one error must not fail four attempts")


def test_every_step_can_fail(tmp_path: Path) -> None:
    """An I/O error anywhere costs one attempt: no byte, no lasting damage, no leak."""
    failing = Failing(at=0)
    number = 0
    while failing.steps >= number:
        number += 1
        failing = Failing(number)
        data_dir = tmp_path / str(number)
        store = open_store(data_dir, chunk_size=CHUNK, disk=failing.disk)
        failing.armed = True
        contents = {name: upload_stubbornly(store, name) for name in DATA}
        for name, content in contents.items():
            assert read_content(store, content) == DATA[name]
            persist(store, EndOperation(OperationId(name), 9.0))
        try:
            collect_all(store)
        except StorageError:
            pass
        failing.armed = False
        collect_all(store)
        store.close()
        left = [p for p in (data_dir / "chunks").rglob("*") if p.is_file()]
        left += (data_dir / "tails").iterdir()
        assert left == []
        shutil.rmtree(data_dir)
    assert number > 40
