"""Content of more chunks than one recipe lists: in parts, over every implementation."""

from __future__ import annotations

import sqlite3
from contextlib import closing

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    DiskStand,
    Stand,
    begin,
    collect_all,
    conflicts,
    do,
    freeze,
    put,
    read_content,
    read_from,
    read_prefix,
    record,
    response,
    seal_all,
    set_part_chunks,
    store_content,
)
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.keeper.verification import DamageKind
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    FreezeContent,
    JoinContents,
    OperationId,
    RecordResponse,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import JoinedRecipe, Recipe, digest_of

PART = 3
# Two parts and two chunks and a half, none equal to another.
DATA = bytes(range(8 * CHUNK + 4))
LATER = 9e9


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    set_part_chunks(monkeypatch.setattr, PART)


def recipe_of(data: bytes) -> Recipe:
    chunks = [data[at : at + CHUNK] for at in range(0, len(data), CHUNK)]
    return Recipe.build(CHUNK, len(data), [digest_of(chunk) for chunk in chunks])


def name_of(data: bytes) -> Content:
    """What the format says that *data* is called."""
    size = PART * CHUNK
    parts = [recipe_of(data[at : at + size]) for at in range(0, len(data) or 1, size)]
    if len(parts) == 1:
        return Content(len(data), digest=parts[0].digest)
    joined = JoinedRecipe(
        tuple(part.digest for part in parts), tuple(part.length for part in parts)
    )
    return Content(len(data), digest=joined.digest)


@pytest.mark.parametrize("length", [*range(0, len(DATA), 4), len(DATA)])
def test_content_has_one_name_and_reads_back(stand: Stand, length: int) -> None:
    """Of any length around a part's, sealed early or all at the end."""
    data = DATA[:length]
    content = store_content(stand.store, data)
    assert content == name_of(data)
    assert read_content(stand.store, content) == data
    writer = begin(stand.store, "late")
    seals = [seal.run() for seal in [*writer.append(data), *writer.finish()]]
    key = request_key(OperationId("late"))
    again = stand.store.sealed_content(key, seals)
    assert again == content
    do(stand.store, *seals, FreezeContent(key, again))
    writer.close()
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store, limit=2)
    assert read_content(stand.store, again) == data
    do(stand.store, EndOperation(OperationId("late"), LATER))
    collect_all(stand.store, limit=2)
    assert stand.stored_bytes() == 0


def test_upload_goes_on_within_and_between_parts(stand: Stand) -> None:
    """Restarts and power losses at every chunk, and the prefix is always right."""
    store = stand.store
    do(store, CreateOperation(record()))
    for end in [*range(CHUNK, len(DATA), CHUNK), len(DATA)]:
        writer = store.open_writer(KEY)
        put(store, writer, DATA[writer.offset : end])
        assert store.sealed_content(KEY) == name_of(DATA[: end // CHUNK * CHUNK])
        assert read_prefix(store) == DATA[:end]
        writer.close()
        store = stand.restart(power_loss=end % (2 * CHUNK) == 0)
    writer = store.open_writer(KEY)
    put(store, writer, DATA[writer.offset :])
    do(store, freeze(store, KEY, writer))
    assert read_content(store, name_of(DATA)) == DATA


def test_chunks_sealed_in_any_order_fold_when_the_gap_closes(stand: Stand) -> None:
    """Parts are of what is sealed without a gap, however that came about."""
    writer = begin(stand.store)
    sealed = [seal.run() for seal in writer.append(DATA)]
    for seal in reversed(sealed):
        assert stand.store.sealed_content(KEY).length == 0
        do(stand.store, seal)
    assert stand.store.sealed_content(KEY) == name_of(DATA[: 8 * CHUNK])
    for seal in sealed:
        do(stand.store, seal)  # again, into a part: nothing changes
    do(stand.store, freeze(stand.store, KEY, writer))
    assert read_content(stand.store, name_of(DATA)) == DATA


def test_reader_of_a_prefix_sees_its_chunks_move(stand: Stand) -> None:
    """From tail to piece to part to the frozen content, while it is read."""
    writer = begin(stand.store)
    seals = writer.append(DATA)
    readers = [stand.store.open_prefix(KEY, len(DATA)) for _ in range(8)]
    assert [readers[0].read(at, 1) for at in range(len(DATA))] == [
        DATA[at : at + 1] for at in range(len(DATA))
    ]
    for index, seal in enumerate(seals):
        seal_all(stand.store, [seal])
        assert read_from(readers[index], 0) == DATA
    last = stand.store.open_prefix(KEY, len(DATA))
    do(stand.store, freeze(stand.store, KEY, writer))
    assert read_from(last) == DATA


def test_wrong_parts_conflict(stand: Stand) -> None:
    """Content is frozen with its own chunks or not at all, parts and all."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA)
    seal_all(stand.store, writer.finish())
    swapped = DATA[PART * CHUNK : 2 * PART * CHUNK] + DATA[: PART * CHUNK]
    for wrong in (swapped + DATA[2 * PART * CHUNK :], DATA[: 8 * CHUNK]):
        assert conflicts(stand.store, FreezeContent(KEY, name_of(wrong)))
    assert read_prefix(stand.store) == DATA
    do(stand.store, FreezeContent(KEY, name_of(DATA)))
    assert read_content(stand.store, name_of(DATA)) == DATA


def test_equal_parts_are_listed_once(stand: Stand) -> None:
    """Two contents that begin alike share recipes, and either outlives the other."""
    other = DATA[: 2 * PART * CHUNK] + b"another end"
    one, two = store_content(stand.store, DATA), store_content(stand.store, other, "2")
    shared = set(stand.store.parts_of(one)) & set(stand.store.parts_of(two))
    assert len(shared) == 2
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store, limit=1)
    assert read_content(stand.store, two) == other
    assert stand.stored_bytes() == len(other)


@pytest.mark.parametrize("steps", range(0, 24, 3))
def test_upload_beside_the_collection_of_an_equal_one(stand: Stand, steps: int) -> None:
    """Recipes that come back half dismantled hold all their chunks again."""
    store_content(stand.store, DATA)
    do(stand.store, EndOperation(OP, LATER))
    for _ in range(steps):
        stand.store.collect(1)
    writer = begin(stand.store, "again")
    key = request_key(OperationId("again"))
    for at in range(0, len(DATA), CHUNK):
        put(stand.store, writer, DATA[at : at + CHUNK])
        stand.store.collect(1)
    do(stand.store, freeze(stand.store, key, writer))
    collect_all(stand.store, limit=1)
    assert read_content(stand.store, name_of(DATA)) == DATA
    do(stand.store, EndOperation(OperationId("again"), LATER))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


@pytest.mark.parametrize("limit", [1, 2, 1000])
def test_upload_that_ends_lets_go_of_its_parts(stand: Stand, limit: int) -> None:
    """Cancelled in the middle, nothing of it is left."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA)
    do(stand.store, EndOperation(OP, LATER))
    collect_all(stand.store, limit)
    assert stand.stored_bytes() == 0


def test_large_contents_are_joined_by_their_parts(stand: Stand) -> None:
    """D7: what is joined itself is taken apart; two levels are enough."""
    one, two = store_content(stand.store, DATA), store_content(stand.store, b"x", "2")
    do(stand.store, CreateOperation(record("joined")))
    joined = OperationId("joined")
    assert conflicts(stand.store, JoinContents(joined, (one, two)))
    parts = (*stand.store.parts_of(one), *stand.store.parts_of(two))
    assert [part.length for part in parts] == [24, 24, 20, 1]
    join = JoinContents(joined, parts)
    do(stand.store, join)
    do(stand.store, EndOperation(OP, LATER), EndOperation(OperationId("2"), LATER))
    collect_all(stand.store)
    assert read_content(stand.store, join.content) == DATA + b"x"
    same = JoinContents(joined, stand.store.parts_of(one))
    assert same.content == one


def test_large_response_has_parts_as_well(stand: Stand) -> None:
    """It is content like any other, and begun anew its parts are let go."""
    store = stand.store
    do(store, CreateOperation(record(content=Content(0, inline=b""))))
    key = response_key(OP)
    put(store, store.open_writer(key), DATA)
    writer = store.open_writer(key)
    put(store, writer, DATA[::-1])
    frozen = freeze(store, key, writer)
    do(store, frozen, RecordResponse(OP, response(frozen.content), LATER))
    collect_all(store)
    assert read_content(store, frozen.content) == DATA[::-1]
    assert stand.stored_bytes() == len(DATA)


# Of the store on disk alone.


def count(stand: DiskStand, table: str) -> int:
    with closing(sqlite3.connect(stand.data_dir / "catalog.sqlite3")) as connection:
        rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()
        return int(rows[0])


def test_pieces_stay_few(disk_stand: DiskStand) -> None:
    """What finishing content looks at does not grow with what was sealed."""
    writer = begin(disk_stand.store)
    for number in range(10 * PART):
        put(disk_stand.store, writer, number.to_bytes(CHUNK))
        assert count(disk_stand, "pieces") == (number + 1) % PART
        assert count(disk_stand, "parts") == (number + 1) // PART
    do(disk_stand.store, freeze(disk_stand.store, KEY, writer))
    assert (count(disk_stand, "pieces"), count(disk_stand, "parts")) == (0, 0)


def test_content_begun_before_there_were_parts_is_folded(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A catalog of an earlier version goes on, to the name that the format says."""
    for end in (7 * CHUNK, len(DATA)):
        set_part_chunks(monkeypatch.setattr, 1024)
        name = f"until-{end}"
        key = request_key(OperationId(name))
        writer = begin(disk_stand.store, name)
        put(disk_stand.store, writer, DATA[:end])
        set_part_chunks(monkeypatch.setattr, PART)
        assert disk_stand.store.sealed_content(key).length == end // CHUNK * CHUNK
        put(disk_stand.store, writer, DATA[end:])
        frozen = freeze(disk_stand.store, key, writer)
        assert frozen.content == name_of(DATA)
        do(disk_stand.store, frozen)
    assert read_content(disk_stand.store, name_of(DATA)) == DATA


def test_verification_reads_parts(disk_stand: DiskStand) -> None:
    """Of sound content it finds nothing; a bad chunk in a part concerns the upload."""
    put(disk_stand.store, begin(disk_stand.store), DATA)
    store_content(disk_stand.store, DATA, "done")
    with Inventory(disk_stand.data_dir) as inventory:
        assert list(inventory.verify()) == []
        name = digest_of(DATA[CHUNK : 2 * CHUNK]).hex()
        (disk_stand.data_dir / "chunks" / name[4:6] / name).unlink()
        found = list(inventory.verify())
    assert {(damage.kind, damage.name) for damage in found} == {
        (DamageKind.CHUNK, name),
        (DamageKind.UPLOAD, "done"),
        (DamageKind.UPLOAD, OP),
    }
    assert all(name in damage.problem for damage in found[1:])
