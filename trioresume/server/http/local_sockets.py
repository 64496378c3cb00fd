"""Listening sockets that are no TCP ports of ours: Unix sockets, and sockets that were handed over.

A Unix socket is a name in the file system that outlives its process. After a crash the name is
still there, and nobody answers. Such a stale name is removed, but never the name of a socket
that somebody listens on, and never a file that is no socket. Two servers that start in the
same moment could both find the stale name, and the second one would remove what the first one
has just made. So the look, the removal and the new socket happen under a lock of the directory.

At the end the name is removed *before* the socket is closed: as long as it listens, nobody
takes it for stale. A name that belongs to another socket by then stays.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from trioresume.errors import CallerError

if os.name != "nt":
    import fcntl

__all__ = ["UnixName", "inherited_socket", "is_stale", "listen_on_unix"]

logger = logging.getLogger("trioresume.server")

LOCK_SECONDS = 1.0
"""How long to try for the lock of the directory. It is held for an instant, unless somebody
keeps it on purpose, who must not prevent the start."""
_PAUSE = 0.01

_FREE = {errno.ECONNREFUSED, errno.ENOENT}
"""Errors of a connection to a name that nobody listens on."""


class UnixName:
    """The name of a Unix socket that this process has made."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._identity = _identity(path)

    def remove(self) -> None:
        """Remove the name, if it is still this socket's. Idempotent; raises nothing."""
        with suppress(OSError):
            if _identity(self.path) == self._identity:
                os.unlink(self.path)


def _identity(path: str) -> tuple[int, int]:
    status = os.lstat(path)
    return status.st_dev, status.st_ino


def listen_on_unix(
    path: str, mode: int, backlog: int
) -> tuple[socket.socket, UnixName]:
    """Return a socket that listens under the new name *path*, and that name.

    *mode* says who may connect: who may write to the file. It is set before anybody can.

    Raises :class:`OSError`: EADDRINUSE if somebody listens there, EEXIST if it is no socket.
    """
    if not hasattr(socket, "AF_UNIX"):
        raise CallerError("this system has no Unix sockets")
    path = os.path.abspath(
        path
    )  # to find it again, whatever the working directory is then
    raw = socket.socket(socket.AF_UNIX)
    try:
        with _locked(os.path.dirname(path)):
            if is_stale(path):
                with suppress(FileNotFoundError):
                    os.unlink(path)
            try:
                raw.bind(path)
            except OSError as exc:
                # Python's own complaint about the length has no number.
                code = exc.errno or errno.ENAMETOOLONG
                raise OSError(code, os.strerror(code), path) from exc
            name = UnixName(path)
            try:
                os.chmod(path, mode)
                raw.listen(backlog)  # before this nobody can connect
            except BaseException:
                name.remove()
                raise
        raw.setblocking(False)
        return raw, name
    except BaseException:
        raw.close()
        raise


@contextmanager
def _locked(directory: str) -> Iterator[None]:
    """Hold the lock of *directory* within the block, if it can be had."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > deadline:
                    logger.warning("somebody keeps the directory %s locked", directory)
                    break
                time.sleep(_PAUSE)
            except OSError:
                break  # a file system without locks
        yield
    finally:
        os.close(descriptor)


def is_stale(path: str) -> bool:
    """Return whether *path* is the name of a socket that nobody listens on; False if it is free.

    Raises :class:`OSError`: EADDRINUSE if somebody listens there, EEXIST if it is no socket.
    """
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return False
    if not stat.S_ISSOCK(status.st_mode):
        raise FileExistsError(errno.EEXIST, "a file that is no socket is there", path)
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        code = probe.connect_ex(path)
    # A full queue (EAGAIN) is somebody's, too.
    if code not in _FREE:
        if code in (0, errno.EAGAIN, errno.EINPROGRESS):
            code = errno.EADDRINUSE
        raise OSError(code, os.strerror(code), path)
    return True


def inherited_socket(descriptor: int) -> socket.socket:
    """Return the listening socket *descriptor*, which was handed to this process.

    The process owns it from now on. Raises :class:`~trioresume.errors.CallerError` if it is
    no stream socket that listens.
    """
    try:
        raw = socket.socket(fileno=descriptor)
    except OSError as exc:
        raise CallerError(f"fd:{descriptor} is no socket: {exc.strerror}") from exc
    try:
        families = {socket.AF_INET, socket.AF_INET6, getattr(socket, "AF_UNIX", None)}
        is_known = raw.family in families and raw.type == socket.SOCK_STREAM
        if not is_known or not raw.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            raise CallerError(f"fd:{descriptor} is not a stream socket that listens")
        raw.setblocking(False)
        raw.set_inheritable(False)
        return raw
    except BaseException:
        raw.detach()  # it is somebody else's
        raise
