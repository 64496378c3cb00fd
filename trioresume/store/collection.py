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

import os
import sqlite3
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial

from trioresume.store.catalog import Catalog
from trioresume.store.chunks import SHARDS, ChunkFiles
from trioresume.store.folding import release_pieces, unhold, unhold_recipes
from trioresume.store.port import Collected, ContentKey
from trioresume.store.readers import Pins
from trioresume.store.recipe import DIGEST_LENGTH, Digest
from trioresume.store.tails import TailFiles
from trioresume.store.writers import Writers

__all__ = ["Step", "Sweep", "collect_rows"]


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


class Sweep:
    """One walk over the files that removes those which the catalog does not name.

    The caller serialises :meth:`advance` with everything that publishes chunks.
    """

    def __init__(
        self,
        catalog: Catalog,
        chunks: ChunkFiles,
        tails: TailFiles,
        writers: Writers,
        holds_tail: Callable[[ContentKey, int], bool],
        passed_over: dict[ContentKey, set[int]],
    ) -> None:
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._writers = writers
        self._holds_tail = holds_tail
        self._passed_over = passed_over
        """Unknown tails of contents that have a writer: removed when the content ends."""
        self._looks: Iterator[Callable[[], int | None]] = self._walk()

    def advance(self, limit: int) -> Collected:
        """Look at up to *limit* files, or at none when the walk is over."""
        looked = chunks = size = 0
        for look in self._looks:
            looked += 1
            freed = look()
            if freed is not None:
                chunks += 1
                size += freed
            if looked >= limit:
                break
        return Collected(chunks=chunks, bytes=size, steps=looked)

    def _walk(self) -> Iterator[Callable[[], int | None]]:
        for path, key, index in self._tails.names():
            yield partial(self._look_at_tail, path, key, index)
        for shard in SHARDS:
            for path, digest in self._chunks.names(shard):
                yield partial(self._look_at_chunk, path, digest)

    # Each look returns the size in bytes of the chunk that it removed, or None.

    def _look_at_tail(self, path: str, key: ContentKey, index: int) -> None:
        def remove() -> None:
            # Look once more: a writer may have been here since.
            if not self._holds_tail(key, index):
                self._tails.disk.unlink(path)

        def pass_over() -> None:
            self._passed_over.setdefault(key, set()).add(index)

        if not self._holds_tail(key, index):
            self._writers.unless_open(key, remove, pass_over)

    def _look_at_chunk(self, path: str, digest: Digest | None) -> int | None:
        if digest is not None and self._catalog.has_chunk(digest):
            return None
        try:
            status = os.lstat(path)
        except FileNotFoundError:
            return None  # it was the temporary file of a repair
        if stat.S_ISDIR(status.st_mode):
            return None  # no store makes a directory here: leave it to its owner
        self._chunks.remove_file(path)
        return None if digest is None else status.st_size
