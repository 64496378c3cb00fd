"""Watching requests: each one is counted, and noted in the access log, when it has ended.

:meth:`Requests.attach` puts this between the carriers and the way of every request. It wraps
the request's body, to count what the service has taken of it, and gives the exchange a note
(:class:`~trioresume.server.http.exchange.Watched`), which counts what is sent.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from itertools import count
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects import PLAIN
from trioresume.protocol.forwarded import host_of
from trioresume.protocol.heads import Fields, has_content
from trioresume.server.api.access_log import AccessLog, LoggedRequest
from trioresume.server.api.handler import closing_iterator
from trioresume.server.uploads.locations import concealed
from trioresume.server.watch.tally import Tally, known_method

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.http.base_exchange import BaseExchange
    from trioresume.server.http.exchange import Body, Sink
    from trioresume.server.http.front import Front, Guest
    from trioresume.server.http.stored_body import FileSender
    from trioresume.server.watch.spans import Spans

__all__ = ["Requests"]

logger = logging.getLogger("trioresume.server")

REQUEST_ID = "x-request-id"
CLIENT_LEFT = 499
"""Stands for the status of a request whose client left before an answer, as nginx has it."""
UNAVAILABLE = 503

_NOTED = ("referer", "traceparent", "user-agent")
"""The fields of a request that are logged."""

_REQUEST_ID = re.compile(r"[A-Za-z0-9._:+/=@-]{1,128}")
_TRACE = re.compile(
    r"[0-9a-f]{2}-(?P<id>[0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?"
)
_OPERATION = re.compile(r"[A-Za-z0-9_-]{22}(?=/)")
_NO_SPAN = nullcontext()


class Observed:
    """One request while it is answered: its note, and its body."""

    __slots__ = (
        "_received",
        "_sink",
        "began",
        "dialect",
        "exchange",
        "final",
        "id",
        "inner",
        "is_whole",
        "operation",
        "problem",
        "proxy",
        "sent",
        "status",
        "told",
    )

    def __init__(self, exchange: BaseExchange, proxy: str, request_id: str) -> None:
        self.exchange = exchange
        self.proxy = proxy
        """The trusted proxy that sent the request, as ``HOST:PORT``; "" if none did."""
        self.began = time.monotonic()
        self.id = request_id
        """Goes out with the response, unless it is empty."""
        self.is_whole = False
        """Whether the whole content came."""
        self.problem: ProblemCode | None = None
        self.told: Fields | None = None
        """The fields of the last interim response that told locations."""
        self.final: Fields | None = None
        """Those of the final response."""
        self.sent = 0
        # The outcome, once it has ended.
        self.status = 0
        self.dialect = PLAIN
        self.operation: str | None = None
        self.inner: Body = exchange.body
        self._sink: Sink | None = None
        self._received = 0
        exchange.body = self
        exchange.watched = self

    # As the body.

    @property
    def trailers(self) -> Fields:
        return self.inner.trailers

    async def receive(self, sink: Sink) -> None:
        self._sink = sink
        self._received -= sink.taken  # it may count from what was there before
        try:
            await self.inner.receive(sink)
            self.is_whole = True
        finally:
            self._received += sink.taken
            self._sink = None

    @property
    def received(self) -> int:
        """The bytes of content that the service has taken by now."""
        return self._received + (0 if self._sink is None else self._sink.taken)

    # As the note.

    def note_interim(self, fields: Fields) -> None:
        self.told = fields

    def finish_head(self, status: int, fields: Fields) -> Fields:
        length = fields.get("content-length")
        if length is not None and self.exchange.head.method != "HEAD":
            # What is sent in parts is counted as it is sent, from nothing on.
            self.sent = int(length) if has_content(status) else 0
        self.final = fields
        if not self.id:
            return fields
        if REQUEST_ID in fields:
            fields = fields.without(REQUEST_ID)
        return fields.plus({REQUEST_ID: self.id})

    def counted(self, blocks: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
        return self._count(blocks)

    async def _count(self, blocks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
        self.sent = 0
        async with closing_iterator(blocks) as iterator:
            async for block in iterator:
                yield block
                self.sent += len(block)

    def counting(
        self,
        begun: int,
        files: FileSender | None,
        send: Callable[[bytes], Awaitable[None]],
    ) -> tuple[FileSender | None, Callable[[bytes], Awaitable[None]]]:
        self.sent = begun

        async def send_counted(data: bytes) -> None:
            await send(data)
            self.sent += len(data)

        return None if files is None else _CountedFiles(files, self), send_counted

    # As a span.

    def attributes(self) -> dict[str, str | int]:
        """Return what a span says of the request, in OpenTelemetry's words."""
        head = self.exchange.head
        told = {
            "http.request.method": known_method(head.method),
            "url.path": concealed(head.path),
            "url.scheme": "http" if head.tls is None else "https",
            "network.protocol.version": head.http_version,
            "client.address": _client(head, self.proxy),
            "user_agent.original": head.fields.get("user-agent") or "",
        }
        return {name: value for name, value in told.items() if value}

    def outcome(self) -> dict[str, str | int]:
        """Return what a span says of the answer."""
        told: dict[str, str | int | None] = {
            "http.response.status_code": self.exchange.status or None,
            "http.request.body.size": self.received,
            "http.response.body.size": self.sent,
            "error.type": None if self.problem is None else self.problem.code,
            "trioresume.dialect": self.dialect,
            "trioresume.operation": concealed(self.operation or "") or None,
        }
        return {name: value for name, value in told.items() if value is not None}


class _CountedFiles:
    """Sends from files, and counts the bytes for *observed*. In one thread at a time."""

    def __init__(self, files: FileSender, observed: Observed) -> None:
        self._files = files
        self._observed = observed

    async def wait_writable(self) -> None:
        await self._files.wait_writable()

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        sent = self._files.send_file_nowait(descriptor, offset, size)
        self._observed.sent += sent or 0
        return sent


class Requests:
    """Watches all requests of a service. *log* gets each one, and *spans* makes one for each."""

    def __init__(
        self,
        tally: Tally,
        config: Config,
        log: AccessLog | None = None,
        spans: Spans | None = None,
    ) -> None:
        self._tally = tally
        self._spans = spans
        self._operation_path = config.operation_path
        # An id has to be unique, and is no secret.
        self._prefix = secrets.token_hex(10)
        self._numbers = count()
        self._log = log
        self._running: dict[Observed, None] = {}

    def attach(self, front: Front) -> None:
        """Watch the requests of *front* from now on."""
        answer, refuse, spans = front.answer, front.refuse, self._spans

        async def watched_answer(
            exchange: BaseExchange, guest: Guest, proxy: str
        ) -> None:
            observed = self._begin(exchange, proxy)
            with _NO_SPAN if spans is None else spans.around(observed):
                try:
                    await answer(exchange, guest, proxy)
                except trio.Cancelled:
                    # The carrier says 503 to a request that a shutdown ended.
                    self._end(observed, UNAVAILABLE)
                    raise
                except BaseException:
                    self._end(observed, CLIENT_LEFT)
                    raise
                self._end(observed, CLIENT_LEFT)

        async def watched_refusal(exchange: BaseExchange, error: PeerError) -> None:
            observed = self._begin(exchange, "")
            try:
                await refuse(exchange, error)
            finally:
                self._end(observed, CLIENT_LEFT)

        front.answer, front.refuse = watched_answer, watched_refusal

    @property
    def running(self) -> int:
        """The number of requests that are being answered."""
        return len(self._running)

    @property
    def received(self) -> int:
        """The bytes of content of all requests, also of those that still run."""
        return self._tally.received + sum(each.received for each in self._running)

    def _begin(self, exchange: BaseExchange, proxy: str) -> Observed:
        request_id = "" if self._log is None else self._request_id(exchange.head, proxy)
        observed = Observed(exchange, proxy, request_id)
        self._running[observed] = None
        return observed

    def _end(self, observed: Observed, unanswered: int) -> None:
        exchange = observed.exchange
        head = exchange.head
        del self._running[observed]
        # Otherwise they would refer to each other, and live until the garbage collector runs.
        exchange.watched, exchange.body = None, observed.inner
        took = time.monotonic() - observed.began
        status = observed.status = exchange.status or unanswered
        self._describe(observed)
        dialect = observed.dialect
        tally = self._tally
        tally.received += observed.received
        tally.sent += observed.sent
        tally.note_request(known_method(head.method), dialect, status, took)
        problem = observed.problem
        if problem is not None:
            tally.problems[status, problem.code] += 1
        if problem is ProblemCode.SUPERSEDED:
            tally.takeovers[dialect] += 1
        elif (
            head.has_content
            and not observed.is_whole
            and (status == CLIENT_LEFT or problem is ProblemCode.REQUEST_TIMEOUT)
        ):
            tally.cuts[dialect] += 1
        if self._log is not None:
            noted = dict.fromkeys(_NOTED, "")
            for name, value in head.fields:
                if name in noted:
                    noted[name] = value
            self._log.note(
                LoggedRequest(
                    ended_at=time.time(),
                    seconds=took,
                    client=_client(head, observed.proxy),
                    principal=_principal(exchange),
                    method=head.method,
                    target=concealed(head.path),
                    version=head.http_version,
                    dialect=dialect,
                    status=status,
                    problem=None if problem is None else problem.code,
                    received=observed.received,
                    sent=observed.sent,
                    request_id=observed.id,
                    operation=concealed(observed.operation or "") or None,
                    referer=noted["referer"],
                    user_agent=noted["user-agent"],
                    trace=_trace_of(noted["traceparent"]),
                )
            )

    def _request_id(self, head: RequestHead, proxy: str) -> str:
        """Return the id that a trusted proxy gave the request, or a new one.

        Others are not believed: they could give many requests the same.
        """
        given = head.fields.get(REQUEST_ID) if proxy else None
        if given is not None and _REQUEST_ID.fullmatch(given):
            return given
        return f"{self._prefix}{next(self._numbers):012x}"

    def _describe(self, observed: Observed) -> None:
        """Note the dialect of a request, and the operation that it is about."""
        exchange = observed.exchange
        name = exchange.dialect.name
        path = exchange.head.target
        of_operation = path.startswith(self._operation_path)
        if name == "seed" and exchange.preferences.resume is None and not of_operation:
            return  # it is plain, and its client was told of no operation
        observed.dialect = name
        if of_operation:
            observed.operation = self._operation_at(path)
            return
        for fields in (observed.told, observed.final):
            if fields is not None and observed.operation is None:
                for told in ("response-message-location", "location"):
                    observed.operation = observed.operation or self._operation_at(
                        fields.get(told) or ""
                    )

    def _operation_at(self, place: str) -> str | None:
        """Return the id of the operation that the address *place* is about."""
        _, found, rest = place.partition(self._operation_path)
        match = _OPERATION.match(rest) if found else None
        return None if match is None else match[0]


def _principal(exchange: BaseExchange) -> str | None:
    # The service sets it only if it asks who sent the request.
    sender = getattr(exchange, "sender", None)
    return None if sender is None else sender.name


def _client(head: RequestHead, proxy: str) -> str:
    # A proxy names its client without a port.
    return host_of(head.peer) if not proxy or head.peer == proxy else head.peer


def _trace_of(traceparent: str) -> str | None:
    match = _TRACE.fullmatch(traceparent) if traceparent else None
    return None if match is None else match["id"]
