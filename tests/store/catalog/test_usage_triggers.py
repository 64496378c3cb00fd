"""What principals take: counted with every change, in the same transactions (G7)."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.store.helpers import (
    KEY,
    OP,
    Stand,
    begin,
    do,
    downgrade,
    file_record,
    freeze,
    put,
    record,
    response,
    store_content,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.disk_store import open_store
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    MoveOperation,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SetReserved,
    SetState,
    StoredResponse,
    Usage,
)

ROW = 4096


def test_upload_counts_what_is_reserved_until_it_ends(stand: Stand) -> None:
    """G7: from the creation on, whatever has arrived, and no longer than it receives."""
    store = stand.store
    do(store, CreateOperation(replace(record(principal="a"), reserved=1000)))
    assert store.usage("a") == store.total_usage() == Usage(ROW + 1000, 1)
    assert store.usage(None) == store.usage("b") == Usage()
    do(store, SetReserved(OP, 5))
    assert store.usage("a") == Usage(ROW + 5, 1)
    writer = store.open_writer(KEY)
    put(store, writer, b"abc")
    do(store, freeze(store, KEY, writer), SetState(OP, OperationState.COMPLETE))
    assert store.usage("a") == Usage(ROW + 3, 0)
    do(store, EndOperation(OP, 5.0))
    assert store.usage("a") == store.total_usage() == Usage()


def test_content_counts_once_for_each_principal(stand: Stand) -> None:
    """G7: kept twice by one it counts once; kept by two it counts for both."""
    store = stand.store
    content = store_content(store, b"x" * 20)
    do(store, RecordResponse(OP, response(), 9.0))
    assert store.usage(None) == Usage(ROW + 20)
    do(store, PublishFile(file_record("x", content)))
    assert store.usage(None) == Usage(2 * ROW + 20)
    do(store, PublishFile(file_record("x", content, owner="b")))
    assert store.usage("b") == Usage(ROW + 20)
    assert store.total_usage() == Usage(3 * ROW + 40)
    do(store, ForgetOperation(OP))
    assert store.usage(None) == Usage(ROW + 20)
    do(store, RemoveFile(None, "x"))
    assert store.usage(None) == Usage()
    assert store.usage("b") == store.total_usage() == Usage(ROW + 20)


def test_replaced_file_counts_what_it_is_now(stand: Stand) -> None:
    """G7: and what nobody keeps any more is released."""
    store = stand.store
    for number, size in enumerate((20, 3)):
        operation = OperationId(f"op{number}")
        content = store_content(store, b"x" * size, operation)
        do(store, PublishFile(file_record("x", content)), ForgetOperation(operation))
        assert store.usage(None) == Usage(ROW + size)


def test_failed_submission_counts_nothing(stand: Stand) -> None:
    """It happens whole or not at all, the account included."""
    store = stand.store
    created = CreateOperation(replace(record(), reserved=7))
    do(store, created)
    (conflict,) = store.apply(
        [[CreateOperation(replace(record("other"), reserved=9)), created]]
    )
    assert conflict is not None
    assert store.total_usage() == Usage(ROW + 7, 1)


@pytest.mark.parametrize("power_loss", [False, True])
def test_accounts_survive_a_crash(stand: Stand, power_loss: bool) -> None:
    """G7: they are committed with what they count."""
    do(stand.store, CreateOperation(replace(record(principal="a"), reserved=7)))
    store_content(stand.store, b"abc", "other")
    before = stand.store.usage("a"), stand.store.usage(None)
    store = stand.restart(power_loss=power_loss)
    assert (store.usage("a"), store.usage(None)) == before


LONG = "x" * 10_000


def test_long_heads_and_responses_are_counted(stand: Stand) -> None:
    """G7: what rows hold of the peer's beyond a KiB, and no longer than they hold it."""
    store = stand.store

    def taken(principal: str | None = None) -> int:
        assert store.usage(principal).bytes == store.total_usage().bytes
        return store.usage(principal).bytes - ROW

    do(store, CreateOperation(replace(record(), fields=Fields({"x-long": LONG}))))
    assert 8_900 < taken() < 9_100
    small = StoredResponse(status=200, fields=Fields(), body=Content(5, b"small"))
    do(store, RecordResponse(OP, small, 1.0))
    assert 8_900 < taken() < 9_100
    large = replace(small, body=Content(50_000, bytes(50_000)))
    do(store, RecordResponse(OP, large, 1.0))
    assert 58_900 < taken() < 59_100
    long_head = replace(small, fields=Fields({"x-long": LONG}))
    do(store, RecordResponse(OP, long_head, 1.0))
    assert 18_900 < taken() < 19_100
    do(store, EndOperation(OP, 1.0))
    assert store.total_usage() == Usage()


def test_tombstone_with_a_long_target_is_counted_until_it_is_forgotten(
    stand: Stand,
) -> None:
    """G7: it keeps the target, and nothing else that a client could make long."""
    store = stand.store
    do(store, CreateOperation(replace(record(), target=f"/é{LONG}")))
    do(store, EndOperation(OP, 1.0))
    assert 8_900 < store.usage(None).bytes == store.total_usage().bytes < 9_100
    do(store, ForgetOperation(OP))
    assert store.total_usage() == Usage()


def test_long_names_and_fields_of_files_are_counted(stand: Stand) -> None:
    """G7: also when a file is replaced, and of content that is kept in its row."""
    store = stand.store
    file = file_record(f"/é{LONG}", Content(3, b"abc"))
    do(store, PublishFile(file))
    assert 8_900 < store.usage(None).bytes - ROW < 9_100
    do(store, PublishFile(replace(file, fields=Fields({"x-long": LONG}))))
    assert 18_900 < store.usage(None).bytes - ROW < 19_100
    do(store, PublishFile(replace(file, content=Content(5_000, bytes(5_000)))))
    assert 13_900 < store.usage(None).bytes - ROW < 14_100
    do(store, RemoveFile(None, file.name))
    assert store.total_usage() == Usage()


def test_catalog_from_before_records_counted_is_counted_once(tmp_path: Path) -> None:
    """The accounts of version 5 lack the long heads, of which there may be any number."""
    data_dir = tmp_path / "data"
    store = open_store(data_dir, chunk_size=8)
    long = Fields({"x-long": LONG})
    do(store, CreateOperation(replace(record("a", principal="a"), fields=long)))
    do(store, CreateOperation(record("b", principal="a")))
    do(store, PublishFile(replace(file_record("x", Content(3, b"abc")), fields=long)))
    before = store.usage("a"), store.usage(None), store.total_usage()
    store.close()
    downgrade(data_dir, 5)
    # As that version had counted them.
    with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as connection:
        for namespace, rows in (("=a", 2), ("", 1), ("*", 3)):
            connection.execute(
                "UPDATE accounts SET bytes = ? WHERE namespace = ?",
                (rows * ROW, namespace),
            )
        connection.commit()
    store = open_store(data_dir, chunk_size=8)
    try:
        assert (store.usage("a"), store.usage(None), store.total_usage()) == before
        do(store, ForgetOperation(OperationId("a")), ForgetOperation(OperationId("b")))
        do(store, RemoveFile(None, "x"))
        assert store.total_usage() == Usage()
    finally:
        store.close()


def test_operation_that_waits_for_its_target_is_open(stand: Stand) -> None:
    """G5: its content is on the disk, and nobody knows for how long."""
    store = stand.store
    do(store, CreateOperation(replace(record(principal="a"), reserved=1000)))
    do(store, SetState(OP, OperationState.PROCESSING))
    assert store.usage("a") == Usage(ROW, 0)
    do(store, SetState(OP, OperationState.WAITING))
    assert store.usage("a") == store.total_usage() == Usage(ROW, 1)
    do(store, MoveOperation(OP, "b", "/x"))
    assert store.usage("b") == store.total_usage() == Usage(ROW, 1)
    do(store, EndOperation(OP, 5.0))
    assert store.total_usage() == Usage()


def test_catalog_from_before_waiting_counted_is_counted_once(tmp_path: Path) -> None:
    """Version 8: an operation that waits was not open."""
    data_dir = tmp_path / "data"
    waiting = record(principal="a", state=OperationState.WAITING)
    with closing(open_store(data_dir)) as store:
        do(store, CreateOperation(waiting))
        do(store, CreateOperation(record("other", principal="a")))
    downgrade(data_dir, 8)
    with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as old:
        old.execute("UPDATE accounts SET open = open - 1")
        old.commit()
    for _ in range(2):
        with closing(open_store(data_dir)) as store:
            assert store.usage("a") == store.total_usage() == Usage(2 * ROW, 2)
    with closing(open_store(data_dir)) as store:
        do(store, ForgetOperation(OP))
        assert store.usage("a") == Usage(ROW, 1)


def test_catalog_of_the_first_version_is_counted_once(tmp_path: Path) -> None:
    """A data directory from before there were accounts gets them when it is opened."""
    data_dir = tmp_path / "data"
    store = open_store(data_dir, chunk_size=8)
    begin(store)
    do(store, CreateOperation(replace(record("a", principal="a"), length=100)))
    content = store_content(store, b"y" * 20, "b")
    do(store, PublishFile(file_record("x", content)))
    do(store, PublishFile(file_record("x", content, owner="c")))
    do(store, CreateOperation(record("gone", state=OperationState.GONE)))
    store.close()
    downgrade(data_dir, 1)
    store = open_store(data_dir, chunk_size=8)
    try:
        assert store.usage(None) == Usage(3 * ROW + 20, 1)
        assert store.usage("a") == Usage(ROW + 100, 1)
        assert store.usage("c") == Usage(ROW + 20, 0)
        assert store.total_usage() == Usage(5 * ROW + 140, 2)
        do(store, ForgetOperation(OperationId("a")), ForgetOperation(OP))
        assert store.usage("a") == Usage()
    finally:
        store.close()
