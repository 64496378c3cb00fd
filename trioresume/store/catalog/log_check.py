"""Finding a write-ahead log whose damage would silently cost newer commits.

SQLite reads its log up to the first frame that is not right, and drops the rest. After a
power loss that is as it should be: only the last commit can be incomplete. But the same
happens when the disk damages a frame of a commit that was synced long ago. All newer commits
would be gone without a word, and the sweep would remove the chunks that they name.

The frames tell the two apart, because each one's checksum continues that of the frame before
it. With ``synchronous = FULL`` SQLite syncs a commit before it writes the next one. So if a
commit after the first bad frame is right, and a right frame continues it, then this commit was
synced, and the bad frame was right once. Damage in the last commit, or in the last frame of
the one before, is not found: it could be an incomplete commit.

Frames that an abandoned transaction left do not look like this: no frame continues its
commit. Without syncs a power loss can leave any frames, so such a log is not judged. Nor is
one whose header is damaged: it looks like the header of a new log that was being written.

The log's format is at https://www.sqlite.org/fileformat2.html#the_write_ahead_log.
"""

from __future__ import annotations

import os
import sqlite3
import struct
from contextlib import closing, suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple

from trioresume.errors import StorageError
from trioresume.store.file_system.disk_io import translated

__all__ = ["has_lost_commits", "refuse_lost_commits"]

_HEADER = struct.Struct(">8I")
"""Magic, version, page size, number, two salts, two sums."""
_FRAME = struct.Struct(">6I")
"""Page number, pages after a commit (or 0), two salts, two sums."""
_SUMMED = 8
"""The bytes of a frame's header that its checksum covers, before the page."""
_MAGIC = {0x377F0682: "<", 0x377F0683: ">"}
"""The byte order of the words that the checksums add up."""

_Sums = tuple[int, int]


class _Frame(NamedTuple):
    commits: bool
    """Whether it is the last one of a commit."""
    is_of_log: bool
    """Whether it has the salts of the log's header: if not, an earlier log left it."""
    sums: _Sums
    summed: bytes


def refuse_lost_commits(path: str) -> None:
    """Raise :class:`StorageError` if the log of the catalog *path* would lose commits.

    Nothing is changed. The caller has no connection to the catalog yet: the last one that is
    closed removes the log.
    """
    log = f"{path}-wal"
    if not os.path.exists(log):
        return
    with translated("reading the catalog's log"), open(log, "rb") as file:
        is_lost = has_lost_commits(file)
    if is_lost and _durability(path) == "disk":
        raise StorageError(
            f"{log} is damaged before its end: the newest commits would be lost, and the"
            " content that they name. Nothing was changed; see"
            ' "A damaged catalog" in docs/howto/keep.md'
        )


def has_lost_commits(log: BinaryIO) -> bool:
    """Return whether a synced commit ends after the first frame that is not right."""
    header = log.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return False
    magic, _, page_size, _, *salts, first, second = _HEADER.unpack(header)
    order = _MAGIC.get(magic)
    if order is None or _sum(header[:-8], (0, 0), order) != (first, second):
        return False
    sums = (first, second)
    all_right, after_commit = True, False
    while (frame := _read(log, page_size, salts)) is not None:
        is_right = frame.is_of_log and _sum(frame.summed, sums, order) == frame.sums
        if is_right and after_commit and not all_right:
            return True
        all_right = all_right and is_right
        # A bad frame may be half of an older one, which ended a commit.
        after_commit = is_right and frame.commits
        sums = frame.sums
    return False


def _read(log: BinaryIO, page_size: int, salts: list[int]) -> _Frame | None:
    raw = log.read(_FRAME.size + page_size)
    if len(raw) < _FRAME.size + page_size:
        return None
    _, size, *found, first, second = _FRAME.unpack_from(raw)
    summed = raw[:_SUMMED] + raw[_FRAME.size :]
    return _Frame(size != 0, found == salts, (first, second), summed)


def _sum(data: bytes, sums: _Sums, order: str) -> _Sums:
    """Continue *sums* over *data*, whose length is a multiple of 8 bytes."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for one, other in zip(words, words, strict=True):
        first = first + one + second & 0xFFFFFFFF
        second = second + other + first & 0xFFFFFFFF
    return first, second


def _durability(path: str) -> str | None:
    """Return how the process that wrote the log synced it; None if that cannot be read."""
    uri = f"{Path(path).absolute().as_uri()}?mode=ro"
    with suppress(sqlite3.Error), closing(sqlite3.connect(uri, uri=True)) as reader:
        sql = "SELECT value FROM store WHERE name = 'durability'"
        row: tuple[str] | None = reader.execute(sql).fetchone()
        return None if row is None else row[0]
    return None
