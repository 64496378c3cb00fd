"""The port's contract for operations, files and values, over every implementation."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.store.helpers import (
    KEY,
    OP,
    Stand,
    begin,
    collect_all,
    conflicts,
    do,
    file_record,
    put,
    read_content,
    record,
    response,
    store_content,
)
from trioresume.errors import CallerError, StorageConflict
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    MoveOperation,
    Mutation,
    OperationId,
    PublishFile,
    RecordOffset,
    RecordResponse,
    RemoveFile,
    SetExpiry,
    SetFileExpiry,
    SetLength,
    SetMeta,
    SetState,
    Usage,
)
from trioresume.store.port.recipes import Digest, digest_of

NOWHERE = OperationId("nowhere")


def test_created_operation_is_found_again(stand: Stand) -> None:
    """Every field comes back as it was given, also after a restart."""
    created = record(principal="alice", length=77)
    do(stand.store, CreateOperation(created))
    assert stand.store.operation(OP) == created
    assert stand.restart().operation(OP) == created
    assert stand.store.operation(NOWHERE) is None


@pytest.mark.parametrize("owner", ["alice", None])
def test_operation_is_found_by_its_owner_only(owner: str | None, stand: Stand) -> None:
    """R35: for anybody else there is none; nobody is an owner like another."""
    do(stand.store, CreateOperation(record(principal=owner)))
    assert stand.store.operation_owned_by(OP, owner) == stand.store.operation(OP)
    for other in {"alice", None, "Alice", ""} - {owner}:
        assert stand.store.operation_owned_by(OP, other) is None
    assert stand.store.operation_owned_by(NOWHERE, owner) is None


def test_operation_may_be_created_complete(stand: Stand) -> None:
    """A request without content is complete from the start, response and all."""
    done = replace(
        record(content=Content(0, inline=b""), state=OperationState.DONE),
        response=response(),
    )
    do(stand.store, CreateOperation(done))
    assert stand.store.operation(OP) == done
    assert stand.restart().operation(OP) == done


def test_creating_twice_conflicts(stand: Stand) -> None:
    """An id belongs to one operation for as long as there is a trace of it."""
    do(stand.store, CreateOperation(record()))
    assert conflicts(stand.store, CreateOperation(record()))
    do(stand.store, EndOperation(OP, 2000.0))
    assert conflicts(stand.store, CreateOperation(record()))
    do(stand.store, ForgetOperation(OP), CreateOperation(record()))


def test_operation_changes_field_by_field(stand: Stand) -> None:
    """Length, expiry and state are set on their own."""
    do(stand.store, CreateOperation(record()))
    do(
        stand.store,
        SetLength(OP, 10**12),
        SetExpiry(OP, 12.5),
        SetState(OP, OperationState.PROCESSING),
    )
    expected = replace(
        record(), length=10**12, expires_at=12.5, state=OperationState.PROCESSING
    )
    assert stand.store.operation(OP) == expected


def test_submission_happens_whole_or_not_at_all(stand: Stand) -> None:
    """A conflict undoes its own submission and no other one of the batch."""
    do(stand.store, CreateOperation(record("taken")))
    results = stand.store.apply(
        [
            [CreateOperation(record("first"))],
            [
                SetMeta("seen", "1"),
                PublishFile(file_record()),
                SetLength(OperationId("first"), 5),
                CreateOperation(record("second")),
                CreateOperation(record("taken")),
            ],
            [SetExpiry(OperationId("first"), 9.0), CreateOperation(record("third"))],
        ]
    )
    assert [type(result) for result in results] == [
        type(None),
        StorageConflict,
        type(None),
    ]
    assert stand.store.meta("seen") is None
    assert stand.store.file(None, "a.txt") is None
    first = stand.store.operation(OperationId("first"))
    assert first is not None
    assert (first.length, first.expires_at) == (None, 9.0)
    assert stand.store.operation(OperationId("second")) is None
    assert stand.store.operation(OperationId("third")) is not None


def test_empty_batch_is_fine(stand: Stand) -> None:
    """Nothing to do is done."""
    assert stand.store.apply([]) == []
    assert stand.store.apply([[]]) == [None]


def test_tombstone_keeps_whose_it_was_and_no_more(stand: Stand) -> None:
    """Ended, an operation says who may hear 410 (R27, R35), and its content is gone."""
    do(stand.store, CreateOperation(record(principal="alice", length=5)))
    put(stand.store, stand.store.open_writer(KEY), b"12345")
    do(stand.store, EndOperation(OP, 2000.0))
    expected = replace(
        record(principal="alice", length=5, expires_at=2000.0),
        state=OperationState.GONE,
        fields=Fields(),
    )
    assert stand.store.operation(OP) == expected
    assert stand.restart().operation(OP) == expected


@pytest.mark.parametrize(
    "mutation",
    [
        SetLength(OP, 3),
        SetExpiry(OP, 1.0),
        SetState(OP, OperationState.COMPLETE),
        RecordOffset(KEY, 5),
        RecordResponse(OP, response(), 1.0),
        EndOperation(OP, 1.0),
    ],
    ids=lambda mutation: type(mutation).__name__,
)
def test_change_of_a_tombstone_is_dropped(stand: Stand, mutation: Mutation) -> None:
    """What was on its way when the operation ended changes nothing any more (R25)."""
    do(stand.store, mutation)  # of an operation that never was
    assert stand.store.operation(OP) is None
    do(stand.store, CreateOperation(record()), EndOperation(OP, 2000.0))
    tombstone = stand.store.operation(OP)
    do(stand.store, mutation)
    assert stand.store.operation(OP) == tombstone


def test_forgotten_operation_leaves_no_trace(stand: Stand) -> None:
    """Forgetting releases what it still held, tombstone or not."""
    content = store_content(stand.store, b"0123456789")
    do(stand.store, RecordResponse(OP, response(content), 9.0))
    put(stand.store, begin(stand.store, "two"), b"0123456789abc")
    do(stand.store, ForgetOperation(OP), ForgetOperation(OperationId("two")))
    do(stand.store, ForgetOperation(NOWHERE))
    assert stand.store.operation(OP) is None
    assert stand.store.expiring(10) == []
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_second_response_replaces_the_first(stand: Stand) -> None:
    """Only the newest response is held."""
    content = store_content(stand.store, b"0123456789", "source")
    do(stand.store, CreateOperation(record(content=Content(0, inline=b""))))
    do(stand.store, RecordResponse(OP, response(content), 9.0))
    do(stand.store, EndOperation(OperationId("source"), 5.0))
    assert collect_all(stand.store).chunks == 0
    do(stand.store, RecordResponse(OP, response(b"small"), 9.0))
    found = stand.store.operation(OP)
    assert found is not None
    assert found.response == response(b"small")
    assert collect_all(stand.store).chunks == 2


def test_response_of_released_content_conflicts(stand: Stand) -> None:
    """A response may not name content that is not there any more."""
    do(stand.store, CreateOperation(record()))
    lost = Content(5, digest=digest_of(b"never stored"))
    assert conflicts(stand.store, RecordResponse(OP, response(lost), 9.0))
    assert conflicts(stand.store, PublishFile(file_record(content=lost)))
    assert conflicts(stand.store, CreateOperation(record("other", content=lost)))


def test_operations_are_listed_by_state_in_order(stand: Stand) -> None:
    """A restart walks the operations of some states, page by page."""
    states = list(OperationState)
    ids = [f"id{number:02}" for number in range(24)]
    shuffled = random.Random(1).sample(ids, len(ids))
    for name in shuffled:
        state = states[ids.index(name) % len(states)]
        do(stand.store, CreateOperation(record(name, state=state)))
    wanted = [OperationState.COMPLETE, OperationState.PROCESSING]
    expected = [name for n, name in enumerate(ids) if states[n % len(states)] in wanted]
    listed: list[str] = []
    while page := stand.store.operations_in(
        wanted, 3, OperationId(listed[-1]) if listed else None
    ):
        assert len(page) <= 3
        assert all(found == stand.store.operation(found.id) for found in page)
        listed += [found.id for found in page]
    assert listed == expected
    assert stand.store.operations_in([], 3, None) == []


def test_expiries_come_soonest_first(stand: Stand) -> None:
    """Operations and files share one order; what never expires is not in it."""
    do(
        stand.store,
        CreateOperation(record("late", expires_at=30.0)),
        CreateOperation(record("soon", expires_at=10.0)),
        CreateOperation(record("gone", expires_at=1.0)),
        EndOperation(OperationId("gone"), 20.0),
        PublishFile(file_record("b", expires_at=15.0)),
        PublishFile(file_record("never")),
    )
    entries = stand.store.expiring(10)
    assert [at for at, _ in entries] == [10.0, 15.0, 20.0, 30.0]
    assert entries[0] == (10.0, "o:soon")
    assert entries[2:] == [(20.0, "o:gone"), (30.0, "o:late")]
    assert entries[1][1].startswith("f:")
    assert stand.store.expiring(2) == entries[:2]


def test_file_expires_only_when_due(stand: Stand) -> None:
    """What removes a file is decided when its time has come, not when it was listed."""
    do(stand.store, PublishFile(file_record("b", owner="bob", expires_at=15.0)))
    ((_, token),) = stand.store.expiring(10)
    assert stand.store.expire_file(token, 14.9) == []
    removal = stand.store.expire_file(token, 15.0)
    do(stand.store, SetFileExpiry("bob", "b", 50.0))
    assert stand.store.expire_file(token, 15.0) == []
    do(stand.store, *removal)
    assert stand.store.file("bob", "b") is None
    assert stand.store.expire_file(token, 99.0) == []


def test_due_removal_spares_a_replaced_file(stand: Stand) -> None:
    """A file replaced between decision and removal is another file."""
    do(stand.store, PublishFile(file_record("b", expires_at=15.0)))
    ((_, token),) = stand.store.expiring(10)
    removal = stand.store.expire_file(token, 20.0)
    do(stand.store, PublishFile(file_record("b", Content(1, inline=b"x"))))
    assert conflicts(stand.store, *removal)
    assert stand.store.file(None, "b") is not None


def test_file_is_found_under_owner_and_name(stand: Stand) -> None:
    """Namespaces are apart; no owner is not the empty owner."""
    files = [
        file_record("n", Content(1, inline=owner), owner=name)
        for name, owner in ((None, b"0"), ("", b"1"), ("alice", b"2"), ("=", b"3"))
    ]
    do(stand.store, *[PublishFile(file) for file in files])
    for file in files:
        assert stand.store.file(file.owner, "n") == file
    assert stand.store.file("alice", "N") is None
    assert stand.store.file("bob", "n") is None
    stand.restart()
    for file in files:
        assert stand.store.file(file.owner, "n") == file


def test_publishing_compares_with_what_is_there(stand: Stand) -> None:
    """If-None-Match and If-Match are one compare-and-set."""
    old, new = Content(3, inline=b"abc"), Content(3, inline=b"xyz")
    first = file_record(content=old)
    assert conflicts(stand.store, PublishFile(first, expected=old))
    do(stand.store, PublishFile(first, expected=None))
    assert conflicts(stand.store, PublishFile(first, expected=None))
    assert conflicts(stand.store, PublishFile(file_record(content=new), expected=new))
    assert stand.store.file(None, "a.txt") == first
    do(stand.store, PublishFile(file_record(content=new), expected=old))
    do(stand.store, PublishFile(first))
    assert stand.store.file(None, "a.txt") == first
    with pytest.raises(CallerError):
        stand.store.apply([[PublishFile(first, expected="something")]])


def test_removing_compares_with_what_is_there(stand: Stand) -> None:
    """DELETE with If-Match removes exactly what was seen."""
    content = Content(3, inline=b"abc")
    do(stand.store, RemoveFile(None, "a.txt"))
    assert conflicts(stand.store, RemoveFile(None, "a.txt", content))
    do(stand.store, PublishFile(file_record(content=content)))
    assert conflicts(stand.store, RemoveFile(None, "a.txt", Content(3, inline=b"xyz")))
    do(stand.store, RemoveFile(None, "a.txt", content))
    assert stand.store.file(None, "a.txt") is None


def test_file_keeps_content_when_its_operation_ends(stand: Stand) -> None:
    """A published file holds its content by itself."""
    content = store_content(stand.store, b"0123456789")
    do(
        stand.store,
        PublishFile(file_record(content=content)),
        RecordResponse(OP, response(), 9.0, keep_content=False),
    )
    do(stand.store, EndOperation(OP, 10.0), ForgetOperation(OP))
    assert collect_all(stand.store).chunks == 0
    file = stand.store.file(None, "a.txt")
    assert file is not None
    assert read_content(stand.store, file.content) == b"0123456789"
    do(stand.store, PublishFile(file_record(content=Content(0, inline=b""))))
    assert collect_all(stand.store).chunks == 2
    assert stand.stored_bytes() == 0


def test_publishing_the_same_content_again_keeps_it(stand: Stand) -> None:
    """Holding the new and releasing the old leaves one hold, not none."""
    content = store_content(stand.store, b"0123456789")
    do(stand.store, PublishFile(file_record(content=content)))
    do(stand.store, PublishFile(file_record(content=content), expected=content))
    do(stand.store, EndOperation(OP, 10.0))
    assert collect_all(stand.store).chunks == 0
    assert read_content(stand.store, content) == b"0123456789"


def test_named_values_are_kept(stand: Stand) -> None:
    """The newest value counts, also after a restart."""
    assert stand.store.meta("last-seen") is None
    do(stand.store, SetMeta("last-seen", "1"), SetMeta("epoch", "mine"))
    do(stand.store, SetMeta("last-seen", "2"))
    assert stand.store.meta("last-seen") == "2"
    store = stand.restart()
    assert (store.meta("last-seen"), store.meta("epoch")) == ("2", "mine")


def test_digest_is_bytes_again(stand: Stand) -> None:
    """A digest comes back equal to the one that was given."""
    content = store_content(stand.store, b"0123456789")
    found = stand.store.operation(OP)
    assert found is not None
    assert found.content == content
    assert isinstance(found.content.digest, bytes)
    assert Digest(found.content.digest) == content.digest


@pytest.mark.parametrize("to", ["bob", None, "alice"])
@pytest.mark.parametrize("other_keeps_it", [False, True])
def test_moved_operation_is_charged_to_its_new_owner(
    stand: Stand, to: str | None, other_keeps_it: bool
) -> None:
    """Its bytes, its record and its place among the open uploads go with it."""
    store = stand.store
    content = store_content(store, b"content of a part", "part")
    if other_keeps_it:
        do(store, CreateOperation(record("other", principal=to, content=content)))
    target = "/files/" + "n" * 1500
    for name, held in (("open", None), ("whole", content)):
        created = record(name, principal="alice", length=50, content=held)
        do(store, CreateOperation(replace(created, reserved=50)))
        do(store, MoveOperation(OperationId(name), to, target))
        moved = store.operation(OperationId(name))
        assert moved is not None
        assert (moved.principal, moved.target) == (to, target)
        assert store.operation_owned_by(OperationId(name), to) == moved
    counted = store.usage(to)
    if to != "alice":
        assert store.usage("alice") == Usage()
    total = store.total_usage()
    for name in ("open", "whole"):
        do(store, ForgetOperation(OperationId(name)))
    assert store.usage(to).open_uploads == counted.open_uploads - 2
    assert store.total_usage().bytes < total.bytes
    do(store, ForgetOperation(OperationId("other")))
    do(store, ForgetOperation(OperationId("part")))
    collect_all(store)
    assert store.total_usage() == Usage()


def test_tombstone_is_not_moved(stand: Stand) -> None:
    do(stand.store, CreateOperation(record(principal="alice")), EndOperation(OP, 9.0))
    do(stand.store, MoveOperation(OP, "bob", "/"), MoveOperation(NOWHERE, "bob", "/"))
    found = stand.store.operation(OP)
    assert found is not None
    assert found.principal == "alice"
