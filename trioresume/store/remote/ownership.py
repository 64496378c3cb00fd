"""Who owns which operation, among the processes that share a store: the keeper's table.

The processes are numbered; the keeper itself is :data:`KEEPER`. The table decides and does
nothing: each method returns the *deliveries* that follow from a change, notices with the
numbers of their receivers, and a :class:`Claim` is told how it ended by a call.

The table may be used from any thread. :meth:`Ownership.check` is called by the thread that
commits, for each submission and right before it is performed. So no submission is performed
after its sender has lost an operation, however long it has waited.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from trioresume.errors import StaleWriter
from trioresume.store.port import (
    Abandoned,
    Changed,
    Claimed,
    CreateOperation,
    ForgetOperation,
    Mutation,
    Notice,
    OperationId,
    Told,
    Wanted,
    changed_operations,
)

__all__ = ["KEEPER", "Claim", "Delivery", "Ownership", "Sent"]

KEEPER = 0
"""The number of the process that keeps the catalog."""

Delivery = tuple[int, Notice]


class Sent(list[Mutation]):
    """A submission of the process *sender*. Other submissions are the keeper's."""

    __slots__ = ("sender",)

    def __init__(self, sender: int, mutations: Iterable[Mutation]) -> None:
        super().__init__(mutations)
        self.sender = sender


@dataclass(eq=False, slots=True)
class Claim:
    """A claim that waits for the owner's answer."""

    operation: OperationId
    claimant: int
    ends: bool
    settle: Callable[[bool], None]
    """Called once, with whether the claim is granted. It is called under the table's lock."""


@dataclass(eq=False, slots=True)
class _Process:
    listens: bool = False
    owned: set[OperationId] = field(default_factory=set)
    followed: set[OperationId] = field(default_factory=set)


class Ownership:
    """The table. *exists* tells whether the catalog has an operation, from any thread."""

    def __init__(self, exists: Callable[[OperationId], bool]) -> None:
        self._exists = exists
        self._lock = threading.Lock()
        self._processes: dict[int, _Process] = {KEEPER: _Process()}
        self._owners: dict[OperationId, int] = {}
        self._followers: dict[OperationId, set[int]] = {}
        self._claims: dict[OperationId, list[Claim]] = {}
        self._abandoned: dict[OperationId, int | None] = {}
        """Calls that nobody has taken up, and the process that was told to do it."""

    # Processes.

    def join(self, number: int) -> None:
        """Add the process *number*."""
        with self._lock:
            self._processes[number] = _Process()

    def listen(self, number: int) -> list[Delivery]:
        """Note that the process takes notices."""
        with self._lock:
            process = self._processes.get(number)
            if process is None:
                return []
            process.listens = True
            return self._assign()

    def leave(self, number: int) -> list[Delivery]:
        """Remove a process, which is dead or has ended: nobody owns what it owned."""
        with self._lock:
            process = self._processes.pop(number, None)
            if process is None:
                return []
            deliveries: list[Delivery] = []
            for operation in process.followed:
                self._drop_follower(operation, number)
            for claims in list(self._claims.values()):
                for claim in [each for each in claims if each.claimant == number]:
                    deliveries += self._withdraw(claim)
            for operation in list(process.owned):
                deliveries += self._give(operation, None)
            for operation, told in self._abandoned.items():
                if told == number:
                    self._abandoned[operation] = None
            return deliveries + self._assign()

    def owned_by(self, number: int) -> set[OperationId]:
        """Return the operations that the process owns."""
        with self._lock:
            process = self._processes.get(number)
            return set() if process is None else set(process.owned)

    def owned_by_workers(self) -> set[OperationId]:
        """Return the operations that processes other than the keeper own."""
        with self._lock:
            return {o for o, owner in self._owners.items() if owner != KEEPER}

    # Ownership.

    def owner(self, id: OperationId) -> int | None:
        """Return the number of the operation's owner."""
        return self._owners.get(id)

    def is_elsewhere(self, id: OperationId, number: int) -> bool:
        """Whether a process other than *number* owns the operation."""
        return self._owners.get(id, number) != number

    def begin(self, id: OperationId, number: int) -> bool:
        """Let the process own an operation that does not exist yet; return whether it owns it.

        The process that asks first gets it.
        """
        owner = self._owners.get(id)
        if owner is None and not self._exists(id):
            with self._lock:
                owner = self._owners.get(id)
                if owner is None and number in self._processes:
                    self._give(id, number)
                    return True
        return owner == number

    def begin_new(self, id: OperationId, number: int) -> bool:
        """Do what :meth:`begin` does for an id that was just generated. Never blocks."""
        with self._lock:
            owner = self._owners.get(id)
            if owner is None and number in self._processes:
                self._set_owner(id, number)
                return True
            return owner == number

    def claim(self, claim: Claim) -> list[Delivery]:
        """Begin *claim*, which is settled at once or later."""
        with self._lock:
            if claim.claimant not in self._processes:
                claim.settle(False)
                return []
            waiting = self._claims.setdefault(claim.operation, [])
            waiting.append(claim)
            return self._go_on(claim.operation) if len(waiting) == 1 else []

    def withdraw(self, claim: Claim) -> list[Delivery]:
        """Take back a claim that was not settled."""
        with self._lock:
            return self._withdraw(claim)

    def release(self, id: OperationId, number: int) -> list[Delivery]:
        """End the ownership of the process, and grant the claim that waits for it."""
        with self._lock:
            return self._give(id, None) if self._owners.get(id) == number else []

    def refuse(self, id: OperationId, number: int) -> list[Delivery]:
        """Answer the claim that the owner was told of: it stays the owner."""
        with self._lock:
            claims = self._claims.get(id)
            if not claims or self._owners.get(id) != number:
                return []
            claims.pop(0).settle(False)
            return self._go_on(id)

    def waiting_claims(self, number: int) -> list[Delivery]:
        """Return again what the process was told of claims, because it may have missed it."""
        with self._lock:
            return [
                (number, Claimed(operation, claims[0].ends))
                for operation, claims in self._claims.items()
                if self._owners.get(operation) == number
            ]

    # Submissions.

    def check(
        self, sender: int, submission: Sequence[Mutation]
    ) -> StaleWriter | list[OperationId]:
        """Return the error of a submission that changes what *sender* does not own.

        A change of what does not exist is let through: the store ignores it. Otherwise returns
        the operations that the submission creates, which the sender owns from now on: call
        :meth:`undo` with them if the submission fails.
        """
        unowned = []
        created = []
        changed = changed_operations(submission)
        with self._lock:
            if sender not in self._processes:
                return StaleWriter("the process that sent this has ended")
            for operation in changed:
                owner = self._owners.get(operation)
                if owner is None:
                    unowned.append(operation)
                elif owner != sender:
                    return StaleWriter("another process owns the operation")
            for mutation in submission:
                if isinstance(mutation, CreateOperation):
                    owner = self._owners.get(mutation.record.id)
                    if owner is None:
                        created.append(mutation.record.id)
                    elif owner != sender:
                        return StaleWriter("another process owns the operation")
        # The catalog is asked without the lock. If another process owns the operation by now,
        # the change is of what does not exist, and so is ignored.
        if any(map(self._exists, unowned)):
            return StaleWriter("no process owns the operation: claim it first")
        if created:
            with self._lock:
                for operation in created:
                    if operation in self._owners:
                        return StaleWriter("another process owns the operation")
                for operation in created:
                    self._set_owner(operation, sender)
        return created

    def undo(self, created: Iterable[OperationId]) -> None:
        """Take back what :meth:`check` gave to the sender of a submission that failed."""
        with self._lock:
            for operation in created:
                self._set_owner(operation, None)

    def note(self, submission: Sequence[Mutation]) -> list[Delivery]:
        """Note that a submission was performed."""
        deliveries: list[Delivery] = []
        with self._lock:
            for mutation in submission:
                if isinstance(mutation, ForgetOperation):
                    deliveries += self._give(mutation.operation, None)
            if self._followers:
                for operation in changed_operations(submission):
                    deliveries += self._to_followers(operation, Changed(operation))
        return deliveries

    # Looking from outside.

    def want(self, id: OperationId, ends: bool) -> list[Delivery]:
        """Ask the owner, if there is one."""
        with self._lock:
            owner = self._owners.get(id)
            if owner is None or not self._listens(owner):
                return []
            return [(owner, Wanted(id, ends))]

    def follow(self, id: OperationId, number: int) -> None:
        with self._lock:
            process = self._processes.get(number)
            if process is not None:
                process.followed.add(id)
                self._followers.setdefault(id, set()).add(number)

    def unfollow(self, id: OperationId, number: int) -> None:
        with self._lock:
            process = self._processes.get(number)
            if process is not None:
                process.followed.discard(id)
            self._drop_follower(id, number)

    def tell(self, id: OperationId, number: int, message: bytes) -> list[Delivery]:
        """Tell the followers what the owner says."""
        with self._lock:
            if self._owners.get(id) != number:
                return []
            return self._to_followers(id, Told(id, message))

    # Calls of dead processes.

    def abandon(self, ids: Iterable[OperationId]) -> list[Delivery]:
        """Have each of *ids* taken up by one process, unless somebody owns it."""
        with self._lock:
            for operation in ids:
                if operation not in self._owners:
                    self._abandoned.setdefault(operation, None)
            return self._assign()

    # The rest is called under the lock.

    def _listens(self, number: int) -> bool:
        process = self._processes.get(number)
        return process is not None and process.listens

    def _give(self, id: OperationId, number: int | None) -> list[Delivery]:
        """Make *number* the owner, or nobody; then go on with the claims that wait."""
        return self._set_owner(id, number) + self._go_on(id)

    def _set_owner(self, id: OperationId, number: int | None) -> list[Delivery]:
        old = self._owners.get(id)
        if number is not None:
            self._abandoned.pop(id, None)
        if old == number:
            return []
        if old is not None and old in self._processes:
            self._processes[old].owned.discard(id)
        if number is None:
            del self._owners[id]
        else:
            self._owners[id] = number
            self._processes[number].owned.add(id)
        return self._to_followers(id, Changed(id))

    def _go_on(self, id: OperationId) -> list[Delivery]:
        """Grant the claims that nothing holds up, and tell the owner of the next one."""
        deliveries: list[Delivery] = []
        claims = self._claims.get(id)
        while claims:
            claim, owner = claims[0], self._owners.get(id)
            if owner not in (None, claim.claimant) and self._listens(owner):
                return [*deliveries, (owner, Claimed(id, claim.ends))]
            claims.pop(0)
            deliveries += self._set_owner(id, claim.claimant)
            claim.settle(True)
        self._claims.pop(id, None)
        return deliveries

    def _withdraw(self, claim: Claim) -> list[Delivery]:
        claims = self._claims.get(claim.operation, [])
        if claim not in claims:
            return []
        was_first = claims[0] is claim
        claims.remove(claim)
        return self._go_on(claim.operation) if was_first else []

    def _to_followers(self, id: OperationId, notice: Notice) -> list[Delivery]:
        return [
            (number, notice)
            for number in self._followers.get(id, ())
            if self._listens(number)
        ]

    def _drop_follower(self, id: OperationId, number: int) -> None:
        followers = self._followers.get(id)
        if followers is not None:
            followers.discard(number)
            if not followers:
                del self._followers[id]

    def _assign(self) -> list[Delivery]:
        """Tell a worker of each call that waits for one, in turn."""
        listening = [
            number
            for number, process in self._processes.items()
            if number != KEEPER and process.listens
        ]
        deliveries: list[Delivery] = []
        if listening:
            waiting = [o for o, told in self._abandoned.items() if told is None]
            for at, operation in enumerate(waiting):
                number = listening[at % len(listening)]
                self._abandoned[operation] = number
                deliveries.append((number, Abandoned(operation)))
        return deliveries
