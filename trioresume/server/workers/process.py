"""One worker process, as its parent sees it: started, waited for, killed."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Sequence

import trio

__all__ = ["WorkerProcess"]


class WorkerProcess:
    """A child process that inherits *descriptors*. Its input is empty.

    It is started in the calling thread. Linux ends a worker with the thread that started it,
    so this must be a thread that lives as long as the parent: the one of the event loop.

    Raises :class:`OSError` if the program cannot be started.
    """

    def __init__(self, command: Sequence[str], descriptors: Sequence[int]) -> None:
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, pass_fds=descriptors
        )
        self.pid = self._process.pid
        self.ended = trio.Event()
        """Set when the process has ended, and the system has closed what it had open."""

    async def wait(self) -> None:
        """Wait until the process has ended. Call this in one task: it sets :attr:`ended`."""
        if hasattr(os, "pidfd_open"):
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:  # no descriptor is free, or the kernel is too old
                await self._wait_in_thread()
            else:
                try:
                    await trio.lowlevel.wait_readable(descriptor)
                finally:
                    os.close(descriptor)
                self._process.wait()
        else:
            await self._wait_in_thread()
        self.ended.set()

    async def _wait_in_thread(self) -> None:
        await trio.to_thread.run_sync(
            self._process.wait, abandon_on_cancel=True, limiter=_NO_LIMIT
        )

    def kill(self) -> None:
        """Have the system end the process, even if it is stopped."""
        self._process.kill()

    @property
    def outcome(self) -> str:
        """How it ended, in words."""
        code = self._process.returncode
        if code is None:
            return "is running"
        if code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = f"signal {-code}"
            return f"was ended by {name}"
        return f"ended with the exit code {code}"


_NO_LIMIT = trio.CapacityLimiter(1_000_000)
"""A worker that lives for days must not take the threads of others."""
