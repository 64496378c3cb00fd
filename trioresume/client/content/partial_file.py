"""A file while it is downloaded: ``NAME.part``, and what a later run has to know of it.

``NAME.part.json`` says of which version of which resource the bytes are, and how many of
them are on the disk for certain. Only these are kept by a later run: after a loss of
power a file may have its length, and zeros in it.

All functions here block. The client calls them in worker threads.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
from contextlib import suppress
from pathlib import Path

from trioresume.errors import CallerError

__all__ = ["PartialFile"]

_BLOCK = 1 << 20
_MOST_STATE = 64 * 1024


class PartialFile:
    """The part of *path* that is there. It is locked, because two runs would mix their bytes.

    Raises :class:`CallerError` if another run has it, and :class:`OSError`.
    """

    def __init__(self, path: Path, url: str) -> None:
        self._path = path
        self._url = url
        self._part = path.with_name(f"{path.name}.part")
        self._state = path.with_name(f"{path.name}.part.json")
        self._file = open(self._part, "a+b", buffering=0)  # noqa: SIM115
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            self._file.close()
            raise CallerError(f"another run is downloading {path}") from exc
        self.validator: str | None = None
        """The entity tag or date of the version that the bytes are of."""
        self.size = 0
        """How many bytes are there."""
        self._load()

    def _load(self) -> None:
        """Keep what is certain of an earlier run's bytes."""
        length = os.fstat(self._file.fileno()).st_size
        try:
            with self._state.open("rb") as file:
                state = json.loads(file.read(_MOST_STATE))
            if state["url"] == self._url and isinstance(state["validator"], str):
                self.validator = state["validator"]
                self.size = max(0, min(int(state["synced"]), length))
        except (OSError, ValueError, TypeError, KeyError):
            pass  # nothing is known of the bytes, so the download begins again
        self._file.truncate(self.size)

    def begin(self, validator: str | None) -> None:
        """Forget the bytes: those of the version with *validator* follow."""
        self._state.unlink(missing_ok=True)  # before other bytes stand in the file
        self._file.truncate(0)
        self.size, self.validator = 0, validator

    def write(self, data: bytes | bytearray) -> None:
        """Add *data*, of the right version."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.size += len(data)

    def sync(self) -> None:
        """Make the bytes certain, so that a later run keeps them."""
        os.fsync(self._file.fileno())
        if self.validator is None:
            return  # a later run could not tell whether the version is the same
        state = {"url": self._url, "validator": self.validator, "synced": self.size}
        new = self._state.with_name(f"{self._state.name}.new")
        with new.open("w") as file:
            json.dump(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(new, self._state)

    def sha256(self) -> bytes:
        """Return the digest of the bytes."""
        made = hashlib.sha256()
        position = 0
        while data := os.pread(self._file.fileno(), _BLOCK, position):
            made.update(data)
            position += len(data)
        return made.digest()

    def publish(self) -> None:
        """Give the whole file its name, durably."""
        os.fsync(self._file.fileno())
        os.replace(self._part, self._path)
        self._state.unlink(missing_ok=True)
        directory = os.open(self._path.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)

    def discard(self) -> None:
        """Remove the bytes: they are wrong, or nobody will need them."""
        self._part.unlink(missing_ok=True)
        self._state.unlink(missing_ok=True)

    def close(self) -> None:
        """Let others have the file. Bytes that no run could use are removed. Idempotent."""
        if self._file.closed:
            return
        with suppress(OSError):
            if not self._state.exists() and self._part.exists():
                self._part.unlink()
        self._file.close()
