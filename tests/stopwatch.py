"""Elapsed time as it would be on a machine that has nothing else to do.

Tests of what is promised of the clock run beside whatever else the machine does. Linux tells
for how long a thread could have run and had no processor; that is not the service's doing,
and taken off. Waits for disks, peers and timeouts are left in.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

__all__ = ["Stopwatch"]


class Stopwatch:
    """Measures what happens in this process, and in those with the ids *others*."""

    def __init__(self, *others: int) -> None:
        self._processes = (os.getpid(), *others)
        self.start()

    def start(self) -> None:
        """Begin anew."""
        self._waited = self._waits()
        self._began = time.perf_counter()

    def seconds(self) -> float:
        """Since the start, without waits for a processor."""
        elapsed = time.perf_counter() - self._began
        waited = [
            wait - self._waited.get(thread, 0) for thread, wait in self._waits().items()
        ]
        return max(0.0, elapsed - sum(waited) / 1e9)

    def _waits(self) -> dict[str, int]:
        """Nanoseconds for each thread; nothing where the system does not tell."""
        waits = {}
        for process in self._processes:
            for path in Path(f"/proc/{process}/task").glob("*/schedstat"):
                try:
                    waits[path.parent.name] = int(path.read_text().split()[1])
                except (OSError, IndexError):
                    pass  # the thread has ended
        return waits
