"""``App``: an ASGI application, and the engine that it starts and stops.

The engine begins with the lifespan of the application, or with :meth:`App.running` in the
lifespan of a larger one. Frameworks do not tell the applications that are mounted in them of
their lifespan, and Django has none. So without both, the engine begins with the first request
and ends with the event loop.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.asgi.engines import TrioEngine, in_thread
from trioresume.errors import CallerError
from trioresume.server.api.config import Config
from trioresume.server.api.handler import as_target
from trioresume.server.routes.upload_page import UploadPage
from trioresume.server.serving import running_engine

if TYPE_CHECKING:
    from trioresume.asgi.channels import Receive, Send
    from trioresume.asgi.engines import Engine, Scope
    from trioresume.server.api.handler import AnyTarget, Handler
    from trioresume.store.port import Store

__all__ = ["App"]

logger = logging.getLogger("trioresume.asgi")


class App:
    """An ASGI application that serves resumable uploads.

    *handler* is called with each complete request, or is a :class:`~trioresume.Target` such as
    :class:`~trioresume.FileService`. *config* is as for :func:`trioresume.serve`; the settings
    about listening and about HTTP versions are the ASGI server's business and have no effect.
    If the application is mounted under a path, ``root_path`` is that path. *store* replaces
    the one on disk in ``config.data_dir``; it is closed when the engine ends.

    One process serves a data directory: run the ASGI server with one worker. Raises
    :class:`~trioresume.errors.CallerError` for a *config* with ``ssl``.
    """

    def __init__(
        self,
        handler: Handler | AnyTarget,
        config: Config | None = None,
        *,
        store: Store | None = None,
    ) -> None:
        self._config = config or Config()
        if self._config.ssl is not None:
            raise CallerError("ssl is for trioresume.serve: the ASGI server has TLS")
        self._target = as_target(handler)
        self._page = None if self._config.ui is None else UploadPage(self._config)
        self._store = store
        self._engine: Engine | None = None
        self._unasked: _Start | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or run the lifespan, as the ASGI server asks."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(receive, send)
        elif kind == "http":
            if self._engine is None:
                await self._start_unasked()
            assert self._engine is not None
            await self._engine.answer(scope, receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close", "code": 1000})
        else:
            raise NotImplementedError(f"there is no answer to {kind!r}")

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the engine while the block runs, for the lifespan of a larger application.

        Raises as :func:`trioresume.serve`, and :class:`~trioresume.errors.CallerError` if the
        engine runs already. At the end, running requests have ``grace_timeout`` seconds;
        usually the ASGI server has ended them before.
        """
        if self._engine is not None:
            raise CallerError("the application runs already")
        engine: AbstractAsyncContextManager[Engine] = (
            in_thread(self._run) if _is_asyncio() else self._run()
        )
        async with engine as self._engine:
            try:
                yield
            finally:
                self._engine = None

    @asynccontextmanager
    async def _run(self) -> AsyncIterator[TrioEngine]:
        """Run the engine in this task of trio."""
        async with running_engine(
            self._target, self._config, store=self._store, page=self._page
        ) as doorman:
            engine = TrioEngine(doorman, self._config.grace_timeout)
            yield engine
            await engine.finish()

    async def _live(self, receive: Receive, send: Send) -> None:
        """Run the engine as long as the lifespan."""
        await receive()
        began = False
        try:
            async with self.running():
                began = True
                await send({"type": "lifespan.startup.complete"})
                await receive()
        except Exception as exc:
            if began:
                raise
            logger.exception("the engine does not start")
            await send({"type": "lifespan.startup.failed", "message": str(exc)})
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _start_unasked(self) -> None:
        """Start the engine because a request came without a lifespan before it.

        Raises what the start raises; the next request tries again.
        """
        start = self._unasked
        if start is None:
            start = self._unasked = _Start(self)
            start.begin()
        try:
            await start.wait()
        finally:
            if start.failure is not None:
                self._unasked = None
        if start.failure is not None:
            raise start.failure


class _Start:
    """The engine's start without a lifespan. It runs until the event loop ends."""

    def __init__(self, app: App) -> None:
        self.failure: Exception | None = None
        self._app = app
        self._done: asyncio.Event | trio.Event
        self._task: object = None

    def begin(self) -> None:
        if _is_asyncio():
            self._done = asyncio.Event()
            # Servers cancel such tasks at their end, as asyncio.run does.
            self._task = asyncio.create_task(self._keep())
        else:
            self._done = trio.Event()
            # A system task is cancelled when the main task has ended.
            self._task = trio.lowlevel.spawn_system_task(self._keep)

    async def wait(self) -> None:
        await self._done.wait()

    async def _keep(self) -> None:
        try:
            async with self._app.running():
                self._done.set()
                await (type(self._done)()).wait()  # until the loop ends
        except Exception as exc:
            logger.exception("the engine does not run")
            self.failure = exc
            self._done.set()


def _is_asyncio() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
