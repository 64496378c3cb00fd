"""What the server reads again at SIGHUP: certificates, tokens, the log file and the like.

There is one list. Each entry reads its files again, or raises and keeps what it has. A reload
ends no connection. It runs in a task of its own, so that the server obeys SIGTERM even while
a file system hangs. Signals that arrive during a reload make one more reload, not several: the
files may have changed since they were read.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import trio

from trioresume.errors import TrioresumeError

__all__ = ["Reloads"]

logger = logging.getLogger("trioresume.cli")


@dataclass(frozen=True, slots=True)
class _Reload:
    name: str
    run: Callable[[], Awaitable[object]]
    done: str
    kept: str


class Reloads:
    """The list of what the server reads again at SIGHUP, in the order of the additions."""

    def __init__(self) -> None:
        self._reloads: list[_Reload] = []
        self._wanted = trio.Event()
        self.announce: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint
        """Called before a reload; ``announce_end`` is called after it."""
        self.announce_end: Callable[[], Awaitable[object]] = trio.lowlevel.checkpoint

    def add(
        self,
        name: str,
        reload: Callable[[], object],
        *,
        done: str = "were read again",
        kept: str = "stay as they were",
    ) -> None:
        """Add *reload*, a function that blocks; it is called in a thread.

        It raises :class:`OSError` or :class:`~trioresume.errors.TrioresumeError` for a fault
        of its files, and has changed nothing then. *done* and *kept* follow *name*, such as
        "the tokens", in the log.
        """
        run = partial(trio.to_thread.run_sync, reload, abandon_on_cancel=True)
        self.add_async(name, run, done=done, kept=kept)

    def add_async(
        self,
        name: str,
        reload: Callable[[], Awaitable[object]],
        *,
        done: str = "were read again",
        kept: str = "stay as they were",
    ) -> None:
        """Do the same for an async function."""
        self._reloads.append(_Reload(name, reload, done, kept))

    def request(self) -> None:
        """Have everything read again soon. Returns at once."""
        self._wanted.set()

    async def run(self) -> None:
        """Perform the requested reloads, one after the other, until cancelled."""
        while True:
            await self._wanted.wait()
            self._wanted = trio.Event()
            await self.announce()
            if not self._reloads:
                logger.info("SIGHUP: there is nothing to read again")
            for reload in self._reloads:
                await _perform(reload)
            await self.announce_end()


async def _perform(reload: _Reload) -> None:
    """Perform *reload*, and log one line about it. No fault ends the service."""
    try:
        await reload.run()
    except (OSError, TrioresumeError) as exc:
        logger.error("SIGHUP: %s %s: %s", reload.name, reload.kept, exc)
    except Exception:
        logger.exception("SIGHUP: %s %s", reload.name, reload.kept)
    else:
        logger.info("SIGHUP: %s %s", reload.name, reload.done)
