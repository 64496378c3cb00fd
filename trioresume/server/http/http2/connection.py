"""An HTTP/2 connection: one task reads, one writes if needed, and each request has its own.

::

    connection
      writer      what all streams send (outbox), once a part of it has to wait
      reader      frames: content to the bodies, requests to new tasks
      requests    one task each, as one HTTP/1.1 connection has

The reader never waits for a request: what cannot be taken at once is bounded by the credit of
its stream. It waits for three things only: for bytes, for memory, and for a peer that does not
read its answers. It reads into a buffer that all connections share, so it hands on everything
before it waits again.

A connection counts as one for :class:`~trioresume.server.http.front.Admission`, and
so does its first request. Each further request that runs at the same time counts as one more
connection: it costs as much. A request from a trusted proxy counts for its client.

Shutdown takes two steps (RFC 9113, section 6.8). The first GOAWAY names the highest stream that
there can be. So no request is lost that is on its way. When the peer has answered a PING, or
after :data:`GOAWAY_PAUSE`, the second GOAWAY names the last stream that is served.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

import trio

from trioresume.errors import PeerError
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.http2_engine import LAST_STREAM
from trioresume.protocol.http2_head import (
    HTTP_VERSION,
    MalformedRequest,
    read_request_fields,
    read_trailers,
)
from trioresume.server.event_loop import Signal
from trioresume.server.http.front import address_of
from trioresume.server.http.http2.body import ReadTurn, StreamBody
from trioresume.server.http.http2.credit import CreditTurns
from trioresume.server.http.http2.engine import (
    INITIAL_WINDOW,
    AckedPing,
    ConnectionFault,
    Content,
    ContentEnded,
    Engine,
    ErrorCodes,
    GoingAway,
    Request,
    Reset,
    Trailers,
    WindowOpened,
)
from trioresume.server.http.http2.exchange import StreamExchange
from trioresume.server.http.http2.outbox import Outbox

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioresume.server.http.front import Front
    from trioresume.server.http.http2.engine import Event
    from trioresume.server.http.transport import Transport

__all__ = ["Http2Connection"]

logger = logging.getLogger("trioresume.connection")

LAST_WORDS_SECONDS = 1.0
"""Seconds after the grace period in which 503s may be sent and read."""
HEAD_READ = 16 * 1024
"""Bytes read at once while a request is expected, or is not yet routed."""
FILL_TIME = 0.02
"""Seconds that the reader waits for many bytes before it takes the few that are there."""
LEAST_MARK = 32 * 1024
"""Bytes: a smaller low-water mark is not worth the system call."""
GOAWAY_PAUSE = 1.0
"""Seconds after which the second GOAWAY is sent even if the peer answers no PING."""


class Http2Connection:
    """Serves one transport until it ends. *came* was read before: the client's preface."""

    carrier: ClassVar[str] = "h2"

    def __init__(
        self, transport: Transport, front: Front, came: bytes | bytearray = b""
    ) -> None:
        config = front.config
        self._is_proxy = front.gateway.is_proxy(transport.peer)
        self.address = "" if self._is_proxy else address_of(transport.peer)
        """The address this connection counts for, see :class:`Admission`."""
        self._transport = transport
        self._front = front
        self._came = bytes(came)
        self._engine = Engine(
            most_streams=config.max_streams,
            most_section=config.max_header_size,
            window=config.max_streams * INITIAL_WINDOW,
            now=trio.current_time(),
        )
        self._outbox = Outbox(
            transport, self._engine, config.send_timeout, self._start_writer
        )
        self._tasks: trio.Nursery | None = None
        """Where the writer may run."""
        self._writer = trio.CancelScope(shield=True)
        self._turn = ReadTurn(front.memory)
        self._credit = CreditTurns(front.memory)
        self._low_water = 1
        self._is_fast = True
        """Whether the last bytes came as fast as expected."""
        self._streams: dict[int, _Stream] = {}
        self._first: _Stream | None = None
        """The request that counts as the connection itself."""
        self._requests: trio.Nursery | None = None
        self._reader: trio.CancelScope | None = None
        self._dismissed = False
        self.stopping = False
        """Whether the server shuts down, so that no further request is taken."""
        self._deadline = float("inf")
        """The end of a shutdown's grace period, on trio's clock."""
        self._last_stream = LAST_STREAM
        """Streams after it are not served any more."""
        self._acked_ping = Signal()
        self._head_since: float | None = None
        """When the field section, or other frame, began that has not ended."""

    # ------------------------------------------------------------ its life

    async def run(self) -> None:
        """Serve until the peer or the server ends the connection; then close it."""
        clean = False
        try:
            async with trio.open_nursery() as self._tasks:
                try:
                    await self._serve()
                    clean = True
                finally:
                    with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                        await self._say_last(lingers=clean)
                    self._tasks = None
                    self._writer.cancel()
        except Exception:
            logger.exception("the connection of %s failed", self._transport.peer)
        finally:
            await self._transport.aclose(clean=clean)

    async def _serve(self) -> None:
        self._front.admission.note_idle(self)
        try:
            async with trio.open_nursery() as self._requests:
                if self.stopping:
                    self.stop(self._deadline)
                try:
                    with trio.CancelScope() as self._reader:
                        await self._read()
                finally:
                    # No request begins any more, and a shutdown has nothing to announce.
                    self._requests = None
                self._end_streams()
        finally:
            self._front.admission.note_busy(self)

    def _start_writer(self) -> None:
        if self._tasks is not None:
            self._tasks.start_soon(self._write)

    async def _write(self) -> None:
        with self._writer:
            try:
                await self._outbox.run()
            except trio.BrokenResourceError:
                logger.debug("%s went away", self._transport.peer)
                if self._reader is not None:
                    self._reader.cancel()

    async def _say_last(self, *, lingers: bool) -> None:
        """Send what is still to be sent, with a GOAWAY as the last frame."""
        if not self._engine.is_faulty:
            self._engine.go_away(min(self._engine.last_stream, self._last_stream))
        self._outbox.flush()
        try:
            await self._outbox.drained()
            if lingers:
                await self._transport.send_eof()
                await self._linger()
        except trio.BrokenResourceError:
            pass

    async def _linger(self) -> None:
        """Read what still comes: a reset would destroy what the peer has not read."""
        while self._transport.receive_nowait(self._front.memory.scratch) != 0:
            await self._transport.wait_readable()

    async def turn_away(self, error: PeerError) -> None:
        """Refuse the peer: the connection has no place. *error* says why.

        HTTP/2 can say that without reading a request: no stream is served.
        """
        logger.debug("%s is refused: %s", self._transport.peer, error)
        self._engine.go_away(0, ErrorCodes.ENHANCE_YOUR_CALM)
        self._outbox.flush()
        try:
            with trio.move_on_after(LAST_WORDS_SECONDS):
                await self._transport.send_eof()
                await self._linger()
        except trio.BrokenResourceError:
            pass
        finally:
            await self._transport.aclose()

    def dismiss(self) -> None:
        """Close this connection if it is idle: another one needs its place."""
        if not self._streams and self._reader is not None:
            self._dismissed = True
            self._reader.cancel()

    def stop(self, deadline: float) -> None:
        """Take no further request. The running ones may take until *deadline*.

        A cancellation after *deadline* makes :meth:`run` answer them with 503, unless the
        response has begun.
        """
        self.stopping = True
        self._deadline = deadline
        if self._requests is not None:
            self._requests.start_soon(self._go_away)

    async def _go_away(self) -> None:
        self._engine.go_away(LAST_STREAM)
        self._engine.ping()
        self._outbox.flush()
        with trio.move_on_after(GOAWAY_PAUSE):
            await self._acked_ping.wait()
        self._last_stream = self._engine.last_stream
        self._engine.go_away(self._last_stream)
        self._outbox.flush()
        self._end_if_done()

    def _end_if_done(self) -> None:
        """End the reader if no request runs and none will come."""
        ending = self._last_stream != LAST_STREAM
        if ending and not self._streams and self._reader is not None:
            self._reader.cancel()

    def _end_streams(self) -> None:
        """Tell every request that its peer is gone."""
        for stream in list(self._streams.values()):
            stream.cut()

    # ------------------------------------------------------------ reading

    async def _read(self) -> None:
        """Read until the connection ends."""
        try:
            if self._came:
                self._dispatch(memoryview(self._came))
                self._came = b""
            self._outbox.flush()
            while await self._wait_readable():
                if self._dismissed:
                    return  # another connection has taken this one's place
                await self._take_memory()
                if not self._read_turn():
                    return
        except ConnectionFault as exc:
            logger.debug("%s: %s", self._transport.peer, exc)
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)
        finally:
            self._turn.end()

    async def _wait_readable(self) -> bool:
        """Wait for bytes. Returns False if they do not come in time."""
        self._outbox.flush()
        await self._outbox.room()
        await self._early_room()
        config, now = self._front.config, trio.current_time()
        if not self._engine.is_within_head:
            self._head_since = None
        elif self._head_since is None:
            self._head_since = now
        if self._head_since is not None:
            deadline = self._head_since + config.header_timeout
        elif not self._streams:
            deadline = now + config.keep_alive_timeout
        else:
            deadline = float("inf")  # the streams have deadlines of their own
        if deadline == float("inf"):
            await self._wait_for_much()
            return True
        self._set_low_water(1)
        with trio.move_on_at(deadline):
            await self._transport.wait_readable()
            return True
        # Meanwhile a request may have begun to run, or ended.
        return self._head_since is None and bool(self._streams)

    async def _wait_for_much(self) -> None:
        """Wait for bytes; for some time, until many have come: each wake-up is expensive."""
        self._set_low_water(self._wanted if self._is_fast else 1)
        with trio.move_on_after(FILL_TIME if self._low_water > 1 else float("inf")):
            await self._transport.wait_readable()
            return
        self._is_fast = False

    @property
    def _wanted(self) -> int:
        """Bytes for which the reader should be woken.

        They come within half of :data:`FILL_TIME`, and without more credit. They are not more
        than the rest of the content: the end of an upload must not wait.
        """
        wanted = self._credit.expected(FILL_TIME / 2)
        left = 0
        for stream in self._streams.values():
            left += stream.body.remaining or 0
            if left >= wanted:
                break
        wanted = min(wanted, left)
        if wanted < LEAST_MARK:
            return 1
        # Setting it costs a system call: small differences are not worth it.
        return 1 << (wanted.bit_length() - 1)

    def _set_low_water(self, size: int) -> None:
        if size != self._low_water:
            self._low_water = size
            self._transport.set_low_water(size)

    async def _take_memory(self) -> None:
        """Take a piece for the content that may come."""
        if not self._streams or self._turn.begin(self._transport.readable or None):
            return
        waiting = list(self._streams.values())
        for stream in waiting:
            stream.body.suspend()
        try:
            self._turn.begin_with(await self._front.memory.take())
        finally:
            for stream in waiting:
                stream.body.resume()

    @property
    def _has_early_stream(self) -> bool:
        return any(stream.body.is_early for stream in self._streams.values())

    async def _early_room(self) -> None:
        """Wait while the budget for early content is spent, if some of it is kept here.

        The requests go on meanwhile, and give it back when they receive or end.
        """
        early = self._front.memory.early
        while early.is_spent and any(
            stream.body.keeps_early for stream in self._streams.values()
        ):
            await early.wait()

    def _read_turn(self) -> bool:
        """Read what is there, about a piece at most. Returns False at the end.

        Not a checkpoint. All content has been handed on when it returns.
        """
        memory = self._front.memory
        left = memory.piece_size
        # A request may come, or content before its request is routed: only little is read
        # then, and the requests get their turns.
        early = not self._streams or self._has_early_stream
        view = memory.large_scratch
        if early:
            view = view[:HEAD_READ]
        elif memory.early.is_spent:
            view = memory.scratch
        try:
            while left > 0 and self._outbox.has_room:
                if self._streams and not self._turn.begin():
                    break
                count = self._transport.receive_nowait(view)
                if count is None:
                    break
                if count == 0:
                    return False
                newest = self._engine.last_stream
                self._dispatch(view[:count])
                left -= count
                self._is_fast = self._is_fast or count > LEAST_MARK
                opened = self._engine.last_stream != newest
                if early or opened or count < len(view):
                    break
        finally:
            self._turn.end()
            self._outbox.flush()
        return True

    def _dispatch(self, data: memoryview) -> None:
        now = trio.current_time()
        self._credit.note(len(data), now)
        for event in self._engine.receive(data, now):
            self._handle(event)

    def _handle(self, event: Event) -> None:
        match event:
            case Content(number, parts):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.body.add(parts, self._turn)
            case Request():
                self._open(event)
            case Trailers(number, pairs):
                self._take_trailers(number, pairs)
            case ContentEnded(number):
                stream = self._streams.get(number)
                if stream is not None:
                    self._turn.touched[stream.body] = None
                    stream.body.end()
            case Reset(number):
                stream = self._streams.get(number)
                if stream is not None:
                    stream.cut()
            case WindowOpened(number):
                streams = (
                    [self._streams.get(number)] if number else self._streams.values()
                )
                for stream in streams:
                    if stream is not None:
                        stream.exchange.open_window()
            case AckedPing():
                self._acked_ping.fire()
            case GoingAway():
                self._last_stream = self._engine.last_stream
                self._end_if_done()

    def _take_trailers(self, number: int, pairs: Sequence[tuple[bytes, bytes]]) -> None:
        stream = self._streams.get(number)
        if stream is None:
            return
        try:
            stream.body.trailers = read_trailers(pairs, self._front.head_limits)
        except MalformedRequest:
            self._engine.reset(number, ErrorCodes.PROTOCOL_ERROR, at_fault=True)
            stream.cut()

    # ------------------------------------------------------------ requests

    def _open(self, request: Request) -> None:
        """Begin a request, or refuse it."""
        number = request.stream
        if number > self._last_stream:
            self._engine.reset(number, ErrorCodes.REFUSED_STREAM)
            return
        if len(self._streams) >= self._front.config.max_streams:
            self._engine.reset(number, ErrorCodes.REFUSED_STREAM, at_fault=True)
            return
        refusal: PeerError | None = None
        try:
            head = read_request_fields(
                request.pairs,
                ends=request.ends,
                peer=self._transport.peer,
                limits=self._front.head_limits,
            )
            if self._transport.tls is not None:
                head = replace(head, tls=self._transport.tls)
            head = self._front.gateway.identify(head)
        except MalformedRequest as exc:
            logger.debug("%s: %s", self._transport.peer, exc)
            self._engine.reset(number, ErrorCodes.PROTOCOL_ERROR, at_fault=True)
            return
        except PeerError as exc:
            refusal, head = exc, _NO_HEAD
        length = 0 if request.ends else head.length
        body = StreamBody(
            number,
            length,
            self._engine,
            self._credit,
            self._front,
            self._outbox.flush,
        )
        exchange = StreamExchange(
            number, head, body, self._engine, self._outbox, self._front
        )
        stream = _Stream(number, exchange, body, self)
        if not self._streams:
            self._front.admission.note_busy(self)
        self._streams[number] = stream
        assert self._requests is not None
        self._requests.start_soon(self._run_stream, stream, refusal)

    async def _run_stream(self, stream: _Stream, refusal: PeerError | None) -> None:
        exchange = stream.exchange
        try:
            with stream.scope:
                if refusal is None:
                    await self._answer(stream)
                else:
                    await self._front.refuse(exchange, refusal)
                await exchange.finish()
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)
        except Exception:
            logger.exception("a request of %s failed", self._transport.peer)
        except BaseException:
            # Cancelled, at the end of the grace period or at once; perhaps in a group.
            if trio.current_time() >= self._deadline:
                with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                    await self._say_unavailable(exchange)
            raise
        finally:
            self._close(stream)

    async def _answer(self, stream: _Stream) -> None:
        exchange = stream.exchange
        admission = self._front.admission
        guest: Http2Connection | _Stream = stream
        if self._first is None:
            self._first, guest = stream, self
        else:
            try:
                admission.enter(stream)
            except PeerError as exc:
                await self._front.refuse(exchange, exc)
                return
        proxy = self._transport.peer if self._is_proxy else ""
        await self._front.answer(exchange, guest, proxy)

    async def _say_unavailable(self, exchange: StreamExchange) -> None:
        try:
            await exchange.say_unavailable()
        except trio.BrokenResourceError:
            logger.debug("%s went away", self._transport.peer)

    def _close(self, stream: _Stream) -> None:
        """Free what a request holds."""
        stream.body.close()
        whole = not self._engine.may_send(stream.number)
        code = ErrorCodes.NO_ERROR if whole else ErrorCodes.INTERNAL_ERROR
        self._engine.reset(stream.number, code)
        self._engine.forget(stream.number)
        self._outbox.flush()
        self._streams.pop(stream.number, None)
        if self._first is stream:
            self._first = None
            if self._is_proxy:
                self._front.admission.count_as(self, "")
        else:
            self._front.admission.leave(stream)
        if not self._streams:
            self._front.admission.note_idle(self)
        self._end_if_done()


class _Stream:
    """A request that runs. It is a guest beside its connection, see the module's text."""

    __slots__ = ("address", "body", "exchange", "number", "scope")

    def __init__(
        self,
        number: int,
        exchange: StreamExchange,
        body: StreamBody,
        connection: Http2Connection,
    ) -> None:
        self.number = number
        self.exchange = exchange
        self.body = body
        self.scope = trio.CancelScope()
        self.address = connection.address

    def dismiss(self) -> None:
        """Do nothing: a request is never idle."""

    def cut(self) -> None:
        """End the request: its peer is gone, or has reset the stream."""
        if self.body.came or self.body.is_receiving:
            self.body.cut()  # what came is kept, and a whole request goes on (R32)
        else:
            self.scope.cancel()
        self.exchange.open_window()


_NO_HEAD = RequestHead(
    method="", target="", fields=Fields(), http_version=HTTP_VERSION, length=None
)
"""Stands for a request whose head could not be used."""
