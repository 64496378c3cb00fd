"""Digests of stored content, computed because a client asks (C15, RFC 9530).

To hash a gibibyte takes a processor a second or two. That is little for content that its
client has sent: to receive it takes as much. But an upload may be joined from others (D7),
and a request of 16 KiB may name one part of 64 MiB some 370 times. So:

- **A budget.** What a principal has hashed without having sent it counts against
  ``Config.digest_budget``. It is full again after an hour. A wish (``Want-Repr-Digest``)
  beyond the budget is not answered: RFC 9530, section 4 makes it a preference, which a
  server may ignore. A claim (``Repr-Digest``) beyond the budget is refused before the
  parts are joined, because whoever sends it counts on its being checked.
- **Turns.** Threads of their own hash, at most half as many as there are processors, in
  steps of :data:`HASH_STEP`. Of each principal one step is on its way at a time. Other
  principals, and what is not hashing, do not wait behind it.
- **An end.** Before each step it is asked whether anybody wants the digest any more. A
  deleted upload is not hashed on. A wish ends when no request has looked at the upload for
  :data:`WANTED_FOR` seconds; so it does not survive a restart. A claim is checked whoever
  is there, since the target must not be called for other content.

The digest of joined content cannot be made of the digests of its parts: SHA-2 hashes the
bytes in their order, each block with the state of all blocks before it.
"""

from __future__ import annotations

import math
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.digests import Hashes
from trioresume.server.messages import BLOCK_SIZE

if TYPE_CHECKING:
    from collections.abc import Callable

    from trioresume.server.config import Config
    from trioresume.server.storage import Storage
    from trioresume.store.port import ContentReader

__all__ = ["Hashing"]

HASH_STEP = 4 * 1024 * 1024
"""Bytes hashed in one step: some 10 ms, long against what a change of threads costs."""
WANTED_FOR = 10.0
"""Seconds for which a wish holds after the last request looked at the upload."""
HOUR = 3600.0


class Hashing:
    """Hashes stored content in turn, and counts what was not sent."""

    def __init__(self, storage: Storage, config: Config) -> None:
        self._storage = storage
        self._budget = config.digest_budget
        self.step = HASH_STEP
        self._turns: dict[str | None, tuple[trio.Lock, int]] = {}
        """For each principal that waits: the turn, and how many want it."""
        self._spent: dict[str | None, tuple[float, float]] = {}
        """What each principal has spent, in bytes, and when that was so."""

    def spend(self, principal: str | None, size: int) -> bool:
        """Have *size* bytes that were not sent counted; False if they are too many."""
        now = trio.current_time()
        self._forgive(now)
        spent, _ = self._spent.get(principal, (0.0, now))
        if spent + size > self._budget:
            return False
        if size:
            self._spent[principal] = (spent + size, now)
        return True

    def refusal(self, principal: str | None, size: int) -> PeerError:
        """Why ``Repr-Digest`` of so many bytes is not checked, after :meth:`spend`."""
        if size > self._budget:
            return PeerError(
                ProblemCode.CONTENT_TOO_LARGE,
                "Repr-Digest is checked of no more than"
                f" {self._budget} bytes that are joined from other uploads",
            )
        spent, _ = self._spent[principal]
        seconds = math.ceil((spent + size - self._budget) / self._refilled_in(1.0))
        return PeerError(
            ProblemCode.TOO_MANY_REQUESTS,
            "you have had as many joined uploads hashed as you may for now",
            fields=(("retry-after", str(seconds)),),
        )

    def _refilled_in(self, seconds: float) -> float:
        return self._budget * seconds / HOUR

    def _forgive(self, now: float) -> None:
        """Let time pay: who has nothing left to pay is forgotten."""
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
        """The digests of all that *reader* has, by their names in RFC 9530.

        None as soon as it is not wanted any more. Raises
        :class:`~trioresume.errors.StorageError`.
        """
        hashes = Hashes(algorithms)
        lock, count = self._turns.get(principal, (trio.Lock(), 0))
        self._turns[principal] = (lock, count + 1)
        try:
            for start in range(0, reader.length, self.step):
                end = min(start + self.step, reader.length)
                async with lock:  # in the order of asking: all of them advance in step
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
    """One step of hashing stored content, in a worker thread."""
    while start < end:
        block = reader.read(start, min(BLOCK_SIZE, end - start))
        hashes.update(block)
        start += len(block)
