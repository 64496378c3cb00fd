"""One request and its response, whatever carries them, with all that can go wrong.

Three tasks share one nursery and one exchange: the sender, the receiver, and a
watchdog that ends the exchange if nothing has moved in either direction for a while.

Three rules:

* The receiver reads *while* the sender sends. Interim responses arrive in the middle
  (R1, R30). An early final response stops the sender, because the server does not want
  the rest (RFC 9110, section 10.1.1).
* If the sender finds the connection closed, the server may have sent a reason before it
  closed (R10). So the receiver gets a moment to read it.
* Cuts are results, not exceptions: :attr:`RoundTrip.cause`. Exceptions come from the
  caller's side: a broken source, a full disk, an ``on_progress`` that failed.

Statement numbers such as R1 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

import h11
import trio

from trioresume.client.content.file_source import Piece
from trioresume.client.decisions.actions import Sent
from trioresume.client.http.exchange import (
    Connection,
    Content,
    End,
    Head,
    Interim,
    MalformedAnswer,
    NotProcessed,
)
from trioresume.client.http.tls import is_alert
from trioresume.errors import CallerError
from trioresume.protocol.allowance import Allowance
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from trioresume.client.content.sources import Source
    from trioresume.client.http.exchange import Event

__all__ = [
    "BARE_CONTINUE_SECONDS",
    "Observer",
    "Outgoing",
    "RateLimiter",
    "ResponseSink",
    "RoundTrip",
]

LAST_WORDS_SECONDS = 3.0
"""How long the client still listens to a server that stopped reading."""

BARE_CONTINUE_SECONDS = 0.25
"""How long after a 100 without an offer a response with the offer may still come.

Some proxies, and the HTTP libraries of some servers, answer ``Expect`` themselves,
before the server says anything. If the client sent content at once, a cut before the
offer would leave content that cannot be resumed.
"""


class ResponseSink(Protocol):
    """Takes a final response as it arrives."""

    async def begin(self, answer: Answer) -> None: ...

    async def write(self, data: bytes | bytearray) -> None: ...


class RateLimiter:
    """Limits all exchanges together to *rate* bytes a second."""

    def __init__(self, rate: float | None) -> None:
        if rate is not None and rate <= 0:
            raise CallerError("a rate limit must be positive")
        self._rate = rate
        self._free_at = 0.0

    @property
    def portion(self) -> int | None:
        """How many bytes to send at a time, for a smooth flow; None means no limit."""
        return None if self._rate is None else max(1024, int(self._rate / 8))

    async def take(self, size: int) -> None:
        """Wait until *size* more bytes may be sent."""
        if self._rate is None:
            return
        start = max(self._free_at, trio.current_time())
        self._free_at = start + size / self._rate
        await trio.sleep_until(start)


class Outgoing:
    """A request's content: *prefix*, then the source's bytes from *start* on.

    With *limit* it ends after that many of the source's bytes.
    """

    def __init__(
        self,
        source: Source,
        start: int = 0,
        prefix: bytes = b"",
        limit: int | None = None,
    ) -> None:
        self.source = source
        self.start = start
        self.prefix = prefix
        self.limit = limit
        self.wait_for_continue: float | None = None
        """For how many seconds to wait for the 100 before sending anyway; None: do not wait."""

    async def pieces(self) -> AsyncGenerator[Piece]:
        if self.prefix:
            yield memoryview(self.prefix)
        async with aclosing(self.source.pieces(self.start)) as pieces:
            left = self.limit
            async for piece in pieces:
                if left is None:
                    yield piece
                    continue
                part = piece[:left]
                left -= len(part)
                yield part
                if left == 0:
                    return


class Observer:
    """Hears what happens during an exchange. This class ignores it."""

    async def on_interim(self, status: int, fields: Fields) -> bool:
        """Take an interim response. Return whether the request can be resumed by now."""
        del status, fields
        return False

    async def on_ready(self) -> bool:
        """Return whether to send the content now. If False, the exchange ends."""
        return True

    def on_sent(self, size: int) -> None:
        """Note that *size* bytes of content were handed to the connection."""

    async def on_all_sent(self) -> None:
        """Note that the last byte of the request was handed to the connection."""


class RoundTrip:
    """Performs one request on *connection*. The module's docstring has the rules."""

    def __init__(
        self,
        connection: Connection,
        request: h11.Request,
        outgoing: Outgoing | None,
        sink: ResponseSink,
        *,
        idle_timeout: float,
        limiter: RateLimiter,
        observer: Observer,
    ) -> None:
        self.answer: Answer | None = None
        self.whole = False
        self.sent = Sent.NOTHING
        self.cause: Exception | None = None
        """Why the exchange has no final response, or no whole one."""
        self._failure: Exception | None = None
        self._request = request
        self._exchange = connection.begin(request, self._moved)
        self._outgoing = outgoing
        self._sink = sink
        self._idle_timeout = idle_timeout
        self._limiter = limiter
        self._observer = observer
        length = Fields.from_wire(request.headers).get("content-length")
        self._left = None if length is None else int(length)
        """How many content bytes are still to be sent; None if not known."""
        self._may_send = trio.Event()
        self._awaiting_continue = trio.CancelScope()
        self._sender_done = trio.Event()
        self._sending = trio.CancelScope()
        self._scope = trio.CancelScope()
        self._deadline = 0.0
        self._waits_for_source = False
        self._observer_acts = False
        self._in_prefix = False
        self._not_processed = False
        self._allowance = Allowance(trio.current_time())

    async def run(self) -> None:
        """Perform the request. The attributes have the result. Raises errors of the
        caller's side.

        If cancelled, the connection is in an unknown state and must be closed.
        """
        self._touch()
        with self._scope:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._watch)
                nursery.start_soon(self._guard, self._send)
                await self._guard(self._receive)
                if self._left == 0:
                    # Only the end of the message is missing. It costs no byte, and with
                    # it the connection can be used again.
                    await self._sender_done.wait()
                nursery.cancel_scope.cancel()
        if self._not_processed:
            self.sent = Sent.NOTHING
        if self._failure is not None:
            raise self._failure

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        try:
            await work()
        except Exception as exc:  # noqa: BLE001 - raised again by run(), without a group
            self._failure = self._failure or exc
            self._scope.cancel()

    # The watchdog.

    def _touch(self) -> None:
        """Note that something moved."""
        self._deadline = trio.current_time() + self._idle_timeout

    def _moved(self, size: int) -> None:
        """Note that bytes moved, *size* of them of the request's content."""
        self._touch()
        if size:
            self._allowance.earn(size)
            if not self._in_prefix:
                self._observer.on_sent(size)

    async def _watch(self) -> None:
        while True:
            await trio.sleep_until(self._deadline)
            if self._producing or self._observer_acts:
                self._touch()  # this side is slow, which is allowed
            elif trio.current_time() >= self._deadline:
                self.cause = self.cause or TimeoutError(
                    f"nothing moved for {self._idle_timeout:g} seconds"
                )
                self._scope.cancel()

    @property
    def _producing(self) -> bool:
        """Whether the exchange waits for content that the caller has not produced yet."""
        return (
            self._waits_for_source
            and self._outgoing is not None
            and not self._outgoing.source.waits_for_peer
        )

    # Sending.

    async def _send(self) -> None:
        with self._sending:
            try:
                await self._send_request()
            except trio.BrokenResourceError as exc:
                self.cause = exc
                # Cancelled as soon as the receiver finds a final response.
                await trio.sleep(LAST_WORDS_SECONDS)
                self._scope.cancel()
        self._sender_done.set()

    async def _send_request(self) -> None:
        await self._exchange.send_head(ends=self._outgoing is None)
        if self._outgoing is not None:
            await self._await_continue(self._outgoing)
            if not await self._is_ready():
                self._scope.cancel()
                await trio.sleep_forever()
            await self._send_content(self._outgoing)
        self.sent = Sent.ALL
        await self._observer.on_all_sent()

    async def _await_continue(self, outgoing: Outgoing) -> None:
        if outgoing.wait_for_continue is not None:
            self._await_no_longer(outgoing.wait_for_continue)
            with self._awaiting_continue:
                await self._may_send.wait()

    def _await_no_longer(self, seconds: float) -> None:
        scope = self._awaiting_continue
        scope.deadline = min(scope.deadline, trio.current_time() + seconds)

    async def _is_ready(self) -> bool:
        self._observer_acts = True
        try:
            return await self._observer.on_ready()
        finally:
            self._observer_acts = False
            self._touch()

    async def _send_content(self, outgoing: Outgoing) -> None:
        skip = len(outgoing.prefix)
        async with aclosing(outgoing.pieces()) as pieces:
            while (piece := await self._next(pieces)) is not None:
                self.sent = Sent.SOME
                self._in_prefix = skip > 0
                await self._send_piece(piece)
                skip = max(0, skip - len(piece))
                if self._left is not None:
                    self._left -= len(piece)
        await self._exchange.send_end()

    async def _next(self, pieces: AsyncIterator[Piece]) -> Piece | None:
        self._waits_for_source = True
        try:
            return await anext(pieces, None)
        finally:
            self._waits_for_source = False
            self._touch()

    async def _send_piece(self, piece: Piece) -> None:
        portion = self._limiter.portion or len(piece)
        for start in range(0, len(piece), portion):
            part = piece[start : start + portion]
            await self._limiter.take(len(part))
            self._touch()
            await self._exchange.send_content(part)

    # Receiving.

    async def _receive(self) -> None:
        try:
            while not self.whole:
                await self._handle(await self._exchange.receive())
        except (trio.BrokenResourceError, EOFError) as exc:
            # The first failure is the better reason, but for what TLS says at the end.
            if self.cause is None or is_alert(exc):
                self.cause = exc
        except NotProcessed as exc:
            self.cause = exc
            self._not_processed = True
        except MalformedAnswer as exc:
            self.cause = self.cause or exc

    def _copied(self, fields: Fields) -> frozenset[str]:
        """Names of the *fields* that are the request's own, given back."""
        asked = set(Fields.from_wire(self._request.headers))
        return frozenset(line[0] for line in fields if line in asked)

    async def _handle(self, event: Event) -> None:
        match event:
            case Interim(status, fields):
                if not self._allowance.spend(1, trio.current_time()):
                    raise MalformedAnswer("the server sends too many interim responses")
                if await self._observer.on_interim(status, fields):
                    self._may_send.set()
                elif status == 100:
                    self._await_no_longer(BARE_CONTINUE_SECONDS)
            case Head(status, fields):
                if self._left != 0:
                    self._sending.cancel()
                self.answer = Answer(status, fields, self._copied(fields))
                await self._sink.begin(self.answer)
            case Content(data):
                await self._sink.write(data)
            case End():
                self.whole = True
