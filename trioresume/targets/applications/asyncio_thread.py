"""Run asyncio code in a thread, for callers in trio, and let it call back into trio.

Most ASGI applications need asyncio: their drivers and clients do. One thread with one event
loop runs all of their requests, as a server on asyncio would. trio's loop stays in its own
thread. A call from one loop into the other costs two wake-ups, some 0.1 ms; content crosses in
blocks of 256 KiB, so that is little.

Neither loop ever waits for the other in a blocking way. A call that trio cancels cancels its
asyncio task, and waits a moment for its end. A task that ignores that is left behind, and the
log says so.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import trio

__all__ = ["AsyncioThread"]

logger = logging.getLogger("trioresume.applications")

LAST_SECONDS = 1.0
"""Seconds for an asyncio task to end after it was cancelled, and for the loop to end."""

_T = TypeVar("_T")


class AsyncioThread:
    """An asyncio event loop in a thread of its own. Use :meth:`running` to make one."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Event
        self._started = trio.Event()
        self._ended = trio.Event()

    @classmethod
    @asynccontextmanager
    async def running(cls) -> AsyncIterator[AsyncioThread]:
        """Run the loop while the block runs. At its end the loop's tasks are cancelled."""
        this = cls(trio.lowlevel.current_trio_token())
        # A daemon: code that blocks the loop must not keep the process from ending.
        thread = threading.Thread(
            target=this._run_thread, name="trioresume-asyncio", daemon=True
        )
        thread.start()
        with trio.CancelScope(shield=True):  # a moment: the loop only starts
            await this._started.wait()
        try:
            yield this
        finally:
            this._loop.call_soon_threadsafe(this._stop.set)
            with trio.move_on_after(LAST_SECONDS, shield=True) as scope:
                await this._ended.wait()
            if scope.cancelled_caught:
                logger.error("code that blocks the asyncio loop is left behind")

    def _run_thread(self) -> None:
        try:
            asyncio.run(self._main())
        finally:
            self._tell_trio(self._ended.set)

    async def _main(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._stop = asyncio.Event()
        self._tell_trio(self._started.set)
        await self._stop.wait()

    def _tell_trio(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._token.run_sync_soon(function, *args)
        except trio.RunFinishedError:
            pass  # nobody is left to be told

    async def run(
        self, function: Callable[..., Coroutine[Any, Any, None]], *args: object
    ) -> None:
        """Run *function* in the loop; raise what it raises.

        When cancelled, the task is cancelled, too; after a moment it is left behind.
        """
        done = trio.Event()
        tasks: list[asyncio.Task[None]] = []

        def begin() -> None:
            task = self._loop.create_task(function(*args))
            tasks.append(task)
            task.add_done_callback(lambda _: self._tell_trio(done.set))

        def cancel() -> None:
            for task in tasks:
                task.cancel()

        self._loop.call_soon_threadsafe(begin)
        try:
            await done.wait()
        except trio.Cancelled:
            self._loop.call_soon_threadsafe(cancel)
            with trio.move_on_after(LAST_SECONDS, shield=True) as scope:
                await done.wait()
            if scope.cancelled_caught:
                logger.error("an asyncio task ignores its cancellation")
            elif not tasks[0].cancelled() and tasks[0].exception() is not None:
                logger.debug("a cancelled task failed", exc_info=tasks[0].exception())
            raise
        if tasks[0].cancelled():
            raise RuntimeError("the application cancelled its own task")
        tasks[0].result()

    @asynccontextmanager
    async def calls_to_trio(self) -> AsyncIterator[CallsToTrio]:
        """Let asyncio code call into trio within the block; its end cancels such calls."""
        async with trio.open_nursery() as nursery:
            calls = CallsToTrio(self, nursery)
            try:
                yield calls
            finally:
                calls.close()
                nursery.cancel_scope.cancel()

    # ------------------------------------------------------------ for CallsToTrio

    def begin_in_trio(self, function: Callable[..., object], *args: object) -> None:
        """Call *function* in trio's thread, soon. Called in the asyncio thread."""
        self._token.run_sync_soon(function, *args)

    def tell_asyncio(self, function: Callable[..., object], *args: object) -> None:
        """Call *function* in the asyncio thread, soon. Called in trio's thread."""
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed


class CallsToTrio:
    """Wraps async functions of trio, so that asyncio code can await them."""

    def __init__(self, thread: AsyncioThread, nursery: trio.Nursery) -> None:
        self._thread = thread
        self._nursery = nursery
        self._is_closed = False

    def close(self) -> None:
        """Begin no call any more."""
        self._is_closed = True

    def wrap(
        self, function: Callable[..., Awaitable[_T]]
    ) -> Callable[..., Coroutine[Any, Any, _T]]:
        """Return *function* for asyncio.

        If its caller is cancelled, the call goes on and its result is dropped.
        """

        async def call(*args: object, **kwargs: object) -> _T:
            future: asyncio.Future[_T] = asyncio.get_running_loop().create_future()
            try:
                self._thread.begin_in_trio(self._begin, function, args, kwargs, future)
            except trio.RunFinishedError:
                raise _gone() from None
            return await future

        return call

    def wrap_kept(
        self, function: Callable[[], Awaitable[_T]]
    ) -> Callable[[], Coroutine[Any, Any, _T]]:
        """As :meth:`wrap`, but the next caller gets the result that a cancelled one did not."""
        call = self.wrap(function)
        pending: list[asyncio.Task[_T]] = []

        async def kept() -> _T:
            if not pending:
                pending.append(asyncio.get_running_loop().create_task(call()))
                # Nobody may ask for the result: asyncio would log an error as lost.
                pending[0].add_done_callback(lambda t: t.cancelled() or t.exception())
            task = pending[0]
            result = await asyncio.shield(task)
            if pending and pending[0] is task:
                pending.clear()
            return result

        return kept

    def _begin(
        self,
        function: Callable[..., Awaitable[_T]],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        future: asyncio.Future[_T],
    ) -> None:
        if self._is_closed:
            self._thread.tell_asyncio(_fail, future, _gone())
        else:
            self._nursery.start_soon(self._perform, function, args, kwargs, future)

    async def _perform(
        self,
        function: Callable[..., Awaitable[_T]],
        args: tuple[object, ...],
        kwargs: dict[str, object],
        future: asyncio.Future[_T],
    ) -> None:
        try:
            result = await function(*args, **kwargs)
        except trio.Cancelled:
            self._thread.tell_asyncio(_fail, future, _gone())
            raise
        except Exception as exc:  # noqa: BLE001 - the caller in the other loop gets it
            self._thread.tell_asyncio(_fail, future, exc)
        else:
            self._thread.tell_asyncio(_succeed, future, result)


def _gone() -> OSError:
    return OSError("the request has ended")


def _succeed(future: asyncio.Future[_T], result: _T) -> None:
    if not future.done():
        future.set_result(result)


def _fail(future: asyncio.Future[Any], error: Exception) -> None:
    if not future.done():
        future.set_exception(error)
