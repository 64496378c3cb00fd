"""Streams of the load generator: uploads that share connections of HTTP/2.

The client's own HTTP/2 carries them. Content is copied into frames once, so the generator's
CPU is part of what it measures, as it is over TLS.

A cut ends the connection if an upload may have it to itself. On a shared connection a cut is
the end of the stream: by FIN and RST it is reset, by silence nothing more is sent on it.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable
from dataclasses import dataclass

import h11
import trio

from trioresume.bench import load_socket
from trioresume.bench.content import pieces
from trioresume.bench.load_connection import (
    CONTINUE_SECONDS,
    LAST_WORDS_SECONDS,
    MAX_BODY,
    MAX_INTERIMS,
    SentContent,
    WasCut,
    closed,
    connect,
)
from trioresume.bench.load_socket import PlainSocket, TlsSocket
from trioresume.bench.probe import Request, Response, Unhappy
from trioresume.bench.results import Ending, Fault
from trioresume.bench.settings import FaultKind
from trioresume.client.http.exchange import (
    Content,
    Head,
    Interim,
    MalformedAnswer,
    NotProcessed,
)
from trioresume.client.http.http2.connection import Http2Connection, Http2Place
from trioresume.client.http.http2.exchange import Http2Exchange
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Origin

__all__ = ["LoadStream", "SharedConnections"]

WINDOW_SECONDS = 5.0
"""How long an upload waits for a place if the server takes no more requests at once."""


class _Shared:
    """A connection, with the number of uploads that have a seat on it."""

    def __init__(self, sock: PlainSocket | TlsSocket, origin: Origin, idle: float):
        self.sock = sock
        self.http2 = Http2Connection(sock.stream, origin, idle)
        self.seats = 0
        self.is_cut = False


class SharedConnections:
    """The connections of one process, which run in *nursery*.

    Each has *seats* uploads at once, at most.
    """

    def __init__(self, seats: int, nursery: trio.Nursery) -> None:
        self._seats = seats
        self._nursery = nursery
        self._connections: list[_Shared] = []
        self._connecting = trio.Lock()

    async def open(
        self,
        address: tuple[str, int],
        origin: Origin,
        idle: float,
        tls: ssl.SSLContext | None,
    ) -> LoadStream:
        """Take a seat, on a new connection if there is none. Raises :class:`Unhappy`."""
        async with self._connecting:
            shared = self._with_seat()
            if shared is None:
                sock = await connect(address, origin, idle, tls)
                if isinstance(sock, TlsSocket) and not sock.speaks_http2:
                    load_socket.reset(sock.plain)
                    words = f"{origin.authority} does not speak HTTP/2"
                    raise Unhappy(Ending.REFUSED, words)
                shared = _Shared(sock, origin, idle)
                self._connections.append(shared)
                self._nursery.start_soon(self._run, shared)
            shared.seats += 1
        return LoadStream(shared, origin, idle, alone=self._seats == 1)

    def _with_seat(self) -> _Shared | None:
        for shared in self._connections:
            usable = shared.http2.has_place or shared.http2.may_get_place
            if usable and not shared.is_cut and shared.seats < self._seats:
                return shared
        return None

    async def _run(self, shared: _Shared) -> None:
        try:
            await shared.http2.run()
        finally:
            self._connections.remove(shared)


class LoadStream:
    """A seat on a connection, with the methods of a :class:`LoadConnection`.

    Each request has a stream of its own. With *alone* nobody else may have a seat.
    """

    reusable = True

    def __init__(
        self, shared: _Shared, origin: Origin, idle: float, *, alone: bool
    ) -> None:
        self._shared = shared
        self._origin = origin
        self._idle = idle
        self._alone = alone
        self._place: Http2Place | None = None
        self._seated = True

    @property
    def carrier(self) -> str:
        """The version of HTTP, with that of TLS if it is spoken."""
        version = self._shared.sock.tls_version
        return "HTTP/2" if version is None else f"HTTP/2 over {version}"

    # Ways to end.

    def close(self) -> None:
        """Leave the seat. A request that is not over is reset."""
        if self._place is not None:
            self._place.close()
            self._place = None
        if self._seated:
            self._seated = False
            self._shared.seats -= 1

    def reset(self) -> None:
        """End the connection with a RST, if it is not shared; else leave the seat."""
        if self._alone and self._seated:
            self._cut()
            load_socket.reset(self._shared.sock.plain)
        self.close()

    def unsent(self) -> int:
        """Return how many bytes were written but are not on the network yet."""
        return load_socket.unsent(self._shared.sock.plain) if self._alone else 0

    def end(self, kind: FaultKind) -> bool:
        """End as *kind* says. Return whether the seat stays taken, in silence."""
        if kind is FaultKind.SILENCE:
            if self._alone:
                self._cut()
            return True
        if kind is FaultKind.RST:
            self.reset()
        elif self._alone and self._place is not None:
            # A request is not over: this is a cut, or an attempt that failed.
            self._cut()
            load_socket.close_in_order(self._shared.sock.plain)
        self.close()
        return False

    def _cut(self) -> None:
        self._shared.is_cut = True
        self._shared.http2.abandon()

    # Requests.

    async def ask(
        self,
        request: Request,
        fields: tuple[tuple[str, str], ...] = (),
        content: SentContent | None = None,
        on_interim: Callable[[Response], None] | None = None,
        on_body: Callable[[bytes | bytearray], None] | None = None,
        hold_content: bool = False,
    ) -> Response:
        """Do what :meth:`LoadConnection.ask` does, on a stream."""
        self._place = await self._take_place()
        running = _StreamRun(
            self._idle, request, content, on_interim, on_body, hold_content
        )
        running.begin(self._place, self._origin, fields)
        fault = content.cuts.at_head() if content else None
        try:
            # There is no half of a head in HTTP/2: the others' heads would wait for it.
            response = await running.run(fault)
        except OSError as exc:
            raise Unhappy(Ending.CLOSED, str(exc), retry=True) from exc
        self._place.close()
        self._place = None
        return response

    async def _take_place(self) -> Http2Place:
        http2 = self._shared.http2
        with trio.move_on_after(WINDOW_SECONDS):
            while not http2.has_place:
                if http2.is_over or http2.is_leaving:
                    words = "the connection is over"
                    raise Unhappy(Ending.CLOSED, words, retry=True)
                await http2.changed()
        return http2.take_place()


@dataclass(eq=False)
class _StreamRun:
    """One request and its response. Two tasks note how it ends."""

    idle: float
    request: Request
    content: SentContent | None
    on_interim: Callable[[Response], None] | None
    on_body: Callable[[bytes | bytearray], None] | None
    hold_content: bool

    def begin(
        self, place: Http2Place, origin: Origin, fields: tuple[tuple[str, str], ...]
    ) -> None:
        request = self.request
        lines = [("host", origin.authority), *request.fields, *fields]
        if request.has_content:
            lines.append(("content-length", str(request.length)))
        if request.expect:
            lines.append(("expect", "100-continue"))
        head = h11.Request(
            method=request.method,
            target=request.url.target,
            headers=Fields(lines).to_wire(),
        )
        self._exchange: Http2Exchange = place.begin(head, self._moved)
        self._origin = origin
        self._at = request.start
        self._in_content = False
        self._may_send = trio.Event()
        self._watch = trio.CancelScope()
        self._response: Response | None = None
        self._fault: Fault | None = None
        self._failure: Unhappy | None = None
        self._all_sent = not request.has_content

    async def run(self, fault: Fault | None) -> Response:
        with self._watch:
            self._moved(0)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send, fault, nursery.cancel_scope)
                await self._receive(nursery.cancel_scope)
        if self._fault is not None:
            raise WasCut(self._fault)
        if self._failure is not None:
            raise self._failure
        if self._response is None:
            raise Unhappy(Ending.TIMEOUT, "the server is silent", retry=True)
        if self._response.status < 300 and not self._all_sent:
            raise Unhappy(
                Ending.NOT_UNDERSTOOD,
                f"{self._response.status} before all of the content was sent",
            )
        return self._response

    def _moved(self, size: int) -> None:
        """Note that bytes moved: the wait for the server begins again."""
        if self._failure is None:
            self._watch.deadline = trio.current_time() + self.idle
        if size and self._in_content and self.content is not None:
            self._at += size
            self.content.sent += size
            self.content.pace.spend(size)
            self.content.on_sent(self._at, size)
            if self._at == self.request.stop:
                self._note_all_sent()  # before any await: the answer may come at once

    def _note_all_sent(self) -> None:
        """Note that all content was sent, unless it was cut. Its response may be lost."""
        if self._fault is None and not self._all_sent:
            self._all_sent = True
            if self.content is not None:
                self._fault = self.content.cuts.at_response(self.content.sent)

    # Sending.

    async def _send(self, fault: Fault | None, whole: trio.CancelScope) -> None:
        request = self.request
        try:
            await self._exchange.send_head(ends=not request.has_content)
            if fault is not None:
                self._fault = fault
            else:
                await self._send_content()
        except trio.BrokenResourceError as exc:
            # The server may have said why before it closed.
            self._failure = Unhappy(Ending.CLOSED, str(exc), retry=True)
            self._watch.deadline = trio.current_time() + LAST_WORDS_SECONDS
        except Unhappy as exc:
            self._failure = exc
            whole.cancel()
        if self._fault is not None:
            whole.cancel()

    async def _send_content(self) -> None:
        if not self.request.has_content:
            return
        if self.request.expect:
            with trio.move_on_after(CONTINUE_SECONDS):
                await self._may_send.wait()
            if self.hold_content:
                raise Unhappy(Ending.TIMEOUT, "no 100 in time")
        if self.request.prefix:
            await self._exchange.send_content(memoryview(self.request.prefix))
        if self.content is not None:
            self._in_content = True
            await self._pump(self.content)
        self._note_all_sent()
        if self._fault is None:
            await self._exchange.send_end()

    async def _pump(self, content: SentContent) -> None:
        """Send the content up to its end or to a cut."""
        region = content.region
        while self._at < self.request.stop:
            want = min(self.request.stop - self._at, content.pace.portion)
            room = content.cuts.before_cut(content.sent)
            if room == 0:
                self._fault = content.cuts.at_body()
                return
            if room is not None:
                want = min(want, room)
            position = content.position + self._at
            offset, count = next(pieces(region.length, position, want))
            with region.view(offset, count) as piece:
                await self._exchange.send_content(piece)
            await content.pace.wait()

    # Receiving.

    async def _receive(self, whole: trio.CancelScope) -> None:
        try:
            await self._read_response()
        except (trio.BrokenResourceError, EOFError) as exc:
            self._failure = closed(exc, self._origin)
        except NotProcessed as exc:
            self._failure = Unhappy(Ending.REFUSED, str(exc), retry=True)
        except MalformedAnswer as exc:
            self._failure = Unhappy(Ending.NOT_UNDERSTOOD, str(exc))
        except Unhappy as exc:
            self._failure = exc
        else:
            self._failure = None  # the server's answer counts
        whole.cancel()

    async def _read_response(self) -> None:
        status, fields, body, interims = 0, Fields(), bytearray(), 0
        while True:
            match await self._exchange.receive():
                case Interim(number, lines):
                    interims += 1
                    if interims > MAX_INTERIMS:
                        words = "interim responses no end"
                        raise Unhappy(Ending.NOT_UNDERSTOOD, words)
                    if number == 100:
                        self._may_send.set()
                    if self.on_interim is not None:
                        self.on_interim(Response(number, lines))
                case Head(status, fields):
                    pass
                case Content(data):
                    if self.on_body is not None and status == 200:
                        self.on_body(data)
                    elif len(body) < MAX_BODY:
                        body += data
                case _:
                    self._response = Response(status, fields, bytes(body[:MAX_BODY]))
                    return
