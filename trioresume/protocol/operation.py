"""The life of an operation, as a table.

One operation is one request made resumable::

    head → content arriving → complete → processed once by its target
         → response recorded → replayed until released

Rule 1: every change of an operation's state is a row of :data:`TRANSITIONS`. The row
names the *effects*: the work that makes the change true, in this order. The driver of
the machine performs them. This module does nothing itself.

Rule 2: a pair of state and event without a row is a bug of the driver, and :func:`step`
raises. Requests at the wrong time (a PATCH after the end, a DELETE of a tombstone)
cause no event. The driver answers them from the state.

Theory
======

Four promises depend on this table.

*At most once* (R31). In COMPLETE only a target that may run twice is called. Before any
other target, STARTED comes first. Its effect SAVE_STATE makes PROCESSING durable
*before* the call. So a restart that finds PROCESSING cannot know whether the target's
effects happened, and records that. A restart that finds COMPLETE calls the target
again.

*Nothing comes back* (R25). A DELETE cannot stop a running target, and the content may
not be released while the target uses it. So the operation becomes ABANDONED: it is gone
for clients at once, and gone for good when the target ends.

*Expiry never ends a busy operation* (G11). Only RECEIVING without a writer, DONE and
GONE have an EXPIRED row that ends something. In other states EXPIRED renews.

*A full disk is not the end* (G8). If the content cannot be frozen, the operation is
RECEIVING again with all its bytes. The client's next request completes it.

An operation that keeps no incomplete content (``resume=ignore-incomplete``, or no
``resume`` at all) gets CUT_FOR_GOOD where others get CUT.

Statement numbers such as R31 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

__all__ = ["TRANSITIONS", "Effect", "Event", "OperationState", "Transition", "step"]


class OperationState(StrEnum):
    """The state of an operation, as the catalog stores it."""

    RECEIVING = "receiving"
    """Content is missing; there may or may not be a writer now."""
    COMPLETE = "complete"
    """Content is whole; a target that may run twice is or will be called."""
    PROCESSING = "processing"
    """A target that must not run twice was called; a crash leaves it indeterminate."""
    DONE = "done"
    """The final response is recorded."""
    ABANDONED = "abandoned"
    """The client gave up while the target ran; its result will be dropped."""
    GONE = "gone"
    """Cancelled, released or expired: a tombstone (410) until it is forgotten (404)."""


class Event(Enum):
    """What can happen to an operation."""

    CONTENT_ENDED = "content ended"
    CUT = "cut"
    CUT_FOR_GOOD = "cut for good"
    STARTED = "started"
    ANSWERED = "answered"
    STORAGE_FAILED = "storage failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    RESTARTED = "restarted"


class Effect(Enum):
    """What a transition asks of its driver."""

    KEEP = "keep"
    """Keep what was received, for the configured time."""
    FREEZE = "freeze"
    """Make the content immutable and durable."""
    SAVE_STATE = "save state"
    """Make the new state durable before anything else happens."""
    CALL_TARGET = "call target"
    """Hand the complete request to its target."""
    RECORD = "record"
    """Make the target's response durable, then show it."""
    RECORD_INDETERMINATE = "record indeterminate"
    """Record that it is not known whether the target's effects happened."""
    DISCARD = "discard"
    """End a running writer, release everything, leave a tombstone."""
    RENEW = "renew"
    """Move the expiry on."""
    FORGET = "forget"
    """Remove the tombstone."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The new state, and the effects that make it true."""

    state: OperationState
    effects: tuple[Effect, ...]


_S, _E, _F = OperationState, Event, Effect

TRANSITIONS: dict[tuple[OperationState, Event], Transition] = {
    (_S.RECEIVING, _E.CUT): Transition(_S.RECEIVING, (_F.KEEP,)),
    (_S.RECEIVING, _E.CUT_FOR_GOOD): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.RECEIVING, _E.CONTENT_ENDED): Transition(
        _S.COMPLETE, (_F.FREEZE, _F.CALL_TARGET)
    ),
    (_S.RECEIVING, _E.CANCELLED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.RECEIVING, _E.EXPIRED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.COMPLETE, _E.STARTED): Transition(_S.PROCESSING, (_F.SAVE_STATE,)),
    (_S.COMPLETE, _E.ANSWERED): Transition(_S.DONE, (_F.RECORD,)),
    (_S.COMPLETE, _E.STORAGE_FAILED): Transition(_S.RECEIVING, (_F.KEEP,)),
    (_S.COMPLETE, _E.CANCELLED): Transition(_S.ABANDONED, (_F.SAVE_STATE,)),
    (_S.COMPLETE, _E.EXPIRED): Transition(_S.COMPLETE, (_F.RENEW,)),
    (_S.COMPLETE, _E.RESTARTED): Transition(_S.COMPLETE, (_F.CALL_TARGET,)),
    (_S.PROCESSING, _E.ANSWERED): Transition(_S.DONE, (_F.RECORD,)),
    (_S.PROCESSING, _E.CANCELLED): Transition(_S.ABANDONED, (_F.SAVE_STATE,)),
    (_S.PROCESSING, _E.EXPIRED): Transition(_S.PROCESSING, (_F.RENEW,)),
    # The record is an answer too: DONE follows once it is durable.
    (_S.PROCESSING, _E.RESTARTED): Transition(
        _S.PROCESSING, (_F.RECORD_INDETERMINATE,)
    ),
    (_S.ABANDONED, _E.ANSWERED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.ABANDONED, _E.EXPIRED): Transition(_S.ABANDONED, (_F.RENEW,)),
    (_S.ABANDONED, _E.RESTARTED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.DONE, _E.CANCELLED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.DONE, _E.EXPIRED): Transition(_S.GONE, (_F.DISCARD,)),
    (_S.GONE, _E.EXPIRED): Transition(_S.GONE, (_F.FORGET,)),
}


def step(state: OperationState, event: Event) -> Transition:
    """Return the transition of *state* on *event*.

    Raises :class:`AssertionError` for a pair without a row, which is a bug of the driver.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise AssertionError(f"{event.value!r} cannot happen to {state!r}") from None
