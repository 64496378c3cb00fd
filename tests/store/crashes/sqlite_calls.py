"""What SQLite does to its files, seen where it calls the operating system.

SQLite reaches its files through a table of functions, the *VFS*. Here a copy of that
table takes the place of the default one; its open, delete, write, truncate and sync
tell a :class:`Watcher` first, and then do what the original does. The watcher may raise
:class:`OSError` instead, which SQLite gets to see as an I/O error or a full disk. Syncs
are told but not done: whoever watches has its own idea of what they made durable.

It works by ctypes on the library that Python's own ``sqlite3`` module uses, as long as
that is a shared one.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from ctypes import CFUNCTYPE, POINTER, c_char_p, c_int, c_int64, c_void_p
from typing import Any, Protocol

__all__ = ["Watcher", "is_possible", "watched"]

_OK = 0
_NAME = b"trioresume-watched"

_FULL = 13
_IOERR_WRITE = 778
_IOERR_FSYNC = 1034
_IOERR_TRUNCATE = 1546
_IOERR_DELETE = 2570


class Watcher(Protocol):
    """Is told what SQLite is about to do; paths are absolute."""

    def sqlite_opened(self, path: str) -> None:
        """After the file was opened, and made if it was not there."""
        ...

    def sqlite_writes(self, path: str, at: int, data: bytes) -> None: ...

    def sqlite_truncates(self, path: str, length: int) -> None: ...

    def sqlite_syncs(self, path: str) -> None: ...

    def sqlite_deletes(self, path: str) -> None: ...


_Open = CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_int, c_void_p)
_Delete = CFUNCTYPE(c_int, c_void_p, c_char_p, c_int)
_Write = CFUNCTYPE(c_int, c_void_p, c_void_p, c_int, c_int64)
_Truncate = CFUNCTYPE(c_int, c_void_p, c_int64)
_Sync = CFUNCTYPE(c_int, c_void_p, c_int)


class _Vfs(ctypes.Structure):
    """``sqlite3_vfs`` up to what is replaced, and the rest of it as it is."""

    _fields_ = [
        ("version", c_int),
        ("file_size", c_int),
        ("longest_path", c_int),
        ("next", c_void_p),
        ("name", c_char_p),
        ("data", c_void_p),
        ("open", c_void_p),
        ("delete", c_void_p),
        ("rest", c_void_p * 14),
    ]  # type: ignore[mutable-override]


class _Methods(ctypes.Structure):
    """``sqlite3_io_methods``."""

    _fields_ = [
        ("version", c_int),
        ("close", c_void_p),
        ("read", c_void_p),
        ("write", c_void_p),
        ("truncate", c_void_p),
        ("sync", c_void_p),
        ("rest", c_void_p * 13),
    ]  # type: ignore[mutable-override]


def _library() -> Any:
    """The library with its functions; None where they cannot be reached."""
    try:
        import _sqlite3

        library = ctypes.CDLL(_sqlite3.__file__)
        library.sqlite3_vfs_find.restype = POINTER(_Vfs)
        library.sqlite3_vfs_find.argtypes = [c_char_p]
        library.sqlite3_vfs_register.argtypes = [POINTER(_Vfs), c_int]
        library.sqlite3_vfs_unregister.argtypes = [POINTER(_Vfs)]
    except (ImportError, AttributeError, OSError):
        return None
    return library


def is_possible() -> bool:
    """Whether SQLite can be watched here."""
    return _library() is not None


class _Shim:
    """The copy of the table. It lives as long as the process: files refer to it."""

    def __init__(self, library: Any) -> None:
        self.watcher: Watcher | None = None
        self._library = library
        self._original = library.sqlite3_vfs_find(None)
        self._paths: dict[int, str] = {}
        self._methods: dict[int, _Methods] = {}
        self.vfs = _Vfs.from_buffer_copy(self._original.contents)
        self.vfs.name = _NAME
        self._open_original = _Open(self.vfs.open)
        self._delete_original = _Delete(self.vfs.delete)
        # ctypes does not keep what a field points to alive.
        self._callbacks = (
            _Open(self._open),
            _Delete(self._delete),
            _Write(self._write),
            _Truncate(self._truncate),
            _Sync(self._sync),
        )
        self.vfs.open = ctypes.cast(self._callbacks[0], c_void_p)
        self.vfs.delete = ctypes.cast(self._callbacks[1], c_void_p)

    def start(self) -> None:
        self._library.sqlite3_vfs_register(self.vfs, 1)

    def stop(self) -> None:
        self._library.sqlite3_vfs_unregister(self.vfs)
        self._library.sqlite3_vfs_register(self._original, 1)
        self._paths.clear()

    def _open(
        self, vfs: int, name: int | None, file: int, flags: int, out: int | None
    ) -> int:
        code: int = self._open_original(vfs, name, file, flags, out)
        if code == _OK and name is not None and self.watcher is not None:
            path = os.fsdecode(ctypes.string_at(name))
            self._paths[file] = path
            self.watcher.sqlite_opened(path)
            # The first field of a file is the pointer to its methods.
            pointer = c_void_p.from_address(file)
            pointer.value = ctypes.addressof(self._watched_methods(pointer.value))
        return code

    def _watched_methods(self, original: int | None) -> _Methods:
        """A copy of the methods at *original*: databases and logs differ in theirs."""
        assert original is not None
        if original not in self._methods:
            methods = _Methods.from_buffer_copy(
                ctypes.string_at(original, ctypes.sizeof(_Methods))
            )
            # How to write and to truncate is the same in all of them.
            self._write_original = _Write(methods.write)
            self._truncate_original = _Truncate(methods.truncate)
            methods.write = ctypes.cast(self._callbacks[2], c_void_p)
            methods.truncate = ctypes.cast(self._callbacks[3], c_void_p)
            methods.sync = ctypes.cast(self._callbacks[4], c_void_p)
            self._methods[original] = methods
        return self._methods[original]

    def _delete(self, vfs: int, name: bytes, sync: int) -> int:
        try:
            if self.watcher is not None and os.path.exists(name):
                self.watcher.sqlite_deletes(os.fsdecode(name))
        except OSError:
            return _IOERR_DELETE
        code: int = self._delete_original(vfs, name, 0)
        return code

    def _write(self, file: int, data: int, size: int, at: int) -> int:
        try:
            if self.watcher is not None:
                written = ctypes.string_at(data, size)
                self.watcher.sqlite_writes(self._paths[file], at, written)
        except OSError as exc:
            return _FULL if exc.errno == errno.ENOSPC else _IOERR_WRITE
        code: int = self._write_original(file, data, size, at)
        return code

    def _truncate(self, file: int, length: int) -> int:
        try:
            if self.watcher is not None:
                self.watcher.sqlite_truncates(self._paths[file], length)
        except OSError:
            return _IOERR_TRUNCATE
        code: int = self._truncate_original(file, length)
        return code

    def _sync(self, file: int, flags: int) -> int:
        try:
            if self.watcher is not None:
                self.watcher.sqlite_syncs(self._paths[file])
        except OSError:
            return _IOERR_FSYNC
        return _OK


_shims: list[_Shim] = []


@contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Tell *watcher* of all that is done by connections that are opened in the block.

    They must be closed within it. Blocks do not nest.
    """
    if not _shims:
        _shims.append(_Shim(_library()))
    shim = _shims[0]
    assert shim.watcher is None
    shim.watcher = watcher
    shim.start()
    try:
        yield
    finally:
        shim.stop()
        shim.watcher = None
