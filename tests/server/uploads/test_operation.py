"""The driver performs every row of the table of an operation's life, in its order.

A real operation over a store in memory is brought to each row by what really leads to it: a
request's content, a DELETE, a target's answer, a failing disk. The operation notes each
effect that it performs, with what the store and the target saw meanwhile.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from hashlib import sha256

import pytest
import trio
import trio.testing

from tests.server.held import HeldStore, having
from trioresume import CallPolicy, Config, Fields, RequestHead, Response
from trioresume.errors import (
    PeerError,
    ProblemCode,
    StorageConflict,
    StorageError,
    StorageFull,
    TargetUnavailable,
)
from trioresume.protocol.clock import ServiceClock
from trioresume.protocol.operation import (
    Effect,
    Event,
    OperationState,
    Transition,
    rows,
)
from trioresume.server.api.handler import RecordedWith, Request, Services
from trioresume.server.async_store.storage import Storage
from trioresume.server.serving import running_storage
from trioresume.server.uploads.hashing import Hashing
from trioresume.server.uploads.loaded_operation import Surroundings
from trioresume.server.uploads.operation import MOST_CONFLICTS, Change, Operation
from trioresume.server.uploads.quotas import Quotas
from trioresume.store.port import (
    CreateOperation,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    JoinContents,
    Mutation,
    OperationId,
    OperationRecord,
    RecordResponse,
    SetExpiry,
    SetMeta,
    SetState,
)
from trioresume.testing.memory_store import MemoryStore

Clock = trio.testing.MockClock

_S, _E, _F = OperationState, Event, Effect

BODY = bytes(range(200))
ROWS = list(rows())

MADE_BY: dict[Effect, type[Mutation]] = {
    _F.JOIN: JoinContents,
    _F.FREEZE: FreezeContent,
    _F.SAVE_STATE: SetState,
    _F.RECORD: RecordResponse,
    _F.DISCARD: EndOperation,
    _F.FORGET: ForgetOperation,
}
"""What each gathering effect adds to the next commit."""


@dataclass
class Seen:
    """What happened while one effect was performed."""

    transition: Transition
    effect: Effect
    state: OperationState
    """The operation's state when the effect began."""
    calls: list[str] = field(default_factory=list)
    """The calls of the store."""
    commits: list[Sequence[Mutation]] = field(default_factory=list)
    """The mutations of each commit, one list for each submission."""
    target_calls: int = 0


class NotingStore(MemoryStore):
    """A store that notes each submission that it applied."""

    def __init__(self) -> None:
        super().__init__(chunk_size=64)
        self.submissions: list[Sequence[Mutation]] = []

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> list[StorageConflict | None]:
        results = super().apply(batch)
        applied = zip(batch, results, strict=True)
        self.submissions += [each for each, conflict in applied if conflict is None]
        return results


class GatedTarget:
    """A target that answers when its gate is open."""

    def __init__(self, policy: CallPolicy) -> None:
        self.policy = policy
        self.calls = 0
        self.gate = trio.Event()
        self.reached = trio.Event()
        self.answer: Response | RecordedWith | PeerError = Response(
            200, {}, b"the answer"
        )

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        """Admit everything."""

    def attach(self, services: Services) -> None:
        """Need nothing of the server."""

    async def respond(self, request: Request) -> Response | RecordedWith:
        self.calls += 1
        self.reached.set()
        await self.gate.wait()
        if isinstance(self.answer, PeerError):
            raise self.answer
        return self.answer


class NotingOperation(Operation):
    """An operation that notes each effect, and what was done for it."""

    __slots__ = ("seen", "stand")
    seen: list[Seen]
    stand: Stand

    async def perform(self, effect: Effect, change: Change) -> Event | None:
        seen = Seen(change.transition, effect, self.state)
        self.seen.append(seen)
        stand = self.stand
        calls, commits = len(stand.held.calls), len(stand.store.submissions)
        target_calls = stand.target.calls
        try:
            return await super().perform(effect, change)
        finally:
            seen.calls = stand.held.calls[calls:]
            seen.commits = stand.store.submissions[commits:]
            seen.target_calls = stand.target.calls - target_calls


@dataclass
class Stand:
    """The store, the target and the rest of a service that operations need."""

    store: NotingStore
    held: HeldStore
    storage: Storage
    target: GatedTarget
    around: Surroundings
    nursery: trio.Nursery

    def record(
        self, state: OperationState = _S.RECEIVING, *, right: bool = True
    ) -> OperationRecord:
        """A record whose client announces a digest, which is or is not *right*."""
        digest = b64encode(sha256(BODY if right else b"other").digest()).decode()
        return OperationRecord(
            id=OperationId(f"{state.value:_<22}"),
            method="POST",
            target="/",
            fields=Fields({"repr-digest": f"sha-256=:{digest}:"}),
            created_at=0.0,
            expires_at=100_000.0,
            length=len(BODY),
            reserved=len(BODY),
            state=state,
        )

    def load(self, record: OperationRecord) -> NotingOperation:
        operation = NotingOperation(record.id, self.around)
        operation.seen, operation.stand = [], self
        operation.load(record)
        operation.is_known = True
        return operation

    async def receiving(
        self, *, right: bool = True, keeps: bool = True
    ) -> NotingOperation:
        """An operation that has received all its content, and was not told of its end."""
        record = self.record(right=right)
        await self.storage.commit(CreateOperation(record))
        operation = self.load(record)
        object.__setattr__(operation.record, "keep_incomplete", keeps)
        operation.incoming.begin()
        incoming = operation.incoming
        async with incoming.writing(await incoming.turns.end_writer()):
            incoming.append(memoryview(BODY))
            await incoming.written()
        return operation

    async def called(self) -> NotingOperation:
        """An operation whose target was called, and has not answered."""
        operation = await self.receiving()
        operation.complete()
        await self.target.reached.wait()
        return operation

    async def answered(self) -> NotingOperation:
        """An operation that is done."""
        self.target.gate.set()
        operation = await self.receiving()
        operation.complete()
        await operation.outcome()
        return operation

    async def stopped(self, state: OperationState) -> NotingOperation:
        """An operation that the last process left in *state*, with its content."""
        first = await self.answered()
        content = first.record.content
        assert content is not None
        record = self.record(state)
        await self.storage.commit(
            CreateOperation(record), JoinContents(record.id, (content,))
        )
        loaded = self.store.operation(record.id)
        assert loaded is not None
        return self.load(loaded)


@asynccontextmanager
async def standing(policy: CallPolicy) -> AsyncIterator[Stand]:
    """Run what an operation needs, without a server around it."""
    store = NotingStore()
    held = HeldStore(store)
    config = Config(retain_content=True)
    clock = ServiceClock(trio.current_time, trio.current_time)
    target = GatedTarget(policy)
    async with (
        running_storage(held.port, config, held.workers) as storage,
        trio.open_nursery() as nursery,
    ):
        around = Surroundings(
            storage,
            target,
            config,
            clock,
            Quotas(held.port, config),
            Hashing(storage, config),
            lambda operation, function, *args: nursery.start_soon(function, *args),
        )
        try:
            yield Stand(store, held, storage, target, around, nursery)
        finally:
            held.let_go()
            nursery.cancel_scope.cancel()


# How each row is reached.


async def cut(stand: Stand) -> Operation:
    operation = await stand.receiving()
    incoming = operation.incoming
    with pytest.raises(ZeroDivisionError):
        async with incoming.writing(await incoming.turns.end_writer()):
            await incoming.hold_back()
            incoming.append(memoryview(b"held back"))
            await incoming.written()
            try:
                raise ZeroDivisionError
            finally:
                incoming.end_hold()
    await operation.cut()
    assert stand.store.offset(incoming.key) == len(BODY)
    return operation


async def writing(stand: Stand, operation: Operation) -> trio.Event:
    """Have a request write; the event is set when it was told that all is over."""
    told = trio.Event()

    async def write() -> None:
        incoming = operation.incoming
        with pytest.raises(PeerError) as caught:
            async with incoming.writing(await incoming.turns.end_writer()):
                await trio.sleep_forever()
        assert caught.value.problem is ProblemCode.GONE
        told.set()

    stand.nursery.start_soon(write)
    await trio.testing.wait_all_tasks_blocked()
    return told


def ending(
    end: Callable[[Operation], Awaitable[None]], *, keeps: bool = True
) -> Callable[[Stand], Awaitable[Operation]]:
    async def reach(stand: Stand) -> Operation:
        operation = await stand.receiving(keeps=keeps)
        told = await writing(stand, operation)
        await end(operation)
        await told.wait()
        return operation

    return reach


async def expire(operation: Operation) -> None:
    await operation.apply(Event.EXPIRED)


async def whole(stand: Stand) -> Operation:
    return await stand.answered()


async def wrong(stand: Stand) -> Operation:
    operation = await stand.receiving(right=False)
    operation.complete()
    response = await operation.outcome()
    assert response.status == 400
    assert stand.target.calls == 0
    return operation


async def joined(stand: Stand) -> Operation:
    content = (await stand.answered()).record.content
    assert content is not None
    record = stand.record(_S.PROCESSING)  # for its name
    object.__setattr__(record, "state", _S.RECEIVING)
    await stand.storage.commit(CreateOperation(record))
    operation = stand.load(record)
    await operation.join((content,))
    await operation.outcome()
    return operation


async def conflicted(stand: Stand) -> Operation:
    stand.target.gate.set()
    conflict = StorageConflict("somebody was faster")
    # Once in a batch, and once more alone.
    stand.held.fail("apply", conflict, having(RecordResponse), times=2)
    operation = await stand.receiving()
    operation.complete()
    assert (await operation.outcome()).status == 200
    assert stand.target.calls == 2
    return operation


async def full(stand: Stand) -> Operation:
    operation = await stand.receiving()
    stand.held.fail("writer.finish", StorageFull("no room"))
    operation.complete()
    with pytest.raises(StorageFull):
        await operation.outcome()
    await trio.testing.wait_all_tasks_blocked()
    assert await operation.make_durable() == len(BODY)
    return operation


async def cancel_in_call(stand: Stand) -> Operation:
    operation = await stand.called()
    await operation.cancel()
    return operation


async def expire_in_call(stand: Stand) -> Operation:
    operation = await stand.called()
    await trio.sleep(50_000)
    await expire(operation)
    await trio.testing.wait_all_tasks_blocked()
    return operation


def restarted(state: OperationState) -> Callable[[Stand], Awaitable[Operation]]:
    async def reach(stand: Stand) -> Operation:
        operation = await stand.stopped(state)
        await operation.restart()
        return operation

    return reach


async def abandoned_before_the_call(stand: Stand) -> Operation:
    saving = stand.held.hold("apply", having(SetState))
    operation = await stand.receiving()
    operation.complete()
    await saving.reached()
    stand.nursery.start_soon(operation.cancel)
    await trio.testing.wait_all_tasks_blocked()
    saving.release()
    await trio.testing.wait_all_tasks_blocked()
    assert stand.target.calls == 0
    return operation


async def abandoned_in_call(stand: Stand) -> Operation:
    operation = await cancel_in_call(stand)
    stand.target.gate.set()
    await trio.testing.wait_all_tasks_blocked()
    assert not stand.held.committed(RecordResponse)
    return operation


async def abandoned_and_full(stand: Stand) -> Operation:
    finishing = stand.held.hold("writer.finish")
    operation = await stand.receiving()
    operation.complete()
    await finishing.reached()
    await operation.cancel()
    finishing.fail(StorageFull("no room"))
    await trio.testing.wait_all_tasks_blocked()
    return operation


async def abandoned_and_expired(stand: Stand) -> Operation:
    operation = await cancel_in_call(stand)
    await trio.sleep(50_000)
    await expire(operation)
    await trio.testing.wait_all_tasks_blocked()
    return operation


async def postponed(stand: Stand) -> Operation:
    """An operation whose target could not take the request."""
    stand.target.answer = TargetUnavailable("not now")
    stand.target.gate.set()
    operation = await stand.receiving()
    operation.complete()
    with pytest.raises(TargetUnavailable):
        await operation.outcome()
    await trio.testing.wait_all_tasks_blocked()
    assert operation.state is _S.WAITING
    assert not stand.held.committed(RecordResponse)
    return operation


async def waiting(stand: Stand) -> Operation:
    """The same in a new process, with its content."""
    operation = await postponed(stand)
    stand.target.answer = Response(200, {}, b"the answer")
    recorded = stand.store.operation(operation.id)
    assert recorded is not None
    assert recorded.content is not None
    return stand.load(recorded)


async def called_again(stand: Stand) -> Operation:
    operation = await waiting(stand)
    calls = stand.target.calls
    operation.retry()
    operation.retry()  # once is enough
    assert (await operation.outcome()).status == 200
    assert stand.target.calls == calls + 1
    return operation


async def taken_back(stand: Stand) -> Operation:
    operation = await waiting(stand)
    await operation.cancel()
    return operation


async def outwaited(stand: Stand) -> Operation:
    operation = await waiting(stand)
    await expire(operation)
    return operation


async def ordered_again(stand: Stand) -> Operation:
    operation = await stand.answered()
    stand.target.answer = Response(201, {}, b"another answer")
    operation.retry()
    assert (await operation.outcome()).status == 201
    assert stand.target.calls == 2
    recorded = stand.store.operation(operation.id)
    assert recorded is not None
    assert recorded.response is not None
    assert recorded.response.status == 201
    return operation


async def abandoned_and_postponed(stand: Stand) -> Operation:
    stand.target.answer = TargetUnavailable("not now")
    return await abandoned_in_call(stand)


async def release(stand: Stand) -> Operation:
    operation = await stand.answered()
    await operation.cancel()
    return operation


async def outlive(stand: Stand) -> Operation:
    operation = await stand.answered()
    await expire(operation)
    return operation


async def forget(stand: Stand) -> Operation:
    operation = await release(stand)
    await expire(operation)
    assert stand.store.operation(operation.id) is None
    return operation


_cancelled = ending(lambda operation: operation.cancel())

REACHED: dict[tuple[OperationState, Event], Callable[[Stand], Awaitable[Operation]]] = {
    (_S.RECEIVING, _E.CONTENT_ENDED): whole,
    (_S.RECEIVING, _E.JOINED): joined,
    (_S.RECEIVING, _E.CUT): cut,
    (_S.RECEIVING, _E.CUT_FOR_GOOD): ending(lambda each: each.cut(), keeps=False),
    (_S.RECEIVING, _E.CANCELLED): ending(lambda each: each.cancel()),
    (_S.RECEIVING, _E.EXPIRED): ending(expire),
    (_S.COMPLETE, _E.STARTED): whole,
    (_S.COMPLETE, _E.CONFLICTED): conflicted,
    (_S.COMPLETE, _E.ANSWERED): whole,
    (_S.COMPLETE, _E.POSTPONED): postponed,
    (_S.COMPLETE, _E.STORAGE_FAILED): full,
    (_S.COMPLETE, _E.CANCELLED): cancel_in_call,
    (_S.COMPLETE, _E.EXPIRED): expire_in_call,
    (_S.COMPLETE, _E.RESTARTED): restarted(_S.COMPLETE),
    (_S.PROCESSING, _E.ANSWERED): whole,
    (_S.PROCESSING, _E.POSTPONED): postponed,
    (_S.PROCESSING, _E.CANCELLED): cancel_in_call,
    (_S.PROCESSING, _E.EXPIRED): expire_in_call,
    (_S.PROCESSING, _E.RESTARTED): restarted(_S.PROCESSING),
    (_S.WAITING, _E.RETRIED): called_again,
    (_S.WAITING, _E.CANCELLED): taken_back,
    (_S.WAITING, _E.EXPIRED): outwaited,
    (_S.ABANDONED, _E.STARTED): abandoned_before_the_call,
    (_S.ABANDONED, _E.ANSWERED): abandoned_in_call,
    (_S.ABANDONED, _E.POSTPONED): abandoned_and_postponed,
    (_S.ABANDONED, _E.STORAGE_FAILED): abandoned_and_full,
    (_S.ABANDONED, _E.EXPIRED): abandoned_and_expired,
    (_S.ABANDONED, _E.RESTARTED): restarted(_S.ABANDONED),
    (_S.DONE, _E.RETRIED): ordered_again,
    (_S.DONE, _E.CANCELLED): release,
    (_S.DONE, _E.EXPIRED): outlive,
    (_S.GONE, _E.EXPIRED): forget,
}


def policy_of(state: OperationState, policy: CallPolicy | None) -> CallPolicy:
    """The policy of a target with which the row can be reached."""
    if policy is not None:
        return policy
    once = state in (_S.PROCESSING, _S.ABANDONED)
    return CallPolicy.AT_MOST_ONCE if once else CallPolicy.IDEMPOTENT


def check(seen: Seen, gathered: list[Effect], was_frozen: bool) -> None:
    """Assert that the effect was performed; *gathered* are those since the last commit."""
    effect = seen.effect
    if effect in (_F.COMMIT, _F.COMMIT_AT_LAST):
        kinds = {MADE_BY[each] for each in gathered}
        if was_frozen:
            kinds.discard(FreezeContent)
        # They are committed in one submission: together, or not at all.
        together = [{type(each) for each in commit} for commit in seen.commits]
        assert any(kinds <= commit for commit in together), (kinds, together)
        assert not (was_frozen and FreezeContent in set().union(*together))
    elif effect in MADE_BY:
        kind = MADE_BY[effect]
        assert not any(isinstance(m, kind) for commit in seen.commits for m in commit)
    elif effect is _F.SEAL:
        assert "writer.finish" in seen.calls
    elif effect is _F.CHECK:
        assert {"open_prefix", "reader.read"} <= set(seen.calls)
    elif effect is _F.CALL_TARGET:
        assert seen.target_calls == 1
    if effect is not _F.CALL_TARGET:
        assert seen.target_calls == 0


@pytest.mark.parametrize(
    ("state", "event", "policy", "transition"),
    ROWS,
    ids=[f"{s.name}-{e.name}-{p.name if p else ''}" for s, e, p, _ in ROWS],
)
async def test_row_is_performed(
    state: OperationState,
    event: Event,
    policy: CallPolicy | None,
    transition: Transition,
    autojump_clock: Clock,
) -> None:
    """Rule 1: every effect, in the table's order, around the change of state."""
    reach = REACHED[state, event]
    if (event, policy) == (_E.ANSWERED, CallPolicy.AT_MOST_ONCE):
        reach = wrong  # its target is called in PROCESSING
    async with standing(policy_of(state, policy)) as stand:
        with trio.fail_after(1_000_000):
            operation = await reach(stand)
        assert isinstance(operation, NotingOperation)
        seen = [each for each in operation.seen if each.transition is transition]
        assert seen, "the row was not reached"
        effects = (*transition.before, *transition.after)
        assert [each.effect for each in seen] == list(effects)
        states = [each.state for each in seen]
        count = len(transition.before)
        assert states[:count] == [state] * count
        assert set(states[count:]) <= {transition.state}
        frozen = state not in (_S.RECEIVING, _S.COMPLETE) or (
            # Such a target is called when its content is frozen.
            policy_of(state, policy) is CallPolicy.IDEMPOTENT
            and event in (_E.ANSWERED, _E.POSTPONED)
        )
        gathered: list[Effect] = []
        for each in seen:
            check(each, gathered, frozen)
            if each.effect in MADE_BY:
                gathered.append(each.effect)


async def test_renewal_moves_the_expiry(autojump_clock: Clock) -> None:
    """G11: RENEW is a later expiry in the catalog."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        operation = await expire_in_call(stand)
        (moved,) = stand.held.committed(SetExpiry)
        assert isinstance(moved, SetExpiry)
        assert moved.expires_at == operation.record.expires_at > 100_000


async def test_indeterminate_answer_is_recorded(autojump_clock: Clock) -> None:
    """R31: after a restart in PROCESSING the target is not called, and the client is told."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        operation = await restarted(_S.PROCESSING)(stand)
        assert stand.target.calls == 1  # for the operation whose content this one has
        recorded = stand.store.operation(operation.id)
        assert recorded is not None
        assert recorded.response is not None
        assert recorded.response.status == ProblemCode.INDETERMINATE.status


async def test_target_that_must_run_once_is_not_called_after_a_conflict(
    autojump_clock: Clock,
) -> None:
    """R31: its client gets a 409, which is recorded."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        stand.target.gate.set()
        conflict = StorageConflict("somebody was faster")
        stand.held.fail("apply", conflict, having(RecordResponse), times=2)
        operation = await stand.receiving()
        operation.complete()
        assert (await operation.outcome()).status == 409
        assert stand.target.calls == 1
        recorded = stand.store.operation(operation.id)
        assert recorded is not None
        assert recorded.state is _S.DONE


@pytest.mark.parametrize("policy", CallPolicy)
async def test_refused_content_is_never_handed_on(
    policy: CallPolicy, autojump_clock: Clock
) -> None:
    """C15: not even because its refusal could not be recorded."""
    async with standing(policy) as stand:
        conflict = StorageConflict("somebody was faster")
        stand.held.fail("apply", conflict, having(RecordResponse), times=2)
        operation = await stand.receiving(right=False)
        operation.complete()
        with trio.fail_after(1000):
            if policy is CallPolicy.TRANSACTIONAL:
                with pytest.raises(StorageConflict):
                    await operation.outcome()
                operation.complete()
            assert (await operation.outcome()).status == 400
        assert stand.target.calls == 0


@pytest.mark.parametrize("policy", [CallPolicy.AT_MOST_ONCE, CallPolicy.IDEMPOTENT])
async def test_operation_that_was_never_recorded_calls_no_target(
    policy: CallPolicy, autojump_clock: Clock
) -> None:
    """R31: its state was not saved, although the commit succeeded."""
    async with standing(policy) as stand:
        stand.target.gate.set()
        stand.held.fail("apply", StorageFull("no room"), having(CreateOperation))
        finishing = stand.held.hold("writer.finish")
        empty = replace(stand.record(), length=0, fields=Fields())
        operation = stand.load(empty)
        operation.unoffered = True
        operation.incoming.begin()
        operation.complete()
        await finishing.reached()
        creation = stand.storage.submit(CreateOperation(empty))
        operation.incoming.creation = creation
        stand.held.fail("apply", StorageFull("no room"), having(CreateOperation))
        finishing.release()
        with pytest.raises(StorageFull):
            await operation.outcome()
        assert stand.target.calls == 0


async def test_operation_that_no_client_knows_is_forgotten_once(
    autojump_clock: Clock,
) -> None:
    """Its response is not recorded, and nothing of it is left."""
    async with standing(CallPolicy.IDEMPOTENT) as stand:
        stand.target.gate.set()
        operation = await stand.receiving()
        operation.unoffered = True
        operation.complete()
        assert (await operation.outcome()).status == 200
        await trio.testing.wait_all_tasks_blocked()
        assert operation._call is None  # which holds the response's content
        operation.unload()
        await trio.sleep(10)
        assert len(stand.held.committed(ForgetOperation)) == 1
        assert not stand.held.committed(RecordResponse)


async def test_target_is_called_so_often_because_of_conflicts_and_no_more(
    autojump_clock: Clock,
) -> None:
    """It may run again, but not for ever."""
    async with standing(CallPolicy.TRANSACTIONAL) as stand:
        stand.target.gate.set()
        conflict = StorageConflict("somebody was faster")
        most = MOST_CONFLICTS
        stand.held.fail("apply", conflict, having(RecordResponse), times=2 * most)
        operation = await stand.receiving()
        operation.complete()
        assert (await operation.outcome()).status == 409
        assert stand.target.calls == most


async def test_response_whose_content_fails_has_no_effects(
    autojump_clock: Clock,
) -> None:
    """A client that is told of a failure finds nothing changed."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"a part"
        raise RuntimeError("no more")

    async with standing(CallPolicy.TRANSACTIONAL) as stand:
        stand.target.gate.set()
        effect = SetMeta("effect", "done")
        stand.target.answer = RecordedWith(Response(200, {}, broken()), (effect,))
        operation = await stand.receiving()
        operation.complete()
        assert (await operation.outcome()).status == 500
        assert not stand.held.committed(SetMeta)


@pytest.mark.parametrize("policy", [CallPolicy.AT_MOST_ONCE, CallPolicy.IDEMPOTENT])
async def test_call_goes_on_until_its_response_is_recorded(
    policy: CallPolicy, autojump_clock: Clock
) -> None:
    """G8: COMMIT_AT_LAST waits for space, and the target is not called again."""
    async with standing(policy) as stand:
        stand.target.gate.set()
        full = StorageFull("no room")
        stand.held.fail("apply", full, having(RecordResponse), times=20)
        operation = await stand.receiving()
        operation.complete()
        assert (await operation.outcome()).status == 200
        assert stand.target.calls == 1


async def test_abandoned_operation_is_dropped_though_its_response_cannot_be_stored(
    autojump_clock: Clock,
) -> None:
    """R25: nothing of it is left, whatever fails."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        stand.target.answer = Response(200, {}, bytes(100_000))
        stand.target.gate.set()
        opening = stand.held.hold("open_writer")
        operation = await stand.called()
        await opening.reached()
        await operation.cancel()
        opening.fail(StorageError("no disk"))
        await trio.testing.wait_all_tasks_blocked()
        assert operation.state is _S.GONE
        assert stand.held.committed(EndOperation)


@pytest.mark.parametrize("policy", CallPolicy)
@pytest.mark.parametrize("state", OperationState)
async def test_pair_without_a_row_raises(
    state: OperationState, policy: CallPolicy, autojump_clock: Clock
) -> None:
    """Rule 2: nothing is performed for it, and the state stays."""
    possible = {e for s, e, p, _ in ROWS if s is state and p in (None, policy)}
    async with standing(policy) as stand:
        operation = stand.load(stand.record(state))
        for event in set(Event) - possible:
            with pytest.raises(AssertionError, match=event.value):
                await operation.apply(event)
        assert (operation.state, operation.seen) == (state, [])
        assert not stand.store.submissions


async def test_postponed_request_of_nobody_is_refused(autojump_clock: Clock) -> None:
    """Its client was told of no operation, and so cannot come back for it."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        stand.target.answer = TargetUnavailable("not now", retry_after=7)
        stand.target.gate.set()
        operation = await stand.receiving()
        operation.unoffered = True
        operation.complete()
        response = await operation.outcome()
        assert (response.status, response.fields.get("retry-after")) == (503, "7")


async def test_transactional_target_that_postpones_loses_no_content(
    autojump_clock: Clock,
) -> None:
    """The content is frozen with the new state, and handed on in the next call."""
    async with standing(CallPolicy.TRANSACTIONAL) as stand:
        operation = await postponed(stand)
        stand.target.answer = Response(200, {}, b"the answer")
        recorded = stand.store.operation(operation.id)
        assert recorded is not None
        assert recorded.content is not None
        again = stand.load(recorded)
        again.retry()
        assert (await again.outcome()).status == 200


async def test_retry_that_cannot_be_recorded_calls_no_target(
    autojump_clock: Clock,
) -> None:
    """R31: the operation goes on waiting."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        operation = await waiting(stand)
        calls = stand.target.calls
        full = StorageFull("no room")
        stand.held.fail("apply", full, having(SetState), times=2)
        operation.retry()
        with pytest.raises(TargetUnavailable):
            await operation.outcome()
        assert stand.target.calls == calls
        assert operation.state is _S.WAITING


async def test_operation_that_is_given_up_while_it_is_retried_is_gone(
    autojump_clock: Clock,
) -> None:
    """R25: the DELETE meets the state after the commit."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        operation = await waiting(stand)
        stand.target.gate = trio.Event()
        operation.retry()
        await operation.cancel()
        abandoned = operation.state
        stand.target.gate.set()
        await trio.testing.wait_all_tasks_blocked()
        recorded = stand.store.operation(operation.id)
        assert recorded is not None
        assert (abandoned, recorded.state) == (_S.ABANDONED, _S.GONE)


@pytest.mark.parametrize(
    ("problem", "kept"),
    [(ProblemCode.OUTCOME_UNKNOWN, True), (ProblemCode.CONFLICT, False)],
)
async def test_content_is_kept_if_the_outcome_is_not_known(
    problem: ProblemCode, kept: bool, autojump_clock: Clock
) -> None:
    """Whatever ``retain_content`` says: the administrator may have it tried again."""
    async with standing(CallPolicy.AT_MOST_ONCE) as stand:
        object.__setattr__(stand.around.config, "retain_content", False)
        stand.target.answer = PeerError(problem)
        operation = await stand.answered()
        recorded = stand.store.operation(operation.id)
        assert recorded is not None
        assert (recorded.content is not None) == kept
        week = stand.around.config.indeterminate_lifetime
        assert (recorded.expires_at - stand.around.clock.now() > week / 2) == kept
