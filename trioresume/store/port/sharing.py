"""Sharing: what a store offers beyond :class:`Store` when several processes use it.

Ownership
=========

An operation has at most one *owner*: the process that may change it. The process that creates
an operation owns it. Any other process becomes the owner by a *claim*. Each claim has a higher
*generation* than the one before, and a store refuses every change of an operation by a process
that is not its owner (:class:`~trioresume.errors.StaleWriter`, for the whole submission), even
if nobody owns it. :func:`changed_operations` says which changes these are. So a process that
was stopped, or cut off, for any time cannot write when it wakes up. (A change of an operation
that does not exist is ignored, as by any store.)

A claim is polite first. The present owner gets a :class:`Claimed`, and answers in one of two
ways. It ends its writer as for any newer writer, commits what it owes, and *releases* the
operation; then the claim is granted. Or its target is being called, and it *refuses*; then it
stays the owner. If the owner does neither in time, the store makes sure that it never can write
again, and then the claim is granted: the owner's process is killed, or every later change of it
is refused.

A process that died owns nothing. What it was processing is for another process to take up: see
:class:`Abandoned`. The end of an operation that is forgotten ends its ownership too.

Looking from outside
====================

A process that does not own an operation reads its record from the catalog, which has every
byte that was ever announced. It can ask the owner to make durable what has arrived
(:meth:`Sharing.want`). It can follow the operation, and then gets a :class:`Changed` after each
commit that changes it and each change of its owner, and everything that the owner tells
(:meth:`Sharing.tell`): its offset, progress and interim responses. What is told has no meaning
for the store.

A question that is asked after :meth:`Sharing.follow` has returned sees each change of which no
notice comes later. A notice may come twice, and may be lost when a connection is:
:class:`Missed` says so. So a notice is a hint to look again, never the only source of a fact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from trioresume.store.port.values import (
    CreateOperation,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    JoinContents,
    LetCount,
    MoveOperation,
    Mutation,
    OperationId,
    RecordOffset,
    RecordResponse,
    SealChunk,
    SetExpiry,
    SetLength,
    SetReserved,
    SetState,
    operation_of,
)

__all__ = [
    "MOST_TOLD",
    "Abandoned",
    "Changed",
    "Claimed",
    "Missed",
    "Notice",
    "Sharing",
    "Told",
    "Wanted",
    "changed_operations",
]

MOST_TOLD = 4096
"""The most bytes of a message of :meth:`Sharing.tell`."""


@dataclass(frozen=True, slots=True)
class Claimed:
    """Another process claims the operation.

    Answer by :meth:`Sharing.release`, once it is ended here, or by :meth:`Sharing.refuse` while
    its target is being called. With *ends* its client gives it up: what is processed is
    cancelled here first, as in one process, and refused when the catalog says so.
    """

    operation: OperationId
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Another process asks for the offset: make durable what has arrived, then tell it.

    With *ends* its client will go on there, so the running writer ends first.
    """

    operation: OperationId
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Changed:
    """A commit has changed an operation that this process follows, or its owner has changed.

    The owner changes by a claim, a release, and the death of the owner.
    """

    operation: OperationId


@dataclass(frozen=True, slots=True)
class Told:
    """The owner of an operation that this process follows has told *message*."""

    operation: OperationId
    message: bytes


@dataclass(frozen=True, slots=True)
class Abandoned:
    """The owner of the operation died while its target was being called: claim and restart it.

    Only one process gets this at a time.
    """

    operation: OperationId


@dataclass(frozen=True, slots=True)
class Missed:
    """Notices may have been lost: look again at everything that is owned or followed."""


Notice = Claimed | Wanted | Changed | Told | Abandoned | Missed


def changed_operations(submission: Sequence[Mutation]) -> set[OperationId]:
    """Return the operations that only their owner may change, and that *submission* changes.

    :class:`CreateOperation` makes an owner, so it needs none. Files, events and settings of the
    service have no owner.
    """
    changed: set[OperationId] = set()
    created: set[OperationId] = set()
    for mutation in submission:
        match mutation:
            case CreateOperation(record):
                created.add(record.id)
            case (
                SealChunk(key)
                | RecordOffset(key)
                | HoldBack(key)
                | LetCount(key)
                | FreezeContent(key)
            ):
                changed.add(operation_of(key))
            case (
                SetLength(operation)
                | SetReserved(operation)
                | MoveOperation(operation)
                | SetExpiry(operation)
                | JoinContents(operation)
                | SetState(operation)
                | RecordResponse(operation)
                | EndOperation(operation)
                | ForgetOperation(operation)
            ):
                changed.add(operation)
            case _:
                pass
    return changed - created


class Sharing(Protocol):
    """How one of several processes shares the operations of a store with the others.

    Order: what a process has asked for is in force before its next question is answered. Until
    then, other processes may or may not see it. For example, a release is known to all once
    any later question of the same process was answered.

    Threads: all methods may be called from any thread. Only :meth:`claim` blocks; the other
    ones only put a message into a bounded queue and may be called on the event loop.
    """

    def listen(self, take: Callable[[Notice], None]) -> None:
        """Have *take* called with each notice, in a thread of the store. Call this once.

        Notices come one at a time, in order. *take* must be quick. Before this call a claim of
        another process does not wait for this one.
        """
        ...

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        """Become the owner of the operation, and return True. Blocks for a bounded time.

        On return the catalog has everything that the previous owner has announced, and the
        previous owner can change nothing any more. Returns False if the owner refuses, because
        it is processing the operation; *ends* is passed on to it, see :class:`Claimed`. Of
        several claims, each is answered, and the last one that is granted holds. Claiming what
        this process owns already, and what no process owns, is quick. An operation that does
        not exist can be claimed as well, and is owned then until it is released.

        Raises :class:`StorageError` if the store cannot be reached in time; then this process
        is not the owner.
        """
        ...

    def release(self, id: OperationId) -> None:
        """Own the operation no longer; every submission for it must have been applied.

        Does nothing if this process does not own it.
        """
        ...

    def refuse(self, id: OperationId) -> None:
        """Answer a :class:`Claimed`: this process stays the owner, because it processes it."""
        ...

    def want(self, id: OperationId, *, ends: bool = False) -> None:
        """Ask the owner for the offset: see :class:`Wanted`. Nothing happens without an owner."""
        ...

    def follow(self, id: OperationId) -> None:
        """Get :class:`Changed` and :class:`Told` of the operation from now on."""
        ...

    def unfollow(self, id: OperationId) -> None:
        """End :meth:`follow`."""
        ...

    def tell(self, id: OperationId, message: bytes) -> None:
        """Tell *message*, of at most :data:`MOST_TOLD` bytes, to all that follow the operation.

        Only the owner tells: of another process the message is dropped. A message may also be
        dropped when there are too many.
        """
        ...
