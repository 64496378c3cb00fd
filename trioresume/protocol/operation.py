"""The life of an operation, as a table.

One operation is one request made resumable::

    head → content arriving → complete → processed once by its target
         → response recorded → replayed until released

Rule 1: every change of an operation's state is a row of :data:`TRANSITIONS`. The
row names the *effects*: what has to be done, in this order, for the change to be
true. Whoever drives the machine performs them; nothing here does anything.

Rule 2: a pair of state and event that has no row is a bug of the driver, and
:func:`step` says so. Requests that come at the wrong time (a PATCH after the end,
a DELETE of a tombstone) are answered from the state without an event.

Theory
======

Three promises hang on this table.

*At most once* (R31). The target may run in COMPLETE only if running it again does
no harm; any other target is preceded by STARTED, whose effect SAVE_STATE makes
PROCESSING durable *before* the call. A restart that finds PROCESSING therefore
cannot know whether the target's effects happened, and records just that; a restart
that finds COMPLETE calls the target again.

*Nothing comes back* (R25). DELETE while the target runs cannot stop it, nor may the
content be released under its hands; the operation is ABANDONED: gone for clients,
and gone for good when the target is through.

*Expiry never takes what is busy* (promise 9). Only RECEIVING without a writer, DONE
and GONE have an EXPIRED row that ends something; elsewhere it renews.

*A full disk is not an end* (G8). If the content cannot be frozen, the operation is
RECEIVING again with every byte it had; the client's next visit completes it.

An operation that keeps no incomplete content (``resume=ignore-incomplete``, or no
``resume`` at all) is driven by CUT_FOR_GOOD where the others get CUT.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, StrEnum

__all__ = ["TRANSITIONS", "Effect", "Event", "OperationState", "Transition", "step"]


class OperationState(StrEnum):
    """Where an operation stands, as the catalog remembers it."""

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
    """The new state, and what makes it true."""

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
    # What is recorded is an answer, too: DONE follows once it is durable.
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
    """The transition of *state* on *event*.

    Raises :class:`AssertionError` for a pair without a row: a bug of the driver.
    """
    try:
        return TRANSITIONS[state, event]
    except KeyError:
        raise AssertionError(f"{event.value!r} cannot happen to {state!r}") from None
