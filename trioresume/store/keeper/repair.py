"""Repair: finding the bytes of damaged chunks in other files of the administrator.

A file is cut as the store would cut it. A piece that has the digest of a damaged chunk
takes the chunk's place. The repair tries these cuts:

* every multiple of each chunk size of damaged content;
* the positions of damaged chunks in the contents that need them. They are not among the
  first for the last, short chunk of content, and in content joined from others;
* the whole file, which may be a chunk of another data directory.

It works beside a running service. A restored chunk has the right bytes and is synced before
it takes its name, like a chunk that the service publishes. So it does not matter if one of
the two replaces the other. If the service collects the chunk at the same moment, a file may
stay that the catalog does not name. The next sweep removes it.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import BinaryIO

from blake3 import blake3

from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.port.recipes import (
    AnyRecipe,
    Digest,
    JoinedRecipe,
    Recipe,
    wrap_hash,
)

__all__ = ["Repair"]

_BLOCK = 1024 * 1024

_TEMPORARY = """
CREATE TEMP TABLE wanted (digest BLOB PRIMARY KEY, length INTEGER) WITHOUT ROWID;
CREATE INDEX temp.wanted_by_length ON wanted (length);
CREATE TEMP TABLE cuts (size INTEGER PRIMARY KEY) WITHOUT ROWID;
CREATE TEMP TABLE places (at INTEGER, length INTEGER, PRIMARY KEY (at, length)) WITHOUT ROWID;
CREATE TEMP TABLE within (recipe BLOB, at INTEGER, length INTEGER,
    PRIMARY KEY (recipe, at)) WITHOUT ROWID;
INSERT INTO temp.wanted SELECT c.digest, c.length FROM temp.bad_chunks b
    JOIN chunks c ON c.digest = b.digest;
"""
_TABLES = ("wanted", "cuts", "places", "within")


class Repair:
    """One search for damaged chunks through files.

    *connection* has the damaged chunks in ``temp.bad_chunks``. This class keeps its data in
    temporary tables, so its memory is bounded. *parse* returns the recipe of a digest and a
    body, or None if it is damaged. *on_trouble* is called with a sentence about each file
    that cannot be used.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        chunks: ChunkFiles,
        parse: Callable[[Digest, bytes], AnyRecipe | None],
        *,
        on_trouble: Callable[[str], None],
    ) -> None:
        self._connection = connection
        self._execute = connection.execute
        self._chunks = chunks
        self._parse = parse
        self._on_trouble = on_trouble

    def run(
        self, sources: Iterable[str | os.PathLike[str]]
    ) -> Iterator[tuple[Digest, str]]:
        """Restore chunks from *sources*; yield the digest of each, and the file used.

        *sources* are files, and directories with all files below them.
        """
        self._connection.executescript(_TEMPORARY)
        try:
            if self._wants("1"):
                self._find_places()
                for path in _files(sources, self._on_trouble):
                    yield from self._search(path)
                    if not self._wants("1"):
                        break
        finally:
            for table in _TABLES:
                self._execute(f"DROP TABLE temp.{table}")

    def _wants(self, condition: str, *values: object) -> bool:
        return (
            self._execute(
                f"SELECT 1 FROM temp.wanted WHERE {condition} LIMIT 1", values
            ).fetchone()
            is not None
        )

    # The positions of damaged chunks in the contents that need them.

    def _find_places(self) -> None:
        self._execute(
            "INSERT OR IGNORE INTO temp.cuts SELECT DISTINCT chunk_size FROM contents"
        )
        for digest, body in self._execute(
            "SELECT digest, body FROM recipes WHERE joined = 0"
        ):
            recipe = self._parse(Digest(digest), body)
            if isinstance(recipe, Recipe):
                self._look_into(recipe)
        for digest, body in self._execute(
            "SELECT digest, body FROM recipes WHERE joined = 1"
        ):
            joined = self._parse(Digest(digest), body)
            if isinstance(joined, JoinedRecipe):
                self._look_into_joined(joined)
        self._execute(
            "INSERT OR IGNORE INTO temp.places SELECT p.idx * c.chunk_size, w.length"
            " FROM temp.wanted w JOIN pieces p ON p.digest = w.digest"
            " JOIN contents c ON c.cid = p.cid WHERE w.length != c.chunk_size"
        )

    def _look_into(self, recipe: Recipe) -> None:
        for index in range(recipe.chunk_count):
            row = self._execute(
                "SELECT length FROM temp.wanted WHERE digest = ?",
                (recipe.chunk(index),),
            ).fetchone()
            if row is None:
                continue
            at = index * recipe.chunk_size
            self._execute(
                "INSERT OR IGNORE INTO temp.cuts VALUES (?)", (recipe.chunk_size,)
            )
            self._execute(
                "INSERT OR IGNORE INTO temp.within VALUES (?, ?, ?)",
                (recipe.digest, at, row[0]),
            )
            if row[0] != recipe.chunk_size:
                self._add_place(at, row[0])

    def _look_into_joined(self, joined: JoinedRecipe) -> None:
        start = 0
        for part, length in zip(joined.parts, joined.lengths, strict=True):
            for at, size in self._execute(
                "SELECT at, length FROM temp.within WHERE recipe = ?", (part,)
            ).fetchall():
                self._add_place(start + at, size)
            start += length

    def _add_place(self, at: int, length: int) -> None:
        self._execute("INSERT OR IGNORE INTO temp.places VALUES (?, ?)", (at, length))

    # The search.

    def _search(self, path: str) -> Iterator[tuple[Digest, str]]:
        try:
            with _open_regular(path) as file:
                for at, length in self._ranges(os.fstat(file.fileno()).st_size):
                    digest = _digest(file, at, length)
                    if self._wants("digest = ? AND length = ?", digest, length):
                        yield from self._put(digest, file, at, length, path)
        except OSError as exc:
            self._on_trouble(f"{path} cannot be read: {exc.strerror or exc}")

    def _ranges(self, size: int) -> Iterator[tuple[int, int]]:
        for (cut,) in self._execute("SELECT size FROM temp.cuts").fetchall():
            for at in range(0, size, cut):
                length = min(cut, size - at)
                if self._wants("length = ?", length):
                    yield at, length
        places = self._execute(
            "SELECT at, length FROM temp.places WHERE at + length <= ? ORDER BY at",
            (size,),
        )
        for at, length in places:
            if self._wants("length = ?", length):
                yield at, length
        if self._wants("length = ?", size):
            yield 0, size

    def _put(
        self, digest: Digest, file: BinaryIO, at: int, length: int, path: str
    ) -> Iterator[tuple[Digest, str]]:
        try:
            done = self._chunks.restore(digest, _blocks(file, at, length))
        except OSError as exc:
            name = self._chunks.path(digest)
            self._on_trouble(f"{name} cannot be put there: {exc.strerror or exc}")
            return
        if done:
            self._execute("DELETE FROM temp.wanted WHERE digest = ?", (digest,))
            self._execute("DELETE FROM temp.bad_chunks WHERE digest = ?", (digest,))
            yield digest, path


def _files(
    sources: Iterable[str | os.PathLike[str]], on_trouble: Callable[[str], None]
) -> Iterator[str]:
    def tell(exc: OSError) -> None:
        on_trouble(f"{exc.filename} cannot be read: {exc.strerror or exc}")

    for source in sources:
        if not os.path.isdir(source):
            yield os.fspath(source)
            continue
        for directory, _, names in os.walk(source, onerror=tell):
            for name in sorted(names):
                path = os.path.join(directory, name)
                if os.path.isfile(path):
                    yield path


def _open_regular(path: str) -> BinaryIO:
    """Open *path* if it is a regular file, because others, such as a pipe, may never end."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise OSError(0, "it is no regular file", path)
    return open(path, "rb", buffering=0)


def _blocks(file: BinaryIO, at: int, length: int) -> Iterator[bytes]:
    file.seek(at)
    while length and (block := file.read(min(length, _BLOCK))):
        length -= len(block)
        yield block


def _digest(file: BinaryIO, at: int, length: int) -> Digest:
    hasher = blake3()
    for block in _blocks(file, at, length):
        hasher.update(block)
    return wrap_hash(hasher.digest())
