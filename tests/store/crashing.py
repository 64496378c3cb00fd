"""A disk that shows what it would hold if the world ended before any of its steps."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

from trioresume.store.disk_io import Descriptor, Disk

__all__ = ["StepDisk", "WatchedDisk"]

Step = Callable[[str], None]


class StepDisk(Disk):
    """Calls *step* with its name before each change, and never really syncs."""

    def __init__(self, step: Step) -> None:
        super().__init__(durable=True)
        self.synchronous = "OFF"
        self.step = step
        self.write = self._write

    def create(self, path: str) -> Descriptor:
        self.step(f"create {path}")
        return super().create(path)

    def _write(self, fd: int, data: memoryview) -> int:
        self.step("write")
        return os.write(fd, data)

    def truncate(self, file: Descriptor, length: int) -> None:
        self.step("truncate")
        super().truncate(file, length)

    def unlink(self, path: str) -> None:
        if os.path.exists(path):
            self.step(f"unlink {path}")
            super().unlink(path)

    def link(self, source: str, target: str) -> None:
        self.step(f"link {target}")
        super().link(source, target)

    def replace(self, source: str, target: str) -> None:
        self.step(f"replace {target}")
        super().replace(source, target)

    def sync_data(self, file: Descriptor) -> None:
        self.step("sync data")

    def sync_directory(self, path: str) -> None:
        self.step(f"sync directory {path}")

    def commit(self, connection: sqlite3.Connection) -> None:
        self.step("commit")
        super().commit(connection)


class WatchedDisk(StepDisk):
    """Knows what was synced, so that :meth:`lose_power` can take away the rest.

    What lies on disk when a watch begins is taken for durable. Losing power is as bad
    as it is allowed to be: unsynced bytes become zeros, unsynced new names vanish,
    unsynced removals come undone. SQLite's own files are left alone: it would
    sync them when it commits.
    """

    def __init__(self, data_dir: Path, graveyard: Path, step: Step) -> None:
        super().__init__(step)
        self._root = data_dir
        self._graveyard = graveyard
        self._buried = 0
        graveyard.mkdir()
        self._synced_length: dict[int, int] = {}
        self._durable: dict[Path, dict[str, Path | None]] = {}
        chunks = data_dir / "chunks"
        for directory in (data_dir / "tails", chunks, *chunks.iterdir()):
            self._durable[directory] = dict.fromkeys(os.listdir(directory))
            for path in directory.iterdir():
                self._synced_length[path.stat().st_ino] = path.stat().st_size

    def sync_data(self, file: Descriptor) -> None:
        super().sync_data(file)
        stat = os.fstat(file.fileno())
        self._synced_length[stat.st_ino] = stat.st_size

    def sync_directory(self, path: str) -> None:
        super().sync_directory(path)
        if Path(path) != self._root:
            self._durable[Path(path)] = dict.fromkeys(os.listdir(path))

    def truncate(self, file: Descriptor, length: int) -> None:
        super().truncate(file, length)
        # What was synced beyond is gone; what comes there next is not synced.
        inode = os.fstat(file.fileno()).st_ino
        self._synced_length[inode] = min(self._synced_length.get(inode, 0), length)

    def unlink(self, path: str) -> None:
        self._bury(Path(path))
        super().unlink(path)

    def replace(self, source: str, target: str) -> None:
        self._bury(Path(source))
        self._bury(Path(target))
        super().replace(source, target)

    def _bury(self, path: Path) -> None:
        """Keep a durable name's file, because its removal is not durable yet."""
        names = self._durable.get(path.parent, {})
        if path.name in names and path.exists() and names[path.name] is None:
            self._buried += 1
            grave = self._graveyard / str(self._buried)
            os.link(path, grave)
            names[path.name] = grave

    def lose_power(self, copy: Path) -> None:
        """Make *copy*, of the data directory as it is now, what a power loss leaves."""
        shards = self._durable[self._root / "chunks"]
        for shard in (copy / "chunks").iterdir():
            if shard.name not in shards:
                shutil.rmtree(shard)
        for directory in [self._root / "tails", *(self._root / "chunks").iterdir()]:
            there = copy / directory.relative_to(self._root)
            if there.exists():
                self._lose_names(there, directory)

    def _lose_names(self, there: Path, directory: Path) -> None:
        names = self._durable.get(directory, {})
        for path in list(there.iterdir()):
            if path.name not in names:
                path.unlink()
        for name, grave in names.items():
            # A buried file that is there again is a newer one, not yet durable.
            original = grave or directory / name
            shutil.copyfile(original, there / name)
            _spoil(there / name, self._synced_length.get(original.stat().st_ino, 0))


def _spoil(path: Path, synced: int) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:synced] + bytes(max(0, len(data) - synced)))
