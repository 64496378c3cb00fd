"""The contract of ``port/sharing.py``, for every store that several processes can share.

A new kind of store adds itself to :func:`shared`.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    begin,
    do,
    file_record,
    freeze,
    make_durable,
    put,
    read_content,
    record,
    response,
    seal_all,
)
from tests.store.postgres.stands import PostgresSharedStand
from tests.store.remote.proxies import delayed
from tests.store.remote.stands import KeeperStand
from tests.store.shared import (
    TAKEOVER_TIMEOUT,
    Ears,
    SharedMemoryStand,
    SharedStand,
    Task,
    is_refused,
    sharing_of,
)
from trioresume.errors import CallerError, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    MOST_TOLD,
    Abandoned,
    Changed,
    Claimed,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    Missed,
    Notice,
    OperationId,
    PublishFile,
    RecordOffset,
    RecordResponse,
    SetExpiry,
    SetLength,
    SetReserved,
    SetState,
    Store,
    Told,
    Wanted,
    changed_operations,
    request_key,
)

_S = OperationState


@pytest.fixture(params=["memory", "keeper", "keeper, delayed", "postgres"])
def shared(
    request: pytest.FixtureRequest, tmp_path: Path, draw: random.Random
) -> Iterator[SharedStand]:
    """A store that several processes share, of each kind."""
    stand: SharedStand = SharedMemoryStand()
    if request.param == "keeper":
        stand = KeeperStand(tmp_path)
    elif request.param == "postgres":
        stand = PostgresSharedStand(request.getfixturevalue("postgres_url"))
    elif request.param == "keeper, delayed":
        stand = KeeperStand(tmp_path, delayed(draw))
    yield stand
    stand.close()


def is_elsewhere(store: Store, id: OperationId = OP) -> bool:
    """Whether another process owns the operation, as each question of *store* says."""
    found = store.operation(id)
    assert found is not None
    owned = store.operation_owned_by(id, found.principal)
    assert owned is not None
    listed = {each.id: each for each in store.operations_in(list(_S), 100, None)}
    answers = {found.is_elsewhere, owned.is_elsewhere, listed[id].is_elsewhere}
    assert len(answers) == 1
    return found.is_elsewhere


def release(store: Store, id: OperationId = OP) -> None:
    """Release the operation, and return when the store knows it.

    A question of the same process is answered after that.
    """
    sharing_of(store).release(id)
    store.operation(id)


def releases(store: Store, notice: Notice) -> None:
    """Answer a claim as the owner of an upload that nobody writes."""
    if isinstance(notice, Claimed):
        sharing_of(store).release(notice.operation)


def owner_that_releases(store: Store) -> Ears:
    return Ears(store, lambda notice: releases(store, notice))


# Who may change it.


def test_creator_owns_the_operation(shared: SharedStand) -> None:
    """Everybody sees it, and only its owner changes it."""
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record()))
    assert not is_elsewhere(one)
    assert is_elsewhere(two)
    assert is_refused(two, SetLength(OP, 5))
    assert not is_refused(one, SetLength(OP, 6))
    found = two.operation(OP)
    assert found is not None
    assert found.length == 6


@pytest.mark.parametrize(
    "mutation",
    [
        SetLength(OP, 5),
        SetReserved(OP, 5),
        SetExpiry(OP, 5.0),
        SetState(OP, _S.PROCESSING),
        RecordOffset(KEY, 0),
        RecordResponse(OP, response(), 5.0),
        EndOperation(OP, 5.0),
        ForgetOperation(OP),
    ],
    ids=lambda mutation: type(mutation).__name__,
)
def test_every_change_by_another_process_is_refused(
    shared: SharedStand, mutation: object
) -> None:
    """Also after the owner has released it: whoever wants to change it claims it first."""
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record()))
    before = one.operation(OP)
    assert is_refused(two, mutation)  # type: ignore[arg-type]  # it is a mutation
    release(one)
    assert not is_elsewhere(two)
    assert is_refused(one, mutation)  # type: ignore[arg-type]
    assert is_refused(two, mutation)  # type: ignore[arg-type]
    assert one.operation(OP) == before


def test_submission_is_refused_whole(shared: SharedStand) -> None:
    """Its other changes do not happen either, and other submissions do."""
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record()))
    own = OperationId("operation-2")
    file = PublishFile(file_record())
    refused, done = two.apply(
        [[file, SetLength(OP, 5)], [CreateOperation(record(own)), SetLength(own, 7)]]
    )
    assert refused is not None
    assert done is None
    assert two.file(None, "a.txt") is None
    found = one.operation(own)
    assert found is not None
    assert found.length == 7


def test_change_of_what_does_not_exist_is_ignored(shared: SharedStand) -> None:
    """As it is by a store of one process."""
    store = shared.join()
    do(store, SetLength(OP, 5))
    do(store, CreateOperation(record()))
    do(store, ForgetOperation(OP))
    do(store, SetLength(OP, 5))
    assert store.operation(OP) is None


def test_files_have_no_owner(shared: SharedStand) -> None:
    """Each process publishes, whoever did before."""
    one, two = shared.join(), shared.join()
    do(one, PublishFile(file_record()))
    do(two, PublishFile(file_record()))


def test_changed_operations_of_a_submission() -> None:
    """What a process creates it may change in the same submission."""
    other = OperationId("operation-2")
    created = CreateOperation(record())
    assert changed_operations([created, SetLength(OP, 3), SetLength(other, 3)]) == {
        other
    }
    assert changed_operations([RecordOffset(request_key(OP), 3)]) == {OP}
    assert changed_operations([PublishFile(file_record())]) == set()


# Claims.


def test_claim_of_what_nobody_owns_is_granted_at_once(shared: SharedStand) -> None:
    """After a release, and of an operation that does not exist."""
    one, two = shared.join(), shared.join()
    ears = Ears(one)
    do(one, CreateOperation(record()))
    release(one)
    assert sharing_of(two).claim(OP)
    assert is_elsewhere(one)
    assert not is_refused(two, SetLength(OP, 5))
    assert sharing_of(two).claim(OperationId("nobody-made-it"))
    assert Claimed(OP) not in ears.heard


def test_claim_of_what_this_process_owns_is_granted_at_once(
    shared: SharedStand,
) -> None:
    """Nothing changes by it."""
    one = shared.join()
    ears = Ears(one)
    do(one, CreateOperation(record()))
    assert sharing_of(one).claim(OP)
    assert not is_refused(one, SetLength(OP, 5))
    assert ears.heard == []


def test_claim_waits_for_what_the_owner_owes(shared: SharedStand) -> None:
    """On its return the catalog has what the owner has recorded before it released."""
    one, two = shared.join(), shared.join()

    def settle(notice: Notice) -> None:
        assert notice == Claimed(OP)
        do(one, SetLength(OP, 77))
        sharing_of(one).release(OP)

    Ears(one, settle)
    do(one, CreateOperation(record()))
    assert sharing_of(two).claim(OP)
    found = two.operation(OP)
    assert found is not None
    assert (found.length, found.is_elsewhere) == (77, False)
    assert is_refused(one, SetLength(OP, 5))


def test_owner_that_processes_refuses(shared: SharedStand) -> None:
    """It stays the owner, and the claimant is told."""
    one, two = shared.join(), shared.join()
    Ears(one, lambda notice: sharing_of(one).refuse(OP))
    do(one, CreateOperation(record()))
    assert not sharing_of(two).claim(OP)
    assert is_elsewhere(two)
    assert is_refused(two, SetLength(OP, 5))
    assert not is_refused(one, SetLength(OP, 5))
    assert not sharing_of(two).claim(OP)


def test_owner_is_told_that_the_client_gives_it_up(shared: SharedStand) -> None:
    """It cancels it itself if its target is being called."""
    one, two = shared.join(), shared.join()

    def give_up(notice: Notice) -> None:
        assert notice == Claimed(OP, ends=True)
        do(one, SetState(OP, _S.ABANDONED))
        sharing_of(one).refuse(OP)

    Ears(one, give_up)
    do(one, CreateOperation(record()))
    assert not sharing_of(two).claim(OP, ends=True)
    found = two.operation(OP)
    assert found is not None
    assert found.state is _S.ABANDONED


def test_stopped_owner_loses_the_operation(shared: SharedStand) -> None:
    """Whatever it does when it wakes up, it changes nothing."""
    one, two = shared.join(), shared.join()
    Ears(one, lambda notice: releases(one, notice))
    writer = begin(one)
    put(one, writer, b"abc")
    make_durable(one, writer)
    shared.stop(one)
    began = time.monotonic()
    assert sharing_of(two).claim(OP)
    assert time.monotonic() - began > TAKEOVER_TIMEOUT / 2
    assert not is_refused(two, SetLength(OP, 5))
    shared.go_on(one)
    with pytest.raises(StorageError):
        writer.append(b"x" * 20)
    try:
        assert is_refused(one, SetLength(OP, 9))
    except StorageError:
        pass  # its process was killed
    found = two.operation(OP)
    assert found is not None
    assert (found.length, found.durable_offset) == (5, 3)


def test_claims_at_the_same_time_are_all_answered(shared: SharedStand) -> None:
    """In the end one process owns it, the one whose claim was granted last."""
    stores = [shared.join() for _ in range(4)]
    for store in stores:
        owner_that_releases(store)
    do(stores[0], CreateOperation(record()))
    claims = [
        Task(lambda store=store: sharing_of(store).claim(OP))  # type: ignore[misc]
        for store in stores[1:]
    ]
    assert [claim.result() for claim in claims] == [True] * 3
    writers = [not is_refused(store, SetLength(OP, 5)) for store in stores]
    assert sum(writers) == 1
    assert [not is_elsewhere(store) for store in stores] == writers


def test_ownership_goes_to_and_fro(shared: SharedStand) -> None:
    """Each claim ends the one before, however often."""
    one, two = shared.join(), shared.join()
    owner_that_releases(one)
    owner_that_releases(two)
    do(one, CreateOperation(record()))
    for length in range(20):
        store, other = (two, one) if length % 2 == 0 else (one, two)
        assert sharing_of(store).claim(OP)
        assert not is_refused(store, SetLength(OP, length))
        assert is_refused(other, SetLength(OP, 1000))
    found = one.operation(OP)
    assert found is not None
    assert found.length == 19


def test_release_of_what_is_not_owned_does_nothing(shared: SharedStand) -> None:
    """A late release does not take the operation from its next owner."""
    one, two = shared.join(), shared.join()
    do(one, CreateOperation(record()))
    release(two)
    sharing_of(two).refuse(OP)
    sharing_of(two).tell(OP, b"not from the owner")
    assert not is_refused(one, SetLength(OP, 5))


def test_forgotten_operation_has_no_owner(shared: SharedStand) -> None:
    """Nobody has to release it."""
    one, two = shared.join(), shared.join()
    ears = Ears(one)
    do(one, CreateOperation(record()))
    do(one, ForgetOperation(OP))
    began = time.monotonic()
    assert sharing_of(two).claim(OP)
    assert time.monotonic() - began < TAKEOVER_TIMEOUT
    assert Claimed(OP) not in ears.heard


# The content of an operation that passes on.


def test_content_goes_on_where_the_last_owner_has_recorded(
    shared: SharedStand,
) -> None:
    """Chunks, tail and offset come along; the old writer writes no more."""
    one, two = shared.join(), shared.join()
    owner_that_releases(one)
    old = begin(one)
    put(one, old, b"0123456789ab")
    make_durable(one, old)
    late = old.flush()
    assert sharing_of(two).claim(OP)
    assert two.offset(KEY) == 12
    new = two.open_writer(KEY)
    assert new.offset == 12
    put(two, new, b"cdef!")
    with pytest.raises(StorageError):
        old.append(b"x")
    assert late is None
    do(two, freeze(two, KEY, new), SetState(OP, _S.COMPLETE))
    found = one.operation(OP)
    assert found is not None
    assert found.content is not None
    assert read_content(one, found.content) == b"0123456789abcdef!"


def test_seals_of_an_owner_that_lost_it_name_nothing(shared: SharedStand) -> None:
    """Its chunk was sealed before the claim, and is named by the next owner."""
    one, two = shared.join(), shared.join()
    owner_that_releases(one)
    old = begin(one)
    put(one, old, b"0123")
    make_durable(one, old)
    late = [seal.run() for seal in old.append(b"4567")]
    assert len(late) == 1
    assert sharing_of(two).claim(OP)
    new = two.open_writer(KEY)
    assert new.offset in (4, CHUNK)  # what was not recorded may be lost
    rest = b"0123456789"[new.offset :]
    seal_all(two, new.append(rest))
    assert is_refused(one, *late)
    do(two, freeze(two, KEY, new), SetState(OP, _S.COMPLETE))
    found = two.operation(OP)
    assert found is not None
    assert found.content is not None
    assert read_content(one, found.content) == b"0123456789"


def test_process_that_does_not_own_it_opens_no_writer(shared: SharedStand) -> None:
    """So it cannot make the owner's writer stale."""
    one, two = shared.join(), shared.join()
    writer = begin(one)
    with pytest.raises(StorageError):
        two.open_writer(KEY)
    put(one, writer, b"goes on")
    release(one)
    with pytest.raises(StorageError):
        two.open_writer(KEY)


def test_another_process_reads_what_is_recorded(shared: SharedStand) -> None:
    """Looking from outside needs no claim."""
    one, two = shared.join(), shared.join()
    writer = begin(one)
    put(one, writer, b"0123456789")
    make_durable(one, writer)
    found = two.operation(OP)
    assert found is not None
    assert found.durable_offset == 10
    reader = two.open_prefix(KEY, 10)
    assert reader.read(0, 8) + reader.read(8, 8) == b"0123456789"
    reader.close()
    put(one, writer, b"and more")


# Looking from outside.


def test_owner_is_asked_for_its_offset(shared: SharedStand) -> None:
    """It makes durable what has arrived, and tells whoever follows."""
    one, two, three = shared.join(), shared.join(), shared.join()
    writer = begin(one)
    put(one, writer, b"abc")

    def answer(notice: Notice) -> None:
        assert isinstance(notice, Wanted)
        make_durable(one, writer)
        sharing_of(one).tell(OP, b"3" if notice.ends else b"still 3")

    ears = Ears(one, answer)
    two_ears, three_ears = Ears(two), Ears(three)
    sharing_of(two).follow(OP)
    sharing_of(two).want(OP, ends=True)
    two_ears.wait_for(Told(OP, b"3"))
    assert ears.heard == [Wanted(OP, ends=True)]
    found = two.operation(OP)
    assert found is not None
    assert found.durable_offset == 3
    sharing_of(two).want(OP)
    two_ears.wait_for(Told(OP, b"still 3"))
    assert three_ears.heard == []


def test_nobody_is_asked_for_what_nobody_owns(shared: SharedStand) -> None:
    """It is no error: the catalog has everything."""
    one, two = shared.join(), shared.join()
    ears = Ears(one)
    do(one, CreateOperation(record()))
    release(one)
    sharing_of(two).want(OP)
    sharing_of(two).want(OperationId("nobody-made-it"))
    assert sharing_of(two).claim(OP)
    assert ears.heard == []


def test_follower_hears_of_commits(shared: SharedStand) -> None:
    """After each one a look shows it, and what others do is none of its business."""
    one, two = shared.join(), shared.join()
    ears = Ears(two)
    do(one, CreateOperation(record()))
    do(one, CreateOperation(record("operation-2")))
    sharing_of(two).follow(OP)
    assert two.operation(OP) is not None
    do(one, SetLength(OperationId("operation-2"), 3))
    do(one, SetState(OP, _S.PROCESSING))
    ears.wait_for(Changed(OP))
    found = two.operation(OP)
    assert found is not None
    assert found.state is _S.PROCESSING
    assert set(ears.heard) == {Changed(OP)}


def test_look_after_following_misses_nothing(shared: SharedStand) -> None:
    """Either the look shows the change, or a notice comes after it."""
    one, two = shared.join(), shared.join()
    ears = Ears(two)
    for number in range(30):
        op = OperationId(f"operation-{number}")
        do(one, CreateOperation(record(op)))
        change = Task(lambda op=op: do(one, SetLength(op, 9)))  # type: ignore[misc]
        sharing_of(two).follow(op)
        found = two.operation(op)
        assert found is not None
        if found.length != 9:
            ears.wait_for(Changed(op))
            found = two.operation(op)
            assert found is not None
            assert found.length == 9
        change.result()


def test_follower_hears_of_a_new_owner(shared: SharedStand) -> None:
    """Of a release, a claim, and the owner's death."""
    one, two, three = shared.join(), shared.join(), shared.join()
    ears = Ears(three)
    do(one, CreateOperation(record()))
    sharing_of(three).follow(OP)
    assert is_elsewhere(three)
    release(one)
    ears.wait_for(Changed(OP))
    assert not is_elsewhere(three)
    assert sharing_of(two).claim(OP)
    ears.wait_for(Changed(OP), 2)
    assert is_elsewhere(three)
    shared.kill(two)
    ears.wait_for(Changed(OP), 3)
    assert not is_elsewhere(three)


def test_what_the_owner_tells_comes_in_order(shared: SharedStand) -> None:
    """To all that follow, until they do not."""
    one, two, three = shared.join(), shared.join(), shared.join()
    two_ears, three_ears = Ears(two), Ears(three)
    do(one, CreateOperation(record()))
    for store in (two, three):
        sharing_of(store).follow(OP)
        assert store.operation(OP) is not None
    messages = [b"%d" % number for number in range(50)]
    for message in messages:
        sharing_of(one).tell(OP, message)
    for ears in (two_ears, three_ears):
        ears.wait_for(Told(OP, messages[-1]))
        assert ears.heard == [Told(OP, message) for message in messages]
    sharing_of(two).unfollow(OP)
    assert two.operation(OP) is not None
    sharing_of(one).tell(OP, b"again")
    three_ears.wait_for(Told(OP, b"again"))
    do(one, SetLength(OP, 3))
    three_ears.wait_for(Changed(OP))
    assert len(two_ears.heard) == len(messages)


def test_message_has_a_bound(shared: SharedStand) -> None:
    """So that what waits for a slow process stays small."""
    one, two = shared.join(), shared.join()
    ears = Ears(two)
    do(one, CreateOperation(record()))
    sharing_of(two).follow(OP)
    assert two.operation(OP) is not None
    with pytest.raises(CallerError):
        sharing_of(one).tell(OP, bytes(MOST_TOLD + 1))
    sharing_of(one).tell(OP, bytes(MOST_TOLD))
    ears.wait_for(Told(OP, bytes(MOST_TOLD)))


# The death of a process.


def test_dead_process_owns_nothing(shared: SharedStand) -> None:
    """What it has recorded is there, and nobody waits for it."""
    one, two = shared.join(), shared.join()
    Ears(one)
    writer = begin(one)
    put(one, writer, b"0123456789")
    make_durable(one, writer)
    shared.kill(one)
    assert sharing_of(two).claim(OP)
    found = two.operation(OP)
    assert found is not None
    assert (found.is_elsewhere, found.durable_offset) == (False, 10)
    new = two.open_writer(KEY)
    assert new.offset == 10
    put(two, new, b"ab")


def test_death_of_the_owner_ends_the_wait_for_it(shared: SharedStand) -> None:
    """The claim is granted, within the time of one that is not answered."""
    one, two = shared.join(), shared.join()
    ears = Ears(one)
    do(one, CreateOperation(record()))
    claim = Task(lambda: sharing_of(two).claim(OP))
    ears.wait_for(Claimed(OP))
    shared.kill(one)
    assert claim.result() is True
    assert not is_refused(two, SetLength(OP, 3))


@pytest.mark.parametrize("state", [_S.COMPLETE, _S.PROCESSING, _S.ABANDONED])
def test_call_of_a_dead_process_is_taken_up_by_one_other(
    shared: SharedStand, state: OperationState
) -> None:
    """By the next one, if that dies before it has claimed the operation."""
    stores = [shared.join() for _ in range(3)]
    ears = [Ears(store) for store in stores]
    do(stores[0], CreateOperation(record()), SetState(OP, state))
    shared.kill(stores[0])
    told: list[int] = []
    deadline = time.monotonic() + 10
    while not told and time.monotonic() < deadline:
        told = [at for at in (1, 2) if Abandoned(OP) in ears[at].heard]
        time.sleep(0.001)
    (first,) = told
    shared.kill(stores[first])
    other = 3 - first
    ears[other].wait_for(Abandoned(OP))
    assert sharing_of(stores[other]).claim(OP)
    found = stores[other].operation(OP)
    assert found is not None
    assert (found.state, found.is_elsewhere) == (state, False)


@pytest.mark.parametrize("state", [_S.RECEIVING, _S.WAITING, _S.DONE, _S.GONE])
def test_nobody_takes_up_what_was_not_processed(
    shared: SharedStand, state: OperationState
) -> None:
    """Its client comes again, or does not."""
    one, two = shared.join(), shared.join()
    ears = Ears(two)
    do(one, CreateOperation(record()))
    if state is _S.DONE:
        do(one, RecordResponse(OP, response(), 50.0))
    elif state is _S.GONE:
        do(one, EndOperation(OP, 50.0))
    elif state is _S.WAITING:
        do(one, SetState(OP, state))
    processed = OperationId("operation-2")
    do(one, CreateOperation(record(processed)), SetState(processed, _S.PROCESSING))
    shared.kill(one)
    ears.wait_for(Abandoned(processed))
    assert Abandoned(OP) not in ears.heard


def test_notices_go_on_after_some_were_missed(shared: SharedStand) -> None:
    """Of a process that was stopped so long that it was killed, or lost notices, no one waits."""
    one, two = shared.join(), shared.join()
    ears = Ears(two)
    do(one, CreateOperation(record()))
    sharing_of(two).follow(OP)
    assert two.operation(OP) is not None
    shared.stop(two)
    do(one, SetLength(OP, 3))
    shared.go_on(two)
    do(one, SetLength(OP, 4))
    assert ears.heard == [] or set(ears.heard) <= {Changed(OP), Missed()}
    ears.wait_for(Changed(OP))
