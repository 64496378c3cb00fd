"""Power is lost, or the process killed, at each step of everything that a store does.

A scenario runs once, on a disk that records. Its calls are then played again, and
before each sync and each promise the states that the disk may be left in are opened by
a new store: all of them where they are few, else some. Each run looks at other moments
and other states. ``TRIORESUME_POWER_STATES`` says how many states are few, and makes a run
look at every moment; ``TRIORESUME_SEED`` repeats what a failing test has chosen.
"""

from __future__ import annotations

import copy
import mmap
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.store.crashes.power import Platter, Remains, newest, some
from tests.store.crashes.recording import (
    Call,
    Create,
    Note,
    Recording,
    SyncDirectory,
    SyncEverything,
    SyncFile,
)
from tests.store.crashes.scenarios import (
    SCENARIOS,
    Announced,
    Scenario,
    World,
    check,
    check_nothing_wrong,
    clear_away,
    go_on,
    live,
    patch,
    receive,
    start,
    take_over,
)
from tests.store.helpers import (
    KEY,
    OP,
    FaultyDisk,
    begin,
    do,
    downgrade,
    make_durable,
    set_part_chunks,
)
from trioresume.errors import TrioresumeError
from trioresume.store.catalog.schema import _MIGRATIONS
from trioresume.store.disk import start as start_module
from trioresume.store.disk_store import open_store

MOST = int(os.environ.get("TRIORESUME_POWER_STATES", "4"))
SHARE = 1.0 if "TRIORESUME_POWER_STATES" in os.environ else 0.35
"""The share of the moments at which the states of a scenario are looked at."""

Moment = tuple[Remains, Announced]


def is_sync(call: Call | None) -> bool:
    return isinstance(call, SyncFile | SyncDirectory | SyncEverything)


def is_barrier(call: Call | None) -> bool:
    """Whether less may be lost, or less be owed, after *call*.

    Between two of these the states only become more: it is enough to look before each.
    """
    if isinstance(call, Note):
        return call.relaxes
    return call is None or is_sync(call)


def moments(
    world: World, look: Callable[[Call | None, Platter], list[Remains]]
) -> Iterator[Moment]:
    """What *look* finds before each call and at the end, each once with what is owed."""
    announced = Announced()
    seen: set[tuple[bytes, str]] = set()
    for call in [*world.recording.calls, None]:
        for remains in look(call, world.platter):
            key = (remains.digest(), repr(announced))
            if key not in seen:
                seen.add(key)
                yield remains, announced
        if isinstance(call, Note):
            assert isinstance(call.value, Announced)
            announced = call.value
        if call is not None:
            world.platter.play(call)


def power_losses(
    world: World, draw: random.Random, most: int = MOST, share: float = 1.0
) -> Iterator[Moment]:
    """What the loss of power may leave, at each moment or a *share* of them."""
    return moments(
        world,
        lambda call, platter: (
            list(some(platter, most, draw))
            if is_barrier(call) and draw.random() < share
            else []
        ),
    )


def kills(world: World, draw: random.Random, share: float) -> Iterator[Moment]:
    """What a kill leaves, before a *share* of all calls."""
    return moments(
        world,
        lambda call, platter: (
            [platter.remains(newest)] if draw.random() < share else []
        ),
    )


class Place:
    """Where worlds are built and crashed."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._count = 0

    def new(self) -> Path:
        """A new, empty directory."""
        self._count += 1
        path = self._path / str(self._count)
        path.mkdir()
        return path

    def start(self) -> Path:
        """A new directory with an empty store."""
        root = self.new()
        start(root)
        return root

    def run(
        self, scenario: Scenario, root: Path, announced: Announced | None = None
    ) -> World:
        """*scenario* in *root*, recorded, up to the clean end of the store."""
        world = World(root, announced)
        with world.recording.watching():
            world.open()
            scenario(world)
            world.store.close()
        return world

    def check(self, moment: Moment, *, killed: bool) -> None:
        """Start from what is left."""
        remains, announced = moment
        root = self.new()
        remains.put_into(root)
        check(root / "data", announced, killed=killed)
        shutil.rmtree(root)


@pytest.fixture
def place(ram: Path) -> Place:
    return Place(ram)


@pytest.fixture(autouse=True)
def part_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks are a part: the uploads have several, and some a half one."""
    set_part_chunks(monkeypatch.setattr, 2)


each_scenario = pytest.mark.parametrize(
    "scenario", SCENARIOS, ids=lambda scenario: scenario.__name__
)


@pytest.mark.slow
@each_scenario
def test_no_loss_of_power_breaks_a_promise(
    scenario: Scenario, place: Place, draw: random.Random
) -> None:
    """Promises 1, 2, 7: any legal subset of what was not synced may be gone (G9)."""
    world = place.run(scenario, place.start())
    count = 0
    for moment in power_losses(world, draw, share=SHARE):
        place.check(moment, killed=False)
        count += 1
    assert count > 50 * SHARE / 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "scenario",
    [scenario for scenario in SCENARIOS if scenario is not patch],  # which syncs
    ids=lambda scenario: scenario.__name__,
)
def test_without_syncs_no_loss_makes_a_byte_wrong(
    scenario: Scenario,
    place: Place,
    draw: random.Random,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """durability=process: bytes may be lost, and none is called right that is wrong."""
    monkeypatch.setattr(start_module, "mount_id", lambda path: None)
    world = World(place.start(), durable=False)
    with world.recording.watching():
        world.open()
        scenario(world)
        world.store.close()
    count = 0
    for call in world.recording.calls:
        if draw.random() < 0.2 * SHARE:
            for remains in some(world.platter, MOST, draw):
                root = place.new()
                remains.put_into(root)
                check_nothing_wrong(root / "data")
                shutil.rmtree(root)
                count += 1
        world.platter.play(call)
    assert count > 50 * SHARE / 2


@pytest.mark.slow
@each_scenario
def test_no_kill_breaks_a_promise(
    scenario: Scenario, place: Place, draw: random.Random
) -> None:
    """Every byte that was accepted survives the process (G9)."""
    world = place.run(scenario, place.start())
    for moment in kills(world, draw, 0.2 * SHARE):
        place.check(moment, killed=True)


@pytest.mark.slow
@pytest.mark.parametrize("scenario", [receive, take_over, patch, clear_away])
def test_no_crash_of_a_recovery_breaks_a_promise(
    scenario: Scenario, place: Place, draw: random.Random
) -> None:
    """A second crash while the first one is repaired loses nothing more (G9)."""
    first = list(power_losses(place.run(scenario, place.start()), draw))
    for remains, announced in draw.sample(first, 3):
        root = place.new()
        remains.put_into(root)
        owed = copy.deepcopy(announced)  # which other moments have, too
        owed.accepted.clear()
        second = place.run(go_on, root, owed)
        for moment in power_losses(second, draw, most=3, share=SHARE):
            place.check(moment, killed=False)


@pytest.mark.slow
def test_no_crash_of_the_first_start_breaks_a_promise(
    place: Place, draw: random.Random
) -> None:
    """From an empty directory on: what is left is a store, or becomes one."""
    world = place.run(receive, place.new())
    first = list(power_losses(world, draw, most=max(20, MOST)))
    for moment in first[: len(first) // 3]:
        place.check(moment, killed=False)


@pytest.mark.parametrize("version", range(1, len(_MIGRATIONS)))
def test_no_crash_of_a_migration_breaks_a_promise(
    place: Place,
    draw: random.Random,
    version: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What an earlier version kept is there, in the old form or the new one."""
    set_part_chunks(monkeypatch.setattr, 1000)  # there were no parts
    root = place.start()
    announced = place.run(receive, root).announced
    downgrade(root / "data", version)
    world = place.run(lambda world: None, root, announced)
    migrating = list(power_losses(world, draw))
    for moment in draw.sample(migrating, 12):
        place.check(moment, killed=False)


def test_no_loss_of_power_tears_large_writes(place: Place, draw: random.Random) -> None:
    """Pieces that go past the page cache are no more durable than others, until synced."""
    size, piece = 700_000, 100 * 1024
    root = place.new()
    recording = Recording(root)
    platter = Platter(root, recording.adopt)
    memory = mmap.mmap(-1, size)  # begins on a page, as what the server receives into
    memory[:] = content = draw.randbytes(size)
    with recording.watching(), memoryview(memory) as view:
        store = open_store(root / "data", chunk_size=256 * 1024, disk=recording)
        writer = begin(store)
        for at in range(0, size, piece):
            seals = writer.append(view[at : at + piece])
            do(store, *[seal.run() for seal in seals])
            if at % (2 * piece) == 0:
                make_durable(store, writer)
                recording.note(writer.offset)
        store.close()
    offset = 0
    for call in recording.calls:
        if is_barrier(call) and draw.random() < 0.4:
            for remains in some(platter, 3, draw):
                check_prefix(place.new(), remains, content, offset)
        if isinstance(call, Note):
            assert isinstance(call.value, int)
            offset = call.value
        platter.play(call)
    assert offset > size // 2


def check_prefix(root: Path, remains: Remains, content: bytes, offset: int) -> None:
    """What is left has *offset* bytes or more, and they are the right ones."""
    remains.put_into(root)
    store = open_store(root / "data", disk=FaultyDisk(durable=False))
    if store.operation(OP) is None:
        assert offset == 0
    else:
        left = store.offset(KEY)
        assert left >= offset
        reader = store.open_prefix(KEY, left)
        read = b""
        while len(read) < left:
            read += reader.read(len(read), left)
        assert read == content[:left]
        reader.close()
    store.close()
    shutil.rmtree(root)


# Each sync has its reason: without it the tests above would fail.

Omitted = Callable[[World, Call], bool]


def directory(is_meant: Callable[[str], bool]) -> Omitted:
    return lambda world, call: (
        isinstance(call, SyncDirectory) and is_meant(os.path.join("/", call.path))
    )


def file_in(place: str) -> Omitted:
    return lambda world, call: (
        isinstance(call, SyncFile)
        and os.path.dirname(world.recording.path_of(call.file)) == place
    )


def second(path: str) -> Omitted:
    """Any but the first file that was called so."""

    def omits(world: World, call: Call) -> bool:
        made = [c for c in world.recording.calls if isinstance(c, Create)]
        files = [create.file for create in made if create.path == path]
        return isinstance(call, SyncFile) and call.file in files[1:]

    return omits


OMISSIONS: dict[str, tuple[Scenario, Omitted]] = {
    "tails": (receive, file_in("data/tails")),
    "tails' names": (receive, directory(lambda path: path == "/data/tails")),
    "chunks' names": (receive, directory(lambda path: "/chunks/" in path)),
    "chunks' directories": (receive, directory(lambda path: path == "/data/chunks")),
    "catalog": (receive, file_in("data")),
    "names in the data directory": (receive, directory(lambda path: path == "/data")),
    "name of the data directory": (receive, directory(lambda path: path == "/.")),
    "chunk that becomes a tail again": (take_over, second("data/tails/two.1")),
}


@pytest.mark.parametrize("what", OMISSIONS)
def test_no_sync_can_be_left_out(what: str, place: Place, draw: random.Random) -> None:
    """Without any one of them some loss of power breaks a promise, and is found."""
    scenario, is_omitted = OMISSIONS[what]
    root = place.new()
    world = World(root, omits=lambda call: is_omitted(world, call))
    with world.recording.watching():
        world.open()
        scenario(world)
        world.store.close()
    with pytest.raises((AssertionError, TrioresumeError, sqlite3.Error, OSError)):
        for moment in power_losses(world, draw, most=6):
            place.check(moment, killed=False)


# A call that fails, instead of the world's end.


class FailsOnce:
    """Fails the call with a given number, of those that are counted."""

    def __init__(self, number: int, counts: Callable[[Call], bool]) -> None:
        self._left = number
        self._counts = counts
        self.failed: Call | None = None
        self.armed = False

    def __call__(self, call: Call) -> bool:
        if self.armed and self._counts(call):
            self._left -= 1
            if self._left == 0:
                self.failed = call
                return True
        return False


def failures(
    place: Place, counts: Callable[[Call], bool], draw: random.Random, step: int
) -> Iterator[World]:
    """A life for each *step*-th of the calls that are counted, which fails in it."""
    number = draw.randint(1, step)
    while True:
        root = place.start()
        fails = FailsOnce(number, counts)
        world = World(root, fails=fails)
        with world.recording.watching():
            world.open()
            fails.armed = True
            live(world)
            fails.armed = False
            world.store.close()
        if fails.failed is None:
            break
        yield world
        shutil.rmtree(root)
        number += step


def site_of(world: World) -> str:
    """What could not be synced: a file's directory in the data directory, or that itself."""
    calls = world.recording.calls
    paths = {call.file: call.path for call in calls if isinstance(call, Create)}
    for call in calls:
        if isinstance(call, SyncFile) and call.failed:
            return paths.get(call.file, "data/catalog.sqlite3").split("/")[1]
        if isinstance(call, SyncDirectory) and call.failed:
            return call.path.split("/")[1] + "/"
    raise AssertionError("none failed")


@pytest.mark.slow
def test_no_failed_sync_is_made_up_for(place: Place, draw: random.Random) -> None:
    """Tails, chunks, their directories, the catalog and the recipes in it: what a failed
    sync was for is given up or done anew, and not believed because the next succeeds."""
    sites = set()
    for world in failures(place, is_sync, draw, step=3):
        sites.add(site_of(world))
        for moment in power_losses(world, draw, most=3, share=0.05):
            place.check(moment, killed=False)
    assert sites == {"tails", "tails/", "chunks/", "catalog.sqlite3-wal"}


@pytest.mark.slow
def test_every_call_can_fail(place: Place, draw: random.Random) -> None:
    """An I/O error anywhere costs one attempt: no byte, no lasting damage, no leak."""
    count = 0
    for world in failures(place, lambda call: not is_sync(call), draw, step=6):
        for call in world.recording.calls:
            world.platter.play(call)
        left = world.platter.remains(newest)
        place.check((left, world.announced), killed=True)
        count += 1
    assert count > 25
