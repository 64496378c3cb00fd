"""The life of an operation, as a table.

One operation is one request made resumable::

    head → content arriving → complete → processed once by its target
         → response recorded → replayed until released

Rule 1: every change of an operation's state is a row of :data:`TRANSITIONS` or, if it
depends on the target, of :data:`TRANSITIONS_BY_POLICY`. A row names the *effects*: the work
that makes the change true. The driver, :meth:`trioresume.server.uploads.operation.Operation.apply`,
performs them and nothing else, in this order: the effects *before* the change, the change,
the effects *after* it. This module does nothing itself.

Rule 2: a pair of state and event without a row is a bug of the driver, and :func:`step`
raises. Requests at the wrong time (a PATCH after the end, a DELETE of a tombstone)
cause no event. The driver answers them from the state.

Rule 3: effects that change the catalog (FREEZE, RECORD, SAVE_STATE and so on) are gathered.
The COMMIT after them makes them durable: all together, or none.

Rule 4: effects take time, and a DELETE may change the state meanwhile. If that happens
before the change, what was gathered is dropped, and the event is applied to the new state.
That is why ABANDONED has rows for STARTED and ANSWERED.

Theory
======

Four promises depend on this table.

*At most once* (R31). Only a target that may run twice is called in COMPLETE. Before the call
of any other target, PROCESSING is made durable. So a restart that finds PROCESSING cannot
know whether the target's effects happened, and records that. A restart that finds COMPLETE
calls the target. A transactional target has all its effects in the commit that records its
response. So a crash or a conflict before that commit leaves no effect, and it is called again.

*A target that cannot take the request* says so before it has begun, and nothing happened
(POSTPONED). The operation waits, with its content, until it is called again (RETRIED): a
request asks for it, or the server tries. A DONE operation is called again only if its outcome
is not known, its content was kept, and the administrator takes it upon himself.

*Nothing comes back* (R25). A DELETE cannot stop a running target, and the content may
not be released while the target uses it. So the operation becomes ABANDONED: it is gone
for clients at once, and gone for good when the target ends.

*Expiry never ends a busy operation* (G11). Only RECEIVING, WAITING, DONE and GONE have an
EXPIRED row that ends something. In other states EXPIRED renews. The driver applies EXPIRED only while no
request uses the operation.

*A full disk is not the end* (G8). If the content cannot be frozen, the operation is
RECEIVING again with all its bytes. The client's next request completes it. If the response
cannot be recorded and the target must not be called again, the commit is tried until it
succeeds.

An operation that keeps no incomplete content (``resume=ignore-incomplete``, or no
``resume`` at all) gets CUT_FOR_GOOD where others get CUT.

Statement numbers such as R31 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum, StrEnum

__all__ = [
    "TRANSITIONS",
    "TRANSITIONS_BY_POLICY",
    "CallPolicy",
    "Effect",
    "Event",
    "OperationState",
    "Transition",
    "rows",
    "step",
]


class OperationState(StrEnum):
    """The state of an operation, as the catalog stores it."""

    RECEIVING = "receiving"
    """Content is missing; there may or may not be a writer now."""
    COMPLETE = "complete"
    """Content is whole; a target that may run twice is or will be called."""
    PROCESSING = "processing"
    """A target that must not run twice was called; a crash leaves it indeterminate."""
    WAITING = "waiting"
    """The target could not take the request, and nothing of it happened: it will be called."""
    DONE = "done"
    """The final response is recorded."""
    ABANDONED = "abandoned"
    """The client gave up while the target ran; its result will be dropped."""
    GONE = "gone"
    """Cancelled, released or expired: a tombstone (410) until it is forgotten (404)."""


class CallPolicy(Enum):
    """The consequence of a crash in the middle of a call (R31)."""

    AT_MOST_ONCE = "at most once"
    """The state is durable before the call. The outcome of a cut call is unknown."""
    IDEMPOTENT = "idempotent"
    """A cut call is made again at the next start."""
    TRANSACTIONAL = "transactional"
    """All effects are in :class:`RecordedWith`: a cut call has none."""


class Event(Enum):
    """What can happen to an operation."""

    CONTENT_ENDED = "content ended"
    """A request says that all content was received, or the last missing byte was."""
    JOINED = "joined"
    """A request makes the content of others' content, and no byte is received (D7)."""
    CUT = "cut"
    """A request ended before its content did."""
    CUT_FOR_GOOD = "cut for good"
    """The same, of an operation that keeps no incomplete content."""
    STARTED = "started"
    """The content is what the client announced, so the target's call may start."""
    CONFLICTED = "conflicted"
    """Something that the target has read was changed before its effects were committed."""
    ANSWERED = "answered"
    """There is a response: the target's, or a refusal of the content."""
    POSTPONED = "postponed"
    """The target cannot take the request now, and nothing of it happened."""
    RETRIED = "retried"
    """The target is to be called again: its time has come, or the administrator wants it."""
    STORAGE_FAILED = "storage failed"
    """The content could not be frozen."""
    CANCELLED = "cancelled"
    """The client gives the operation up, or the server does: its content is spoilt."""
    EXPIRED = "expired"
    """Its time is over, and no request uses it."""
    RESTARTED = "restarted"
    """It is loaded, and no task of this process works for it."""


class Effect(Enum):
    """What a transition asks of its driver."""

    KEEP = "keep"
    """Keep what counts; free the space of content that was held back and given up."""
    END_WRITER = "end writer"
    """End a running writer: on return nobody writes."""
    SEAL = "seal"
    """Make all chunks durable; learn the content's name."""
    JOIN = "join"
    """Make the content of the others the content, in the next commit."""
    CHECK = "check"
    """Compare the content with the announced digests: STARTED or ANSWERED follows."""
    FREEZE = "freeze"
    """Make the content immutable in the next commit, if it is not yet."""
    SAVE_STATE = "save state"
    """Record the new state in the next commit, if a client was told of the operation."""
    COMMIT = "commit"
    """Make what was gathered durable, together; CONFLICTED may follow."""
    COMMIT_AT_LAST = "commit at last"
    """The same, but wait as long as the store is full."""
    CALL_TARGET = "call target"
    """Hand the complete request to its target: ANSWERED follows."""
    RECORD = "record"
    """Store the response's content; record response and target's effects in the next commit."""
    ANSWER_INDETERMINATE = "answer indeterminate"
    """Answer that nobody knows whether the target's effects happened: ANSWERED follows."""
    DISCARD = "discard"
    """Release everything in the next commit; leave a tombstone if a client was told of it."""
    RENEW = "renew"
    """Move the expiry to a later time."""
    FORGET = "forget"
    """Remove the tombstone in the next commit."""


@dataclass(frozen=True, slots=True)
class Transition:
    """The new state, and the effects *before* and *after* it holds, in their order."""

    state: OperationState
    before: tuple[Effect, ...] = ()
    after: tuple[Effect, ...] = ()


_S, _E, _F, _P = OperationState, Event, Effect, CallPolicy

_END = Transition(_S.GONE, after=(_F.END_WRITER, _F.DISCARD, _F.COMMIT))
_DROP = Transition(_S.GONE, after=(_F.DISCARD, _F.COMMIT))
_ABANDON = Transition(_S.ABANDONED, after=(_F.END_WRITER, _F.SAVE_STATE, _F.COMMIT))
_AGAIN = (_F.SAVE_STATE, _F.COMMIT)

TRANSITIONS: dict[tuple[OperationState, Event], Transition] = {
    (_S.RECEIVING, _E.CUT): Transition(_S.RECEIVING, after=(_F.KEEP,)),
    (_S.RECEIVING, _E.CUT_FOR_GOOD): _END,
    (_S.RECEIVING, _E.CONTENT_ENDED): Transition(
        _S.COMPLETE, after=(_F.SEAL, _F.CHECK)
    ),
    (_S.RECEIVING, _E.JOINED): Transition(
        _S.COMPLETE,
        before=(_F.JOIN, _F.SAVE_STATE, _F.COMMIT),
        after=(_F.CHECK,),
    ),
    (_S.RECEIVING, _E.CANCELLED): _END,
    (_S.RECEIVING, _E.EXPIRED): _END,
    (_S.COMPLETE, _E.CONFLICTED): Transition(_S.COMPLETE, after=(_F.CALL_TARGET,)),
    (_S.COMPLETE, _E.POSTPONED): Transition(
        _S.WAITING,
        before=(_F.FREEZE, _F.SAVE_STATE, _F.COMMIT_AT_LAST),
        after=(_F.RENEW,),
    ),
    (_S.COMPLETE, _E.STORAGE_FAILED): Transition(_S.RECEIVING, after=(_F.KEEP,)),
    (_S.COMPLETE, _E.CANCELLED): _ABANDON,
    (_S.COMPLETE, _E.EXPIRED): Transition(_S.COMPLETE, after=(_F.RENEW,)),
    (_S.COMPLETE, _E.RESTARTED): Transition(_S.COMPLETE, after=(_F.CHECK,)),
    (_S.PROCESSING, _E.ANSWERED): Transition(
        _S.DONE, before=(_F.RECORD, _F.COMMIT_AT_LAST)
    ),
    (_S.PROCESSING, _E.POSTPONED): Transition(
        _S.WAITING, before=(_F.SAVE_STATE, _F.COMMIT_AT_LAST), after=(_F.RENEW,)
    ),
    (_S.PROCESSING, _E.CANCELLED): _ABANDON,
    (_S.PROCESSING, _E.EXPIRED): Transition(_S.PROCESSING, after=(_F.RENEW,)),
    (_S.PROCESSING, _E.RESTARTED): Transition(
        _S.PROCESSING, after=(_F.ANSWER_INDETERMINATE,)
    ),
    (_S.WAITING, _E.CANCELLED): _DROP,
    (_S.WAITING, _E.EXPIRED): _DROP,
    (_S.ABANDONED, _E.STARTED): _DROP,
    (_S.ABANDONED, _E.ANSWERED): _DROP,
    (_S.ABANDONED, _E.POSTPONED): _DROP,
    (_S.ABANDONED, _E.STORAGE_FAILED): _DROP,
    (_S.ABANDONED, _E.EXPIRED): Transition(_S.ABANDONED, after=(_F.RENEW,)),
    (_S.ABANDONED, _E.RESTARTED): _DROP,
    (_S.DONE, _E.CANCELLED): _DROP,
    (_S.DONE, _E.EXPIRED): _DROP,
    (_S.GONE, _E.EXPIRED): Transition(_S.GONE, after=(_F.FORGET, _F.COMMIT)),
}

_SAVE = (_F.FREEZE, _F.SAVE_STATE, _F.COMMIT)
_RECORD_AT_LAST = Transition(_S.DONE, before=(_F.FREEZE, _F.RECORD, _F.COMMIT_AT_LAST))
_CALL_AGAIN = {
    _P.AT_MOST_ONCE: Transition(_S.PROCESSING, before=_AGAIN, after=(_F.CALL_TARGET,)),
    _P.IDEMPOTENT: Transition(_S.COMPLETE, before=_AGAIN, after=(_F.CALL_TARGET,)),
    _P.TRANSACTIONAL: Transition(_S.COMPLETE, before=_AGAIN, after=(_F.CALL_TARGET,)),
}

TRANSITIONS_BY_POLICY: dict[
    tuple[OperationState, Event], dict[CallPolicy, Transition]
] = {
    (_S.COMPLETE, _E.STARTED): {
        _P.AT_MOST_ONCE: Transition(
            _S.PROCESSING, before=_SAVE, after=(_F.CALL_TARGET,)
        ),
        _P.IDEMPOTENT: Transition(_S.COMPLETE, before=_SAVE, after=(_F.CALL_TARGET,)),
        _P.TRANSACTIONAL: Transition(_S.COMPLETE, after=(_F.CALL_TARGET,)),
    },
    (_S.WAITING, _E.RETRIED): _CALL_AGAIN,
    # Only the administrator may demand this, of an operation whose outcome is not known.
    (_S.DONE, _E.RETRIED): _CALL_AGAIN,
    (_S.COMPLETE, _E.ANSWERED): {
        # AT_MOST_ONCE: the content was refused, and the target was not called.
        _P.AT_MOST_ONCE: _RECORD_AT_LAST,
        _P.IDEMPOTENT: _RECORD_AT_LAST,
        # If this commit fails, nothing has happened: STORAGE_FAILED follows.
        _P.TRANSACTIONAL: Transition(_S.DONE, before=(_F.FREEZE, _F.RECORD, _F.COMMIT)),
    },
}


def step(
    state: OperationState, event: Event, policy: CallPolicy | None = None
) -> Transition:
    """Return the transition of *state* on *event*, for a target with *policy*.

    Raises :class:`AssertionError` for a pair without a row, which is a bug of the driver.
    """
    key = (state, event)
    transition = TRANSITIONS.get(key)
    if transition is None and policy is not None:
        transition = TRANSITIONS_BY_POLICY.get(key, {}).get(policy)
    if transition is None:
        raise AssertionError(f"{event.value!r} cannot happen to {state!r}")
    return transition


def rows() -> Iterator[tuple[OperationState, Event, CallPolicy | None, Transition]]:
    """Yield every row of both tables, by state; the policy is None if it does not matter."""
    for state in OperationState:
        for event in Event:
            key = (state, event)
            if key in TRANSITIONS:
                yield state, event, None, TRANSITIONS[key]
            for policy, transition in TRANSITIONS_BY_POLICY.get(key, {}).items():
                yield state, event, policy, transition
