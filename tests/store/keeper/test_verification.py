"""What verification finds, whom it blames, and that it finds nothing where nothing is."""

from __future__ import annotations

import errno
import os
import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.helpers import (
    CHUNK,
    OP,
    DiskStand,
    begin,
    collect_all,
    do,
    file_record,
    freeze,
    make_durable,
    put,
    read_content,
    record,
    response,
    store_content,
)
from trioresume.errors import ChunkCorrupt, ContentLost
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.keeper.verification import Damage, DamageKind
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    JoinContents,
    OperationId,
    PublishFile,
    RecordResponse,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import digest_of

DATA = bytes(range(65, 91)) * 2
K = DamageKind


def damages(stand: DiskStand, disk: Disk | None = None) -> list[Damage]:
    with Inventory(stand.data_dir, disk=disk) as inventory:
        verification = inventory.verify()
        found = list(verification)
        assert verification.damages == len(found)
        return found


def kinds(stand: DiskStand) -> list[tuple[DamageKind, str]]:
    return [(damage.kind, damage.name) for damage in damages(stand)]


def chunk_path(stand: DiskStand, data: bytes) -> Path:
    name = digest_of(data).hex()
    return stand.data_dir / "chunks" / name[4:6] / name


@pytest.fixture
def full(disk_stand: DiskStand) -> DiskStand:
    """A store with some of everything: shared, half released, unfinished, joined."""
    store = disk_stand.store
    content = store_content(store, DATA)
    do(store, RecordResponse(OP, response(), 9e9))
    do(store, PublishFile(file_record("a", content)))
    do(store, PublishFile(file_record("b", content, owner="o")))
    do(store, PublishFile(file_record("inline")))
    second = store_content(store, DATA[:16] + b"other", "two")
    do(store, CreateOperation(record("joined")))
    parts = (content, second, content)
    do(store, JoinContents(OperationId("joined"), parts))
    store_content(store, bytes(100), "released")
    do(store, EndOperation(OperationId("released"), 9e9))
    store.collect(3)  # in the middle of it
    do(store, CreateOperation(record("answered")))
    key = response_key(OperationId("answered"))
    writer = store.open_writer(key)
    put(store, writer, b"a large response")
    frozen = freeze(store, key, writer)
    body = frozen.content
    do(store, frozen, RecordResponse(OperationId("answered"), response(body), 9e9))
    writer = begin(store, "open")
    put(store, writer, DATA[:21])
    make_durable(store, writer)
    return disk_stand


def test_sound_store_has_no_damage(full: DiskStand) -> None:
    """Also beside a store that goes on, in the middle of a collection."""
    with Inventory(full.data_dir) as inventory:
        verification = inventory.verify()
        told: list[int] = []
        verification.on_progress = lambda: told.append(verification.chunks)
        assert list(verification) == []
        assert verification.chunks == len(told) == len(full.files("chunks"))
        assert verification.bytes == full.stored_bytes()
        assert (verification.files, verification.uploads) == (3, 6)
        assert list(verification) == []  # it can be run again
    collect_all(full.store)
    assert damages(full) == []


def test_flipped_byte_is_named_with_all_it_concerns(full: DiskStand) -> None:
    """One byte in one shared chunk: each file and operation that needs it is told."""
    path = chunk_path(full, DATA[8:16])
    data = bytearray(path.read_bytes())
    data[3] ^= 1
    path.write_bytes(data)
    found = damages(full)
    assert (found[0].kind, found[0].path) == (K.CHUNK, str(path))
    assert found[0].name == digest_of(DATA[8:16]).hex()
    concerned = {(d.kind, d.name, d.owner) for d in found[1:]}
    assert concerned == {
        (K.FILE, "a", None),
        (K.FILE, "b", "o"),
        (K.UPLOAD, OP, None),
        (K.UPLOAD, "two", None),
        (K.UPLOAD, "joined", None),
        (K.UPLOAD, "open", None),
    }
    assert all(digest_of(DATA[8:16]).hex() in damage.problem for damage in found[1:])


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda path: path.unlink(), "is missing"),
        (lambda path: os.truncate(path, 3), "has 3 bytes instead of 5"),
        (lambda path: path.write_bytes(b"otherandmore"), "has 12 bytes instead of 5"),
    ],
)
def test_chunk_of_the_wrong_size_is_named(
    full: DiskStand, spoil: Callable[[Path], object], problem: str
) -> None:
    """Missing, too short and too long are told apart, with whom it concerns."""
    spoil(chunk_path(full, b"other"))
    found = damages(full)
    assert [(d.kind, d.name) for d in found] == [
        (K.CHUNK, digest_of(b"other").hex()),
        (K.UPLOAD, "two"),
        (K.UPLOAD, "joined"),
    ]
    assert found[0].problem == problem


def test_removed_chunk_comes_back_with_the_next_upload(full: DiskStand) -> None:
    """What the keeper is told to do: move the bad file away and upload again."""
    path = chunk_path(full, DATA[8:16])
    path.unlink()
    assert damages(full)
    content = store_content(full.store, DATA, "again")
    assert damages(full) == []
    assert read_content(full.store, content) == DATA


class UnreadableDisk(Disk):
    """A disk on which one file cannot be read: EIO."""

    def __init__(self, path: Path) -> None:
        super().__init__(durable=False)
        self._inode = path.stat().st_ino
        self.read = self._read

    def _read(self, fd: int, size: int) -> bytes:
        if os.fstat(fd).st_ino == self._inode:
            raise OSError(errno.EIO, "Input/output error")
        return os.read(fd, size)


def test_unreadable_chunk_is_named(full: DiskStand) -> None:
    """EIO is damage of that chunk; the others are read on."""
    found = damages(full, UnreadableDisk(chunk_path(full, b"other")))
    assert found[0].problem == "cannot be read: Input/output error"
    assert {d.name for d in found} == {digest_of(b"other").hex(), "two", "joined"}


def test_every_chunk_is_read_from_the_disk_and_not_from_memory(full: DiskStand) -> None:
    """What the page cache holds may be sound while the disk is not."""

    class Noting(Disk):
        def __init__(self) -> None:
            super().__init__(durable=True)
            self.steps: dict[str, list[str]] = {}
            self.read = self._read

        def forget_cached(self, file: Descriptor) -> None:
            self._note(file.fileno(), "forget")
            super().forget_cached(file)

        def _read(self, fd: int, size: int) -> bytes:
            self._note(fd, "read")
            return os.read(fd, size)

        def _note(self, fd: int, step: str) -> None:
            path = os.readlink(f"/proc/self/fd/{fd}")
            self.steps.setdefault(path, []).append(step)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("there is no other way to tell which file a descriptor is of")
    disk = Noting()
    assert damages(full, disk) == []
    chunks = {path: s for path, s in disk.steps.items() if "/chunks/" in path}
    assert len(chunks) >= 3
    assert all(steps[:2] == ["forget", "read"] for steps in chunks.values())


def test_unreadable_tail_is_named(full: DiskStand) -> None:
    """The upload cannot go on, and is told with its tail."""
    tail = full.data_dir / "tails" / "open.2"
    found = damages(full, UnreadableDisk(tail))
    assert [(d.kind, d.name) for d in found] == [(K.TAIL, "open.2"), (K.UPLOAD, "open")]
    assert found[0].path == str(tail)


def test_lost_tail_is_named(full: DiskStand) -> None:
    """Fewer bytes than were durable: the upload is lost (C7)."""
    (full.data_dir / "tails" / "open.2").unlink()
    [damage] = damages(full)
    assert (damage.kind, damage.name) == (K.UPLOAD, "open")
    assert damage.problem == "21 bytes were durable, 16 are left"


def test_request_that_meets_an_unreadable_chunk_fails_by_its_name(
    disk_stand: DiskStand,
) -> None:
    """EIO on the service's own read is ChunkCorrupt, with the chunk's name."""
    content = store_content(disk_stand.store, DATA)
    broken = UnreadableDisk(chunk_path(disk_stand, DATA[8:16]))
    disk_stand.disk.read = broken.read
    reader = disk_stand.store.open_reader(content)
    assert reader.read(0, CHUNK) == DATA[:8]
    with pytest.raises(ChunkCorrupt, match=digest_of(DATA[8:16]).hex()):
        reader.read(8, CHUNK)
    assert reader.read(16, CHUNK) == DATA[16:24]
    reader.close()


def change(stand: DiskStand, *statements: str) -> None:
    """Change the catalog by hand, as no program would."""
    with closing(sqlite3.connect(stand.data_dir / "catalog.sqlite3")) as connection:
        for statement in statements:
            connection.execute(statement)
        connection.commit()


@pytest.mark.parametrize("change_", ["refs + 1", "refs - 1"])
def test_miscounted_holds_are_named(full: DiskStand, change_: str) -> None:
    """One too many leaks for ever, one too few loses data at the next collection."""
    name = digest_of(DATA[:8])
    change(
        full,
        f"UPDATE chunks SET refs = {change_} WHERE digest = x'{name.hex()}'",
        f"UPDATE recipes SET refs = {change_} WHERE chunk_count = 3 AND joined = 0",
    )
    recipe = _one(
        full, "SELECT digest FROM recipes WHERE chunk_count = 3 AND joined = 0"
    )
    assert kinds(full) == [(K.COUNT, name.hex()), (K.COUNT, recipe.hex())]


def _one(stand: DiskStand, query: str) -> bytes:
    with closing(sqlite3.connect(stand.data_dir / "catalog.sqlite3")) as connection:
        (value,) = connection.execute(query).fetchone()
        assert isinstance(value, bytes)
        return value


def test_spoilt_recipe_is_named(full: DiskStand) -> None:
    """A recipe is content like any other: its name says what its bytes must be."""
    recipe = _one(full, "SELECT content_digest FROM operations WHERE id = 'two'")
    change(full, f"UPDATE recipes SET body = x'00' WHERE digest = x'{recipe.hex()}'")
    found = kinds(full)
    assert (K.RECIPE, recipe.hex()) in found
    assert {(K.UPLOAD, "two"), (K.UPLOAD, "joined")} <= set(found)
    assert (K.FILE, "a") not in found


def test_missing_rows_are_named(full: DiskStand) -> None:
    """A recipe that lists what the catalog forgot, a file whose recipe is gone."""
    name = digest_of(b"other").hex()
    change(full, f"DELETE FROM chunks WHERE digest = x'{name}'")
    assert (K.CHUNK, name) in kinds(full)
    recipe = _one(full, "SELECT content_digest FROM files WHERE name = 'a'")
    change(full, f"DELETE FROM recipes WHERE digest = x'{recipe.hex()}'")
    found = set(kinds(full))
    expected = {(K.RECIPE, recipe.hex()), (K.FILE, "a"), (K.UPLOAD, OP)}
    assert expected <= found


def test_response_that_is_damaged_is_named(full: DiskStand) -> None:
    """Recorded responses are verified like contents."""
    path = chunk_path(full, b"response")
    path.write_bytes(b"desponse")
    [chunk, damage] = damages(full)
    assert chunk.kind is K.CHUNK
    assert (damage.kind, damage.name) == (K.UPLOAD, "answered")
    assert damage.problem.startswith("response: ")


def test_inconsistent_catalog_is_named(full: DiskStand) -> None:
    """SQLite's own check is part of it."""
    full.store.close()
    change(
        full,
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = replace(sql, 'modified_at REAL NOT NULL',"
        " 'modified_at TEXT NOT NULL') WHERE name = 'files'",
        "PRAGMA writable_schema = 0",
    )
    assert K.CATALOG in [damage.kind for damage in damages(full)]
    change(
        full,
        "PRAGMA writable_schema = 1",
        "UPDATE sqlite_master SET sql = replace(sql, 'modified_at TEXT NOT NULL',"
        " 'modified_at REAL NOT NULL') WHERE name = 'files'",
    )
    full.store = full.open()


def test_chunk_that_was_collected_meanwhile_is_no_damage(
    full: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the page of the catalog and the look at the file the service goes on."""
    with Inventory(full.data_dir) as inventory:
        verification = inventory.verify()

        def release_all() -> None:
            verification.on_progress = None
            for name in (OP, "two", "joined", "answered", "open"):
                do(full.store, EndOperation(OperationId(name), 9e9))
            collect_all(full.store)

        verification.on_progress = release_all
        assert list(verification) == []


def test_upload_that_goes_on_meanwhile_is_no_damage(full: DiskStand) -> None:
    """Tails become chunks and chunks contents while verification looks for them."""
    writer = full.store.open_writer(request_key(OperationId("open")))
    with Inventory(full.data_dir) as inventory:
        verification = inventory.verify()
        verification.on_progress = lambda: put(full.store, writer, DATA)
        assert list(verification) == []


@pytest.mark.parametrize("ended", [False, True], ids=["served", "ended"])
def test_flipped_bit_in_a_tail_is_found(disk_stand: DiskStand, ended: bool) -> None:
    """The bytes of a tail that were recorded are compared with its proof."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:21])
    make_durable(disk_stand.store, writer)
    if ended:
        disk_stand.store.close()
    assert damages(disk_stand) == []
    tail = disk_stand.data_dir / "tails" / f"{OP}.2"
    content = tail.read_bytes()
    tail.write_bytes(bytes([content[0] ^ 1]) + content[1:])
    found = damages(disk_stand)
    assert [(d.kind, d.name) for d in found] == [
        (K.TAIL, f"{OP}.2"),
        (K.UPLOAD, OP),
    ]
    if ended:
        disk_stand.store = disk_stand.open()


def test_what_a_loss_took_of_unrecorded_bytes_is_no_damage(
    disk_stand: DiskStand,
) -> None:
    """Nobody was told of them, and nobody will be: they are cut off."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:21])
    disk_stand.restart(power_loss=True)
    assert damages(disk_stand) == []


# The report, healing and repair.


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def verify(
    stand: DiskStand, *sources: Path
) -> tuple[list[Damage], list[str], list[str], list[str]]:
    """Damages, what was healed, what was repaired, and troubles."""
    healed: list[str] = []
    repaired: list[str] = []
    troubles: list[str] = []
    with Inventory(stand.data_dir) as inventory:
        verification = inventory.verify(repair_from=sources)
        verification.on_healed = lambda name, date: healed.append(name)
        verification.on_repaired = lambda name, source: repaired.append(name)
        verification.on_trouble = troubles.append
        found = list(verification)
        assert (verification.healed, verification.repaired) == (
            len(healed),
            len(repaired),
        )
    return found, healed, repaired, troubles


def _directory_with_a_file(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "lost").write_bytes(b"?")


def _dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to("/nowhere")


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


SPOILED: list[Callable[[Path], object]] = [
    flip,
    lambda path: path.unlink(),
    lambda path: os.truncate(path, 1),
    lambda path: path.write_bytes(bytes(8)),
    lambda path: path.write_bytes(DATA[:8]),  # another chunk's bytes
    _directory_with_a_file,
    _dangling_link,
    _pipe,
]


@pytest.mark.parametrize("spoil", SPOILED)
def test_chunk_is_repaired_from_a_file(
    full: DiskStand, tmp_path: Path, spoil: Callable[[Path], object]
) -> None:
    """Whatever lies in its place; the service serves it at once."""
    content = store_content(full.store, DATA, "more")
    path = chunk_path(full, DATA[8:16])
    spoil(path)
    (tmp_path / "good").write_bytes(DATA[:20])
    found, _, repaired, troubles = verify(full, tmp_path / "good")
    assert [(d.kind, d.name) for d in found] == [(K.CHUNK, path.name)]
    assert (repaired, troubles) == ([path.name], [])
    assert read_content(full.store, content) == DATA
    assert damages(full) == []
    assert not list((full.data_dir / "chunks").rglob("*.new"))


@pytest.mark.parametrize("spoil", SPOILED)
def test_chunk_is_healed_by_the_same_content(
    full: DiskStand, spoil: Callable[[Path], object]
) -> None:
    """Whatever lies in its place, and verify says so."""
    path = chunk_path(full, DATA[8:16])
    spoil(path)
    assert damages(full)
    content = store_content(full.store, DATA, "again")
    assert read_content(full.store, content) == DATA
    assert verify(full) == ([], [path.name], [], [])
    assert verify(full) == ([], [], [], [])


@pytest.mark.parametrize(
    ("lost", "good"),
    [
        (b"other", DATA[:16] + b"other, and more of it"),  # the short end, in a log
        (b"other", b"other"),  # the chunk's file from a backup
        (b"other", DATA + DATA[:16] + b"other" + DATA),  # in content put together
        (DATA[48:], DATA),
        (DATA[16:21], None),  # a tail is no chunk
    ],
)
def test_places_of_chunks_are_tried(
    full: DiskStand, tmp_path: Path, lost: bytes, good: bytes | None
) -> None:
    """Chunks lie elsewhere than at a multiple of the chunk size, too."""
    if good is None:
        assert not chunk_path(full, lost).exists()
        return
    flip(chunk_path(full, lost))
    (tmp_path / "good").write_bytes(good)
    _, _, repaired, _ = verify(full, tmp_path)
    assert repaired == [digest_of(lost).hex()]
    assert damages(full) == []


def test_file_without_the_bytes_repairs_nothing(
    full: DiskStand, tmp_path: Path
) -> None:
    """Sources that cannot be read are told, and the others are tried."""
    path = chunk_path(full, DATA[8:16])
    flip(path)
    flipped = path.read_bytes()
    bad = tmp_path / "bad"
    bad.write_bytes(DATA[1:])
    missing = tmp_path / "missing"
    found, _, repaired, troubles = verify(full, bad, missing, Path(os.devnull))
    assert len(found) == 7
    assert repaired == []
    assert [str(missing) in troubles[0], os.devnull in troubles[1]] == [True, True]
    assert path.read_bytes() == flipped


def test_repaired_chunk_is_synced_before_it_takes_the_name(
    full: DiskStand, tmp_path: Path
) -> None:
    """Bytes, then name, then directory."""
    steps: list[str] = []

    class Noting(Disk):
        def sync_data(self, file: Descriptor) -> None:
            steps.append("bytes")

        def replace(self, source: str, target: str) -> None:
            super().replace(source, target)
            steps.append(f"name {os.path.basename(target)}")

        def sync_directory(self, path: str) -> None:
            steps.append(f"sync {os.path.basename(path)}")

    path = chunk_path(full, DATA[8:16])
    flip(path)
    (tmp_path / "good").write_bytes(DATA)
    with Inventory(full.data_dir, disk=Noting(durable=True)) as inventory:
        list(inventory.verify(repair_from=[tmp_path / "good"]))
    assert steps == ["bytes", f"name {path.name}", f"sync {path.parent.name}"]


def test_reported_chunk_is_compared_before_it_is_believed(full: DiskStand) -> None:
    """A running service does not serve it any more, nor does it after a start."""
    content = store_content(full.store, DATA, "more")
    path = chunk_path(full, DATA[8:16])
    flip(path)
    assert read_content(full.store, content) != DATA  # nobody knows yet
    assert damages(full)
    with pytest.raises(ChunkCorrupt, match=path.name):
        read_content(full.store, content)
    full.restart()
    for _ in range(2):
        with pytest.raises(ChunkCorrupt, match=path.name):
            read_content(full.store, content)
        with pytest.raises(ContentLost):
            full.store.open_writer(request_key(OperationId("open")))
    # Restored by hand: believed because it was compared, not because of a new report.
    chunk_path(full, DATA[8:16]).write_bytes(DATA[8:16])
    assert read_content(full.store, content) == DATA
    assert full.store.offset(request_key(OperationId("open"))) == 21


def test_comparison_is_made_once_for_each_report(full: DiskStand) -> None:
    """The same chunk damaged and reported again is compared again."""
    content = store_content(full.store, DATA, "more")
    path = chunk_path(full, DATA[8:16])
    for _ in range(2):
        flip(path)
        assert damages(full)
        path.write_bytes(DATA[8:16])
        assert read_content(full.store, content) == DATA
        flip(path)
        assert read_content(full.store, content) != DATA
        path.write_bytes(DATA[8:16])
        assert damages(full) == []


def test_report_is_bounded(full: DiskStand, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beyond its bound it stands for every chunk."""
    monkeypatch.setattr("trioresume.store.keeper.verification.MOST_REPORTED", 1)
    content = store_content(full.store, DATA, "more")
    for data in (DATA[:8], DATA[8:16]):
        flip(chunk_path(full, data))
    damages(full)
    report = (full.data_dir / "damaged").read_text().splitlines()
    assert (len(report), report[-1]) == (2, "*")
    for at in (0, 8):
        with pytest.raises(ChunkCorrupt):
            full.store.open_reader(content).read(at, 8)
    assert full.store.open_reader(content).read(16, 8) == DATA[16:24]


def test_run_that_was_cut_short_forgets_no_report(full: DiskStand) -> None:
    """It adds what it found."""
    chunks = [DATA[:8], DATA[8:16], DATA[16:24]]
    first, *others = sorted(chunks, key=digest_of)
    for data in others:
        flip(chunk_path(full, data))
    damages(full)
    flip(chunk_path(full, first))
    with Inventory(full.data_dir) as inventory:
        cut_short = iter(inventory.verify())
        assert next(cut_short).name == digest_of(first).hex()
        cut_short.close()  # type: ignore[attr-defined]  # it is a generator
    report = (full.data_dir / "damaged").read_text()
    assert all(digest_of(data).hex() in report for data in chunks)


@pytest.mark.parametrize(
    "spoiled", [b"\xff\x00 nonsense\n", b"1e20 5\n\n", b"00" * 34 + b" x\n", b""]
)
def test_nonsense_in_the_report_is_passed_over(full: DiskStand, spoiled: bytes) -> None:
    """Nothing depends on it but caution."""
    (full.data_dir / "damaged").write_bytes(spoiled)
    assert verify(full) == ([], [], [], [])
    store_content(full.store, DATA, "again")


def test_report_that_cannot_be_read_stands_for_every_chunk(full: DiskStand) -> None:
    """Chunks are compared; what is right is served."""
    content = store_content(full.store, DATA, "more")
    (full.data_dir / "damaged").mkdir()
    assert read_content(full.store, content) == DATA
    flip(chunk_path(full, DATA[8:16]))
    found, _, _, troubles = verify(full)
    assert len(found) == 8
    assert len(troubles) == 2


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() != 0,
    reason="only root can change a file's owner",
)
def test_what_root_writes_belongs_to_the_owner(full: DiskStand, tmp_path: Path) -> None:
    """The service, which does not run as root, must be able to read it."""
    path = chunk_path(full, DATA[8:16])
    (tmp_path / "good").write_bytes(DATA)
    for directory in (full.data_dir, full.data_dir / "chunks"):
        os.chown(directory, 65534, 65534)
    path.unlink()
    path.parent.rmdir()
    damages(full)
    report = (full.data_dir / "damaged").stat()
    verify(full, tmp_path / "good")
    for status in (report, path.stat(), path.parent.stat()):
        assert (status.st_uid, status.st_gid) == (65534, 65534)
