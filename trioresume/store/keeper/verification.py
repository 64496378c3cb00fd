"""Verification: everything is read again and compared with its digest.

There are three passes, because they need the running service to stand still to different
degrees:

1. **The bytes.** Every chunk that the catalog names is read, from the disk rather than
   the page cache, and hashed. This takes hours for terabytes and the service goes on
   meanwhile, so the catalog is read a page at a time. A chunk that seems damaged is
   looked up and read again: it may have been collected since.
2. **The books.** This is one read transaction, so it sees one instant. SQLite checks its
   file; each recipe is hashed; the holds on each chunk and recipe are counted again; each
   file and each operation must have its content. It takes less than a minute for a million
   files. For that long the service's write-ahead log cannot be cut back.
3. **The unfinished uploads.** Their sealed chunks and tails must have every byte that was
   recorded as durable, and must be readable. Tails are compared with their proofs. A proof
   may cover bytes beyond the recorded ones. If the service has been started since, such a
   proof is ignored: these bytes are cut off if they are wrong, and were announced to nobody.

The first pass keeps its findings in temporary tables, and the other passes report which
files and uploads they affect. So memory is bounded by pages, even when everything is lost.

The damaged chunks are listed in a report, if it can be written (see doubts.py). The next
run says which of them are right again, and a service checks them before it uses them.
Nothing else in the data directory is written, unless the administrator names files from
which chunks can be repaired (see repair.py).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from enum import StrEnum

from blake3 import blake3

from trioresume.errors import ContentLost, StorageFull, TrioresumeError
from trioresume.store.catalog.catalog import CatalogReader
from trioresume.store.catalog.schema import sqlite_error
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.doubts import (
    MOST_REPORTED,
    Report,
    read_report,
    write_report,
)
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Extent, Part, Survey
from trioresume.store.file_system.disk_io import Descriptor
from trioresume.store.keeper.repair import Repair
from trioresume.store.port import ContentKey, is_response_key
from trioresume.store.port.recipes import (
    AnyRecipe,
    Digest,
    JoinedRecipe,
    digest_of,
    parse_recipe,
    wrap_hash,
)

__all__ = ["Damage", "DamageKind", "Verification"]

_PAGE = 1000
_BLOCK = 1024 * 1024

_TEMPORARY = """
PRAGMA temp_store = FILE;
CREATE TEMP TABLE bad_chunks (digest BLOB PRIMARY KEY, problem TEXT) WITHOUT ROWID;
CREATE TEMP TABLE bad_recipes (digest BLOB PRIMARY KEY, problem TEXT) WITHOUT ROWID;
CREATE TEMP TABLE held_chunks (digest BLOB PRIMARY KEY, refs INTEGER) WITHOUT ROWID;
CREATE TEMP TABLE held_recipes (digest BLOB PRIMARY KEY, refs INTEGER) WITHOUT ROWID;
"""
_TABLES = ("bad_chunks", "bad_recipes", "held_chunks", "held_recipes")
_HOLD = (
    "INSERT INTO temp.held_{0} VALUES (?, 1)"
    " ON CONFLICT (digest) DO UPDATE SET refs = refs + 1"
)
_ADD_HOLDS = " ON CONFLICT (digest) DO UPDATE SET refs = refs + excluded.refs"


class DamageKind(StrEnum):
    """The kind of thing that is damaged, or affected by damage."""

    CATALOG = "catalog"
    """The catalog's file is inconsistent."""
    CHUNK = "chunk"
    """A chunk is missing, cannot be read, or does not have the bytes it is named after."""
    RECIPE = "recipe"
    """The list of a content's chunks does not have the bytes it is named after."""
    COUNT = "count"
    """The recorded number of holds on a chunk or a recipe is wrong."""
    TAIL = "tail"
    """The end of an unfinished upload cannot be read, or has wrong bytes."""
    FILE = "file"
    """A file cannot be served whole, because of damage that is reported separately."""
    UPLOAD = "upload"
    """An operation's content or recorded response is not whole, for the same reason."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One damaged thing, or one thing that damage affects."""

    kind: DamageKind
    name: str
    """A digest in hexadecimal, a file's name, an operation's id, or ``catalog``."""
    problem: str
    owner: str | None = None
    """For a file: the owner in whose namespace the name is."""
    path: str | None = None
    """The path of the file on disk, if there is one."""


class Verification:
    """One run of :meth:`Inventory.verify <trioresume.Inventory.verify>`; iterate over it.

    It yields each :class:`Damage` when it is found, and counts the things it has read.
    Iterating blocks on the disk, and raises :class:`~trioresume.StorageError` if the
    catalog cannot be read at all.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        catalog: CatalogReader,
        chunks: ChunkFiles,
        tails: TailFiles,
        survey: Survey,
        data_dir: str,
        repair_from: Iterable[str | os.PathLike[str]] = (),
        repaired_chunks: ChunkFiles | None = None,
    ) -> None:
        self.on_progress: Callable[[], None] | None = None
        """Called after each chunk."""
        self.on_healed: Callable[[str, float], None] | None = None
        """Called for each chunk that an earlier run reported as damaged and that is right
        now, with its digest and the date of that report in Unix seconds."""
        self.on_repaired: Callable[[str, str], None] | None = None
        """Called for each repaired chunk, with its digest and the file that had its bytes."""
        self.on_trouble: Callable[[str], None] | None = None
        """Called with a sentence if the report, or a file to repair from, cannot be used.
        The verification goes on."""
        self.chunks = 0
        self.bytes = 0
        """The bytes of chunks and tails that were read."""
        self.files = 0
        self.uploads = 0
        self.damages = 0
        self.healed = 0
        """The number of chunks that an earlier run reported as damaged and that are right now."""
        self.repaired = 0
        """The number of repaired chunks. They also count as damages."""
        self._data_dir = data_dir
        self._repair_from = tuple(repair_from)
        self._repaired_chunks = repaired_chunks or chunks
        self._before = Report()
        self._read_all = False
        self._execute = connection.execute
        self._connection = connection
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._disk = chunks.disk
        self._survey = survey

    def __iter__(self) -> Iterator[Damage]:
        try:
            self._connection.executescript(_TEMPORARY)
            try:
                self._read_report()
                for damage in self._passes():
                    self.damages += 1
                    yield damage
            finally:
                self._keep_report()
                for table in _TABLES:
                    self._execute(f"DROP TABLE temp.{table}")
        except sqlite3.Error as exc:
            error = sqlite_error(exc)
            if isinstance(error, StorageFull):
                # This connection writes only the temporary tables.
                error = StorageFull(
                    "the disk for temporary files is full; the variable SQLITE_TMPDIR"
                    " names another directory for them"
                )
            raise error from exc

    def _passes(self) -> Iterator[Damage]:
        yield from self._bytes()
        self._read_all = True
        self._repair()
        self._execute("BEGIN")
        try:
            yield from self._books()
        finally:
            self._execute("COMMIT")
        yield from self._unfinished()

    # The report, and repairing.

    def _read_report(self) -> None:
        try:
            self._before = read_report(self._data_dir)
        except OSError as exc:
            self._tell(f"the report of damage cannot be read: {exc.strerror or exc}")

    def _keep_report(self) -> None:
        """Write this run's findings as the report, with the old ones if it was incomplete."""
        found = self._execute(
            "SELECT digest FROM temp.bad_chunks LIMIT ?", (MOST_REPORTED + 1,)
        )
        dates = {} if self._read_all else dict(self._before.dates)
        now = int(time.time())
        for (digest,) in found:
            dates[Digest(digest)] = self._before.dates.get(Digest(digest), now)
        every = len(dates) > MOST_REPORTED or (
            self._before.every and not self._read_all
        )
        report = Report(dict(list(dates.items())[:MOST_REPORTED]), every)
        if report == self._before:
            return
        try:
            write_report(self._data_dir, report, self._repaired_chunks.disk)
        except OSError as exc:
            self._tell(
                "the report of damage cannot be kept, so a later run cannot say what was"
                f" healed, and a service does not know of it: {exc.strerror or exc}"
            )

    def _repair(self) -> None:
        repair = Repair(
            self._connection, self._repaired_chunks, _parse, on_trouble=self._tell
        )
        for digest, source in (
            repair.run(self._repair_from) if self._repair_from else ()
        ):
            self.repaired += 1
            if self.on_repaired is not None:
                self.on_repaired(digest.hex(), source)

    def _tell(self, trouble: str) -> None:
        if self.on_trouble is not None:
            self.on_trouble(trouble)

    def _note_right(self, digest: Digest) -> None:
        date = self._before.dates.get(digest)
        if date is not None:
            self.healed += 1
            if self.on_healed is not None:
                self.on_healed(digest.hex(), date)

    # The bytes.

    def _bytes(self) -> Iterator[Damage]:
        after = b""
        while page := self._execute(
            "SELECT digest, length FROM chunks WHERE digest > ? ORDER BY digest LIMIT ?",
            (after, _PAGE),
        ).fetchall():
            for row in page:
                digest, length = Digest(row[0]), row[1]
                problem = self._problem_of(digest, length)
                self.chunks += 1
                if problem is not None:
                    yield self._bad_chunk(digest, problem)
                else:
                    self._note_right(digest)
                if self.on_progress is not None:
                    self.on_progress()
            after = page[-1][0]

    def _bad_chunk(self, digest: Digest, problem: str) -> Damage:
        self._execute(
            "INSERT OR IGNORE INTO temp.bad_chunks VALUES (?, ?)", (digest, problem)
        )
        path = self._chunks.path(digest)
        return Damage(
            kind=DamageKind.CHUNK, name=digest.hex(), problem=problem, path=path
        )

    def _problem_of(self, digest: Digest, length: int) -> str | None:
        problem = self._read_chunk(digest, length)
        if problem is None or not self._catalog.has_chunk(digest):
            return None
        # The chunk file exists before the catalog names it. But the chunk may have been
        # collected and published again since, so read it once more.
        read = self.bytes
        problem = self._read_chunk(digest, length)
        self.bytes = read  # count the bytes only once
        return problem

    def _read_chunk(self, digest: Digest, length: int) -> str | None:
        try:
            with closing(self._chunks.open(digest)) as file:
                found, size = self._hash(file)
        except FileNotFoundError:
            return "is missing"
        except OSError as exc:
            return f"cannot be read: {exc.strerror or exc}"
        if size != length:
            return f"has {size} bytes instead of {length}"
        if found != digest:
            return "does not have the bytes it is named after"
        return None

    def _hash(self, file: Descriptor) -> tuple[Digest, int]:
        self._disk.forget_cached(file)
        hasher, size = blake3(), 0
        while block := self._disk.read(file.fileno(), _BLOCK):
            hasher.update(block)
            size += len(block)
        self._disk.forget_cached(file)
        self.bytes += size
        return wrap_hash(hasher.digest()), size

    # The books.

    def _books(self) -> Iterator[Damage]:
        for (said,) in self._execute("PRAGMA integrity_check(100)"):
            if said != "ok":
                yield Damage(kind=DamageKind.CATALOG, name="catalog", problem=said)
        yield from self._recipes()
        yield from self._chunk_counts()
        yield from self._recipe_counts()
        yield from self._missing("chunks")
        yield from self._missing("recipes")
        self._blame_recipes()
        yield from self._contents()

    def _recipes(self) -> Iterator[Damage]:
        """Hash the recipes, and count their holds."""
        for digest, dismantled, body in self._execute(
            "SELECT digest, dismantled, body FROM recipes"
        ):
            recipe = _parse(Digest(digest), body)
            if recipe is None:
                yield self._bad_recipe(
                    digest, "does not have the bytes it is named after"
                )
                continue
            holds = [(held,) for held in _listed(recipe, dismantled)]
            table = "recipes" if isinstance(recipe, JoinedRecipe) else "chunks"
            self._connection.executemany(_HOLD.format(table), holds)

    def _bad_recipe(self, digest: bytes, problem: str) -> Damage:
        self._blame(digest, problem)
        return Damage(kind=DamageKind.RECIPE, name=digest.hex(), problem=problem)

    def _chunk_counts(self) -> Iterator[Damage]:
        self._execute(
            "INSERT INTO temp.held_chunks SELECT p.digest, count(*)"
            " FROM contents c JOIN pieces p ON p.cid = c.cid"
            " WHERE c.key IS NOT NULL OR p.idx >= c.moved_below GROUP BY p.digest"
            + _ADD_HOLDS
        )
        yield from self._counts("chunks")

    def _recipe_counts(self) -> Iterator[Damage]:
        self._execute(
            "INSERT INTO temp.held_recipes SELECT digest, count(*) FROM ("
            " SELECT content_digest AS digest FROM operations UNION ALL"
            " SELECT response_digest FROM operations UNION ALL"
            " SELECT digest FROM parts UNION ALL"
            " SELECT content_digest FROM files) WHERE digest IS NOT NULL GROUP BY digest"
            + _ADD_HOLDS
        )
        yield from self._counts("recipes")

    def _counts(self, table: str) -> Iterator[Damage]:
        for digest, refs, held in self._execute(
            f"SELECT t.digest, t.refs, ifnull(h.refs, 0) FROM {table} t"
            f" LEFT JOIN temp.held_{table} h ON h.digest = t.digest"
            " WHERE t.refs != ifnull(h.refs, 0)"
        ):
            yield Damage(
                kind=DamageKind.COUNT,
                name=digest.hex(),
                problem=f"of the {table} is held {held} times, not {refs}",
            )

    def _missing(self, table: str) -> Iterator[Damage]:
        """Yield the chunks or recipes that are held, but not in the catalog."""
        for (digest,) in self._execute(
            f"SELECT h.digest FROM temp.held_{table} h LEFT JOIN {table} t"
            " ON t.digest = h.digest WHERE t.digest IS NULL"
        ):
            problem = "is not in the catalog"
            if table == "recipes":
                yield self._bad_recipe(digest, problem)
            else:
                yield self._bad_chunk(Digest(digest), problem)

    def _blame(self, recipe: bytes, problem: str) -> None:
        self._execute(
            "INSERT OR IGNORE INTO temp.bad_recipes VALUES (?, ?)", (recipe, problem)
        )

    def _blame_recipes(self) -> None:
        """Record which recipes list bad chunks or bad parts.

        This reads recipes a second time, only if there is damage: first the recipes that
        list chunks, then those that list recipes.
        """
        for joined, bad, what in (
            (0, "bad_chunks", "chunk"),
            (1, "bad_recipes", "part"),
        ):
            if not self._execute(f"SELECT 1 FROM temp.{bad} LIMIT 1").fetchone():
                continue
            for digest, body in self._execute(
                "SELECT digest, body FROM recipes WHERE joined = ?", (joined,)
            ):
                recipe = _parse(Digest(digest), body)
                for index, held in enumerate(() if recipe is None else _listed(recipe)):
                    row = self._execute(
                        f"SELECT problem FROM temp.{bad} WHERE digest = ?", (held,)
                    ).fetchone()
                    if row is not None:
                        self._blame(digest, f"{what} {index}, {held.hex()}, {row[0]}")
                        break

    def _contents(self) -> Iterator[Damage]:
        for name, owner, *content in self._execute(
            _contents_of("name, owner", "files")
        ):
            self.files += 1
            problem = _content_problem(*content)
            if problem is not None:
                yield Damage(
                    kind=DamageKind.FILE, name=name, owner=owner, problem=problem
                )
        for part in ("content", "response"):
            for name, *content in self._execute(_contents_of("id", "operations", part)):
                self.uploads += part == "content"
                problem = _content_problem(*content)
                if problem is not None:
                    yield Damage(
                        kind=DamageKind.UPLOAD, name=name, problem=f"{part}: {problem}"
                    )

    # The unfinished uploads.

    def _unfinished(self) -> Iterator[Damage]:
        after = 0
        while page := self._execute(
            "SELECT cid, key FROM contents WHERE cid > ? AND key IS NOT NULL"
            " ORDER BY cid LIMIT ?",
            (after, _PAGE),
        ).fetchall():
            for cid, key in page:
                if not is_response_key(key):
                    yield from self._unfinished_content(cid, key)
            after = page[-1][0]

    def _unfinished_content(self, cid: int, key: ContentKey) -> Iterator[Damage]:
        try:
            extent = self._survey.look(key)
            if extent is None:
                return  # the upload was finished or ended meanwhile
            extent.checked()
        except ContentLost as exc:
            yield Damage(kind=DamageKind.UPLOAD, name=key, problem=str(exc))
            return
        for kind, table in (("chunk", "pieces"), ("part", "parts")):
            bad = "bad_chunks" if kind == "chunk" else "bad_recipes"
            for index, digest, problem in self._execute(
                f"SELECT p.idx, p.digest, b.problem FROM {table} p"
                f" JOIN temp.{bad} b ON b.digest = p.digest WHERE p.cid = ?",
                (cid,),
            ).fetchall():
                yield Damage(
                    kind=DamageKind.UPLOAD,
                    name=key,
                    problem=f"{kind} {index}, {digest.hex()}, {problem}",
                )
        yield from self._read_tails(key, extent)

    def _read_tails(self, key: ContentKey, extent: Extent) -> Iterator[Damage]:
        for part in extent.parts:
            if part.sealed:
                continue
            path = self._tails.path(key, part.index)
            try:
                with closing(self._disk.open(path)) as file:
                    self._hash(file)
                if self._is_proven(key, extent, part) or self._is_proven(
                    key, extent, part
                ):  # look again: a writer may have cut and continued it meanwhile
                    continue
                problem = "does not have the bytes that were written"
            except FileNotFoundError:
                continue  # the tail has become a chunk
            except OSError as exc:
                problem = f"cannot be read: {exc.strerror or exc}"
            yield Damage(
                kind=DamageKind.TAIL,
                name=f"{key}.{part.index}",
                problem=problem,
                path=path,
            )
            yield Damage(
                kind=DamageKind.UPLOAD, name=key, problem=f"its tail {problem}"
            )

    def _is_proven(self, key: ContentKey, extent: Extent, part: Part) -> bool:
        """Return whether the tail has the bytes of its proof; True if the proof is moot."""
        proof = self._tails.proof(key, part.index)
        if proof is None:
            return True
        end = part.index * extent.row.chunk_size + proof.length
        if not extent.trusted and end > extent.row.durable:
            return True
        return self._tails.proven(key, part.index) == proof.length


def _listed(recipe: AnyRecipe, first: int = 0) -> Iterator[Digest]:
    """Yield the digests that *recipe* lists from *first* on: of chunks, or of recipes."""
    if isinstance(recipe, JoinedRecipe):
        yield from recipe.parts[first:]
    else:
        yield from map(recipe.chunk, range(first, recipe.chunk_count))


def _parse(digest: Digest, body: bytes) -> AnyRecipe | None:
    """Return the recipe, or None if *body* is damaged or does not have this *digest*."""
    if digest_of(body) != digest:
        return None
    try:
        return parse_recipe(body)
    except (TrioresumeError, ValueError, KeyError, TypeError):
        return None


def _contents_of(columns: str, table: str, part: str = "content") -> str:
    """Return SQL that selects *columns* and the arguments of :func:`_content_problem`."""
    named = ", ".join(f"t.{column.strip()}" for column in columns.split(","))
    return (
        f"SELECT {named}, t.{part}_length, length(t.{part}_inline), t.{part}_digest,"
        f" r.length, r.dismantled, b.problem FROM {table} t"
        f" LEFT JOIN recipes r ON r.digest = t.{part}_digest"
        f" LEFT JOIN temp.bad_recipes b ON b.digest = t.{part}_digest"
    )


def _content_problem(
    length: int | None,
    inline: int | None,
    digest: bytes | None,
    recipe_length: int | None,
    dismantled: int | None,
    blamed: str | None,
) -> str | None:
    if length is None:
        return None
    if digest is None:
        wrong = inline != length
        return f"has {inline} bytes instead of {length}" if wrong else None
    if recipe_length is None or dismantled:
        return f"its recipe {digest.hex()} is missing"
    if recipe_length != length:
        return f"its recipe has {recipe_length} bytes instead of {length}"
    return blamed
