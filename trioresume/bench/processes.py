"""The load generator's processes, as their parent sees them."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import trio

from trioresume.bench.content import Region
from trioresume.bench.pipe import Unpacker, pack
from trioresume.errors import TrioresumeError

__all__ = ["BenchFailed", "WorkerProcesses"]

END_SECONDS = 10.0


class BenchFailed(TrioresumeError):
    """The run itself failed. This says nothing about the server's uploads."""


class WorkerProcesses:
    """All worker processes. *hear* is called with a process's index and its message.

    An async context manager. No process outlives the block, however it ends.
    """

    def __init__(self, hear: Callable[[int, list[Any]], None]) -> None:
        self.count = 0
        self._hear = hear
        self._processes: list[trio.Process] = []
        self._ended = 0

    async def start(self, job: dict[str, Any], region: Region) -> None:
        """Start one more process with its job."""
        process = await trio.lowlevel.open_process(
            [sys.executable, "-m", "trioresume.bench.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[region.fd],
        )
        self._processes.append(process)
        self.count += 1
        await self._say(process, job)

    async def tell(self, *message: object) -> None:
        """Send *message* to every process."""
        for process in self._processes:
            await self._say(process, list(message))

    async def _say(self, process: trio.Process, message: object) -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(pack(message))
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            raise BenchFailed("a process of the load generator died") from exc

    async def listen(self) -> None:
        """Listen until each process has sent its last message. Raises :class:`BenchFailed`."""
        async with trio.open_nursery() as nursery:
            for index, process in enumerate(self._processes):
                nursery.start_soon(self._listen_to, index, process)

    async def _listen_to(self, index: int, process: trio.Process) -> None:
        assert process.stdout is not None
        unpacker = Unpacker()
        async for data in process.stdout:
            for message in unpacker.feed(data):
                if message == ["end"]:
                    return
                self._hear(index, message)
        raise BenchFailed("a process of the load generator died")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with trio.CancelScope(shield=True) as scope:
            scope.deadline = trio.current_time() + 2 * END_SECONDS
            await self._end()

    async def _end(self) -> None:
        """Close each process's input. Kill the processes that do not end then."""
        for process in self._processes:
            assert process.stdin is not None
            await process.stdin.aclose()
        for process in self._processes:
            with trio.move_on_after(END_SECONDS) as waiting:
                await process.wait()
            if waiting.cancelled_caught:
                process.kill()
                await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()
