"""Executables in a directory, named as the events: tusd's file hooks.

An executable gets the JSON on its standard input, and ``TUS_ID``, ``TUS_OFFSET`` and
``TUS_SIZE`` in its environment. It may print an answer. An exit code other than 0 is a
failure. What it writes to its standard error goes to the log.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
from collections.abc import AsyncIterator, Collection
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from trioresume.errors import CallerError
from trioresume.hooks.answers import HookFailed
from trioresume.text import printable

if TYPE_CHECKING:
    from trioresume.hooks.events import HookEvent

__all__ = ["ExecutableHooks"]

logger = logging.getLogger("trioresume.hooks")

MOST_OUTPUT = 64 * 1024
"""Bytes that are read of either output; an executable that prints more has failed."""
MOST_LOGGED = 2000


class ExecutableHooks:
    """Runs the executable in *directory* that has the event's name; without one, does nothing.

    Raises :class:`~trioresume.CallerError` if there is no such directory.
    """

    forwarded_fields: Collection[str] = ()

    def __init__(self, directory: str | os.PathLike[str]) -> None:
        self._directory = Path(directory).absolute()
        if not self._directory.is_dir():
            raise CallerError(f"{directory} is no directory of hooks")

    async def call(self, event: HookEvent, date: float) -> bytes | None:
        path = self._directory / event.kind
        if not os.access(path, os.F_OK):
            return None
        upload = event.upload
        told = {
            "TUS_ID": upload["ID"],
            "TUS_OFFSET": str(upload["Offset"]),
            "TUS_SIZE": str(upload["Size"]),
        }
        try:
            process = await trio.lowlevel.open_process(
                [str(path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd=self._directory,
                env={**os.environ, **told},
                start_new_session=True,
            )
        except OSError as exc:
            raise HookFailed(
                f"{path.name} cannot be run: {exc.strerror}", may_pass=True
            ) from exc
        try:
            output, errors = await _talk(process, event.body)
        finally:
            _kill(process)  # with its children: it was cancelled, or they outlive it
            with trio.CancelScope(shield=True):
                await process.wait()
                for pipe in (process.stdin, process.stdout, process.stderr):
                    if pipe is not None:
                        await pipe.aclose()
        if errors:
            text = errors[:MOST_LOGGED].decode("utf-8", "replace")
            logger.info("%s says: %s", path.name, printable(text.strip()))
        if process.returncode:
            raise HookFailed(
                f"{path.name} ended with exit code {process.returncode}", may_pass=False
            )
        return output

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        yield


async def _talk(process: trio.Process, body: bytes) -> tuple[bytes, bytes]:
    """Give *process* its input; return its outputs, once it has ended."""
    outputs: dict[str, bytes] = {}
    excess: list[str] = []

    async def feed() -> None:
        assert process.stdin is not None
        try:
            await process.stdin.send_all(body)
        except trio.BrokenResourceError:
            pass  # it does not want to know
        await process.stdin.aclose()

    async def read(name: str, pipe: trio.abc.ReceiveStream) -> None:
        gathered = bytearray()
        while block := await pipe.receive_some(MOST_OUTPUT):
            gathered += block
            if len(gathered) > MOST_OUTPUT:
                excess.append(name)
                nursery.cancel_scope.cancel()
                return
        outputs[name] = bytes(gathered)

    async def end() -> None:
        await process.wait()
        _kill(process)  # a child of it may hold the outputs open

    assert process.stdout is not None
    assert process.stderr is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(feed)
        nursery.start_soon(end)
        nursery.start_soon(partial(read, "output", process.stdout))
        nursery.start_soon(partial(read, "error output", process.stderr))
    if excess:
        raise HookFailed(f"its {excess[0]} is longer than {MOST_OUTPUT} bytes")
    return outputs["output"], outputs["error output"]


def _kill(process: trio.Process) -> None:
    """Kill the process group of *process*, if anything of it is left."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        pass
