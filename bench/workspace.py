"""Where servers keep their data, and a machine in the same state before every run.

Three things made equal uploads differ by a factor of two to five, and none of them
is the server's doing. Each has its remedy here.

* **What the run before left to write.** Its files are emptied (what is not on the
  disk yet need never be written), then the disk is asked to finish, and the next
  run waits until hardly anything is dirty or on its way: other programs write too.
* **Deleted files.** ext4 avoids inodes that were deleted within the last seconds
  to minutes, and looks at each of them whenever a file is made. So the files of a
  run are emptied, not removed; the removal comes at the very end.
* **Cold memory.** A virtual machine may hand free pages back to its host, and
  getting them again costs more than all the rest of an upload: 2.2 s of CPU time
  for a GiB of ``write`` against 0.2. So a file as large as the run is written and
  emptied just before. Touching anonymous memory does not help: the page cache
  takes larger blocks, from other free lists.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["Workspace", "unwritten"]

_BLOCK = 1 << 20

QUIET_BYTES = 32 << 20
"""So little unwritten data that nobody is made to wait for it."""

QUIET_SECONDS = 5.0
"""How long to wait for that; on a shared machine it may never come."""


class Workspace:
    """A directory of data directories below *parent*; removed by :meth:`close`.

    With *drop_caches* the page cache is dropped before each run, which needs root.
    """

    def __init__(
        self, parent: Path | None = None, *, drop_caches: bool = False
    ) -> None:
        self._root = Path(tempfile.mkdtemp(prefix="bench-", dir=parent))
        self._drop_caches = drop_caches
        self._count = 0
        self.current = self._root
        """The data directory handed out last."""

    @contextlib.contextmanager
    def data_dir(self) -> Iterator[Path]:
        """A path that does not exist yet, for one run's data directory."""
        self._count += 1
        directory = self.current = self._root / str(self._count)
        try:
            yield directory
        finally:
            _empty_files(directory)

    def prepare(self, size: int) -> int:
        """Condition the machine for a run that stores *size* bytes.

        Takes :data:`QUIET_SECONDS` at most, beyond what writing takes; returns how
        many bytes the system still has to write then.
        """
        os.sync()
        if self._drop_caches:
            Path("/proc/sys/vm/drop_caches").write_text("1")
        block = bytes(_BLOCK)
        with open(self._root / "warm-up", "wb", buffering=0) as file:
            file.writelines(block for _ in range(size * 5 // 4 // _BLOCK))
            file.truncate(0)
        deadline = time.monotonic() + QUIET_SECONDS
        while (left := unwritten()) > QUIET_BYTES and time.monotonic() < deadline:
            time.sleep(0.1)
        return left

    def close(self) -> None:
        shutil.rmtree(self._root)


def unwritten(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes in the page cache that are not on their disk yet."""
    kib = 0
    for line in meminfo.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in ("Dirty", "Writeback"):
            kib += int(rest.split()[0])
    return kib * 1024


def _empty_files(directory: Path) -> None:
    for parent, _, names in os.walk(directory):
        for name in names:
            os.truncate(os.path.join(parent, name), 0)
