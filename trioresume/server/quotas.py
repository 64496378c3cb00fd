"""Quotas: who may begin an upload, and how much it may bring (G7).

What is taken is in the store's accounts, committed with what it counts. This module
adds what is on its way there: a reservation is made here at once, without an ``await``
between looking and taking, and given back when the store has it or never will. So two
uploads cannot both get the last byte, and a crash forgets nothing but reservations of
uploads that it forgets as well.

An upload reserves its length as soon as that is known. Until then it reserves in steps,
each before the first byte beyond the last one. The step is submitted before what those
bytes lead to, and submissions take effect in order: an announced byte is a counted one.

When it is used up, nothing that is stored is touched. A new upload is refused before
its content is asked for; a running one of unknown length is cut where the quota ends,
and goes on when there is space. A request without content that removes something
(``DELETE``) is always let through, or a full account could not be emptied; but then
nothing of it is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.store.port import CreateOperation, SetReserved, record_size

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trioresume.server.config import Config
    from trioresume.store.port import (
        Mutation,
        OperationId,
        OperationRecord,
        Store,
        Usage,
    )

__all__ = ["Counted", "Quotas"]

FIRST_STEP = 1024 * 1024
"""Bytes reserved at first for content of unknown length."""
LARGEST_STEP = 64 * 1024 * 1024
MOST_FOLLOWED = 16
"""Principals whose accounts are read after each commit, for each costs a statement."""


@dataclass(slots=True)
class _Pending:
    """What an operation has reserved here and not yet in the store."""

    principal: str | None
    uploads: int
    counted: int
    """What the store has, or will have when it has all that was submitted before."""
    reserved: int
    record: int = 0
    """What the operation is charged besides, if the store does not have it yet."""

    @property
    def bytes(self) -> int:
        return max(0, self.reserved - self.counted) + self.record


@dataclass(frozen=True, slots=True)
class Counted:
    """What the store has."""

    usages: dict[str | None, Usage]
    total: int | None
    """Bytes of all; None if that was not asked for."""


class Quotas:
    """Reserves space for uploads. Nothing here awaits."""

    def __init__(self, store: Store, config: Config) -> None:
        self._store = store
        self._config = config
        self._pending: dict[OperationId, _Pending] = {}
        # The sums of what is pending: for each principal, and of all.
        self._uploads: dict[str | None, int] = {}
        self._bytes: dict[str | None, int] = {}
        self._all_bytes = 0
        self._known: dict[str | None, Usage] = {}
        """What the store has, by principal, since it last took something."""
        self._known_total: int | None = None
        self._asked: dict[str | None, None] = {}
        """Who was asked for lately, the last one at the end."""

    # Taking.

    def admit(self, record: OperationRecord, *, exempt: bool) -> int:
        """Let a new upload begin; the bytes that are reserved for it.

        Raises :class:`PeerError`: 429 for too many open uploads, 507 for too many bytes.
        """
        length = record.length
        size = record_size(record)
        if not exempt:
            self._check_uploads(record.principal)
            space = self._space(record.principal, max(1, length or 0) + size)
            if length is None:
                spare = FIRST_STEP if space is None else space - size
                length = min(FIRST_STEP, spare)
        length = length or 0
        self._note(record.id, _Pending(record.principal, 1, 0, length, size))
        return length

    def extend(self, record: OperationRecord, needed: int, *, exact: bool) -> int:
        """Reserve *needed* bytes in all for a running upload; what it has from now on.

        Some more is taken along unless that is *exact*; what is too many is given back.
        Raises :class:`PeerError` 507.
        """
        more = needed - record.reserved
        if more > 0:
            space = self._space(record.principal, more)
        else:
            space, exact = None, True
        if not exact:
            step = max(more, min(LARGEST_STEP, max(FIRST_STEP, needed // 8)))
            more = step if space is None else min(step, space)
        reserved = record.reserved + more
        known = self._pending.get(record.id)
        counted = record.reserved if known is None else known.counted
        uploads, size = (0, 0) if known is None else (known.uploads, known.record)
        self._note(
            record.id, _Pending(record.principal, uploads, counted, reserved, size)
        )
        return reserved

    # Giving back.

    def brace(self) -> Callable[[], Counted | None]:
        """The store is about to take something, and :meth:`observe` will say what.

        What it has so far is asked for now, if it is not known: in between nobody could
        tell whether the answer holds what is pending here, and it would be counted twice.

        What is returned counts anew. It is to be called when the store has taken it, in
        the thread that had it do so, before anything else is taken; the result is for
        :meth:`learn`. So whoever uploads one after the other is asked for beside the event
        loop only.
        """
        for principal in self._uploads.keys() | self._bytes.keys():
            self._usage(principal)
        if self._all_bytes and self._config.max_stored_bytes is not None:
            self._total()
        return partial(self._count, list(self._asked), self._known_total is not None)

    def _count(self, principals: Collection[str | None], total: bool) -> Counted | None:
        """Called in the committing thread."""
        store = self._store
        try:
            return Counted(
                {principal: store.usage(principal) for principal in principals},
                store.total_usage().bytes if total else None,
            )
        except StorageError:
            return None  # what was taken is taken: whoever needs to know asks again

    def learn(self, counted: Counted | None) -> None:
        """After all was observed that the store took: what it has now."""
        if counted is not None:
            self._known = counted.usages
            self._known_total = counted.total

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """The store has what these say."""
        self._known.clear()
        self._known_total = None
        for mutation in mutations:
            if isinstance(mutation, CreateOperation):
                self._counted(mutation.record.id, mutation.record.reserved)
            elif isinstance(mutation, SetReserved):
                self._counted(mutation.operation, mutation.bytes)

    def _counted(self, id: OperationId, counted: int) -> None:
        known = self._pending.get(id)
        if known is not None:
            self._note(id, _Pending(known.principal, 0, counted, known.reserved))

    def withdraw(self, id: OperationId) -> None:
        """The operation that was admitted will not begin."""
        known = self._pending.get(id)
        if known is not None:
            self._note(id, _Pending(known.principal, 0, 0, 0))

    def forget(self, id: OperationId) -> None:
        """Nothing of the operation is on its way to the store any more."""
        known = self._pending.get(id)
        if known is not None:
            self._note(id, _Pending(known.principal, 0, known.reserved, known.reserved))

    # Counting.

    def _usage(self, principal: str | None) -> Usage:
        # To ask the store for each upload would hold up the event loop each time.
        self._asked.pop(principal, None)
        self._asked[principal] = None
        if len(self._asked) > MOST_FOLLOWED:
            del self._asked[next(iter(self._asked))]
        usage = self._known.get(principal)
        if usage is None:
            usage = self._known[principal] = self._store.usage(principal)
        return usage

    def _total(self) -> int:
        if self._known_total is None:
            self._known_total = self._store.total_usage().bytes
        return self._known_total

    def _check_uploads(self, principal: str | None) -> None:
        most = self._config.max_open_uploads_per_principal
        if most is None:
            return
        uploads = self._uploads.get(principal, 0)
        if uploads + self._usage(principal).open_uploads >= most:
            raise PeerError(
                ProblemCode.TOO_MANY_UPLOADS, f"at most {most} may be open at a time"
            )

    def _space(self, principal: str | None, needed: int) -> int | None:
        """Bytes that *principal* may still reserve; None if nothing limits them.

        Raises :class:`PeerError` 507 if they are not as many as are *needed*.
        """
        own = self._config.max_stored_bytes_per_principal
        if own is not None:
            own -= self._usage(principal).bytes + self._bytes.get(principal, 0)
            if own < needed:
                raise _exceeded("your uploads and files leave no room for it")
        common = self._config.max_stored_bytes
        if common is not None:
            common -= self._total() + self._all_bytes
            if common < needed:
                raise _exceeded("all uploads and files together leave no room for it")
        spaces = [space for space in (own, common) if space is not None]
        return max(0, min(spaces)) if spaces else None

    def _note(self, id: OperationId, pending: _Pending) -> None:
        old = self._pending.pop(id, None)
        if old is not None:
            self._add(old.principal, -old.uploads, -old.bytes)
        if pending.uploads or pending.bytes:
            self._pending[id] = pending
            self._add(pending.principal, pending.uploads, pending.bytes)

    def _add(self, principal: str | None, uploads: int, size: int) -> None:
        self._all_bytes += size
        for sums, amount in ((self._uploads, uploads), (self._bytes, size)):
            new = sums.get(principal, 0) + amount
            if new:
                sums[principal] = new
            else:
                sums.pop(principal, None)


def _exceeded(detail: str) -> PeerError:
    return PeerError(ProblemCode.QUOTA_EXCEEDED, detail, close=True)
