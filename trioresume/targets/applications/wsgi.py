"""A WSGI application as a target (PEP 3333).

The application runs in a worker thread, from its call to the end of its response. So at most
``threads`` of its requests run at a time; the others wait in line, with their content in the
store. ``wsgi.input`` is the stored content as a file, seekable, which frameworks like.
"""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeAlias, cast
from urllib.parse import unquote_to_bytes
from wsgiref.util import FileWrapper

import trio

from trioresume.errors import CallerError
from trioresume.protocol.dialects.plain_request import plain_fields
from trioresume.protocol.heads import Fields
from trioresume.server.api.handler import BLOCK_SIZE, CallPolicy
from trioresume.targets.applications.addresses import client_of, scheme_of, server_of
from trioresume.targets.applications.answer import Answer

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import ContentFile, Request, Response

__all__ = ["WSGITarget", "WsgiApplication"]

logger = logging.getLogger("trioresume.applications")

WsgiApplication: TypeAlias = Callable[
    [dict[str, Any], Callable[..., Any]], Iterable[bytes]
]


class WSGITarget:
    """A :class:`~trioresume.Target` that calls a WSGI application in worker threads.

    At most *threads* requests run at a time. *idempotent* says that a second call for the same
    request does no harm, as :func:`trioresume.idempotent` does for a handler.

    The environment has ``trioresume.operation``, the id of the upload, or None for a request
    that is not recorded; ``trioresume.principal``, the sender's name from
    ``Config.authenticate`` or None; and ``trioresume.progress``, a function with the arguments
    ``done``, ``total`` and ``remark`` of :meth:`trioresume.Request.progress`.

    Raises :class:`~trioresume.errors.CallerError` if *threads* is less than 1.
    """

    def __init__(
        self, app: WsgiApplication, *, threads: int = 8, idempotent: bool = False
    ) -> None:
        if threads < 1:
            raise CallerError("threads must be at least 1")
        self.policy = CallPolicy.IDEMPOTENT if idempotent else CallPolicy.AT_MOST_ONCE
        self._app = app
        self._most = threads
        self._threads: trio.CapacityLimiter
        self._config: Config
        self._calls: trio.Nursery

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        """Admit everything: an application judges a request when it has it."""

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Run calls of the application while the block runs; wait for the last ones."""
        self._config = config
        self._threads = trio.CapacityLimiter(self._most)
        async with trio.open_nursery() as self._calls:
            yield

    async def respond(self, request: Request) -> Response:
        """Call the application, and return its response."""
        answer = Answer(request.method)
        self._calls.start_soon(self._respond, request, answer)
        return await answer.response()

    async def _respond(self, request: Request, answer: Answer) -> None:
        failure: Exception | None = None
        try:
            content = await request.body.open()
            call = _Call(self._app, self._environ(request), content, answer)
            # Abandoned only when the server ends: a thread cannot be cancelled.
            await trio.to_thread.run_sync(
                call.run, abandon_on_cancel=True, limiter=self._threads
            )
        except Exception as exc:  # noqa: BLE001 - the answer raises it where it is awaited
            failure = exc
        finally:
            answer.end(failure)
        if failure is not None and answer.is_whole:
            logger.error(
                "%s %s failed after its response",
                request.method,
                request.path,
                exc_info=failure,
            )

    def _environ(self, request: Request) -> dict[str, Any]:
        head = request.head
        scheme = scheme_of(head, self._config)
        host, port = server_of(head, scheme) or ("localhost", 80)
        path = unquote_to_bytes(head.path).decode("latin-1")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": head.method,
            "SCRIPT_NAME": self._config.root_path,
            "PATH_INFO": path,
            "QUERY_STRING": head.query,
            "REQUEST_URI": head.target,
            "SERVER_NAME": host,
            "SERVER_PORT": str(port),
            "SERVER_PROTOCOL": f"HTTP/{head.http_version}",
            "REMOTE_ADDR": (client_of(head) or ("", 0))[0],
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": scheme,
            "wsgi.errors": sys.stderr,
            "wsgi.multithread": True,
            "wsgi.multiprocess": False,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
            "trioresume.operation": request.operation_id,
            "trioresume.principal": request.principal,
            "trioresume.progress": _blocking(request.progress),
        }
        for name, value in plain_fields(head.fields, request.body.length):
            if "_" in name:
                continue  # it would look like the field with hyphens
            key = name.upper().replace("-", "_")
            if key not in ("CONTENT_TYPE", "CONTENT_LENGTH"):
                key = f"HTTP_{key}"
            if key in environ:
                value = f"{environ[key]},{value}"
            environ[key] = value
        return environ


def _blocking(progress: Callable[..., Any]) -> Callable[..., None]:
    def report(done: int, total: int | None = None, remark: str = "") -> None:
        trio.from_thread.run(progress, done, total, remark)

    return report


class _Call:
    """One call of the application, in a worker thread."""

    def __init__(
        self,
        app: WsgiApplication,
        environ: dict[str, Any],
        content: ContentFile,
        answer: Answer,
    ) -> None:
        self._app = app
        self._environ = environ
        self._content = content
        self._answer = answer
        self._began = False

    def run(self) -> None:
        """Call the application and write its response. Raises what it raises."""
        # The stub of BufferedReader wants a subclass of RawIOBase, which this is.
        with io.BufferedReader(self._content, BLOCK_SIZE) as content:
            self._environ["wsgi.input"] = content
            try:
                blocks = self._app(self._environ, self._start_response)
                try:
                    if isinstance(blocks, list) and len(blocks) == 1 and self._began:
                        self._write(blocks[0], more=False)  # in one hop to trio
                    else:
                        self._write_all(blocks)
                finally:
                    close = getattr(blocks, "close", None)
                    if close is not None:
                        close()
            except (KeyboardInterrupt, SystemExit) as exc:
                raise RuntimeError("the application tried to end the process") from exc

    def _write_all(self, blocks: Iterable[bytes]) -> None:
        for block in blocks:
            if not self._began:
                raise CallerError("the application did not call start_response")
            if block:
                self._write(block, more=True)
        if not self._began:
            raise CallerError("the application did not call start_response")
        self._write(b"", more=False)

    def _start_response(
        self,
        status: str,
        headers: list[tuple[str, str]],
        exc_info: Any = None,
    ) -> Callable[[bytes], None]:
        if exc_info is not None and self._answer.is_begun:
            raise cast("BaseException", exc_info[1]).with_traceback(exc_info[2])
        if self._began and exc_info is None:
            raise CallerError("start_response was called again")
        number = status[:3]
        if not (number.isascii() and number.isdigit()):
            raise CallerError(f"{status!r} is not a status")
        trio.from_thread.run_sync(self._answer.start, int(number), Fields(headers))
        self._began = True
        return lambda block: self._write(block, more=True)

    def _write(self, block: bytes, *, more: bool) -> None:
        trio.from_thread.run(_write, self._answer, block, more)


async def _write(answer: Answer, block: bytes, more: bool) -> None:
    await answer.write(block, more=more)
