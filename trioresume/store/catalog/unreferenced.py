"""Collection: releasing contents, recipes and chunks that nothing holds, slice by slice.

Collection works in this order, each step in slices. The pieces of detached contents
release their chunks. Recipes that nothing holds are dismantled. Chunks that nothing
holds leave the catalog and then the disk. A file is unlinked only after the catalog has
committed its release, so the worst a crash leaves is files that the catalog does not
know.

The *sweep* removes such files. It is due after an unclean end and after failures. It
walks through the tails and then through the 256 directories of chunks, and removes the
files that the catalog does not name.
"""

from __future__ import annotations

import sqlite3
import threading
from collections import Counter
from dataclasses import dataclass, field

from trioresume.store.catalog.chunk_lists import release_pieces, unhold, unhold_recipes
from trioresume.store.port import Collected
from trioresume.store.port.recipes import DIGEST_LENGTH, Digest

__all__ = ["Pins", "Step", "collect_rows"]


class Pins:
    """The recipes that are being read, so that collection spares them.

    The order matters. A reader pins first and then looks at the catalog. The collector
    condemns first, which fails for a pinned recipe, and then commits. So there are three
    cases: the collector sees the pin; or the reader sees that the recipe is condemned; or
    the reader looks at the catalog after the commit.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pinned: Counter[Digest] = Counter()
        self._condemned: set[Digest] = set()

    def pin(self, digest: Digest) -> bool:
        """Pin *digest*; return False if it is condemned."""
        with self._lock:
            if digest in self._condemned:
                return False
            self._pinned[digest] += 1
            return True

    def unpin(self, digest: Digest) -> None:
        with self._lock:
            self._pinned[digest] -= 1
            if not self._pinned[digest]:
                del self._pinned[digest]

    def count(self) -> int:
        return len(self._pinned)

    def condemn(self, digest: Digest) -> bool:
        """Keep readers from pinning *digest* until :meth:`acquit`; return False if it is pinned."""
        with self._lock:
            if digest in self._pinned:
                return False
            self._condemned.add(digest)
            return True

    def acquit(self) -> None:
        """Let readers pin again: the collector's commit is done or undone."""
        with self._lock:
            self._condemned.clear()


@dataclass(slots=True)
class Step:
    """The result of one transaction of collection, and the chunks to unlink after it."""

    steps: int = 0
    recipes: int = 0
    bytes: int = 0
    chunks: list[Digest] = field(default_factory=list)

    def result(self) -> Collected:
        return Collected(self.recipes, len(self.chunks), self.bytes, self.steps)


def collect_rows(connection: sqlite3.Connection, pins: Pins, limit: int) -> Step:
    """Release up to *limit* rows in the open transaction."""
    step = Step()
    for act in (_clear_pieces, _dismantle_recipe, _drop_chunks):
        left = limit - step.steps
        if left > 0:
            act(connection, pins, step, left)
    return step


def _clear_pieces(
    connection: sqlite3.Connection, pins: Pins, step: Step, limit: int
) -> None:
    row = connection.execute(
        "SELECT cid, moved_below FROM contents WHERE key IS NULL LIMIT 1"
    ).fetchone()
    if row is not None:
        cid, moved_below = row
        step.steps += 1 + release_pieces(connection, cid, moved_below, limit)


def _dismantle_recipe(
    connection: sqlite3.Connection, pins: Pins, step: Step, limit: int
) -> None:
    # Pinned recipes are skipped. With one row more than there are pins, at least one row
    # is not pinned, if there is such a recipe.
    unheld = connection.execute(
        "SELECT digest FROM recipes WHERE refs = 0 ORDER BY digest LIMIT ?",
        (pins.count() + 1,),
    )
    digest = next(
        (Digest(d) for (d,) in unheld.fetchall() if pins.condemn(Digest(d))), None
    )
    if digest is None:
        return
    # The digests are the end of the serialised recipe, so its last n digests can be cut
    # off by a negative position.
    count, done, joined = connection.execute(
        "SELECT chunk_count, dismantled, joined FROM recipes WHERE digest = ?",
        (digest,),
    ).fetchone()
    end = min(count, done + limit)
    if end > done:
        (listed,) = connection.execute(
            "SELECT substr(body, ?, ?) FROM recipes WHERE digest = ?",
            (-(count - done) * DIGEST_LENGTH, (end - done) * DIGEST_LENGTH, digest),
        ).fetchone()
        starts = range(0, len(listed), DIGEST_LENGTH)
        held = [Digest(listed[at : at + DIGEST_LENGTH]) for at in starts]
        (unhold_recipes if joined else unhold)(connection, held)
    step.steps += 1 + end - done
    if end < count:
        connection.execute(
            "UPDATE recipes SET dismantled = ? WHERE digest = ?", (end, digest)
        )
    else:
        connection.execute("DELETE FROM recipes WHERE digest = ?", (digest,))
        step.recipes += 1


def _drop_chunks(
    connection: sqlite3.Connection, pins: Pins, step: Step, limit: int
) -> None:
    rows = connection.execute(
        "SELECT digest, length FROM chunks WHERE refs = 0 LIMIT ?", (limit,)
    ).fetchall()
    for digest, length in rows:
        step.chunks.append(Digest(digest))
        step.bytes += length
    connection.executemany(
        "DELETE FROM chunks WHERE digest = ?", [(d,) for d, _ in rows]
    )
    step.steps += len(rows)
