"""Folding: keeping the list of a large content's chunks short while it is made.

As soon as :data:`~trioresume.store.recipe.PART_CHUNKS` chunks of content under
construction are sealed without a gap, their pieces are folded into a recipe, which the
content then has as a *part*. So the pieces of a content are never many, and finishing it
looks at those that are left and at one row for each part: as much for the last byte of a
tebibyte as for that of a gibibyte, and a thousand parts for four tebibytes. Each fold
costs some milliseconds, once for so many chunks.

What is left when the content is finished becomes the last part, and a joined recipe
lists them all; content that has no part gets a plain recipe. Every fold happens in the
transaction that seals the chunk it waited for.

Folding moves holds: a piece holds its chunk, a recipe all that it lists. A recipe that
the catalog has already, from equal content, holds them by itself, and those of the
pieces are let go. If it is half dismantled it lacks some: these it takes over.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass

from trioresume.store.port import Content, ContentKey, SealChunk
from trioresume.store.recipe import (
    PART_CHUNKS,
    AnyRecipe,
    Digest,
    JoinedRecipe,
    Recipe,
    cut,
    join,
)

__all__ = [
    "ContentRow",
    "fold",
    "freeze",
    "freeze_at_once",
    "is_whole",
    "keep_recipe",
    "part_digests",
    "piece_digests",
    "release_pieces",
    "unhold",
    "unhold_recipes",
]

AT_ONCE = 64
"""Pieces released in the mutation itself; more are left to collection."""


@dataclass(frozen=True, slots=True)
class ContentRow:
    """Content under construction: its contiguous sealed prefix and what is durable."""

    cid: int
    chunk_size: int
    epoch: int
    prefix: int
    """How many chunks are sealed without a gap, and next: their bytes."""
    prefix_bytes: int
    durable_offset: int
    parts: int
    """How often :data:`PART_CHUNKS` of those chunks, from the first on, were folded."""

    COLUMNS = "cid, chunk_size, epoch, prefix, prefix_bytes, durable_offset, parts"

    @property
    def durable(self) -> int:
        """Every byte below it survives power loss."""
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
    """What names the parts, in order."""
    rows = connection.execute(
        "SELECT digest FROM parts WHERE cid = ? ORDER BY idx", (content.cid,)
    )
    return [Digest(digest) for (digest,) in rows]


def piece_digests(connection: sqlite3.Connection, content: ContentRow) -> list[Digest]:
    """What names the chunks of the prefix that are in no part, in order."""
    rows = connection.execute(
        "SELECT digest FROM pieces WHERE cid = ? AND idx >= ? AND idx < ? ORDER BY idx",
        (content.cid, content.folded, content.prefix),
    )
    return [Digest(digest) for (digest,) in rows]


def fold(connection: sqlite3.Connection, content: ContentRow) -> int:
    """Fold what there is to fold; how many parts that makes in all."""
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
    """Make the recipe of the whole prefix, which nobody holds yet; clear *content*."""
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
    """Have the catalog know *recipe*, whole, and with so many *holds* on it more.

    Of what it lists it lacks holds on so many from the first on, which the caller adds.
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


# Letting go.


def unhold(connection: sqlite3.Connection, digests: list[Digest]) -> None:
    """One hold less on each chunk, as often as it is listed."""
    connection.executemany(
        "UPDATE chunks SET refs = refs - 1 WHERE digest = ?",
        [(digest,) for digest in digests],
    )


def unhold_recipes(connection: sqlite3.Connection, digests: list[Digest]) -> None:
    """One hold less on each recipe, as often as it is listed."""
    connection.executemany(
        "UPDATE recipes SET refs = refs - 1 WHERE digest = ?",
        [(digest,) for digest in digests],
    )


def is_whole(key: ContentKey, content: ContentRow, chunks: Sequence[SealChunk]) -> bool:
    """Whether *chunks* are all of *content*, no piece of which is known, and few."""
    return (
        len(chunks) <= PART_CHUNKS
        and content.prefix == 0
        and all(
            (chunk.key, chunk.index) == (key, index)
            and (chunk.length == content.chunk_size or chunk is chunks[-1])
            for index, chunk in enumerate(chunks)
        )
    )


def freeze_at_once(
    connection: sqlite3.Connection, content: ContentRow, chunks: Sequence[SealChunk]
) -> Content:
    """As :func:`freeze`, of all *chunks*, which are held and never were pieces.

    The recipe is held once for the caller.
    """
    length = sum(chunk.length for chunk in chunks)
    digests = [chunk.digest for chunk in chunks]
    (recipe,) = cut(content.chunk_size, length, digests)
    unhold(connection, digests[keep_recipe(connection, recipe, holds=1) :])
    connection.execute("DELETE FROM contents WHERE cid = ?", (content.cid,))
    return Content(length, None, recipe.digest)


def detach(connection: sqlite3.Connection, cid: int, moved_below: int) -> None:
    """Content is over: clear it, or leave what is much of it to collection.

    Its pieces below *moved_below* hold their chunks no more: a recipe does.
    """
    if release_pieces(connection, cid, moved_below, AT_ONCE) == AT_ONCE:
        connection.execute(
            "UPDATE contents SET key = NULL, moved_below = ? WHERE cid = ?",
            (moved_below, cid),
        )


def release_pieces(
    connection: sqlite3.Connection, cid: int, moved_below: int, limit: int
) -> int:
    """Clear at most *limit* pieces and parts of a detached content, and then its row."""
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
