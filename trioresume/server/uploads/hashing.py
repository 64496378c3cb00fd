"""Hash stored content, because a client asks for its digest (C15, RFC 9530).

C15 and D7 are statements in docs/supported-protocols.md.

A processor needs a second or two to hash a gibibyte. That is little for content that the
client has sent: receiving it takes as long. But an upload may be joined from others (D7),
and a request of 16 KiB may name one part of 64 MiB some 370 times. So there are:

- **A budget.** Bytes that are hashed for a principal without being sent count against
  ``Config.digest_budget``. An hour fills the budget again. A wish (``Want-Repr-Digest``)
  beyond the budget is ignored: RFC 9530, section 4 makes it a preference, which a server may
  ignore. A claim (``Repr-Digest``) beyond the budget is refused before the parts are joined,
  because its sender relies on the check.
- **Turns.** Hashing has threads of its own, at most half as many as there are processors. It
  works in steps of :data:`HASH_STEP`. Each principal has one step at work at a time. Other
  principals do not wait behind it, and neither does work other than hashing.
- **An end.** Each step first checks whether the digest is still wanted. Hashing stops when
  the upload is deleted. A wish ends when no request has looked at the upload for
  :data:`WANTED_FOR` seconds, so it does not survive a restart. A claim is always checked,
  because the target must not be called for other content.

The digest of joined content cannot be computed from the digests of its parts: SHA-2 hashes
the bytes in order, and each block depends on the state after all blocks before it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.digests import Hashes
from trioresume.server.api.handler import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.api.config import Config
    from trioresume.server.async_store.storage import Storage
    from trioresume.store.port import ContentReader

__all__ = ["Hashing"]

HASH_STEP = 4 * 1024 * 1024
"""Bytes hashed in one step: some 10 ms, long compared with a change of threads."""
WANTED_FOR = 10.0
"""Seconds for which a wish holds after the last request looked at the upload."""
HOUR = 3600.0


class Hashing:
    """Hashes stored content in turns, and counts the bytes that no client has sent."""

    def __init__(self, storage: Storage, config: Config) -> None:
        self._storage = storage
        self._budget = config.digest_budget
        self.step = HASH_STEP
        self._turns: dict[str | None, tuple[trio.Lock, int]] = {}
        """For each principal that waits: the lock of its turn, and the number of waiters."""
        self._spent: dict[str | None, tuple[float, float]] = {}
        """For each principal: the bytes it has spent, and the time of that count."""

    def spend(self, principal: str | None, size: int) -> bool:
        """Count *size* bytes that were not sent. Returns False if they exceed the budget."""
        now = trio.current_time()
        self._forgive(now)
        spent, _ = self._spent.get(principal, (0.0, now))
        if spent + size > self._budget:
            return False
        if size:
            self._spent[principal] = (spent + size, now)
        return True

    def refusal(self, principal: str | None, size: int) -> PeerError:
        """Return the refusal of a ``Repr-Digest``, after :meth:`spend` has returned False."""
        if size > self._budget:
            return PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                "of content joined from other uploads, Repr-Digest is checked up to"
                f" {self._budget} bytes",
            )
        spent, _ = self._spent[principal]
        seconds = math.ceil((spent + size - self._budget) / self._refilled_in(1.0))
        return PeerError(
            ProblemCode.TOO_MANY_REQUESTS,
            "you have used up the bytes of joined uploads that the server hashes for you",
            fields=(("retry-after", str(seconds)),),
        )

    def _refilled_in(self, seconds: float) -> float:
        return self._budget * seconds / HOUR

    def _forgive(self, now: float) -> None:
        """Refill the budgets for the time that has passed."""
        for principal, (spent, since) in list(self._spent.items()):
            left = spent - self._refilled_in(now - since)
            if left > 0:
                self._spent[principal] = (left, now)
            else:
                del self._spent[principal]

    async def digests(
        self,
        principal: str | None,
        reader: ContentReader,
        algorithms: set[str],
        is_wanted: Callable[[], bool],
    ) -> dict[str, bytes] | None:
        """Return the digests of all the content of *reader*, by their names in RFC 9530.

        Returns None as soon as *is_wanted* returns False. Raises
        :class:`~trioresume.errors.StorageError`.
        """
        hashes = Hashes(algorithms)
        lock, count = self._turns.get(principal, (trio.Lock(), 0))
        self._turns[principal] = (lock, count + 1)
        try:
            for start in range(0, reader.length, self.step):
                end = min(start + self.step, reader.length)
                async with lock:  # first come, first served: all advance together
                    if not is_wanted():
                        return None
                    await self._storage.hash(
                        partial(_hash_slice, reader, hashes, start, end)
                    )
        finally:
            lock, count = self._turns[principal]
            if count > 1:
                self._turns[principal] = (lock, count - 1)
            else:
                del self._turns[principal]
        return hashes.digests()


def _hash_slice(reader: ContentReader, hashes: Hashes, start: int, end: int) -> None:
    """Hash one step of stored content, in a worker thread."""
    while start < end:
        block = reader.read(start, min(BLOCK_SIZE, end - start))
        hashes.update(block)
        start += len(block)
