"""Opening the tail of content under construction, after recovery has found where it ends.

Recovery looks at the catalog and may change it, so it is work of the process that has the
catalog. The tail is opened in the process that writes it, which may be another one: see
``store/remote``. An :class:`Opening` is what the one tells the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from trioresume.errors import StorageError
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.tails import DiskSeal, KnownSeal, Tail
from trioresume.store.file_system.disk_io import translated
from trioresume.store.port import ContentKey, SealChunk, is_response_key
from trioresume.store.port.recipes import Digest

__all__ = ["TRIES", "Opening", "WaitingChunk", "open_tail"]

TRIES = 16
"""The most attempts until a writer can begin. An attempt fails only if another thread made
progress on the same content, and that progress ends."""


@dataclass(frozen=True, slots=True)
class WaitingChunk:
    """A full chunk after the first gap in the sealed ones: its seal is to be applied again."""

    index: int
    length: int
    digest: Digest | None
    """Its digest if it is sealed already; None if it is a tail."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How to open the tail of a key's content."""

    chunk_size: int
    index: int = 0
    """The index of the chunk that takes the next byte."""
    rest: int = 0
    """How many bytes of that chunk its tail has."""
    synced: int = 0
    waiting: tuple[WaitingChunk, ...] = ()
    epoch: int = 0
    """The epoch in which recovery looked."""


def open_tail(
    files: TailFiles,
    key: ContentKey,
    old: Tail | None,
    find: Callable[[ContentKey], Opening],
) -> Tail:
    """Return the tail for a new writer of *key*; *old* is the tail of the last writer.

    *find* is :meth:`Recovery.find <trioresume.store.disk.recovery.Recovery.find>`.
    """
    if old is not None and not (old.broken or old.finished or is_response_key(key)):
        return old
    if old is not None:
        old.close()
    for _ in range(TRIES):
        opening = find(key)
        try:
            with translated("opening a tail"):
                tail = _opened(files, key, opening)
        except StorageError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
            continue  # a seal was applied since the look
        if files.epoch.number == opening.epoch:
            return tail
        tail.close()  # the epoch changed, so these bytes may not count
    raise StorageError(
        "the content was changed again and again while it was opened; try again"
    )


def _opened(files: TailFiles, key: ContentKey, opening: Opening) -> Tail:
    tail = Tail(
        files,
        key,
        opening.chunk_size,
        index=opening.index,
        synced=opening.synced,
        waiting=[_seal(files, key, chunk) for chunk in opening.waiting],
    )
    if opening.rest:
        tail.resume(opening.rest)
    return tail


def _seal(
    files: TailFiles, key: ContentKey, chunk: WaitingChunk
) -> DiskSeal | KnownSeal:
    if chunk.digest is None:
        file = files.open(key, chunk.index)
        return DiskSeal(files, key, chunk.index, file, chunk.length)
    return KnownSeal(SealChunk(key, chunk.index, chunk.digest, chunk.length))
