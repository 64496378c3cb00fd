"""Quotas: limit how many uploads a principal may begin, and how many bytes they take (G7).

G7 is in docs/supported-protocols.md.

The store's accounts count what is stored, in the same commit that stores it. This module
adds what is on its way there. It makes a reservation at once, without an ``await`` between
looking and taking, and gives it back when the store has counted the bytes or never will. So
two uploads cannot both get the last byte. After a crash reservations are forgotten only
together with their uploads.

An upload reserves its length as soon as the length is known. Until then it reserves in
steps, each before the first byte beyond the last step. The step is submitted before the
changes that its bytes cause, and submissions take effect in order. So an announced byte is
always a counted byte.

If a quota is used up, stored content is not touched. A new upload is refused before its
content is asked for. A running upload of unknown length is cut where the quota ends, and can
go on when there is space. A request without content that removes something (``DELETE``) is
always admitted, because otherwise a full account could not be emptied; but nothing of this
request is kept then.

Several processes that share a store do not know what the others have on its way. So each
submission that reserves ends with a :class:`~trioresume.store.port.LimitUsage`, and a commit
that would pass a quota is refused. An upload of unknown length learns of this only after some
of its bytes: those that came during one commit may be stored beyond the quota, until it ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode, StorageError
from trioresume.store.port import (
    CreateOperation,
    LimitUsage,
    SetReserved,
    record_size,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from trioresume.server.api.config import Config
    from trioresume.server.api.rulebook import Rulebook
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
"""Principals whose accounts are read after each commit. Each one costs an SQL statement."""


@dataclass(slots=True)
class _Pending:
    """The reservation of an operation, as far as the store does not have it yet."""

    principal: str | None
    uploads: int
    counted: int
    """Bytes that the store has counted, or will count after all earlier submissions."""
    reserved: int
    record: int
    """Bytes of the operation's record, while the store does not have it."""
    bytes: int
    """All bytes that the store does not have: the record, and what was not counted."""


@dataclass(frozen=True, slots=True)
class Counted:
    """The counts in the store's accounts."""

    usages: dict[str | None, Usage]
    total: int | None
    """Bytes of all principals; None if nobody asked for them."""


class Quotas:
    """Reserves space for uploads. Nothing here awaits."""

    def __init__(
        self, store: Store, config: Config, rulebook: Rulebook | None = None
    ) -> None:
        self._store = store
        self._config = config
        self._rulebook = rulebook
        self._pending: dict[OperationId, _Pending] = {}
        # The sums of the pending reservations: for each principal, and of all.
        self._uploads: dict[str | None, int] = {}
        self._bytes: dict[str | None, int] = {}
        self._all_bytes = 0
        self._known: dict[str | None, Usage] = {}
        """The store's account of each principal, since the store's last change."""
        self._known_total: int | None = None
        self._asked: dict[str | None, None] = {}
        """The principals that were looked up lately, the latest at the end."""

    # Taking.

    def admit(self, record: OperationRecord, *, exempt: bool) -> int:
        """Admit a new upload; return the number of bytes reserved for it.

        Raises :class:`PeerError`: 429 for too many open uploads, 507 for too many bytes.
        """
        length = record.length
        size = record_size(record)
        if not exempt:
            self._check_uploads(record.principal)
            space = self._space(record.principal, max(1, length or 0) + size, record)
            if length is None:
                spare = FIRST_STEP if space is None else space - size
                length = min(FIRST_STEP, spare)
        length = length or 0
        self._note(record.id, record.principal, 1, 0, length, size)
        return length

    def extend(self, record: OperationRecord, needed: int, *, exact: bool) -> int:
        """Reserve *needed* bytes in all for a running upload; return its new reservation.

        Unless *exact* is true, this reserves some more if there is space. If *needed* is less
        than the reservation, the rest is given back. Raises :class:`PeerError` 507.
        """
        more = needed - record.reserved
        if more > 0:
            space = self._space(record.principal, more, record)
        else:
            space, exact = None, True
        if not exact:
            step = max(more, min(LARGEST_STEP, max(FIRST_STEP, needed // 8)))
            more = step if space is None else min(step, space)
        reserved = record.reserved + more
        known = self._pending.get(record.id)
        counted = record.reserved if known is None else known.counted
        uploads, size = (0, 0) if known is None else (known.uploads, known.record)
        self._note(record.id, record.principal, uploads, counted, reserved, size)
        return reserved

    def limit(self, record: OperationRecord, *, opens: bool = False) -> list[Mutation]:
        """Return what refuses a submission that reserves for *record* beyond a quota.

        It stands at the end of the submission, which *opens* an upload or not. This is empty
        unless several processes share the store: see the module.
        """
        if self._store.sharing is None:
            return []
        limit = LimitUsage(
            record.principal,
            self._terms(record).max_stored_bytes_per_principal,
            self._config.max_open_uploads_per_principal if opens else None,
            self._config.max_stored_bytes,
        )
        return [] if limit == LimitUsage(record.principal) else [limit]

    def _terms(self, record: OperationRecord) -> Config:
        """Return the settings for the upload *record*: a rule may set another limit."""
        if self._rulebook is None:
            return self._config
        return self._rulebook.terms_of_upload(
            record.method, record.target, record.principal
        ).config

    # Giving back.

    def before_batch(self) -> Callable[[], Callable[[], None]]:
        """Prepare for a commit of the store; :meth:`observe` will be called for its mutations.

        This reads the accounts that are not known yet. During the commit nobody could tell
        whether the store's answer includes the reservations pending here, and they might be
        counted twice.

        Returns a function that reads the accounts again, in the thread of the commit. So the
        accounts of a principal with one upload after the other are not read in the event loop.
        What that function returns takes the accounts over, in the event loop.
        """
        for principal in self._uploads.keys() | self._bytes.keys():
            self._usage(principal)
        if self._all_bytes and self._config.max_stored_bytes is not None:
            self._total()
        return partial(self._count, list(self._asked), self._known_total is not None)

    def _count(
        self, principals: Collection[str | None], total: bool
    ) -> Callable[[], None]:
        """Read the accounts in the committing thread."""
        store = self._store
        try:
            counted: Counted | None = Counted(
                {principal: store.usage(principal) for principal in principals},
                store.total_usage().bytes if total else None,
            )
        except StorageError:
            counted = (
                None  # the commit is done: a later caller reads the accounts again
            )
        return partial(self._learn, counted)

    def _learn(self, counted: Counted | None) -> None:
        """Take over the accounts, after all mutations of the commit were observed."""
        if counted is not None:
            self._known = counted.usages
            self._known_total = counted.total

    def observe(self, mutations: Sequence[Mutation]) -> None:
        """Note that the store has applied *mutations*."""
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
            self._note(id, known.principal, 0, counted, known.reserved)

    def withdraw(self, id: OperationId) -> None:
        """Give everything back, because the admitted operation will not begin."""
        known = self._pending.get(id)
        if known is not None:
            self._note(id, known.principal, 0, 0, 0)

    def forget(self, id: OperationId) -> None:
        """Drop the rest, because nothing of the operation is on its way to the store."""
        known = self._pending.get(id)
        if known is not None:
            self._note(id, known.principal, 0, known.reserved, known.reserved)

    # Counting.

    def _usage(self, principal: str | None) -> Usage:
        # The accounts are cached: a query for each upload would hold up the event loop.
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
                ProblemCode.TOO_MANY_UPLOADS,
                f"at most {most} uploads may be open at a time",
            )

    def _space(
        self, principal: str | None, needed: int, record: OperationRecord | None = None
    ) -> int | None:
        """Return the bytes that *principal* may still reserve; None if nothing limits them.

        A rule for the upload *record* may set another limit than the settings.

        Raises :class:`PeerError` 507 if they are fewer than *needed*.
        """
        config = self._config if record is None else self._terms(record)
        own = config.max_stored_bytes_per_principal
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

    def _note(
        self,
        id: OperationId,
        principal: str | None,
        uploads: int,
        counted: int,
        reserved: int,
        record: int = 0,
    ) -> None:
        """Replace what is pending for an operation."""
        old = self._pending.pop(id, None)
        if old is not None:
            self._add(old.principal, -old.uploads, -old.bytes)
        size = max(0, reserved - counted) + record
        if uploads or size:
            self._pending[id] = _Pending(
                principal, uploads, counted, reserved, record, size
            )
            self._add(principal, uploads, size)

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
