"""Put stored content into a directory as an ordinary file.

Whoever watches the directory sees a file appear whole, under its name, or not at all:

1. The bytes are written to a file with a hidden name, and synced.
2. This file gets its name by a hard link, which never replaces another file.
3. The hidden name is removed, and the directory is synced.

After a crash at any point all this is done again. The hidden name is the same then. If it is
another name of the finished file, only step 3 was missing; otherwise it is removed and step 1
begins anew. If it is gone, the finished file is known by its bytes.

The hidden file is never opened a second time: it may be the finished file, or, with ``link``, a
chunk of the store. Folders are opened one by one and never through a symbolic link, so that
nobody who can write there leads a file out of the directory.

Everything here blocks. ``stop`` is asked between two pieces.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trioresume.protocol.name_templates import numbered

if TYPE_CHECKING:
    from trioresume.store.port import ContentReader

__all__ = ["Stopped", "place"]

_PIECE = 8 * 1024 * 1024
"""Bytes between two looks at ``stop``."""
_MOST_NUMBERED = 9
_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_NO_HARD_LINKS = frozenset(
    {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
)
_NO_COPYING = frozenset(
    {errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM}
    | {errno.ETXTBSY, errno.EBADF}
)


class Stopped(Exception):
    """The caller wants no more of it. It has to be done again."""


def place(
    reader: ContentReader,
    directory: str,
    segments: Sequence[str],
    mark: str,
    *,
    links: bool,
    stop: Callable[[], bool],
) -> str:
    """Put *reader*'s content into *directory*, below the folders *segments*; return its name.

    The name is the last of *segments*, or this name with a number, or with characters of
    *mark*, if another file has it. A file of the same name and content counts as this one. *mark* distinguishes this content
    from others that are put there at the same time, and is the same after a crash. With
    *links* the file may be a hard link of the store's own file.

    Raises :class:`OSError`, :class:`Stopped`, and what the reader raises.
    """
    *folders, name = segments
    names = [name, *(numbered(name, str(n)) for n in range(2, _MOST_NUMBERED + 1))]
    names.append(numbered(name, mark[:16]))
    with _opened(directory, folders) as folder:
        hidden = f".trioresume-{mark}"
        found = _done_before(reader, folder, names, hidden, stop)
        is_new = found is None
        if found is None:
            _remove(folder, hidden)
            if not (links and _link_chunk(reader, folder, hidden)):
                _copy(reader, folder, hidden, stop)
            found = _publish(folder, hidden, names)
        _remove(folder, hidden)
        try:
            _sync(folder)
        except OSError:
            # A later sync would prove nothing about this name: the next attempt makes a new one.
            if is_new:
                _remove(folder, found)
            raise
    return "/".join([*folders, found])


@contextmanager
def _opened(directory: str, folders: Sequence[str]) -> Iterator[int]:
    """Open the folder, after making those of *folders* that are missing."""
    current = os.open(directory, _FOLDER)
    try:
        for folder in folders:
            try:
                os.mkdir(folder, dir_fd=current)
            except FileExistsError:
                pass
            # Even if it was there: a killed process may have made it and not synced it, or
            # another thread may be just doing so.
            _sync(current)
            below = os.open(folder, _FOLDER | _NO_LINK, dir_fd=current)
            os.close(current)
            current = below
        yield current
    finally:
        os.close(current)


def _done_before(
    reader: ContentReader,
    folder: int,
    names: Sequence[str],
    hidden: str,
    stop: Callable[[], bool],
) -> str | None:
    """Return the name of the finished file, if there is one already."""
    begun = _status(folder, hidden)
    for candidate in names:
        there = _status(folder, candidate)
        if there is None:
            return None
        if begun is not None and os.path.samestat(begun, there):
            return candidate
        is_equal = stat.S_ISREG(there.st_mode) and there.st_size == reader.length
        if is_equal and _has_content(reader, folder, candidate, stop):
            return candidate
    return None


def _status(folder: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _has_content(
    reader: ContentReader, folder: int, name: str, stop: Callable[[], bool]
) -> bool:
    try:
        file = os.open(name, os.O_RDONLY | _NO_LINK, dir_fd=folder)
    except OSError:
        return False  # whatever it is, it is not ours
    with os.fdopen(file, "rb") as present:
        offset = 0
        while offset < reader.length:
            if stop():
                raise Stopped
            block = reader.read(offset, _PIECE)
            if present.read(len(block)) != block:
                return False
            offset += len(block)
        os.fsync(file)  # whoever wrote it may not have synced it
    return True


def _link_chunk(reader: ContentReader, folder: int, hidden: str) -> bool:
    """Make the only chunk of the content a file of that name, if that can be."""
    extent = reader.extent(0, reader.length)
    if extent is None or extent.offset or extent.length != reader.length:
        return False
    if os.fstat(extent.descriptor).st_size != reader.length:
        return False
    try:
        # The descriptor's own entry: it is the open file, whatever its name is now.
        os.link(
            f"/proc/self/fd/{extent.descriptor}",
            hidden,
            dst_dir_fd=folder,
            follow_symlinks=True,
        )
        os.fsync(extent.descriptor)
    except OSError:
        return False  # another file system, or one without links
    return True


def _copy(
    reader: ContentReader, folder: int, hidden: str, stop: Callable[[], bool]
) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK
    file = os.open(hidden, flags, 0o666, dir_fd=folder)
    try:
        offset, shares = 0, hasattr(os, "copy_file_range")
        while offset < reader.length:
            if stop():
                raise Stopped
            done = _share(reader, file, offset) if shares else 0
            shares = done > 0
            offset += done or _write(reader, file, offset)
        os.fsync(file)
    finally:
        os.close(file)


def _share(reader: ContentReader, file: int, offset: int) -> int:
    """Have the kernel copy a piece: some file systems share the blocks. 0 if it cannot."""
    extent = reader.extent(offset, min(_PIECE, reader.length - offset))
    if extent is None:
        return 0
    try:
        return os.copy_file_range(
            extent.descriptor, file, extent.length, extent.offset, offset
        )
    except OSError as exc:
        if exc.errno in _NO_COPYING:
            return 0
        raise


def _write(reader: ContentReader, file: int, offset: int) -> int:
    block = memoryview(reader.read(offset, _PIECE))
    os.lseek(file, offset, os.SEEK_SET)
    written = 0
    while written < len(block):
        written += os.write(file, block[written:])
    return written


def _publish(folder: int, hidden: str, names: Sequence[str]) -> str:
    """Give the hidden file the first name that is free; return it."""
    for candidate in names:
        if _give_name(folder, hidden, candidate):
            return candidate
    raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), names[-1])


def _give_name(folder: int, hidden: str, name: str) -> bool:
    try:
        os.link(
            hidden, name, src_dir_fd=folder, dst_dir_fd=folder, follow_symlinks=False
        )
    except FileExistsError:
        return False
    except OSError as exc:
        if exc.errno not in _NO_HARD_LINKS:
            raise
        # Without hard links there is a moment in which another program's file of this name
        # would be replaced.
        if _status(folder, name) is not None:
            return False
        os.rename(hidden, name, src_dir_fd=folder, dst_dir_fd=folder)
    return True


def _remove(folder: int, name: str) -> None:
    try:
        os.unlink(name, dir_fd=folder)
    except FileNotFoundError:
        pass


def _sync(folder: int) -> None:
    try:
        os.fsync(folder)
    except OSError as exc:
        if exc.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise  # some network file systems cannot sync a directory
