"""The limit of the disk: write files one after the other, and sync each.

There is no network, no hash and no concurrency. Each file is written from one warm block
of 1 MiB and synced (``fdatasync``) when it is complete. This is the cheapest durable way
that goes through the page cache, as the servers' writes do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from trioresume.bench.usage import process_use

__all__ = ["DiskWrite", "measure"]

BLOCK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class DiskWrite:
    """The elapsed time and the CPU time in seconds, and the memory in bytes."""

    seconds: float
    user: float
    system: float
    peak_resident: int


def measure(directory: Path, files: int, size: int, timeout: float) -> DiskWrite:
    """Write *files* files of *size* bytes into *directory*, in a separate process.

    Raises :class:`subprocess.SubprocessError` when it fails or takes too long.
    """
    directory.mkdir(parents=True, exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-m", "bench.disk", str(directory), str(files), str(size)],
        cwd=Path(__file__).parent.parent,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        timeout=timeout,
        check=True,
    )
    return DiskWrite(**json.loads(done.stdout))


def write(directory: Path, files: int, size: int) -> DiskWrite:
    """Do the same in this process."""
    block = bytes(BLOCK)
    before, begun = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    for number in range(files):
        with open(directory / str(number), "xb", buffering=0) as file:
            left = size
            while left:
                left -= file.write(block[: min(left, BLOCK)])
            os.fdatasync(file.fileno())
    after, ended = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
    # ru_maxrss would not do: it begins with the parent's memory before the exec.
    used = process_use(os.getpid())
    assert used is not None
    return DiskWrite(
        seconds=ended - begun,
        user=after.ru_utime - before.ru_utime,
        system=after.ru_stime - before.ru_stime,
        peak_resident=used.peak,
    )


def main() -> None:
    """Run the separate process of :func:`measure`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory", type=Path)
    parser.add_argument("files", type=int)
    parser.add_argument("size", type=int)
    arguments = parser.parse_args()
    found = write(arguments.directory, arguments.files, arguments.size)
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
