"""Folding: keeping the list of a large content's chunks short while it is made.

As soon as :data:`~trioresume.store.port.recipes.PART_CHUNKS` chunks of content under
construction are sealed without a gap, their pieces are folded into a recipe. The content
then has this recipe as a *part*. So a content never has many pieces. Finishing it reads
the pieces that are left, and one row for each part: about as much work for a tebibyte as
for a gibibyte, and a thousand parts for four tebibytes. Each fold takes some milliseconds,
once for that many chunks.

When the content is finished, the pieces that are left become the last part, and a joined
recipe lists all parts. Content without parts gets a plain recipe. A fold happens in the
transaction that seals the chunk which completes it.

Folding moves holds. A piece holds its chunk; a recipe holds all that it lists. If the
catalog already has the recipe, from equal content, that recipe holds the chunks by itself,
and the holds of the pieces are released. If that recipe is half dismantled, it lacks some
holds, and takes these over from the pieces.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from trioresume.store.port import Content, ContentKey, SealChunk
from trioresume.store.port.recipes import (
    PART_CHUNKS,
    AnyRecipe,
    Digest,
    JoinedRecipe,
    Recipe,
    cut,
    join,
)

__all__ = [
    "NO_EPOCH",
    "ContentRow",
    "fold",
    "freeze",
    "freeze_at_once",
    "is_whole",
    "keep_recipe",
    "keep_whole",
    "part_digests",
    "piece_digests",
    "release_pieces",
    "unhold",
    "unhold_recipes",
    "whole_recipe",
]

NO_EPOCH = -1
"""The epoch of content whose unrecorded bytes never count. See ``disk/unfinished.py``."""

AT_ONCE = 64
"""Pieces that the mutation itself releases at most; collection releases the others."""


@dataclass(frozen=True, slots=True)
class ContentRow:
    """Content under construction: its contiguous sealed prefix and its durable bytes."""

    cid: int
    chunk_size: int
    epoch: int
    prefix: int
    """How many chunks are sealed without a gap; ``prefix_bytes`` is the sum of their bytes."""
    prefix_bytes: int
    durable_offset: int
    parts: int
    """How many parts there are: each has :data:`PART_CHUNKS` chunks of the prefix."""

    COLUMNS = "cid, chunk_size, epoch, prefix, prefix_bytes, durable_offset, parts"

    @classmethod
    def new(cls, chunk_size: int) -> ContentRow:
        """Return the row of content that has no byte, and is not in the catalog."""
        return cls(0, chunk_size, NO_EPOCH, 0, 0, 0, 0)

    @property
    def durable(self) -> int:
        """The offset below which every byte survives power loss."""
        return max(self.durable_offset, self.prefix_bytes)

    @property
    def short_end(self) -> bool:
        """Whether the prefix ends in the short chunk of content that was finished."""
        return self.prefix_bytes < self.prefix * self.chunk_size

    @property
    def folded(self) -> int:
        """How many chunks are in parts."""
        return self.parts * PART_CHUNKS


def part_digests(connection: sqlite3.Connection, content: ContentRow) -> list[Digest]:
    """Return the digests of the parts, in order."""
    rows = connection.execute(
        "SELECT digest FROM parts WHERE cid = ? ORDER BY idx", (content.cid,)
    )
    return [Digest(digest) for (digest,) in rows]


def piece_digests(connection: sqlite3.Connection, content: ContentRow) -> list[Digest]:
    """Return the digests of the prefix's chunks that are in no part, in order."""
    rows = connection.execute(
        "SELECT digest FROM pieces WHERE cid = ? AND idx >= ? AND idx < ? ORDER BY idx",
        (content.cid, content.folded, content.prefix),
    )
    return [Digest(digest) for (digest,) in rows]


def fold(connection: sqlite3.Connection, content: ContentRow) -> int:
    """Fold the pieces that make whole parts; return the number of parts after that."""
    full = content.prefix - content.short_end
    if full < content.folded + PART_CHUNKS:
        return content.parts
    chunks = piece_digests(connection, content)[: full - content.folded]
    chunks = chunks[: len(chunks) // PART_CHUNKS * PART_CHUNKS]
    length = len(chunks) * content.chunk_size
    parts = content.parts
    for recipe in cut(content.chunk_size, length, chunks):
        _add_part(connection, content, parts, recipe)
        parts += 1
    connection.execute(
        "UPDATE contents SET parts = ? WHERE cid = ?", (parts, content.cid)
    )
    return parts


def _add_part(
    connection: sqlite3.Connection, content: ContentRow, index: int, recipe: Recipe
) -> None:
    moved = keep_recipe(connection, recipe)
    first = index * PART_CHUNKS
    unhold(connection, [recipe.chunk(i) for i in range(moved, recipe.chunk_count)])
    connection.execute(
        "DELETE FROM pieces WHERE cid = ? AND idx >= ? AND idx < ?",
        (content.cid, first, first + recipe.chunk_count),
    )
    connection.execute(
        "UPDATE recipes SET refs = refs + 1 WHERE digest = ?", (recipe.digest,)
    )
    connection.execute(
        "INSERT INTO parts VALUES (?, ?, ?)", (content.cid, index, recipe.digest)
    )


def freeze(connection: sqlite3.Connection, content: ContentRow) -> Digest:
    """Make the recipe of the whole prefix and clear *content*; return the recipe's digest.

    The new recipe has no hold yet.
    """
    pieces = connection.execute(
        "SELECT idx, digest FROM pieces WHERE cid = ? AND idx >= ? ORDER BY idx",
        (content.cid, content.folded),
    ).fetchall()
    rest = [Digest(digest) for index, digest in pieces if index < content.prefix]
    if content.parts == 0 and len(rest) <= PART_CHUNKS:
        (recipe,) = cut(content.chunk_size, content.prefix_bytes, rest)
        moved = keep_recipe(connection, recipe)
        if len(pieces) < AT_ONCE:
            unhold(connection, [Digest(name) for at, name in pieces if at >= moved])
            connection.execute("DELETE FROM pieces WHERE cid = ?", (content.cid,))
            connection.execute("DELETE FROM contents WHERE cid = ?", (content.cid,))
        else:
            detach(connection, content.cid, moved)
        return recipe.digest
    parts = content.parts
    if rest:
        length = content.prefix_bytes - content.folded * content.chunk_size
        for recipe in cut(content.chunk_size, length, rest):
            _add_part(connection, content, parts, recipe)
            parts += 1
    digests = part_digests(connection, content)
    joined = join(content.chunk_size, content.prefix_bytes, digests)
    moved = 0 if joined is None else keep_recipe(connection, joined)
    unhold_recipes(connection, digests[moved:])
    connection.execute("DELETE FROM parts WHERE cid = ?", (content.cid,))
    detach(connection, content.cid, 0)
    return digests[0] if joined is None else joined.digest


def keep_recipe(
    connection: sqlite3.Connection, recipe: AnyRecipe, holds: int = 0
) -> int:
    """Have the catalog keep the whole *recipe*, and add *holds* holds on it.

    Returns n: the recipe lacks holds on the first n entries that it lists, and the caller
    must provide these.
    """
    joined = isinstance(recipe, JoinedRecipe)
    count = (
        len(recipe.parts) if isinstance(recipe, JoinedRecipe) else recipe.chunk_count
    )
    is_new = connection.execute(
        "INSERT INTO recipes (digest, length, chunk_count, refs, body, joined)"
        " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (digest) DO NOTHING",
        (recipe.digest, recipe.length, count, holds, recipe.serialised, joined),
    ).rowcount
    if is_new:
        return count
    (dismantled,) = connection.execute(
        "SELECT dismantled FROM recipes WHERE digest = ?", (recipe.digest,)
    ).fetchone()
    if dismantled or holds:
        connection.execute(
            "UPDATE recipes SET dismantled = 0, refs = refs + ? WHERE digest = ?",
            (holds, recipe.digest),
        )
    return int(dismantled)


# Releasing holds.


def unhold(connection: sqlite3.Connection, digests: list[Digest]) -> None:
    """Release one hold on each chunk for every time it is listed."""
    connection.executemany(
        "UPDATE chunks SET refs = refs - 1 WHERE digest = ?",
        [(digest,) for digest in digests],
    )


def unhold_recipes(connection: sqlite3.Connection, digests: list[Digest]) -> None:
    """Release one hold on each recipe for every time it is listed."""
    connection.executemany(
        "UPDATE recipes SET refs = refs - 1 WHERE digest = ?",
        [(digest,) for digest in digests],
    )


def is_whole(key: ContentKey, content: ContentRow, chunks: Sequence[SealChunk]) -> bool:
    """Return whether the few *chunks* are all of *content*, which has no piece yet."""
    return (
        len(chunks) <= PART_CHUNKS
        and content.prefix == 0
        and all(
            (chunk.key, chunk.index) == (key, index)
            and (chunk.length == content.chunk_size or chunk is chunks[-1])
            for index, chunk in enumerate(chunks)
        )
    )


def whole_recipe(
    content: ContentRow, chunks: Sequence[SealChunk]
) -> tuple[Recipe, Content]:
    """Return the recipe of the few *chunks*, which are all of *content*, and the content."""
    length = sum(chunk.length for chunk in chunks)
    digests = [chunk.digest for chunk in chunks]
    (recipe,) = cut(content.chunk_size, length, digests)
    return recipe, Content(length, None, recipe.digest)


def keep_whole(
    connection: sqlite3.Connection,
    recipe: Recipe,
    chunks: Sequence[SealChunk],
    holds: int,
) -> None:
    """Keep the *recipe* of *chunks*, which are held, with *holds* holds for the caller."""
    lacking = keep_recipe(connection, recipe, holds)
    if lacking < len(chunks):
        unhold(connection, [chunk.digest for chunk in chunks[lacking:]])


def freeze_at_once(
    connection: sqlite3.Connection, content: ContentRow, chunks: Sequence[SealChunk]
) -> Content:
    """Do as :func:`freeze` does, for *chunks* that are held but never were pieces.

    The recipe gets one hold, for the caller.
    """
    recipe, made = whole_recipe(content, chunks)
    keep_whole(connection, recipe, chunks, holds=1)
    connection.execute("DELETE FROM contents WHERE cid = ?", (content.cid,))
    return made


def detach(connection: sqlite3.Connection, cid: int, moved_below: int) -> None:
    """Clear content that is finished or released; leave many rows to collection.

    The pieces below *moved_below* no longer hold their chunks: a recipe holds them.
    """
    if release_pieces(connection, cid, moved_below, AT_ONCE) == AT_ONCE:
        connection.execute(
            "UPDATE contents SET key = NULL, moved_below = ? WHERE cid = ?",
            (moved_below, cid),
        )


def release_pieces(
    connection: sqlite3.Connection, cid: int, moved_below: int, limit: int
) -> int:
    """Clear at most *limit* pieces and parts of a detached content, then its row.

    Returns how many pieces and parts were cleared. The row goes when that is below *limit*.
    """
    pieces = connection.execute(
        "SELECT idx, digest FROM pieces WHERE cid = ? ORDER BY idx LIMIT ?",
        (cid, limit),
    ).fetchall()
    unhold(connection, [Digest(name) for index, name in pieces if index >= moved_below])
    if pieces:
        connection.execute(
            "DELETE FROM pieces WHERE cid = ? AND idx <= ?", (cid, pieces[-1][0])
        )
    parts = connection.execute(
        "SELECT idx, digest FROM parts WHERE cid = ? ORDER BY idx LIMIT ?",
        (cid, limit - len(pieces)),
    ).fetchall()
    unhold_recipes(connection, [Digest(name) for _, name in parts])
    if parts:
        connection.execute(
            "DELETE FROM parts WHERE cid = ? AND idx <= ?", (cid, parts[-1][0])
        )
    if len(pieces) + len(parts) < limit:
        connection.execute("DELETE FROM contents WHERE cid = ?", (cid,))
    return len(pieces) + len(parts)
