"""The access log: one line for each request, written beside the event loop.

A request is noted when it has ended. Notes wait in a queue; a task takes them a few times a
second and has a thread turn them into lines and write them. If the file cannot take them, for
example because its disk hangs, the queue fills, and what does not fit is dropped and counted.
So no log makes a request wait.

What must not be in a log never gets here: no field but ``Referer`` and ``User-Agent`` is
noted, and nothing of a query, which may hold the signature of an address. Text of clients is
escaped, so that a line stays a line and its parts can be told apart.
"""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import lru_cache, partial
from typing import Literal, NamedTuple

import trio

from trioresume.errors import CallerError

__all__ = ["AccessLog", "LogFormat", "LoggedRequest"]

logger = logging.getLogger("trioresume.access")

LogFormat = Literal["common", "combined", "json"]

MOST_WAITING = 16_384
"""Requests that wait to be written. More are dropped."""
MOST_AT_ONCE = 1024
"""Lines in one write."""
PAUSE = 0.2
"""Seconds between two writes, so that one write has the lines of many requests."""
LAST_SECONDS = 1.0
"""Seconds in which the last lines may be written when the service ends."""
LONGEST_TEXT = 1024
"""Characters of a path, or of a field, that a line has at most."""

_OPEN = (
    os.O_WRONLY
    | os.O_APPEND
    | os.O_CREAT
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_NOCTTY", 0)
    # Opened so, a pipe without a reader is an error, and does not make the start wait.
    | getattr(os, "O_NONBLOCK", 0)
)


class LoggedRequest(NamedTuple):
    """What the access log knows about a request that has ended."""

    ended_at: float
    """Unix time."""
    seconds: float
    """From the end of its head to the end of its response."""
    client: str
    """The client's address, without a port."""
    principal: str | None
    method: str
    target: str
    version: str
    dialect: str
    status: int
    """499 if the client left before an answer."""
    problem: str | None
    """The code of the problem that it was answered with."""
    received: int
    """Bytes of content."""
    sent: int
    """Bytes of content."""
    request_id: str
    operation: str | None
    """The id of the operation, if the client knows of one."""
    referer: str
    """As it came; its query is not written."""
    user_agent: str
    trace: str | None
    """The trace id of W3C Trace Context."""

    @property
    def path(self) -> str:
        """The target without its query, which may hold a secret."""
        return self.target.partition("?")[0][:LONGEST_TEXT]


class AccessLog:
    """A file, or standard output, with a line for each request.

    ``"-"`` as *path* is standard output. *format* is ``common`` or ``combined``, as web
    servers write them, or ``json``: an object on each line. The file is made if it is missing,
    and appended to. One service uses it.

    Raises :class:`~trioresume.errors.CallerError` if the file cannot be opened.
    """

    def __init__(
        self, path: str | os.PathLike[str], format: LogFormat = "combined"
    ) -> None:
        if format not in _FORMATS:
            raise CallerError("format is 'common', 'combined' or 'json'")
        self._is_output = path == "-"
        self._path = os.path.abspath(path)  # the working directory may change
        self._format = _FORMATS[format]
        self._file = self._open()
        self._waiting: deque[LoggedRequest] = deque()
        self._came = trio.Event()
        self._ending = trio.Event()
        self._is_failing = False
        self._is_mid_line = False
        self.written = 0
        """Lines that were written."""
        self.worker: int | None = None
        """The number of the worker process that writes, for the lines in JSON."""
        self.dropped = 0
        """Requests that were not written: the queue was full, or the write failed."""

    def _open(self) -> int:
        if self._is_output:
            # Its own descriptor, so that closing it closes nothing of the program's.
            return os.dup(1)
        try:
            return os.open(self._path, _OPEN, 0o640)
        except OSError as exc:
            raise CallerError(
                f"the access log {self._path} cannot be opened: {exc.strerror}"
            ) from exc

    def reload(self) -> None:
        """Open the file again by its name, after the old one was moved away.

        Lines that were not yet written go into the new file. Raises
        :class:`~trioresume.errors.CallerError` if it cannot be opened; the old one is used on.
        """
        if not self._is_output:
            opened = self._open()
            try:
                # A batch is written to one file: the descriptor changes between two writes.
                os.dup2(opened, self._file, inheritable=False)
            finally:
                os.close(opened)

    def note(self, request: LoggedRequest) -> None:
        """Have a line written for *request*. Never waits."""
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            return
        self._waiting.append(request)
        if len(self._waiting) == 1:
            self._came.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Write what is noted while the block runs, and what is left at its end."""
        self._ending = trio.Event()
        # A cancelled service, too, writes its last lines; but it does not wait for a disk
        # that hangs.
        scope = trio.CancelScope(shield=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run, scope)
            try:
                yield
            finally:
                scope.deadline = trio.current_time() + LAST_SECONDS
                self._ending.set()
                self._came.set()
        self.dropped += len(self._waiting)
        self._waiting.clear()

    async def _run(self, scope: trio.CancelScope) -> None:
        with scope:
            while self._waiting or not self._ending.is_set():
                await self._came.wait()
                with trio.move_on_after(PAUSE):
                    await self._ending.wait()
                self._came = trio.Event()
                if self._ending.is_set():
                    self._came.set()
                while self._waiting:
                    await self._write_some()

    async def _write_some(self) -> None:
        count = min(len(self._waiting), MOST_AT_ONCE)
        batch = [self._waiting.popleft() for _ in range(count)]
        write = partial(self._write, batch)
        # A thread that hangs with the disk must not keep the service from its end.
        await trio.to_thread.run_sync(write, abandon_on_cancel=True)

    def _write(self, batch: list[LoggedRequest]) -> None:
        """Write a line for each request of *batch*, in a thread."""
        lines = [self._format(request, self.worker) for request in batch]
        data = "\n".join([*lines, ""]).encode("ascii", "backslashreplace")
        if self._is_mid_line:
            data = b"\n" + data
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file, view) :]
        except OSError as exc:
            lost = view.tobytes().count(b"\n")
            self._is_mid_line = len(view) < len(data) and data[-len(view) - 1] != 10
            self.dropped += lost
            self.written += len(batch) - lost
            if not self._is_failing:
                self._is_failing = True
                logger.error("the access log is not written: %s", exc.strerror)
        else:
            self.written += len(batch)
            self._is_mid_line = False
            if self._is_failing:
                self._is_failing = False
                logger.warning("the access log is written again")


# The formats.

_SPECIAL = re.compile(r"[^\x20\x21\x23-\x5b\x5d-\x7e]")
_SPACES = re.compile(r"[^\x21\x23-\x5b\x5d-\x7e]")
_MONTHS = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec".split()  # noqa: SIM905


def _hex(match: re.Match[str]) -> str:
    return "".join(f"\\x{byte:02x}" for byte in match[0].encode("utf-8", "replace"))


def _quoted(text: str) -> str:
    """Return *text* so that it ends no quotation and no line; a dash for no text."""
    return _SPECIAL.sub(_hex, text[:LONGEST_TEXT]) if text else "-"


def _word(text: str | None) -> str:
    """Return *text* without spaces; a dash for no text."""
    return _SPACES.sub(_hex, text[:LONGEST_TEXT]) if text else "-"


def _without_query(address: str) -> str:
    return address.partition("#")[0].partition("?")[0]


@lru_cache(maxsize=2)
def _date(second: int) -> str:
    at = time.gmtime(second)
    # Not strftime: its names of months depend on the locale.
    return (
        f"{at.tm_mday:02}/{_MONTHS[at.tm_mon - 1]}/{at.tm_year}"
        f":{at.tm_hour:02}:{at.tm_min:02}:{at.tm_sec:02} +0000"
    )


def _common(request: LoggedRequest, worker: int | None) -> str:
    line = f"{_word(request.method)} {_word(request.path)} HTTP/{request.version}"
    return (
        f"{_word(request.client)} - {_word(request.principal)}"
        f" [{_date(int(request.ended_at))}]"
        f' "{line}" {request.status} {request.sent or "-"}'
    )


def _combined(request: LoggedRequest, worker: int | None) -> str:
    return (
        f'{_common(request, worker)} "{_quoted(_without_query(request.referer))}"'
        f' "{_quoted(request.user_agent)}"'
    )


def _json(request: LoggedRequest, worker: int | None) -> str:
    at = time.gmtime(request.ended_at)
    thousandths = int(request.ended_at % 1 * 1000)
    members = {
        "time": f"{time.strftime('%Y-%m-%dT%H:%M:%S', at)}.{thousandths:03}Z",
        "request_id": request.request_id,
        "operation": request.operation,
        "client": request.client,
        "principal": request.principal,
        "method": request.method,
        "path": request.path,
        "protocol": f"HTTP/{request.version}",
        "dialect": request.dialect,
        "status": request.status,
        "problem": request.problem,
        "received": request.received,
        "sent": request.sent,
        "seconds": round(request.seconds, 6),
        "referer": _without_query(request.referer)[:LONGEST_TEXT] or None,
        "user_agent": request.user_agent[:LONGEST_TEXT] or None,
        "trace": request.trace,
    }
    if worker is not None:
        members["worker"] = worker
    return json.dumps(members)


_FORMATS: dict[str, Callable[[LoggedRequest, int | None], str]] = {
    "common": _common,
    "combined": _combined,
    "json": _json,
}
