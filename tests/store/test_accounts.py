"""What principals take: counted with every change, in the same transactions (G7)."""

from __future__ import annotations

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
from trioresume.protocol.operation import OperationState
from trioresume.store.disk import open_store
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    ForgetOperation,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SetReserved,
    SetState,
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
