"""The crash matrix of the documentation, row by row, on what crashes really leave."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest

from tests.store.crashes.crash_matrix import ROWS, Found, Look, Row, kinds_of
from tests.store.crashes.power import Remains, newest, some
from tests.store.crashes.recording import Call, Note
from tests.store.crashes.scenarios import Announced, World, start
from tests.store.helpers import CHUNK, FaultyDisk, set_part_chunks
from trioresume.store.disk_store import open_store

MOST_MOMENTS = 3
"""Of those that a row speaks of, so many are looked at, other ones each time."""


@pytest.fixture(autouse=True)
def part_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two chunks are a part: the uploads have several, and some a half one."""
    set_part_chunks(monkeypatch.setattr, 2)


def moments_of(row: Row, calls: list[Call]) -> list[tuple[int, Announced]]:
    """Where in *calls* the moments of *row* are, and what is owed then."""
    kinds = kinds_of(calls)
    found: list[tuple[int, Announced]] = []
    owed = next_owed = Announced()
    last, last_at = "", 0
    for at, (call, kind) in enumerate(zip(calls, kinds, strict=True)):
        if isinstance(call, Note):
            assert isinstance(call.value, Announced)
            next_owed = call.value
            continue
        if last == row.last and kind.startswith(row.then) and row.owed(next_owed):
            found.append((last_at + 1, owed))
        last, last_at, owed = kind, at, next_owed
    return found


def holds(found: Found, remains: Remains, owed: Announced, root: Path) -> bool:
    root.mkdir()
    remains.put_into(root)
    disk = FaultyDisk(durable=False)
    store = open_store(root / "data", chunk_size=CHUNK, disk=disk)
    try:
        return found.holds(Look(store, root / "data", owed))
    finally:
        store.close()
        shutil.rmtree(root)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.words)
def test_row_says_what_is_found(row: Row, ram: Path, draw: random.Random) -> None:
    """Killed, and without power, after the last call that the row names."""
    root = ram / "world"
    root.mkdir()
    start(root)
    world = World(root)
    with world.recording.watching():
        world.open()
        row.scenario(world)
        world.store.close()
    calls = world.recording.calls
    moments = moments_of(row, calls)
    assert moments
    played = 0
    for at, owed in sorted(
        draw.sample(moments, min(len(moments), MOST_MOMENTS)), key=lambda m: m[0]
    ):
        for call in calls[played:at]:
            world.platter.play(call)
        played = at
        left = world.platter.remains(newest)
        assert holds(row.killed, left, owed, ram / "left")
        for left in some(world.platter, 4, draw):
            assert holds(row.unpowered, left, owed, ram / "left")
