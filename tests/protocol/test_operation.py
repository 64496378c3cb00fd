"""The operation's state table: every row, what must have none, and where runs lead."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.operation import (
    TRANSITIONS,
    Effect,
    Event,
    OperationState,
    step,
)


@pytest.mark.parametrize("state", OperationState)
@pytest.mark.parametrize("event", Event)
def test_step_is_the_table_and_nothing_else(
    state: OperationState, event: Event
) -> None:
    """Rules 1 and 2: a row's transition, or a loud bug of the driver."""
    if (state, event) in TRANSITIONS:
        assert step(state, event) == TRANSITIONS[state, event]
    else:
        with pytest.raises(AssertionError, match=event.value):
            step(state, event)


def test_every_state_is_reached_and_can_be_left() -> None:
    """From RECEIVING all states are reached, and from each of them the tombstone is."""
    reached = {OperationState.RECEIVING}
    while True:
        further = {
            transition.state
            for (state, _), transition in TRANSITIONS.items()
            if state in reached
        }
        if further <= reached:
            break
        reached |= further
    assert reached == set(OperationState)
    for start in OperationState:
        seen = {start}
        for _ in OperationState:
            seen |= {t.state for (s, _), t in TRANSITIONS.items() if s in seen}
        assert OperationState.GONE in seen


def test_gone_is_never_left() -> None:
    """R25: the upload can never come back."""
    leaving = [
        t.state for (state, _), t in TRANSITIONS.items() if state is OperationState.GONE
    ]
    assert set(leaving) == {OperationState.GONE}


@pytest.mark.parametrize("state", OperationState)
def test_state_is_kept_by_expiry_while_busy(state: OperationState) -> None:
    """Promise 9: nothing that processes is ended; the rest is discarded or forgotten."""
    transition = step(state, Event.EXPIRED)
    if state in (
        OperationState.COMPLETE,
        OperationState.PROCESSING,
        OperationState.ABANDONED,
    ):
        assert (transition.state, transition.effects) == (state, (Effect.RENEW,))
    else:
        assert transition.state is OperationState.GONE
        expected = Effect.FORGET if state is OperationState.GONE else Effect.DISCARD
        assert transition.effects == (expected,)


def test_processing_is_durable_before_the_call() -> None:
    """R31: STARTED saves the state; a restart then does not call again."""
    assert step(OperationState.COMPLETE, Event.STARTED).effects == (Effect.SAVE_STATE,)
    assert (
        Effect.CALL_TARGET
        not in step(OperationState.PROCESSING, Event.RESTARTED).effects
    )
    assert step(OperationState.PROCESSING, Event.RESTARTED).effects == (
        Effect.RECORD_INDETERMINATE,
    )
    assert step(OperationState.COMPLETE, Event.RESTARTED).effects == (
        Effect.CALL_TARGET,
    )


def test_content_is_frozen_before_the_target_is_called() -> None:
    """Promise 4: the order of the effects is the order of their performance."""
    assert step(OperationState.RECEIVING, Event.CONTENT_ENDED).effects == (
        Effect.FREEZE,
        Effect.CALL_TARGET,
    )


def test_failed_storage_is_not_an_end() -> None:
    """G8: every byte is kept, and the upload can be completed later."""
    transition = step(OperationState.COMPLETE, Event.STORAGE_FAILED)
    assert (transition.state, transition.effects) == (
        OperationState.RECEIVING,
        (Effect.KEEP,),
    )


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_run_calls_a_started_target_at_most_once(events: list[Event]) -> None:
    """R31: over any run, restarts included, between STARTED and the end no second call."""
    state = OperationState.RECEIVING
    started = False
    for event in events:
        if (state, event) not in TRANSITIONS:
            continue
        transition = step(state, event)
        if started:
            assert Effect.CALL_TARGET not in transition.effects
        started = started or event is Event.STARTED
        if state in (OperationState.DONE, OperationState.GONE):
            assert Effect.CALL_TARGET not in transition.effects
        state = transition.state


@given(st.lists(st.sampled_from(Event), max_size=30))
def test_cancelled_operation_is_never_answered(events: list[Event]) -> None:
    """R25, R29: after CANCELLED nothing is recorded or kept."""
    state = OperationState.RECEIVING
    cancelled = False
    for event in events:
        if (state, event) not in TRANSITIONS:
            continue
        transition = step(state, event)
        if cancelled:
            assert transition.state in (OperationState.GONE, OperationState.ABANDONED)
            assert Effect.RECORD not in transition.effects
        cancelled = cancelled or event is Event.CANCELLED
        state = transition.state
