"""Holding collection: nothing that is stored is removed while a backup copies it.

If a service runs, the control socket has this command::

    → {"do": "hold"}
    ← {"held": true}          from now on no chunk is removed
    → {"do": "hold"}          still here: at least every RENEW_EVERY seconds
    → {"do": "release"}
    ← {"done": true}          the hold lasted until now

A client that goes away, or is silent for :data:`SILENCE` seconds, loses the hold, so that a
backup that hangs does not fill the disk. It then never hears ``done``, and so knows that its
copy may lack something.

If no service runs, the directory's lock is held shared: that needs no write access, and no
service can start meanwhile. A directory without a lock file was never served, or is a copy.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import StorageError, StoreLocked, TrioresumeError
from trioresume.server.keeper.collect import PATIENCE, RETRY_DELAY
from trioresume.server.keeper.control_socket import Command, calling
from trioresume.store.file_system.data_dir import share_lock

if TYPE_CHECKING:
    from trioresume.server.keeper.conversation import Conversation, Message
    from trioresume.server.uploads.expiry import Collector

__all__ = ["Hold", "HoldLost", "holding", "holding_for_others"]

SILENCE = 60.0
"""Seconds of silence after which a client's hold ends."""
RENEW_EVERY = 5.0


class HoldLost(StorageError):
    """Collection was not held until the end, so something may have been removed."""


def holding_for_others(collector: Collector, silence: float = SILENCE) -> Command:
    """Return the command ``hold``, which the service obeys."""

    async def obey(talk: Conversation, message: Message) -> None:
        async with collector.held():
            await talk.say({"held": True})
            while True:
                with trio.move_on_after(silence):
                    heard = await talk.hear()
                    if heard is None:
                        return
                    if heard.get("do") == "release":
                        await talk.say({"done": True})
                        return
                    continue
                return

    return obey


class Hold:
    """A hold of collection, as :func:`holding` yields it."""

    def __init__(self, talk: Conversation | None = None) -> None:
        self._talk = talk
        self._renewing = trio.CancelScope()

    async def confirm(self) -> None:
        """End the hold. Raises :class:`HoldLost` unless it lasted until now."""
        if self._talk is None:
            return
        self._renewing.cancel()
        try:
            await self._talk.say({"do": "release"})
            while (message := await self._talk.hear()) is not None:
                if message.get("done"):
                    return
        except (trio.BrokenResourceError, trio.TooSlowError) as exc:
            raise HoldLost(_LOST) from exc
        raise HoldLost(_LOST)

    async def renew(self) -> None:
        """Tell the service again and again that this end is still there."""
        with self._renewing:
            while self._talk is not None:
                await trio.sleep(RENEW_EVERY)
                try:
                    await self._talk.say({"do": "hold"})
                except (trio.BrokenResourceError, trio.TooSlowError):
                    return  # confirm() will notice

    def stop_renewing(self) -> None:
        self._renewing.cancel()


@asynccontextmanager
async def holding(
    data_dir: str | os.PathLike[str], patience: float = PATIENCE
) -> AsyncIterator[Hold]:
    """Hold collection in *data_dir* while the block runs, whether or not a service runs.

    The block calls :meth:`Hold.confirm` at its end. Raises
    :class:`~trioresume.StoreLocked` if a process has the directory and cannot be asked for
    *patience* seconds.
    """
    errors: list[Exception] = []
    async with AsyncExitStack() as stack:
        hold = await _begin(stack, data_dir, patience)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(hold.renew)
            try:
                yield hold
            except (TrioresumeError, OSError) as exc:
                errors.append(exc)  # a nursery would put it into a group
            hold.stop_renewing()
    if errors:
        raise errors[0]


async def _begin(
    stack: AsyncExitStack, data_dir: str | os.PathLike[str], patience: float
) -> Hold:
    """Return a hold that *stack* ends."""
    deadline = trio.current_time() + patience
    while True:
        try:
            lock = share_lock(os.fspath(data_dir))
        except StoreLocked as locked:
            try:
                talk = await stack.enter_async_context(calling(data_dir))
            except OSError as exc:
                if trio.current_time() > deadline:
                    raise locked from exc
            else:
                if await _takes_hold(talk):
                    return Hold(talk)
        else:
            if lock is not None:
                stack.callback(lock.close)
            return Hold()
        await trio.sleep(RETRY_DELAY)


async def _takes_hold(talk: Conversation) -> bool:
    """Ask for a hold; return False if the service is just ending."""
    try:
        await talk.say({"do": "hold"})
        heard = await talk.hear()
    except (trio.BrokenResourceError, trio.TooSlowError):
        return False
    if heard is not None and "error" in heard:
        raise StorageError(f"the service does not hold collection: {heard['error']}")
    return heard is not None


_LOST = "the service ended, or took this process for gone, before the copy was whole"
