"""An ASGI application as a target.

The application gets a complete request as an ordinary one. ``receive`` yields the content from
the store, block by block; what it sends is recorded, and replayed by the server. So an upload
may be cut and resumed any number of times, and the application sees one request.

The scope has an extension, ``scope["extensions"]["trioresume"]``, see :class:`ASGITarget`.

Which event loop
================

An application may need asyncio, or run on any loop, as Starlette does by way of anyio. Nobody
can tell from outside: FastAPI runs on trio until a route uses a driver that does not. Every
ASGI application runs on asyncio, so this is the default. ``loop="trio"`` runs the application
in the server's own loop, which saves the way to another thread.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from typing import TYPE_CHECKING, Any, Literal, TypeAlias
from urllib.parse import unquote_to_bytes

import trio

from trioresume.errors import CallerError
from trioresume.protocol.dialects.plain_request import plain_fields
from trioresume.protocol.heads import Fields
from trioresume.server.api.handler import BLOCK_SIZE, CallPolicy
from trioresume.targets.applications.addresses import client_of, scheme_of, server_of
from trioresume.targets.applications.answer import Answer
from trioresume.targets.applications.asyncio_thread import (
    LAST_SECONDS,
    AsyncioThread,
)

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import ContentFile, Request, Response

__all__ = ["ASGITarget", "AsgiApplication"]

logger = logging.getLogger("trioresume.applications")

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
AsgiApplication: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

VERSIONS = {"version": "3.0", "spec_version": "2.5"}


class ASGITarget:
    """A :class:`~trioresume.Target` that calls an ASGI application.

    *loop* is the event loop in which the application runs: ``"asyncio"``, in a thread of its
    own, or ``"trio"``, in the server's. *idempotent* says that a second call for the same
    request does no harm, as :func:`trioresume.idempotent` does for a handler.

    The scope's extension ``trioresume`` has ``operation``, the id of the upload, the same
    whenever the application is called for it, or None for a request that is not recorded;
    ``principal``, the sender's name from ``Config.authenticate`` or None; and ``progress``, an
    async function with the arguments ``done``, ``total`` and ``remark`` of
    :meth:`trioresume.Request.progress`.
    """

    def __init__(
        self,
        app: AsgiApplication,
        *,
        loop: Literal["asyncio", "trio"] = "asyncio",
        idempotent: bool = False,
    ) -> None:
        if loop not in ("asyncio", "trio"):
            raise CallerError("loop is 'asyncio' or 'trio'")
        self.policy = CallPolicy.IDEMPOTENT if idempotent else CallPolicy.AT_MOST_ONCE
        self._app = app
        self._loop = loop
        self._config: Config
        self._calls: trio.Nursery
        self._thread: AsyncioThread | None = None
        self._state: dict[str, Any] = {}

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        """Admit everything: an application judges a request when it has it."""

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Run the application's lifespan while the block runs.

        Raises :class:`~trioresume.errors.CallerError` if the application refuses to start. At
        the end, calls that still run after their response may finish.
        """
        self._config = config
        async with AsyncExitStack() as stack:
            if self._loop == "asyncio":
                self._thread = await stack.enter_async_context(AsyncioThread.running())
            lifespan = _Lifespan()
            async with trio.open_nursery() as living:
                living.start_soon(self._live, lifespan)
                await lifespan.start()
                if lifespan.refusal is None:
                    async with trio.open_nursery() as self._calls:
                        yield
                    await lifespan.stop()
                living.cancel_scope.deadline = trio.current_time() + LAST_SECONDS
            # Not in the nursery, which would put the error into a group.
            if lifespan.refusal is not None:
                raise CallerError(f"the application does not start: {lifespan.refusal}")

    async def _live(self, lifespan: _Lifespan) -> None:
        scope = {"type": "lifespan", "asgi": VERSIONS, "state": self._state}
        failure: Exception | None = None
        try:
            await self._run(scope, lifespan.receive, lifespan.send)
        except* Exception as group:  # noqa: BLE001 - many applications have no lifespan
            failure = _only(group)
        lifespan.end(failure)

    async def _run(
        self,
        scope: Scope,
        receive: Callable[[], Awaitable[Message]],
        send: Callable[[Message], Awaitable[None]],
    ) -> None:
        """Run the application in its loop; *receive* and *send* run in trio's."""
        if self._thread is None:
            await self._call_app(scope, receive, send)
            return
        async with self._thread.calls_to_trio() as calls:
            extension = scope.get("extensions", {}).get("trioresume")
            if extension is not None:
                extension["progress"] = calls.wrap(extension["progress"])
            await self._thread.run(
                self._call_app, scope, calls.wrap_kept(receive), calls.wrap(send)
            )

    async def _call_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._app(scope, receive, send)
        except (KeyboardInterrupt, SystemExit) as exc:
            # It would end the loop, and with it the requests of everybody.
            raise RuntimeError("the application tried to end the process") from exc

    async def respond(self, request: Request) -> Response:
        """Call the application, and return its response."""
        answer = Answer(request.method)
        self._calls.start_soon(self._respond, request, answer)
        return await answer.response()

    async def _respond(self, request: Request, answer: Answer) -> None:
        failure: Exception | None = None
        try:
            with closing(await request.body.open()) as content:
                call = _Call(content, request.body.length, answer)
                await self._run(self._scope(request), call.receive, call.send)
        except* Exception as group:  # noqa: BLE001 - the answer raises it where it is awaited
            failure = _only(group)
        finally:
            answer.end(failure)
        if failure is not None and answer.is_whole:
            logger.error(
                "%s %s failed after its response",
                request.method,
                request.path,
                exc_info=failure,
            )

    def _scope(self, request: Request) -> Scope:
        head, config = request.head, self._config
        fields = plain_fields(head.fields, request.body.length)
        root = config.root_path
        scheme = scheme_of(head, config)
        return {
            "type": "http",
            "asgi": VERSIONS,
            "http_version": head.http_version,
            "method": head.method,
            "scheme": scheme,
            "path": unquote_to_bytes(root + head.path).decode("utf-8", "replace"),
            "raw_path": (root + head.path).encode("latin-1"),
            "query_string": head.query.encode("latin-1"),
            "root_path": root,
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in fields],
            "client": client_of(head),
            "server": server_of(head, scheme),
            "state": dict(self._state),
            "extensions": {
                "trioresume": {
                    "operation": request.operation_id,
                    "principal": request.principal,
                    "progress": request.progress,
                }
            },
        }


def _only(group: BaseExceptionGroup[Exception]) -> Exception:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    assert isinstance(error, Exception)
    return error


class _Call:
    """``receive`` and ``send`` of one request, in trio's loop."""

    def __init__(self, content: ContentFile, length: int, answer: Answer) -> None:
        self._content = content
        self._answer = answer
        self._left = length
        self._is_read = False
        self._turn = trio.Lock()

    async def receive(self) -> Message:
        async with self._turn:
            if not self._is_read and not self._answer.finished.is_set():
                block = b""
                if self._left:
                    # The position moves only with the result, and a cancelled call waits for
                    # its thread: so the next call goes on where this one ended.
                    size = min(BLOCK_SIZE, self._left)
                    block = await trio.to_thread.run_sync(self._content.read, size)
                    self._left -= len(block)
                self._is_read = not self._left
                return {
                    "type": "http.request",
                    "body": block,
                    "more_body": not self._is_read,
                }
        await self._answer.finished.wait()
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "http.response.start":
            pairs = message.get("headers", ())
            fields = Fields.from_wire((bytes(n), bytes(v)) for n, v in pairs)
            if message.get("trailers"):
                raise CallerError("trailers cannot be recorded")
            self._answer.start(message["status"], fields)
        elif kind == "http.response.body":
            more = bool(message.get("more_body", False))
            try:
                await self._answer.write(bytes(message.get("body", b"")), more=more)
            except trio.BrokenResourceError:
                # As the specification wants it: an error of the operating system's kind.
                raise OSError("the client is gone") from None
        else:
            raise CallerError(f"an application cannot send {kind!r} here")


class _Lifespan:
    """The conversation about the start and the end of the application."""

    def __init__(self) -> None:
        self.refusal: str | None = None
        """Why the application does not start, if so."""
        self._ends = trio.Event()
        self._asked = 0
        self._started = trio.Event()
        self._stopped = trio.Event()

    async def start(self) -> None:
        await self._started.wait()

    async def stop(self) -> None:
        self._ends.set()
        await self._stopped.wait()

    async def receive(self) -> Message:
        self._asked += 1
        if self._asked == 1:
            return {"type": "lifespan.startup"}
        await self._ends.wait()
        if self._asked > 2:
            await trio.sleep_forever()
        return {"type": "lifespan.shutdown"}

    async def send(self, message: Message) -> None:
        kind = message["type"]
        if kind == "lifespan.startup.failed":
            self.refusal = message.get("message") or "it gave no reason"
        elif kind == "lifespan.shutdown.failed":
            logger.error("the application's end: %s", message.get("message", ""))
        if kind.startswith("lifespan.startup."):
            self._started.set()
        elif kind.startswith("lifespan.shutdown."):
            self._stopped.set()

    def end(self, failure: Exception | None) -> None:
        """Note that the application is done with the lifespan, perhaps with *failure*."""
        if failure is not None and self._started.is_set():
            if self.refusal is None:
                logger.error("the application's lifespan failed", exc_info=failure)
        elif failure is not None:
            # The specification: then the application does not know of lifespans.
            logger.info("the application has no lifespan: %r", failure)
        self._started.set()
        self._stopped.set()
