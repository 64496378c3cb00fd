"""Sharing: what a store offers beyond :class:`Store` when several processes use it.

Ownership
=========

An operation has at most one *owner*: the process that may change it. The process that creates
an operation owns it. Any other process becomes the owner by a *claim*. Each claim has a higher
*generation* than the one before, and a store refuses every change of an operation by a process
that is not its owner (:class:`~trioresume.errors.StaleWriter`, for the whole submission). So a
process that was stopped, or cut off, for any time cannot write when it wakes up.

A claim is polite first. The present owner gets a :class:`Claimed`. It ends its writer as for
any newer writer, commits what it owes, and *releases* the operation. The claim returns once
the operation was released. If the owner does not do this in time, the store makes sure that it
never can write again, and then the claim returns: the owner's process is killed, or every
later change of it is refused.

A process that died owns nothing. What it was processing is for another process to take up: see
:class:`Abandoned`.

Looking from outside
====================

A process that does not own an operation reads its record from the catalog, which has every
byte that was ever announced. It can ask the owner to make durable what has arrived
(:meth:`Sharing.want`), and wait for the :class:`Changed` that follows. It can follow the
operation, and then gets a notice of each commit that changes it, and everything that the owner
tells (:meth:`Sharing.tell`): progress and interim responses.

A notice may come twice, and may be lost when a connection is: :class:`Missed` says so. So a
notice is a hint to look again, never the only source of a fact.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from trioresume.store.port.values import OperationId

__all__ = [
    "Abandoned",
    "Changed",
    "Claimed",
    "Missed",
    "Notice",
    "Sharing",
    "Told",
    "Wanted",
]


@dataclass(frozen=True, slots=True)
class Claimed:
    """Another process claims the operation: end it here, then :meth:`Sharing.release` it.

    With *ends* its client gives it up, so even a target's call must end.
    """

    operation: OperationId
    ends: bool = False


@dataclass(frozen=True, slots=True)
class Wanted:
    """Another process asks for the offset: make durable what has arrived, and commit it.

    The owner commits even if nothing has changed, or answers by :meth:`Sharing.tell`.
    """

    operation: OperationId


@dataclass(frozen=True, slots=True)
class Changed:
    """A commit has changed an operation that this process follows."""

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


class Sharing(Protocol):
    """How one of several processes shares the operations of a store with the others.

    Threads: all methods may be called from any thread. Only :meth:`claim` blocks; the other
    ones only put a message into a bounded queue and may be called on the event loop.
    """

    def listen(self, take: Callable[[Notice], None]) -> None:
        """Have *take* called with each notice, in a thread of the store. Call this once."""
        ...

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        """Become the owner of the operation, and return True. Blocks for a bounded time.

        On return the catalog has everything that the previous owner has announced, and the
        previous owner can change nothing any more. Unless *ends* is true, an operation whose
        owner is processing it is left to its owner: returns False. Claiming what this process
        owns already, and what no process owns, is quick. An operation that does not exist
        can be claimed as well: nothing follows from it.

        Raises :class:`StorageError` if the store cannot be reached in time; then this process
        is not the owner.
        """
        ...

    def release(self, id: OperationId) -> None:
        """Own the operation no longer; every submission for it must have been applied."""
        ...

    def want(self, id: OperationId) -> None:
        """Ask the owner to make durable what has arrived: see :class:`Wanted`."""
        ...

    def follow(self, id: OperationId) -> None:
        """Get :class:`Changed` and :class:`Told` of the operation from now on."""
        ...

    def unfollow(self, id: OperationId) -> None:
        """End :meth:`follow`."""
        ...

    def tell(self, id: OperationId, message: bytes) -> None:
        """Tell *message*, of at most 4096 bytes, to all that follow the operation.

        Only the owner tells. A message may be dropped when there are too many.
        """
        ...
