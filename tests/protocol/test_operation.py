"""The operation's state table: every row, what must have none, and where runs lead.

That the server performs the effects is shown in tests/server/uploads/test_operation.py.
"""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.operation import (
    TRANSITIONS,
    TRANSITIONS_BY_POLICY,
    CallPolicy,
    Effect,
    Event,
    OperationState,
    Transition,
    rows,
    step,
)

_S, _E, _F = OperationState, Event, Effect

ROWS = list(rows())
COMMITS = {_F.COMMIT, _F.COMMIT_AT_LAST}
GATHERING = {_F.JOIN, _F.FREEZE, _F.SAVE_STATE, _F.RECORD, _F.DISCARD, _F.FORGET}
"""Effects that change the catalog by the next commit."""


def effects(transition: Transition) -> tuple[Effect, ...]:
    return (*transition.before, *transition.after)


def row(state: OperationState, event: Event, policy: CallPolicy) -> Transition | None:
    """The transition of a row, or None."""
    key = (state, event)
    return TRANSITIONS.get(key) or TRANSITIONS_BY_POLICY.get(key, {}).get(policy)


@pytest.mark.parametrize("policy", CallPolicy)
@pytest.mark.parametrize("event", Event)
@pytest.mark.parametrize("state", OperationState)
def test_step_is_the_table_and_nothing_else(
    state: OperationState, event: Event, policy: CallPolicy
) -> None:
    """Rules 1 and 2: a row's transition, or a loud bug of the driver."""
    transition = row(state, event, policy)
    if transition is not None:
        assert step(state, event, policy) == transition
    else:
        with pytest.raises(AssertionError, match=event.value):
            step(state, event, policy)


def test_row_that_depends_on_the_policy_needs_one() -> None:
    """A driver that does not know its target has no such row."""
    for state, event in TRANSITIONS_BY_POLICY:
        with pytest.raises(AssertionError):
            step(state, event)


def test_every_row_is_listed_once() -> None:
    """The two tables share no pair, and every policy has its row."""
    assert not TRANSITIONS.keys() & TRANSITIONS_BY_POLICY.keys()
    for policies in TRANSITIONS_BY_POLICY.values():
        assert policies.keys() == set(CallPolicy)
    assert len(ROWS) == len(TRANSITIONS) + 3 * len(TRANSITIONS_BY_POLICY)


def test_every_effect_is_in_a_row() -> None:
    """No effect is left that nothing asks for."""
    asked = {effect for *_, transition in ROWS for effect in effects(transition)}
    assert asked == set(Effect)


@pytest.mark.parametrize("transition", [row[-1] for row in ROWS])
def test_what_is_gathered_is_committed(transition: Transition) -> None:
    """Rule 3: a COMMIT follows, on the same side of the change, and commits something."""
    for side in (transition.before, transition.after):
        gathering = [effect in GATHERING for effect in side]
        commits = [index for index, effect in enumerate(side) if effect in COMMITS]
        assert len(commits) == any(gathering)
        if commits:
            assert not any(gathering[commits[0] :])


def test_every_state_is_reached_and_can_be_left() -> None:
    """From RECEIVING all states are reached, and from each of them the tombstone is."""

    def reachable(start: OperationState) -> set[OperationState]:
        seen = {start}
        for _ in OperationState:
            seen |= {t.state for state, _, _, t in ROWS if state in seen}
        return seen

    assert reachable(OperationState.RECEIVING) == set(OperationState)
    for start in OperationState:
        assert OperationState.GONE in reachable(start)


def test_gone_is_never_left() -> None:
    """R25: the upload can never come back."""
    assert {t.state for state, _, _, t in ROWS if state is _S.GONE} == {_S.GONE}


@pytest.mark.parametrize("state", OperationState)
def test_state_is_kept_by_expiry_while_busy(state: OperationState) -> None:
    """Promise 9: nothing that processes is ended; the rest is discarded or forgotten."""
    transition = step(state, Event.EXPIRED)
    if state in (_S.COMPLETE, _S.PROCESSING, _S.ABANDONED):
        assert transition == Transition(state, after=(_F.RENEW,))
    else:
        assert transition.state is _S.GONE
        expected = _F.FORGET if state is _S.GONE else _F.DISCARD
        assert expected in transition.after


def test_processing_is_durable_before_the_call() -> None:
    """R31: the state is committed before it holds; a restart then does not call again."""
    started = step(_S.COMPLETE, _E.STARTED, CallPolicy.AT_MOST_ONCE)
    assert started.state is _S.PROCESSING
    assert started.before == (_F.FREEZE, _F.SAVE_STATE, _F.COMMIT)
    assert started.after == (_F.CALL_TARGET,)
    for state, *_, transition in ROWS:
        if state is _S.PROCESSING:
            assert _F.CALL_TARGET not in effects(transition)


def test_transactional_target_commits_everything_together() -> None:
    """Content, effects and response share one commit, and none comes before the call."""
    started = step(_S.COMPLETE, _E.STARTED, CallPolicy.TRANSACTIONAL)
    assert effects(started) == (_F.CALL_TARGET,)
    answered = step(_S.COMPLETE, _E.ANSWERED, CallPolicy.TRANSACTIONAL)
    assert answered == Transition(_S.DONE, before=(_F.FREEZE, _F.RECORD, _F.COMMIT))


def test_response_is_recorded_before_it_is_shown() -> None:
    """Promise 4: DONE holds only when the record is durable."""
    for _, event, _, transition in ROWS:
        if transition.state is _S.DONE and event is not _E.EXPIRED:
            assert _F.RECORD in transition.before


def test_content_is_whole_and_right_before_the_target_is_called() -> None:
    """Promise 4: the order of the effects is the order of their performance."""
    ended = step(_S.RECEIVING, _E.CONTENT_ENDED)
    assert ended == Transition(_S.COMPLETE, after=(_F.SEAL, _F.CHECK))
    joined = step(_S.RECEIVING, _E.JOINED)
    assert joined.before == (_F.JOIN, _F.SAVE_STATE, _F.COMMIT)
    assert joined.after == (_F.CHECK,)


def test_failed_storage_is_not_an_end() -> None:
    """G8: every byte is kept, and the upload can be completed later."""
    transition = step(_S.COMPLETE, _E.STORAGE_FAILED)
    assert transition == Transition(_S.RECEIVING, after=(_F.KEEP,))


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_run_calls_a_started_target_at_most_once(events: list[Event]) -> None:
    """R31: over any run, restarts included, after STARTED there is no second call."""
    state, calls = _S.RECEIVING, 0
    for event in events:
        transition = row(state, event, CallPolicy.AT_MOST_ONCE)
        # A conflict needs the effects of a target, and only PROCESSING has called one.
        if transition is None or event is _E.CONFLICTED:
            continue
        if (state, event) == (_S.DONE, _E.RETRIED):
            continue  # the administrator's own demand
        calls += _F.CALL_TARGET in effects(transition)
        calls -= event is _E.POSTPONED  # that call had no effect, as the target said
        state = transition.state
    assert calls <= 1


@given(st.sampled_from(CallPolicy), st.lists(st.sampled_from(Event), max_size=30))
def test_cancelled_operation_is_never_answered(
    policy: CallPolicy, events: list[Event]
) -> None:
    """R25, R29: after CANCELLED nothing is recorded or kept, and no target is called."""
    state, cancelled = _S.RECEIVING, False
    for event in events:
        transition = row(state, event, policy)
        if transition is None:
            continue
        if cancelled:
            assert transition.state in (_S.GONE, _S.ABANDONED)
            assert not {_F.RECORD, _F.CALL_TARGET} & set(effects(transition))
        cancelled = cancelled or event is Event.CANCELLED
        state = transition.state
