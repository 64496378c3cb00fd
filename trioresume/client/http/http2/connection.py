"""A connection over HTTP/2, which the exchanges on its streams share.

Two tasks of its own read and write, in the client's nursery: the streams must go on when one
of them is cancelled. A third task watches whether the server is alive: if it has been silent
for half the idle timeout while a response is awaited, it is sent a PING. If nothing moves
for the whole timeout, the connection is broken, and all its exchanges are cut.

An exchange that ends early resets its stream, never the connection. No exchange begins on a
connection that the server is leaving (GOAWAY), or on which a stream timed out while the
connection itself was silent, too.

Statement numbers such as R10 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TYPE_CHECKING

import h2.exceptions
import h11
import trio

from trioresume.client.http.exchange import (
    MAX_HEAD_BYTES,
    MalformedAnswer,
    Moved,
    NotProcessed,
)
from trioresume.client.http.http2 import engine as wire
from trioresume.client.http.http2.engine import Engine, ErrorCodes
from trioresume.client.http.http2.exchange import Http2Exchange
from trioresume.client.http.http2.frames import FrameBlock
from trioresume.client.http.http2.outbox import Outbox
from trioresume.client.http.tls import HopelessConnection, is_alert

if TYPE_CHECKING:
    from trioresume.protocol.urls import Origin

__all__ = ["Http2Connection", "Http2Place"]

logger = logging.getLogger("trioresume.client")

RECEIVE_BYTES = 64 * 1024

TURN_BYTES = 256 * 1024
"""The most content of one stream before the others have their turn."""

LAST_WORDS_SECONDS = 3.0
"""How long the client still listens to a server that stopped reading."""

CLOSE_SECONDS = 1.0
"""For how long the last frames of a connection may take."""


class Http2Connection:
    """A connection to *origin*, on which requests can begin while :meth:`run` runs.

    *idle_timeout* is for how many seconds it may be silent while a response is awaited.
    """

    def __init__(
        self, stream: trio.abc.Stream, origin: Origin, idle_timeout: float
    ) -> None:
        self.origin = origin
        self._stream = stream
        self._idle_timeout = idle_timeout
        self._engine = Engine(most_section=MAX_HEAD_BYTES, now=trio.current_time())
        self._outbox = Outbox(stream, self._note_moved)
        self._exchanges: dict[int, Http2Exchange] = {}
        self._places = 0
        """How many requests run, or are about to begin."""
        self._heard_at = self._moved_at = trio.current_time()
        self._pinged = False
        self._changed = trio.Event()
        """Set when the number of requests, or the end, changes; then replaced."""
        self._senders: dict[int, trio.Event] = {}
        """The streams that wait until the server takes more content, in their order."""
        self._scope = trio.CancelScope()
        self._cause: Exception | None = None
        """Why the connection is over."""
        self._failure: Exception | None = None
        """Why nothing can be sent any more."""
        self._farewell: str | None = None
        """The error that the server named before it closed."""
        self._keeps_stream = False
        self.is_leaving = False
        """Whether no further request may begin."""
        self.wants_http1 = False
        """Whether the server wants requests over HTTP/1.1 instead."""

    # Places for requests.

    @property
    def has_place(self) -> bool:
        """Whether a request can begin now."""
        if self.is_over or self.is_leaving or not self._engine.has_ids:
            return False
        # What the server takes is known only from its settings.
        most = self._engine.most_streams if self._engine.has_settings else 1
        return self._places < most

    @property
    def may_get_place(self) -> bool:
        """Whether it is not known yet how many requests the server takes at once."""
        return not (self.is_over or self.is_leaving or self._engine.has_settings)

    async def changed(self) -> None:
        """Wait until something has changed that :attr:`has_place` may depend on."""
        await self._changed.wait()

    def take_place(self) -> Http2Place:
        """Take the place for one request, which must be given back by its ``close``."""
        self._places += 1
        return Http2Place(self)

    def give_back_place(self) -> None:
        self._places -= 1
        self._announce()
        if self.is_leaving and not self._places:
            self._scope.cancel()

    @property
    def is_over(self) -> bool:
        """Whether nothing can be sent or received any more."""
        return self._cause is not None or self._scope.cancel_called

    def _announce(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    # The tasks.

    async def run(self) -> None:
        """Read and write until the connection is over, and close it."""
        try:
            with self._scope:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._guard, self._receive)
                    nursery.start_soon(self._guard, self._write)
                    nursery.start_soon(self._guard, self._watch)
        finally:
            self._end(EOFError("the connection was closed"))
            await self._close()

    def abandon(self) -> None:
        """Stop at once, and leave the stream to the caller: nothing more is sent on it."""
        self._keeps_stream = True
        self._end(EOFError("the connection was abandoned"))

    async def _write(self) -> None:
        self._flush()
        try:
            await self._outbox.run()
        except (trio.BrokenResourceError, trio.ClosedResourceError) as exc:
            # The server may have said why before it closed (R10).
            self._failure = exc
            self.is_leaving = True
            await trio.sleep(LAST_WORDS_SECONDS)
            self._end(exc)

    async def _receive(self) -> None:
        try:
            await self._read()
        except (
            trio.BrokenResourceError,
            trio.ClosedResourceError,
            EOFError,
        ) as exc:
            cause = exc if is_alert(exc) else self._failure or exc
            self._end(EOFError(self._farewell) if self._farewell else cause)
        except wire.NoHttp2 as exc:
            self._end(HopelessConnection(f"{self.origin.authority}: {exc}"))
        except wire.ConnectionFault as exc:
            self._end(MalformedAnswer(str(exc)))

    async def _guard(self, work: Callable[[], Awaitable[None]]) -> None:
        """A bug in *work* must not end the caller's other requests."""
        try:
            await work()
        except Exception as exc:
            logger.exception("the HTTP/2 connection to %s failed", self.origin)
            self._end(exc)

    async def _read(self) -> None:
        while True:
            data = await self._stream.receive_some(RECEIVE_BYTES)
            if not data:
                raise EOFError("the server closed the connection")
            self._heard_at = trio.current_time()
            self._pinged = False
            self._note_moved()
            try:
                events = self._engine.receive(data, self._heard_at)
            finally:
                self._flush()
            for event in events:
                self._take(event)
            self._flush()
            await self._outbox.room()

    async def _watch(self) -> None:
        while True:
            if not self._exchanges:
                await self._changed.wait()
                self._note_moved()
                self._heard_at = self._moved_at
                continue
            now = trio.current_time()
            ping_at = self._heard_at + self._idle_timeout / 2
            if now >= self._moved_at + self._idle_timeout:
                seconds = f"{self._idle_timeout:g} seconds"
                self._end(TimeoutError(f"nothing moved for {seconds}"))
                return
            if now >= ping_at and not self._pinged:
                self._pinged = True
                self._engine.ping()
                self._flush()
            over_at = self._moved_at + self._idle_timeout
            await trio.sleep_until(over_at if self._pinged else min(ping_at, over_at))

    def _note_moved(self) -> None:
        self._moved_at = trio.current_time()

    def _flush(self) -> None:
        self._outbox.put(self._engine.take_output())

    def _end(self, cause: Exception) -> None:
        """Note that the connection is over: every exchange is cut."""
        if self._cause is None:
            self._cause = cause
            for exchange in self._exchanges.values():
                exchange.note_end(cause)
            for waiting in self._senders.values():
                waiting.set()
        self._scope.cancel()
        self._announce()

    async def _close(self) -> None:
        if self._keeps_stream:
            return
        if self._outbox.is_idle:
            self._engine.go_away()
            with trio.move_on_after(CLOSE_SECONDS, shield=True), suppress(OSError):
                with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                    await self._stream.send_all(bytes(self._engine.take_output()))
        await trio.aclose_forcefully(self._stream)

    # What comes.

    def _take(self, event: wire.Event) -> None:
        match event:
            case wire.WindowOpened():
                self._wake_sender()
            case wire.SettingsCame():
                self._announce()
                self._wake_sender()
            case wire.GoingAway(last, code, reason):
                self._leave(last, code, reason)
            case (
                wire.Section(stream)
                | wire.Content(stream)
                | wire.ContentEnded(stream)
                | wire.Reset(stream)
            ):
                exchange = self._exchanges.get(stream)
                if exchange is not None:
                    exchange.note(event)

    def _leave(self, last: int, code: int, reason: str) -> None:
        """Note a GOAWAY: requests up to *last* go on (RFC 9113, section 6.8)."""
        self.is_leaving = True
        if code == ErrorCodes.HTTP_1_1_REQUIRED:
            self.wants_http1 = True
        for stream, exchange in self._exchanges.items():
            if stream > last:
                words = (
                    "the server is closing the connection, and has not processed this"
                )
                exchange.note_end(NotProcessed(words))
        if code != ErrorCodes.NO_ERROR:
            words = f": {reason}" if reason else ""
            self._farewell = (
                f"the server ended the connection ({wire.name_of(code)}{words})"
            )
        if not self._places:
            self._scope.cancel()
        self._announce()

    # For the exchanges.

    async def begin(
        self, exchange: Http2Exchange, pairs: list[tuple[bytes, bytes]], *, ends: bool
    ) -> int:
        """Send a head; return its stream."""
        await trio.lowlevel.checkpoint()
        while self._failure is not None and not self.is_over:
            await self._changed.wait()  # for what the server may have said
        self.check()
        if self.is_leaving:
            raise NotProcessed("the server is closing the connection")
        try:
            stream = self._engine.begin(pairs, ends=ends)
        except h2.exceptions.ProtocolError as exc:
            # It takes fewer requests than it said before.
            raise NotProcessed(f"the request cannot begin here: {exc}") from exc
        self._exchanges[stream] = exchange
        self._flush()
        self._announce()
        return stream

    def check(self) -> None:
        """Raise :class:`trio.BrokenResourceError` if the connection is over."""
        if self.is_over:
            raise trio.BrokenResourceError(
                f"the connection is over: {self._cause}"
            ) from self._cause

    def block_for(self, stream: int, size: int) -> FrameBlock:
        return FrameBlock(stream, self._engine.most_frame, size)

    async def send_content(
        self, stream: int, block: FrameBlock, at: int, end: int
    ) -> int:
        """Send some of the content from *at* on, and return how much."""
        while True:
            self.check()
            if not self._engine.may_send(stream):
                self._wake_sender()
                raise trio.BrokenResourceError(
                    "the server takes no more of the content"
                )
            size = min(self._engine.room(stream), end - at, TURN_BYTES)
            if size:
                break
            await self._window(stream)
        self._engine.spend(stream, size)
        self._wake_sender()

        def withdrawn() -> None:
            self._engine.give_back(size)
            self._wake_sender()

        await self._outbox.send(block.frames(at, size), withdrawn)
        return size

    async def _window(self, stream: int) -> None:
        """Wait until the server may take more of *stream*."""
        waiting = self._senders[stream] = trio.Event()
        self._wake_sender()
        try:
            await waiting.wait()
        except trio.Cancelled:
            del self._senders[stream]
            self._wake_sender()
            raise
        del self._senders[stream]

    def _wake_sender(self) -> None:
        """Wake the first stream that could send. It wakes the next, if room is left.

        If all were woken by each opening of the connection's window, one would use it up,
        and the others would have woken for nothing.
        """
        for stream, waiting in self._senders.items():
            if waiting.is_set():
                return  # it has not run yet
            if self._engine.room(stream) or not self._engine.may_send(stream):
                waiting.set()
                return

    def send_end(self, stream: int) -> None:
        self.check()
        if not self._engine.may_send(stream):
            raise trio.BrokenResourceError("the server takes no more of the content")
        self._engine.end(stream)
        self._flush()

    def grant(self, stream: int, size: int) -> None:
        self._engine.grant(stream, size)
        self._flush()

    def note_fault(self, code: int) -> None:
        """Note that a stream was reset with *code*."""
        if code == ErrorCodes.HTTP_1_1_REQUIRED:
            self.is_leaving = self.wants_http1 = True

    def reset(self, stream: int, code: ErrorCodes) -> None:
        self._engine.reset(stream, code)
        self._flush()

    def leave(self, stream: int, *, is_whole: bool) -> None:
        """Forget *stream*. If its exchange is not whole, reset it."""
        if self._exchanges.pop(stream, None) is None:
            return
        if not self.is_over:
            self._engine.reset(stream, ErrorCodes.CANCEL)
            self._flush()
            silent = trio.current_time() - self._heard_at
            if not is_whole and silent > 0.75 * self._idle_timeout:
                self.is_leaving = True  # not even a PING was answered
        self._engine.forget(stream)


class Http2Place:
    """The place of one request on a connection: a :class:`Connection` for it."""

    def __init__(self, connection: Http2Connection) -> None:
        self._connection = connection
        self._exchange: Http2Exchange | None = None

    def begin(self, request: h11.Request, on_moved: Moved) -> Http2Exchange:
        self._exchange = Http2Exchange(self._connection, request, on_moved)
        return self._exchange

    def close(self) -> None:
        """Give the place back. An exchange that is not over is reset."""
        if self._exchange is not None:
            self._exchange.close()
        self._connection.give_back_place()
