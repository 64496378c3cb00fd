"""The port's contract for content under construction, over every implementation."""

from __future__ import annotations

import itertools

import pytest

from tests.store.helpers import (
    CHUNK,
    KEY,
    OP,
    Stand,
    begin,
    collect_all,
    conflicts,
    do,
    freeze,
    make_durable,
    put,
    read_content,
    read_prefix,
    record,
    response,
    seal_all,
    store_content,
)
from trioresume.errors import (
    CallerError,
    ContentLost,
    StaleWriter,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.operation import OperationState
from trioresume.store.port import (
    Content,
    ContentKey,
    CreateOperation,
    EndOperation,
    FreezeContent,
    HoldBack,
    LetCount,
    OperationId,
    RecordOffset,
    RecordResponse,
    SealChunk,
    SetState,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import Recipe, digest_of

_ORDERS = list(itertools.permutations(range(3)))

DATA = bytes(range(65, 91)) * 2  # 52 bytes: six chunks and four bytes


def _needs_a_kill_to_survive(stand: Stand) -> None:
    """Skip for a store whose node alone has what was never announced."""
    if not stand.survives_kill:
        pytest.skip("a kill takes the bytes that were not made durable")


def test_offset_counts_accepted_bytes(stand: Stand) -> None:
    """The offset is what append took, durable or not (rule 4)."""
    writer = begin(stand.store)
    assert writer.offset == stand.store.offset(KEY) == 0
    seals = writer.append(DATA[:3])
    assert seals == []
    assert writer.offset == stand.store.offset(KEY) == 3
    assert len(writer.append(memoryview(DATA)[3:20])) == 2
    assert writer.offset == stand.store.offset(KEY) == 20
    record = stand.store.operation(OP)
    assert record is not None
    assert record.durable_offset == 0


def test_any_kind_of_bytes_is_consumed_at_once(stand: Stand) -> None:
    """The caller may reuse its buffer as soon as append returns."""
    writer = begin(stand.store)
    buffer = bytearray(DATA[:20])
    seals = writer.append(buffer)
    buffer[:] = bytes(20)
    seal_all(stand.store, seals)
    assert read_prefix(stand.store) == DATA[:20]


def test_empty_append_changes_nothing(stand: Stand) -> None:
    """No bytes, no offset, no seal."""
    writer = begin(stand.store)
    assert writer.append(b"") == []
    assert writer.offset == 0
    assert writer.flush() is None


def test_frozen_content_reads_back(stand: Stand) -> None:
    """What was appended is what the recipe's content is."""
    content = store_content(stand.store, DATA)
    record = stand.store.operation(OP)
    assert record is not None
    assert record.content == content
    assert record.durable_offset == len(DATA)
    assert record.state is OperationState.COMPLETE
    assert read_content(stand.store, content) == DATA
    assert stand.store.offset(KEY) == len(DATA)
    assert stand.store.sealed_content(KEY).length == 0


@pytest.mark.parametrize("length", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_content_of_any_length_freezes(stand: Stand, length: int) -> None:
    """Nothing is special about the chunk's ends, nor about no bytes at all."""
    content = store_content(stand.store, DATA[:length])
    assert read_content(stand.store, content) == DATA[:length]
    assert collect_all(stand.store).chunks == 0
    assert stand.stored_bytes() == length


@pytest.mark.parametrize("size", [1, 3, CHUNK, 19])
def test_relaxed_writer_goes_on_as_if_nothing_had_been(stand: Stand, size: int) -> None:
    """It holds less, and finds it again, in the middle of a chunk or at its end."""
    writer = begin(stand.store)
    writer.relax()
    for at in range(0, len(DATA), size):
        put(stand.store, writer, DATA[at : at + size])
        writer.relax()
        assert writer.offset == stand.store.offset(KEY) == min(at + size, len(DATA))
    make_durable(stand.store, writer)
    frozen = freeze(stand.store, KEY, writer)
    do(stand.store, frozen)
    assert read_content(stand.store, frozen.content) == DATA
    writer.relax()


def test_chunk_past_a_gap_is_let_go_of_with_the_rest(stand: Stand) -> None:
    """Content may end before it: then nothing of the content holds it any more."""
    writer = begin(stand.store)
    first, second, third = writer.append(DATA[: 3 * CHUNK])
    sealed = second.run()
    do(stand.store, first.run(), third.run())
    content = stand.store.sealed_content(KEY)
    assert content.length == CHUNK
    do(stand.store, FreezeContent(KEY, content))
    do(stand.store, sealed)  # too late
    writer.close()
    assert read_content(stand.store, content) == DATA[:CHUNK]
    collect_all(stand.store)
    assert stand.stored_bytes() == CHUNK
    do(stand.store, EndOperation(OP, 2000.0))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_last_seals_and_freeze_go_in_one_submission(stand: Stand) -> None:
    """Completion is one commit: the seals, the recipe and the state."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:20])
    last = [seal.run() for seal in writer.finish()]
    content = stand.store.sealed_content(KEY, last)
    do(
        stand.store,
        *last,
        FreezeContent(KEY, content),
        SetState(OP, OperationState.COMPLETE),
    )
    assert content.length == 20
    assert read_content(stand.store, content) == DATA[:20]
    assert stand.stored_bytes() == 20


@pytest.mark.parametrize("size", [1, CHUNK, 3 * CHUNK, 20])
def test_what_follows_a_freeze_in_its_submission_is_done(
    stand: Stand, size: int
) -> None:
    """Also if all seals come in this submission, which has a way of its own."""
    writer = begin(stand.store)
    seals = [seal.run() for seal in (*writer.append(DATA[:size]), *writer.finish())]
    content = stand.store.sealed_content(KEY, seals)
    complete = SetState(OP, OperationState.COMPLETE)
    do(stand.store, *seals, FreezeContent(KEY, content), complete)
    found = stand.store.operation(OP)
    assert found is not None
    assert (found.content, found.state) == (content, OperationState.COMPLETE)
    assert read_content(stand.store, content) == DATA[:size]


def test_undone_submission_leaves_nothing_for_the_next_of_its_batch(
    stand: Stand,
) -> None:
    """Otherwise the tail of a chunk that was not published would be removed."""
    writer = begin(stand.store)
    (seal,) = writer.append(DATA[:CHUNK])
    sealed = seal.run()
    wrong = FreezeContent(KEY, Content(3, digest=digest_of(b"abc")))
    other = CreateOperation(record("other"))
    undone, done = stand.store.apply([[sealed, wrong], [other]])
    assert undone is not None
    assert done is None
    assert stand.store.offset(KEY) == CHUNK
    assert read_prefix(stand.store) == DATA[:CHUNK]
    do(stand.store, sealed)
    assert read_prefix(stand.store) == DATA[:CHUNK]


def test_last_seals_of_an_ended_operation_are_dropped_with_their_freeze(
    stand: Stand,
) -> None:
    """All seals of a content and its freeze have a way of their own."""
    writer = begin(stand.store)
    seals = [seal.run() for seal in (*writer.append(DATA[:20]), *writer.finish())]
    content = stand.store.sealed_content(KEY, seals)
    do(stand.store, EndOperation(OP, 5000.0))
    do(stand.store, *seals, FreezeContent(KEY, content))
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


@pytest.mark.parametrize("order", _ORDERS)
def test_seals_apply_in_any_order(stand: Stand, order: tuple[int, ...]) -> None:
    """Only the contiguous prefix counts as sealed; the offset counts all."""
    writer = begin(stand.store)
    seals = [seal.run() for seal in writer.append(DATA[:28])]
    applied: set[int] = set()
    for index in order:
        do(stand.store, seals[index])
        applied.add(index)
        prefix = next(i for i in range(4) if i not in applied)
        chunks = [digest_of(DATA[i * 8 : i * 8 + 8]) for i in range(prefix)]
        expected = Recipe.build(CHUNK, 8 * prefix, chunks)
        assert stand.store.sealed_content(KEY).digest == expected.digest
        assert stand.store.offset(KEY) == 28
        assert read_prefix(stand.store) == DATA[:28]
        found = stand.store.operation(OP)
        assert found is not None
        assert found.durable_offset == prefix * CHUNK


@pytest.mark.parametrize("order", _ORDERS)
def test_seals_in_any_order_survive_a_kill(
    stand: Stand, order: tuple[int, ...]
) -> None:
    """After a kill between two seals the rest is handed out again, without a gap."""
    _needs_a_kill_to_survive(stand)
    writer = begin(stand.store)
    seals = [seal.run() for seal in writer.append(DATA[:28])]
    do(stand.store, seals[order[0]])
    store = stand.restart()
    assert store.offset(KEY) == 28
    writer = store.open_writer(KEY)
    sealed = store.sealed_content(KEY).length // CHUNK
    again = writer.append(b"")
    assert [seal.index for seal in again] == list(range(sealed, 3))
    seal_all(store, again)
    do(store, freeze(store, KEY, writer))
    found = store.operation(OP)
    assert found is not None
    assert found.content is not None
    assert read_content(store, found.content) == DATA[:28]


def test_sealing_again_changes_nothing(stand: Stand) -> None:
    """A seal that is applied twice is as good as once."""
    writer = begin(stand.store)
    (seal,) = [seal.run() for seal in writer.append(DATA[:8])]
    do(stand.store, seal)
    do(stand.store, seal)
    expected = Recipe.build(CHUNK, 8, [seal.digest])
    assert stand.store.sealed_content(KEY) == Content(8, digest=expected.digest)
    do(stand.store, freeze(stand.store, KEY, writer), EndOperation(OP, 2000.0))
    assert collect_all(stand.store).chunks == 1


def test_seal_that_the_store_did_not_make_conflicts(stand: Stand) -> None:
    """A digest is not believed because somebody says so."""
    writer = begin(stand.store)
    writer.append(DATA[:8])
    assert conflicts(stand.store, SealChunk(KEY, 0, digest_of(b"other"), 8))
    assert stand.store.sealed_content(KEY).length == 0


def test_wrong_recipe_conflicts(stand: Stand) -> None:
    """Content is frozen with its own chunks or not at all."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:16])
    first, second = digest_of(DATA[:8]), digest_of(DATA[8:16])
    for wrong in (
        Recipe(CHUNK, 16, second + first),
        Recipe(CHUNK, 8, bytes(first)),
        Recipe(16, 16, bytes(first)),
    ):
        content = Content(wrong.length, digest=wrong.digest)
        assert conflicts(stand.store, FreezeContent(KEY, content))
    right = Recipe(CHUNK, 16, first + second)
    assert conflicts(stand.store, FreezeContent(KEY, Content(15, digest=right.digest)))
    do(stand.store, FreezeContent(KEY, Content(16, digest=right.digest)))


def test_newest_writer_goes_on_where_the_old_one_was(stand: Stand) -> None:
    """A takeover loses no byte, and the old writer writes none (R21, G10)."""
    old = begin(stand.store)
    put(stand.store, old, DATA[:11])
    new = stand.store.open_writer(KEY)
    assert new.offset == 11
    with pytest.raises(StaleWriter):
        old.append(b"late")
    with pytest.raises(StaleWriter):
        old.finish()
    with pytest.raises(StaleWriter):
        old.flush()
    assert old.offset == 11
    put(stand.store, new, DATA[11:30])
    old.close()
    assert stand.store.offset(KEY) == 30
    do(stand.store, freeze(stand.store, KEY, new))
    found = stand.store.operation(OP)
    assert found is not None
    assert found.content is not None
    assert read_content(stand.store, found.content) == DATA[:30]


def test_takeover_between_seal_and_apply_keeps_both_right(stand: Stand) -> None:
    """The old writer's seals still count when they are applied late."""
    old = begin(stand.store)
    late = [seal.run() for seal in old.append(DATA[:20])]
    new = stand.store.open_writer(KEY)
    put(stand.store, new, DATA[20:40])
    assert stand.store.sealed_content(KEY).length == 0
    do(stand.store, *late)
    assert stand.store.sealed_content(KEY).length == 40
    assert read_prefix(stand.store) == DATA[:40]


def test_reopened_writer_shares_pending_seals(stand: Stand) -> None:
    """A full tail may be sealed by its first owner and by the next one, in any order."""
    old = begin(stand.store)
    first = old.append(DATA[:20])
    old.close()
    new = stand.store.open_writer(KEY)
    second = new.append(DATA[20:21])
    assert [seal.index for seal in second] == [0, 1]
    do(stand.store, second[0].run(), first[1].run())
    do(stand.store, first[0].run(), second[1].run())
    assert stand.store.sealed_content(KEY).length == 16
    assert read_prefix(stand.store) == DATA[:21]


def test_closed_writer_leaves_its_bytes(stand: Stand) -> None:
    """Closing releases the writer, not the content; twice is fine."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:13])
    writer.close()
    writer.close()
    assert stand.store.offset(KEY) == 13
    again = stand.store.open_writer(KEY)
    assert again.offset == 13
    put(stand.store, again, DATA[13:])
    assert read_prefix(stand.store) == DATA


def test_finished_content_can_go_on(stand: Stand) -> None:
    """Content sealed as finished, but never frozen, is no shorter for it (C9)."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:11])
    seal_all(stand.store, writer.finish())
    with pytest.raises(CallerError):
        writer.append(b"more")
    again = stand.store.open_writer(KEY)
    assert again.offset == 11
    found = stand.store.operation(OP)
    assert found is not None
    assert found.durable_offset == 11
    put(stand.store, again, DATA[11:30])
    frozen = freeze(stand.store, KEY, again)
    do(stand.store, frozen)
    assert read_content(stand.store, frozen.content) == DATA[:30]
    chunks = [digest_of(DATA[i : min(i + 8, 30)]) for i in range(0, 30, 8)]
    assert frozen.content.digest == Recipe.build(CHUNK, 30, chunks).digest


def test_seal_of_an_end_that_moved_on_conflicts(stand: Stand) -> None:
    """The last chunk of a finish that a newer writer overtook is nobody's chunk."""
    old = begin(stand.store)
    old.append(DATA[:3])
    (late,) = old.finish()
    new = stand.store.open_writer(KEY)
    new.append(DATA[3:5])
    seal = late.run()
    assert conflicts(stand.store, seal)
    new.append(DATA[5:7])
    assert read_prefix(stand.store) == DATA[:7]


@pytest.mark.parametrize("power_loss", [False, True])
def test_short_end_past_a_gap_survives(stand: Stand, power_loss: bool) -> None:
    """A short last chunk, sealed before its neighbour and a crash, becomes a tail again."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:8])
    (second,) = writer.append(DATA[8:19])
    make_durable(stand.store, writer)
    second.run()
    (short,) = writer.finish()
    do(stand.store, short.run())
    store = stand.restart(power_loss=power_loss)
    assert store.offset(KEY) == 19
    writer = store.open_writer(KEY)
    assert writer.offset == 19
    put(store, writer, DATA[19:22])
    assert read_prefix(store) == DATA[:22]


def test_kill_keeps_every_accepted_byte(stand: Stand) -> None:
    """kill -9 takes the process, not the page cache (rule 4)."""
    _needs_a_kill_to_survive(stand)
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:21])
    store = stand.restart()
    assert store.offset(KEY) == 21
    assert read_prefix(store) == DATA[:21]
    writer = store.open_writer(KEY)
    assert writer.offset == 21
    put(store, writer, DATA[21:])
    assert read_prefix(store) == DATA


def test_power_loss_keeps_what_was_recorded(stand: Stand) -> None:
    """Unsynced bytes cannot be trusted after a power loss; recorded ones can."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:19])
    make_durable(stand.store, writer)
    writer.append(DATA[19:23])
    store = stand.restart(power_loss=True)
    assert store.offset(KEY) == 19
    writer = store.open_writer(KEY)
    assert writer.offset == 19
    put(store, writer, DATA[19:])
    assert read_prefix(store) == DATA


def test_power_loss_cuts_full_tails_too(stand: Stand) -> None:
    """A tail is not more durable for being full; only its applied seal is."""
    writer = begin(stand.store)
    first, _second, third = writer.append(DATA[:28])
    do(stand.store, first.run(), third.run())
    store = stand.restart(power_loss=True)
    assert store.offset(KEY) == 8
    writer = store.open_writer(KEY)
    assert writer.offset == 8
    put(store, writer, b"another eight and more")
    assert read_prefix(store) == DATA[:8] + b"another eight and more"


def test_bytes_after_the_cut_are_trusted_again(stand: Stand) -> None:
    """Once opened in this boot, a later kill keeps what was appended since."""
    _needs_a_kill_to_survive(stand)
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:11])
    store = stand.restart(power_loss=True)
    writer = store.open_writer(KEY)
    assert writer.offset == 8
    put(store, writer, DATA[8:14])
    store = stand.restart()
    assert store.offset(KEY) == 14
    assert read_prefix(store) == DATA[:14]


def test_flush_makes_the_offset_durable(stand: Stand) -> None:
    """What a flush recorded survives power loss, also beyond the last chunk."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:11])
    flush = writer.flush()
    assert flush is not None
    assert flush.offset == 11
    writer.append(DATA[11:13])
    recorded = flush.run()
    assert (recorded.key, recorded.offset) == (KEY, 11)
    do(stand.store, recorded)
    found = stand.store.operation(OP)
    assert found is not None
    assert found.durable_offset == 11
    assert stand.restart(power_loss=True).offset(KEY) == 11


def test_flush_outlives_its_tail(stand: Stand) -> None:
    """The writer may fill and seal the tail while the flush of it waits to run."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    flush = writer.flush()
    assert flush is not None
    put(stand.store, writer, DATA[5:11])
    do(stand.store, flush.run())
    writer.close()
    assert stand.store.offset(KEY) == 11


def test_flush_covers_chunks_that_nobody_was_given(stand: Stand) -> None:
    """After a restart a full tail counts as durable once flushed, sealed or not."""
    _needs_a_kill_to_survive(stand)
    begin(stand.store).append(DATA[:20])
    store = stand.restart()
    writer = store.open_writer(KEY)
    make_durable(store, writer)
    found = store.operation(OP)
    assert found is not None
    assert found.durable_offset == 20
    store = stand.restart(power_loss=True)
    writer = store.open_writer(KEY)
    assert writer.offset == 20
    put(store, writer, DATA[20:])
    assert read_prefix(store) == DATA


def test_nothing_is_due_when_all_is_durable(stand: Stand) -> None:
    """A second flush has nothing to do."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    make_durable(stand.store, writer)
    assert writer.flush() is None


def test_recorded_offset_never_falls(stand: Stand) -> None:
    """A late, smaller record changes nothing (C7)."""
    writer = begin(stand.store)
    writer.append(DATA[:7])
    early = writer.flush()
    assert early is not None
    do(stand.store, RecordOffset(KEY, 7))
    do(stand.store, RecordOffset(KEY, 3))
    found = stand.store.operation(OP)
    assert found is not None
    assert found.durable_offset == 7
    early.run()


def test_full_disk_keeps_what_was_accepted(stand: Stand) -> None:
    """On a full disk the offset is what fitted, and there is a way on (G8)."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:10])
    stand.set_space(11)
    with pytest.raises(StorageFull):
        writer.append(DATA[10:])
    assert writer.offset == 21
    with pytest.raises(StorageFull):
        writer.append(DATA[21:])
    make_durable(stand.store, writer)
    stand.set_space(None)
    assert stand.restart(power_loss=True).offset(KEY) == 21
    writer = stand.store.open_writer(KEY)
    put(stand.store, writer, DATA[21:])
    do(stand.store, freeze(stand.store, KEY, writer))
    found = stand.store.operation(OP)
    assert found is not None
    assert found.content is not None
    assert read_content(stand.store, found.content) == DATA


def test_same_writer_goes_on_when_there_is_space(stand: Stand) -> None:
    """The chunks that became full before the error come with the next append."""
    writer = begin(stand.store)
    stand.set_space(19)
    with pytest.raises(StorageFull):
        writer.append(DATA)
    assert writer.offset == 19
    stand.set_space(None)
    seals = writer.append(DATA[19:])
    assert [seal.index for seal in seals] == [0, 1, 2, 3, 4, 5]
    seal_all(stand.store, seals)
    assert read_prefix(stand.store) == DATA


def test_finish_at_a_full_disk_leaves_no_tail(stand: Stand) -> None:
    """A tail that was begun in vain does not stay when the content ends there."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:8])
    stand.set_space(0)
    with pytest.raises(StorageFull):
        writer.append(b"x")
    stand.set_space(None)
    do(stand.store, freeze(stand.store, KEY, writer))
    assert stand.stored_bytes() == 8


def test_failed_sync_breaks_the_writer_and_cuts(stand: Stand) -> None:
    """After a failed sync only the recorded bytes count, for everybody (promise 1)."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:10])
    make_durable(stand.store, writer)
    (seal,) = writer.append(DATA[10:18])
    stand.fail_next_sync()
    with pytest.raises(StorageError):
        seal.run()
    with pytest.raises(StorageError):
        writer.append(DATA[18:])
    assert stand.store.offset(KEY) == 10
    again = stand.store.open_writer(KEY)
    assert again.offset == 10
    put(stand.store, again, DATA[10:])
    assert read_prefix(stand.store) == DATA


def test_failed_flush_is_remembered_over_a_kill(stand: Stand) -> None:
    """The suspicion outlives the process that had it."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:12])
    flush = writer.flush()
    assert flush is not None
    stand.fail_next_sync()
    with pytest.raises(StorageError):
        flush.run()
    assert stand.restart().offset(KEY) == 8


def test_seals_after_a_failed_one_are_cut_too(stand: Stand) -> None:
    """Chunks past the gap that a failed seal leaves do not come back to life."""
    writer = begin(stand.store)
    first, second, third = writer.append(DATA[:24])
    do(stand.store, first.run(), third.run())
    stand.fail_next_sync()
    with pytest.raises(StorageError):
        second.run()
    again = stand.store.open_writer(KEY)
    assert again.offset == 8
    put(stand.store, again, b"different bytes!")
    assert read_prefix(stand.store) == DATA[:8] + b"different bytes!"


@pytest.mark.parametrize("power_loss", [False, True])
@pytest.mark.parametrize("size", [3, 20])
def test_what_is_held_back_counts_only_as_a_whole(
    stand: Stand, size: int, power_loss: bool
) -> None:
    """B8: a crash before the end of it leaves nothing of it, one after it everything."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:10])
    make_durable(stand.store, writer)
    do(stand.store, HoldBack(KEY, 10))
    seals = writer.append(DATA[10 : 10 + size])
    assert stand.store.offset(KEY) == 10 + size
    [seal.run() for seal in seals]
    stand.restart(power_loss=power_loss)
    assert stand.store.offset(KEY) == 10
    writer = stand.store.open_writer(KEY)
    assert writer.offset == 10
    do(stand.store, HoldBack(KEY, 10))
    flush = writer.flush()
    assert flush is None
    seals = writer.append(DATA[10 : 10 + size])
    sealed = [seal.run() for seal in seals]
    flush = writer.flush()
    assert flush is not None
    do(stand.store, *sealed, flush.run(), LetCount(KEY))
    put(stand.store, writer, DATA[10 + size : 11 + size])
    stand.restart(power_loss=power_loss)
    one_more = stand.survives_kill and not power_loss
    assert stand.store.offset(KEY) == 10 + size + one_more
    assert read_prefix(stand.store) == DATA[: stand.store.offset(KEY)]


def test_writer_that_was_given_up_leaves_nothing_of_what_is_held_back(
    stand: Stand,
) -> None:
    """B8: the next one begins where the whole was to begin."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:10])
    make_durable(stand.store, writer)
    do(stand.store, HoldBack(KEY, 10))
    writer.append(DATA[10:30])
    writer.close()
    assert stand.store.offset(KEY) == 10
    writer = stand.store.open_writer(KEY)
    put(stand.store, writer, DATA[10:])
    make_durable(stand.store, writer)
    assert stand.restart().offset(KEY) == len(DATA)
    assert read_prefix(stand.store) == DATA


def test_lost_content_is_noticed(stand: Stand) -> None:
    """Fewer bytes than were recorded is an error, not an offset (C7)."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    do(stand.store, RecordOffset(KEY, 6))
    writer.close()
    with pytest.raises(ContentLost):
        stand.store.offset(KEY)
    with pytest.raises(ContentLost):
        stand.store.open_writer(KEY)
    assert stand.store.apply([[EndOperation(OP, 1.0)]]) == [None]


def test_chunk_size_of_begun_content_stays(stand: Stand) -> None:
    """A new setting holds for new content; what was begun is cut as before."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:20])
    make_durable(stand.store, writer)
    store = stand.restart(chunk_size=5)
    assert store.chunk_size == 5
    writer = store.open_writer(KEY)
    assert (writer.offset, writer.chunk_size) == (20, 8)
    put(store, writer, DATA[20:])
    frozen = freeze(store, KEY, writer)
    do(store, frozen)
    assert read_content(store, frozen.content) == DATA
    chunks = [digest_of(DATA[i : i + 8]) for i in range(0, len(DATA), 8)]
    assert frozen.content.digest == Recipe.build(8, len(DATA), chunks).digest


@pytest.mark.parametrize("key", ["", "../x", "a/b", "a.b", "a\0", "a" * 129, "é", ".r"])
def test_key_that_is_no_name_is_refused(stand: Stand, key: str) -> None:
    """Nothing but a well-formed id reaches the file system (G12, promise 8)."""
    with pytest.raises(CallerError):
        stand.store.open_writer(ContentKey(key))
    with pytest.raises(CallerError):
        stand.store.apply([[CreateOperation(record(key))]])
    assert stand.store.operation(OperationId(key)) is None
    assert stand.store.offset(ContentKey(key)) == 0


def test_ended_operation_takes_no_writer(stand: Stand) -> None:
    """A cancelled upload can never come back (R25)."""
    writer = begin(stand.store)
    put(stand.store, writer, DATA[:11])
    do(stand.store, EndOperation(OP, 5000.0))
    with pytest.raises(StaleWriter):
        writer.append(b"x")
    with pytest.raises(StorageConflict):
        stand.store.open_writer(KEY)
    assert stand.store.offset(KEY) == 0
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_frozen_content_takes_no_writer(stand: Stand) -> None:
    """Frozen is immutable."""
    store_content(stand.store, DATA)
    with pytest.raises(StorageConflict):
        stand.store.open_writer(KEY)


def test_late_seal_of_an_ended_operation_is_dropped(stand: Stand) -> None:
    """Its effects were released with the operation; its bytes go, too."""
    writer = begin(stand.store)
    seals = [seal.run() for seal in writer.append(DATA[:20])]
    do(stand.store, EndOperation(OP, 5000.0))
    do(stand.store, *seals)
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_writer_may_precede_its_operation(stand: Stand) -> None:
    """A small upload can be created, sealed and frozen in one commit."""
    writer = stand.store.open_writer(KEY)
    assert writer.append(DATA[:5]) == []
    seals = [seal.run() for seal in writer.finish()]
    content = stand.store.sealed_content(KEY, seals)
    do(stand.store, CreateOperation(record()), *seals, FreezeContent(KEY, content))
    assert read_content(stand.store, content) == DATA[:5]
    assert stand.stored_bytes() == 5


def test_seal_from_before_its_operation_dies_with_its_writer(stand: Stand) -> None:
    """A key that the catalog does not know holds nothing, for whoever opens it anew."""
    writer = stand.store.open_writer(KEY)
    (seal,) = writer.append(DATA[:CHUNK])
    sealed = seal.run()
    writer.finish()
    writer.close()
    writer = stand.store.open_writer(KEY)
    assert writer.offset == 0
    do(stand.store, CreateOperation(record()))
    assert conflicts(stand.store, sealed)
    put(stand.store, writer, b"other bytes")
    assert read_prefix(stand.store) == b"other bytes"


def test_prefix_reader_follows_moving_bytes(stand: Stand) -> None:
    """An open prefix reads the same while tails become chunks and the content freezes."""
    writer = begin(stand.store)
    seals = writer.append(DATA[:20])
    reader = stand.store.open_prefix(KEY, 20)
    assert reader.length == 20
    assert reader.read(0, 100) == DATA[:8]
    seal_all(stand.store, seals)
    assert reader.read(8, 3) == DATA[8:11]
    assert reader.read(17, 100) == DATA[17:20]
    do(stand.store, freeze(stand.store, KEY, writer))
    assert reader.read(3, 5) == DATA[3:8]
    assert reader.read(9, 100) == DATA[9:16]
    reader.close()
    frozen = stand.store.open_prefix(KEY, 10)
    assert frozen.length == 10
    assert frozen.read(8, 100) == DATA[8:10]
    frozen.close()


def test_prefix_of_ended_content_is_lost(stand: Stand) -> None:
    """A reader learns that the content went away; it never reads something else."""
    writer = begin(stand.store)
    writer.append(DATA[:5])
    reader = stand.store.open_prefix(KEY, 5)
    do(stand.store, EndOperation(OP, 5000.0))
    collect_all(stand.store)
    with pytest.raises(ContentLost):
        reader.read(0, 5)
    reader.close()


def test_two_uploads_do_not_mix(stand: Stand) -> None:
    """Interleaved appends to two keys stay apart."""
    other = request_key(OperationId("other"))
    one, two = begin(stand.store), begin(stand.store, "other")
    for at in range(0, len(DATA), 3):
        put(stand.store, one, DATA[at : at + 3])
        put(stand.store, two, DATA[::-1][at : at + 3])
    assert read_prefix(stand.store, KEY) == DATA
    assert read_prefix(stand.store, other) == DATA[::-1]


# Response content.


def test_large_response_is_stored_and_replayed(stand: Stand) -> None:
    """A response too large to inline is a recipe that RecordResponse holds."""
    store = stand.store
    do(store, CreateOperation(record(content=Content(0, inline=b""))))
    key = response_key(OP)
    writer = store.open_writer(key)
    put(store, writer, DATA)
    frozen = freeze(store, key, writer)
    answer = response(frozen.content)
    do(store, frozen, RecordResponse(OP, answer, 7000.0))
    found = store.operation(OP)
    assert found is not None
    assert found.response == answer
    assert (found.state, found.expires_at) == (OperationState.DONE, 7000.0)
    collect_all(store)
    assert read_content(store, answer.body) == DATA
    with pytest.raises(StorageConflict):
        store.open_writer(key)


def test_empty_response_content_freezes(stand: Stand) -> None:
    """A streamed response may turn out to have no byte."""
    do(stand.store, CreateOperation(record(content=Content(0, inline=b""))))
    key = response_key(OP)
    frozen = freeze(stand.store, key, stand.store.open_writer(key))
    answer = response(frozen.content)
    do(stand.store, frozen, RecordResponse(OP, answer, 7000.0))
    assert read_content(stand.store, answer.body) == b""


def test_response_starts_anew_with_each_writer(stand: Stand) -> None:
    """What an earlier run of the target left is discarded (rule 6)."""
    do(stand.store, CreateOperation(record(content=Content(0, inline=b""))))
    key = response_key(OP)
    writer = stand.store.open_writer(key)
    put(stand.store, writer, DATA[:20])
    assert stand.store.open_writer(key).offset == 0
    store = stand.restart()
    assert store.offset(key) == 0
    writer = store.open_writer(key)
    assert writer.offset == 0
    put(store, writer, DATA[20:40])
    assert read_prefix(store, key) == DATA[20:40]
    collect_all(store)
    frozen = freeze(store, key, writer)
    do(store, frozen, RecordResponse(OP, response(), 7000.0))
    collect_all(store)
    assert stand.stored_bytes() == 0


def test_late_seal_of_a_discarded_response_conflicts(stand: Stand) -> None:
    """A seal of an earlier run's tail names bytes that are not there any more."""
    do(stand.store, CreateOperation(record(content=Content(0, inline=b""))))
    key = response_key(OP)
    (late,) = stand.store.open_writer(key).append(DATA[:8])
    writer = stand.store.open_writer(key)
    seals = writer.append(DATA[8:16])
    assert conflicts(stand.store, late.run())
    seal_all(stand.store, seals)
    assert read_prefix(stand.store, key) == DATA[8:16]


def test_recording_a_response_drops_half_a_one(stand: Stand) -> None:
    """A target that failed midway leaves nothing of its response."""
    do(stand.store, CreateOperation(record(content=Content(0, inline=b""))))
    writer = stand.store.open_writer(response_key(OP))
    put(stand.store, writer, DATA[:20])
    do(stand.store, RecordResponse(OP, response(), 7000.0))
    with pytest.raises(StaleWriter):
        writer.append(b"x")
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_request_content_is_released_on_request(stand: Stand) -> None:
    """keep_content=False releases frozen content, and content under construction."""
    store_content(stand.store, DATA)
    do(stand.store, RecordResponse(OP, response(), 7000.0, keep_content=False))
    unfinished = OperationId("unfinished")
    put(stand.store, begin(stand.store, unfinished), DATA[:21])
    do(stand.store, RecordResponse(unfinished, response(), 7000.0, keep_content=False))
    for operation in (OP, unfinished):
        found = stand.store.operation(operation)
        assert found is not None
        assert found.content is None
        assert found.response == response()
    collect_all(stand.store)
    assert stand.stored_bytes() == 0


def test_new_writer_needs_no_look_and_is_taken_over_like_any(stand: Stand) -> None:
    """It may write before the catalog knows the operation; a crash loses nothing."""
    store = stand.store
    writer = store.new_writer(KEY)
    assert (writer.offset, writer.chunk_size) == (0, CHUNK)
    seals = writer.append(DATA[:20])
    do(store, CreateOperation(record()))
    seal_all(store, seals)
    newer = store.open_writer(KEY)
    assert newer.offset == 20
    with pytest.raises(StaleWriter):
        writer.append(b"late")
    make_durable(store, newer)
    store = stand.restart(power_loss=True)
    assert store.offset(KEY) == 20
    assert read_prefix(store) == DATA[:20]


def test_new_writer_of_a_malformed_key_is_refused(stand: Stand) -> None:
    """G12: no key becomes a path unseen."""
    with pytest.raises(CallerError):
        stand.store.new_writer(ContentKey("../x"))
