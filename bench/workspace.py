"""The servers' data directories, and the same state of the machine before every run.

Three things made equal uploads differ by a factor of two to five. The server causes none
of them, and this module has a remedy for each.

* **Unwritten bytes of the run before.** The files of a finished run are emptied, because
  bytes that are not on the disk yet then need not be written at all. After that the disk is
  synced. The next run waits until few bytes are dirty or being written, because other
  programs write, too.
* **Deleted files.** ext4 avoids inodes that were deleted within the last seconds
  to minutes, and looks at each of them whenever a file is made. So the files of a
  run are emptied and not removed; they are removed at the very end.
* **Cold memory.** A virtual machine may return free pages to its host. Getting them
  back costs more than all the rest of an upload: 2.2 s of CPU time for a GiB of
  ``write`` against 0.2. So a file larger than the run is written and emptied just
  before it. Touching anonymous memory does not help: the page cache takes larger
  blocks, from other free lists.
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
"""With fewer unwritten bytes than this, no program waits for writing."""

QUIET_SECONDS = 5.0
"""How long to wait for that. On a shared machine it may never happen."""


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
        """The last data directory that :meth:`data_dir` returned."""

    @contextlib.contextmanager
    def data_dir(self) -> Iterator[Path]:
        """Give a path that does not exist yet, for the data directory of one run."""
        self._count += 1
        directory = self.current = self._root / str(self._count)
        try:
            yield directory
        finally:
            _empty_files(directory)

    def prepare(self, size: int) -> int:
        """Prepare the machine for a run that stores *size* bytes.

        Returns how many bytes the system still has to write after that. Besides the time
        for writing, this takes :data:`QUIET_SECONDS` at most.
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
    """Return how many bytes in the page cache are not on their disk yet."""
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
