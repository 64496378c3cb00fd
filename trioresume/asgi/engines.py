"""The running engine: in the loop of a trio server, or in a thread beside an asyncio server."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, MutableMapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import trio

from trioresume.asgi.channels import AsyncioChannel, TrioChannel
from trioresume.server.http.asgi.exchange import answer_request

if TYPE_CHECKING:
    from trioresume.asgi.channels import Receive, Send
    from trioresume.server.doorman import Doorman
    from trioresume.server.http.asgi.body import Channel

__all__ = ["Engine", "TrioEngine", "in_thread"]

Scope = MutableMapping[str, Any]


class Engine(Protocol):
    """Answers requests while it runs."""

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, in the loop of the ASGI server."""
        ...


class TrioEngine:
    """The engine in trio's loop."""

    def __init__(self, doorman: Doorman, grace: float) -> None:
        self._doorman = doorman
        self._grace = grace
        self._requests: set[trio.CancelScope] = set()
        self._ended = trio.Event()

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.answer_through(scope, TrioChannel(receive, send))

    async def answer_through(self, scope: Scope, channel: Channel) -> None:
        """Answer one request through *channel*. Raises as ``answer_request``."""
        with trio.CancelScope(deadline=self._doorman.deadline) as request:
            self._requests.add(request)
            try:
                await answer_request(
                    scope,
                    channel,
                    self._doorman.front,
                    lambda: self._doorman.deadline,
                )
            finally:
                self._requests.discard(request)
                self._ended.set()

    async def finish(self) -> None:
        """Let the running requests end, within the grace period."""
        self._doorman.deadline = trio.current_time() + self._grace
        for request in self._requests:
            request.deadline = self._doorman.deadline
        while self._requests:
            self._ended = trio.Event()
            await self._ended.wait()


@asynccontextmanager
async def in_thread(
    run: Callable[[], AbstractAsyncContextManager[TrioEngine]],
) -> AsyncIterator[Engine]:
    """Run an engine in a thread with a loop of its own; used in asyncio.

    Raises what *run* raises on entering, and on leaving.
    """
    thread = _TrioThread(run)
    await thread.start()
    try:
        yield thread
    finally:
        await thread.stop()


class _TrioThread:
    """An engine in a thread, as asyncio sees it."""

    def __init__(
        self, run: Callable[[], AbstractAsyncContextManager[TrioEngine]]
    ) -> None:
        self._run = run
        self._loop = asyncio.get_running_loop()
        self._started: asyncio.Future[None] = self._loop.create_future()
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._engine: TrioEngine
        self._token: trio.lowlevel.TrioToken
        self._stop: trio.Event
        self._nursery: trio.Nursery

    async def start(self) -> None:
        # A daemon: if the process ends without a word, nothing that was announced is lost.
        threading.Thread(
            target=self._run_thread, name="trioresume", daemon=True
        ).start()
        await self._started

    async def stop(self) -> None:
        self._token.run_sync_soon(self._stop.set)
        await asyncio.shield(self._ended)

    def _run_thread(self) -> None:
        failure: BaseException | None = None
        try:
            trio.run(self._main)
        except BaseException as exc:  # noqa: BLE001 - who started the engine gets it
            failure = exc
        for future in (self._started, self._ended):
            self._tell_asyncio(_settle, future, failure)

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        async with self._run() as self._engine:
            async with trio.open_nursery() as self._nursery:
                self._tell_asyncio(_settle, self._started, None)
                await self._stop.wait()
                await self._engine.finish()

    def _tell_asyncio(self, function: Callable[..., object], *args: object) -> None:
        try:
            self._loop.call_soon_threadsafe(function, *args)
        except RuntimeError:
            pass  # the loop is closed: nobody is left to be told

    async def answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        channel = AsyncioChannel(self._token, receive, send)
        answered: asyncio.Future[None] = self._loop.create_future()
        whole = trio.CancelScope()
        self._token.run_sync_soon(self._begin, scope, channel, whole, answered)
        running = asyncio.create_task(channel.run())
        try:
            await asyncio.shield(answered)
        except asyncio.CancelledError:
            # The server gives the request up: it may end only when the engine is done with it.
            self._token.run_sync_soon(whole.cancel)
            await asyncio.wait([answered])
            raise
        finally:
            running.cancel()
            await asyncio.wait([running])

    def _begin(
        self,
        scope: Scope,
        channel: Channel,
        whole: trio.CancelScope,
        answered: asyncio.Future[None],
    ) -> None:
        if self._stop.is_set():
            error = RuntimeError("trioresume has ended")
            self._tell_asyncio(_settle, answered, error)
        else:
            self._nursery.start_soon(self._answer, scope, channel, whole, answered)

    async def _answer(
        self,
        scope: Scope,
        channel: Channel,
        whole: trio.CancelScope,
        answered: asyncio.Future[None],
    ) -> None:
        failure: Exception | None = None
        try:
            with whole:
                await self._engine.answer_through(scope, channel)
        except Exception as exc:  # noqa: BLE001 - the ASGI server gets it
            failure = exc
        finally:
            self._tell_asyncio(_settle, answered, failure)


def _settle(future: asyncio.Future[None], failure: BaseException | None) -> None:
    if future.done():
        return
    if failure is None:
        future.set_result(None)
    else:
        future.set_exception(failure)
        future.exception()  # nobody may ask: asyncio would log it as lost
