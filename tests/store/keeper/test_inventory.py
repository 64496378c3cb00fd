"""What a keeper is shown of a data directory, beside the store that has it open."""

from __future__ import annotations

import os
import sqlite3
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pytest

from tests.store.helpers import (
    KEY,
    OP,
    DiskStand,
    begin,
    do,
    file_record,
    lose_unrecorded,
    make_durable,
    put,
    record,
    response,
    store_content,
)
from trioresume.errors import FormatVersionUnsupported, StorageError, StorageFull
from trioresume.protocol.heads import Fields
from trioresume.store.keeper import verification
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    OperationId,
    OperationRecord,
    OperationState,
    PublishFile,
    RecordResponse,
)

DATA = bytes(range(65, 91)) * 2


def _raw(stand: DiskStand) -> AbstractContextManager[sqlite3.Connection]:
    return closing(sqlite3.connect(stand.data_dir / "catalog.sqlite3"))


def test_unfinished_upload_shows_what_arrived(disk_stand: DiskStand) -> None:
    """Received is what lies in chunks and tail; durable is what was recorded so."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:21])
    with Inventory(disk_stand.data_dir) as inventory:
        [upload] = inventory.uploads()
        assert (upload.id, upload.state) == (OP, "receiving")
        assert (upload.received, upload.durable) == (21, 16)
        assert not upload.lost
        make_durable(disk_stand.store, writer)
        shown = inventory.upload(OP)
        assert shown is not None
        assert shown.durable == 21


def test_what_may_be_lost_is_not_shown_as_received(disk_stand: DiskStand) -> None:
    """Where no service runs a list shows what a proof claims, and a look what is proven."""
    put(disk_stand.store, begin(disk_stand.store), DATA[:21])
    disk_stand.store.close()
    tail = disk_stand.data_dir / "tails" / f"{KEY}.2"
    with Inventory(disk_stand.data_dir) as inventory:
        assert [upload.received for upload in inventory.uploads()] == [21]
        with tail.open("ab") as file:
            file.write(b"no")  # beyond the proof
        assert [upload.received for upload in inventory.uploads()] == [21]
        os.truncate(tail, 4)
        assert [upload.received for upload in inventory.uploads()] == [16]
        tail.write_bytes(DATA[16:21])
        shown = inventory.upload(OP)
        assert shown is not None
        assert shown.received == 21
        lose_unrecorded(disk_stand.data_dir)
        shown = inventory.upload(OP)
        assert shown is not None
        assert shown.received == 16
    disk_stand.store = disk_stand.open()
    assert disk_stand.store.offset(KEY) == 16


def test_lost_bytes_are_shown_as_lost(disk_stand: DiskStand) -> None:
    """A tail that is shorter than what was durable cannot be gone on with."""
    writer = begin(disk_stand.store)
    put(disk_stand.store, writer, DATA[:21])
    make_durable(disk_stand.store, writer)
    (disk_stand.data_dir / "tails" / f"{OP}.2").unlink()
    with Inventory(disk_stand.data_dir) as inventory:
        [upload] = inventory.uploads()
    assert upload.lost


def test_ended_uploads_are_shown_when_asked_for(disk_stand: DiskStand) -> None:
    """Done and gone ones are a record of the past, not something that goes on."""
    store = disk_stand.store
    store_content(store, DATA)
    do(store, RecordResponse(OP, response(), 2000.0))
    do(store, CreateOperation(record("gone")), EndOperation(OperationId("gone"), 9.0))
    do(store, CreateOperation(record("open")))
    with Inventory(disk_stand.data_dir) as inventory:
        assert [upload.id for upload in inventory.uploads()] == ["open"]
        shown = {upload.id: upload for upload in inventory.uploads(ended=True)}
    assert sorted(shown) == ["gone", "open", OP]
    assert (shown[OP].status, shown[OP].received) == (201, len(DATA))
    assert shown[OP].digest is not None
    assert shown["gone"].state == "gone"


def test_secrets_in_fields_are_left_out(disk_stand: DiskStand) -> None:
    """A keeper's screen is not the place for somebody's token."""
    fields = Fields([("authorization", "Bearer s3cret"), ("x-a", "b")])
    created = OperationRecord(
        id=OP,
        method="POST",
        target="/",
        fields=fields,
        created_at=1.0,
        expires_at=2.0,
        state=OperationState.RECEIVING,
    )
    do(disk_stand.store, CreateOperation(created))
    with Inventory(disk_stand.data_dir) as inventory:
        [upload] = inventory.uploads()
    assert "s3cret" not in repr(upload)
    assert list(upload.fields) == [("authorization", "…"), ("x-a", "b")]


def test_pages_join_without_a_gap(
    disk_stand: DiskStand,
) -> None:
    """Rows come in pages; what is listed is all of them, once each."""
    store = disk_stand.store
    ids = [f"op{number:04}" for number in range(1, 1202)]
    names = [str(number) for number in range(1201)]
    do(store, *[CreateOperation(record(name)) for name in ids])
    owners = ["a" if number % 2 else None for number in range(1201)]
    files = [file_record(n, owner=o) for n, o in zip(names, owners, strict=True)]
    do(store, *map(PublishFile, files))
    with Inventory(disk_stand.data_dir) as inventory:
        uploads = inventory.uploads()
        first = next(uploads)
        do(store, CreateOperation(record("zz")))  # beside a listing that has begun
        assert [u.id for u in (first, *uploads)] == [
            *ids,
            "zz",
        ]
        assert [f.name for f in inventory.files()] == names
        assert [f.owner for f in inventory.files_called("3")] == ["a"]


def test_totals_count_what_is_shared_once(disk_stand: DiskStand) -> None:
    """Chunks are counted as they lie on disk, files as they are seen."""
    store = disk_stand.store
    content = store_content(store, DATA)
    for name in ("a", "b"):
        do(store, PublishFile(file_record(name, content)))
    do(store, EndOperation(OP, 9.0))
    store_content(store, b"other bytes", "two")
    do(store, EndOperation(OperationId("two"), 9.0))
    store.collect(1)
    store.collect(3)
    with Inventory(disk_stand.data_dir) as inventory:
        totals = inventory.totals()
    assert (totals.files, totals.file_bytes) == (2, 2 * len(DATA))
    assert totals.uploads == {"gone": 2}
    assert totals.chunks >= 7
    assert totals.chunk_bytes - totals.unheld_bytes <= len(DATA) + 11


def test_keeper_takes_no_lock_and_leaves_no_trace(disk_stand: DiskStand) -> None:
    """A service can be started while somebody looks, and everything is as it was."""
    store_content(disk_stand.store, DATA)
    disk_stand.store.close()
    before = {p: p.read_bytes() for p in _files(disk_stand)}
    with Inventory(disk_stand.data_dir) as inventory:
        assert list(inventory.verify()) == []
        assert {p: p.read_bytes() for p in _files(disk_stand)} == before
        disk_stand.store = disk_stand.open()
        assert len(list(inventory.uploads())) == 1


def _files(stand: DiskStand) -> list[Path]:
    return [
        path
        for path in stand.data_dir.rglob("*")
        if path.is_file() and path.suffix == ""
    ]


def test_no_data_directory_is_said_so(tmp_path: Path, disk_stand: DiskStand) -> None:
    """Looking makes nothing, least of all a data directory."""
    with pytest.raises(StorageError, match="no data directory"):
        Inventory(tmp_path / "none")
    assert not (tmp_path / "none").exists()
    (disk_stand.data_dir / "format").write_bytes(b"something else\n")
    with pytest.raises(FormatVersionUnsupported):
        Inventory(disk_stand.data_dir)


@pytest.mark.parametrize("version", [1, 999])
def test_catalog_of_another_version_is_not_read(
    disk_stand: DiskStand, version: int
) -> None:
    """Only the service changes a catalog, and nobody reads what is not known."""
    disk_stand.store.close()
    with _raw(disk_stand) as raw:
        (known,) = raw.execute("PRAGMA user_version").fetchone()
        raw.execute(f"PRAGMA user_version = {version}")
    with pytest.raises(FormatVersionUnsupported):
        Inventory(disk_stand.data_dir)
    with _raw(disk_stand) as raw:
        raw.execute(f"PRAGMA user_version = {known}")
    disk_stand.store = disk_stand.open()


def test_full_disk_for_temporary_files_is_called_that(
    disk_stand: DiskStand, monkeypatch: pytest.MonkeyPatch
) -> None:
    """verify sorts what it finds in a file of its own: it is not the catalog that is full."""
    store_content(disk_stand.store, DATA)
    disk_stand.store.close()
    with Inventory(disk_stand.data_dir) as inventory:
        full = "PRAGMA temp.max_page_count = 2; CREATE TEMP TABLE bad_chunks"
        tables = verification._TEMPORARY.replace("CREATE TEMP TABLE bad_chunks", full)
        monkeypatch.setattr(verification, "_TEMPORARY", tables)
        with pytest.raises(StorageFull, match="temporary files is full"):
            list(inventory.verify())
    disk_stand.store = disk_stand.open()
