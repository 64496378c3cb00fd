"""Connections of the load generator: content goes from the region by ``sendfile``.

h11 makes the heads and reads the responses. Content does not go through h11, because
sending it must cost nothing. While content is sent a second task reads. Interim
responses arrive in the middle, and an early final response ends the sending.

All failures of the server's side raise :class:`Unhappy`. A cut on purpose raises
:class:`WasCut`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from dataclasses import dataclass

import h11
import trio

from trioresume.bench.content import Region, pieces
from trioresume.bench.load_socket import (
    RECEIVE_BYTES,
    LoadSocket,
    PlainSocket,
    TlsSocket,
    close_in_order,
    reset,
    unsent,
)
from trioresume.bench.plan import Cuts
from trioresume.bench.probe import Request, Response, Unhappy
from trioresume.bench.results import Ending, Fault
from trioresume.bench.settings import FaultKind
from trioresume.client.http.tls import explain
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Origin

__all__ = [
    "CONTINUE_SECONDS",
    "LAST_WORDS_SECONDS",
    "MAX_BODY",
    "MAX_INTERIMS",
    "LoadConnection",
    "Pace",
    "SentContent",
    "WasCut",
    "closed",
    "connect",
]

TURN = 1 << 20
"""The most bytes that go to one socket before the others have their turn."""

MAX_BODY = 64 * 1024
"""The most bytes of a response's content that are kept."""

MAX_INTERIMS = 1_000_000

CONTINUE_SECONDS = 1.0
"""How long content waits for a 100. A server need not send one (RFC 9110, 10.1.1)."""

LAST_WORDS_SECONDS = 1.0
"""How long the generator still listens to a server that stopped reading."""


class WasCut(Exception):
    """The generator cut this connection."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault)
        self.fault = fault


class Pace:
    """Limits an upload to *rate* bytes a second; None means as fast as possible."""

    def __init__(self, rate: float | None) -> None:
        self._rate = rate
        self._free_at = 0.0

    @property
    def portion(self) -> int:
        """How many bytes to send at a time, for a smooth flow."""
        if self._rate is None:
            return TURN
        return max(1024, min(TURN, int(self._rate / 20)))

    def spend(self, count: int) -> None:
        """Note that *count* bytes were sent."""
        if self._rate is not None:
            begin = max(self._free_at, trio.current_time())
            self._free_at = begin + count / self._rate

    async def wait(self) -> None:
        """Wait until more may be sent."""
        if self._rate is not None:
            await trio.sleep_until(self._free_at)


@dataclass(slots=True)
class SentContent:
    """An upload's content, with its cuts, its pace and its callback.

    *sent* counts over all attempts. *on_sent* gets the position after each step and the
    size of the step.
    """

    region: Region
    position: int
    cuts: Cuts
    pace: Pace
    on_sent: Callable[[int, int], None]
    sent: int = 0


def closed(exc: Exception, origin: Origin, ending: Ending = Ending.CLOSED) -> Unhappy:
    """Return what the end of a connection is. No other attempt can mend a fault of TLS."""
    hopeless = explain(exc, origin)
    if hopeless is not None:
        return Unhappy(Ending.REFUSED, str(hopeless))
    return Unhappy(ending, str(exc), retry=True)


async def connect(
    address: tuple[str, int],
    origin: Origin,
    idle: float,
    tls: ssl.SSLContext | None = None,
) -> PlainSocket | TlsSocket:
    """Connect to *address*, an IP address, by *tls* if given. Raises :class:`Unhappy`."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    sock = trio.socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with trio.fail_after(idle):
            await sock.connect(address)
            secured = tls and await TlsSocket.secure(sock, tls, origin.host)
    except trio.TooSlowError as exc:
        sock.close()
        raise Unhappy(Ending.TIMEOUT, "no connection in time", retry=True) from exc
    except OSError as exc:
        sock.close()
        raise closed(exc, origin, Ending.REFUSED) from exc
    except BaseException:
        sock.close()
        raise
    return secured or PlainSocket(sock)


class LoadConnection:
    """A connection to the server. *idle* is for how many seconds it may be silent.

    There is no ``async with``, because the caller chooses how it ends: by
    :meth:`close`, by :meth:`reset`, or silently (see :meth:`end`). None of them blocks.
    """

    def __init__(self, sock: LoadSocket, origin: Origin, idle: float):
        self._sock = sock
        self._origin = origin
        self._idle = idle
        self.reusable = True

    @classmethod
    async def open(
        cls,
        address: tuple[str, int],
        origin: Origin,
        idle: float,
        tls: ssl.SSLContext | None = None,
    ) -> LoadConnection:
        """Connect to *address*, an IP address, by *tls* if given. Raises :class:`Unhappy`."""
        return cls(await connect(address, origin, idle, tls), origin, idle)

    @property
    def carrier(self) -> str:
        """The version of HTTP, with that of TLS if it is spoken."""
        version = self._sock.tls_version
        return "HTTP/1.1" if version is None else f"HTTP/1.1 over {version}"

    # Ways to end.

    def close(self) -> None:
        """Close in order: written bytes still arrive."""
        close_in_order(self._sock.plain)

    def reset(self) -> None:
        """Close with a RST."""
        reset(self._sock.plain)

    def unsent(self) -> int:
        """Return how many bytes were written but are not on the network yet."""
        return unsent(self._sock.plain)

    def end(self, kind: FaultKind) -> bool:
        """End as *kind* says. Return whether the connection stays open and silent."""
        if kind is FaultKind.RST:
            self.reset()
        elif kind is FaultKind.FIN:
            self.close()
        return kind is FaultKind.SILENCE

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
        """Send *request* with further *fields*, and read its final response.

        The response's content goes to *on_body* as it comes. Without *on_body* the
        response gets its beginning. With *hold_content* only the head is sent, and the
        answer must come within the time that content waits for a 100. Raises
        :class:`Unhappy` and :class:`WasCut`.
        """
        running = _RequestRun(
            self._sock,
            self._origin,
            self._idle,
            request,
            content,
            on_interim,
            on_body,
        )
        running.hold_content = hold_content
        try:
            head = running.head(fields)
            fault = content.cuts.at_head() if content else None
            if fault is not None:
                await running.send(head[: max(1, len(head) // 2)])
                raise WasCut(fault)
            self.reusable = False
            response = await running.run(head)
        except OSError as exc:
            raise Unhappy(Ending.CLOSED, str(exc), retry=True) from exc
        self.reusable = running.left_clean
        return response


class _RequestRun:
    """One request and its response."""

    def __init__(
        self,
        sock: LoadSocket,
        origin: Origin,
        idle: float,
        request: Request,
        content: SentContent | None,
        on_interim: Callable[[Response], None] | None,
        on_body: Callable[[bytes | bytearray], None] | None,
    ) -> None:
        self._sock = sock
        self._origin = origin
        self._idle = idle
        self._request = request
        self._content = content
        self._on_interim = on_interim
        self._on_body = on_body
        self._parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_BODY)
        self._may_send = trio.Event()
        self._watch = trio.CancelScope()
        self._response: Response | None = None
        self._fault: Fault | None = None
        self._failure: Exception | None = None
        self._all_sent = not request.has_content
        self.left_clean = False
        self.hold_content = False

    def head(self, fields: tuple[tuple[str, str], ...]) -> bytes:
        """Return the request's head. After it h11 waits for the response."""
        request = self._request
        lines = [("host", self._origin.authority), *request.fields, *fields]
        if request.has_content:
            lines.append(("content-length", str(request.length)))
        if request.expect:
            lines.append(("expect", "100-continue"))
        return self._parser.send(
            h11.Request(
                method=request.method,
                target=request.url.target,
                headers=Fields(lines).to_wire(),
            )
        )

    async def run(self, head: bytes) -> Response:
        """Send the request and return its response. The two tasks note how it ends."""
        expect = self._request.expect
        await self.send(head if expect else head + self._request.prefix)
        if not self._request.length:
            self._sent_all()
        elif not expect:
            self._may_send.set()
        if self._fault is None:
            with self._watch:
                self._moved()
                async with trio.open_nursery() as nursery:
                    if not self._all_sent:
                        nursery.start_soon(self._send_content, nursery.cancel_scope)
                    await self._receive(nursery.cancel_scope)
        if self._fault is not None:
            raise WasCut(self._fault)
        if self._failure is not None:
            raise self._failure
        if self._watch.cancelled_caught:
            raise Unhappy(Ending.TIMEOUT, "the server is silent", retry=True)
        assert self._response is not None
        if self._response.status < 300 and not self._all_sent:
            raise Unhappy(
                Ending.NOT_UNDERSTOOD,
                f"{self._response.status} before all of the content was sent",
            )
        return self._response

    def _moved(self) -> None:
        """Note that bytes moved in some direction: the wait for the server begins again."""
        self._watch.deadline = trio.current_time() + self._idle

    async def send(self, data: bytes) -> None:
        """Send all of *data*. Raises :class:`Unhappy` if it takes too long."""
        with trio.move_on_after(self._idle) as scope:
            rest = memoryview(data)
            while rest:
                rest = rest[await self._sock.send(rest) :]
        if scope.cancelled_caught:
            raise Unhappy(Ending.TIMEOUT, "the server does not read", retry=True)

    # Sending.

    async def _send_content(self, whole: trio.CancelScope) -> None:
        try:
            if self._request.expect:
                with trio.move_on_after(CONTINUE_SECONDS):
                    await self._may_send.wait()
                if self.hold_content:
                    raise Unhappy(Ending.TIMEOUT, "no 100 in time")
                await self.send(self._request.prefix)
            if self._content is not None:
                await self._pump(self._content)
            self._sent_all()
        except OSError as exc:
            # The server may have said why before it closed.
            self._watch.deadline = trio.current_time() + LAST_WORDS_SECONDS
            self._failure = Unhappy(Ending.CLOSED, str(exc), retry=True)
        except Unhappy as exc:
            self._failure = exc
            whole.cancel()
        if self._fault is not None:
            whole.cancel()

    def _sent_all(self) -> None:
        """Note that the request was sent, unless it was cut. Its response may have to be lost."""
        content = self._content
        if self._fault is not None or self._all_sent:
            return
        self._all_sent = True
        if content is not None and self._request.has_content:
            self._fault = content.cuts.at_response(content.sent)

    async def _pump(self, content: SentContent) -> None:
        """Send the content by sendfile, up to its end or to a cut."""
        region = content.region
        at = self._request.start
        while at < self._request.stop:
            want = min(self._request.stop - at, content.pace.portion)
            room = content.cuts.before_cut(content.sent)
            if room == 0:
                self._fault = content.cuts.at_body()
                return
            if room is not None:
                want = min(want, room)
            # Only the first piece: a turn ends where the region ends.
            offset, count = next(pieces(region.length, content.position + at, want))
            done = await self._sock.send_file(region.fd, offset, count)
            at += done
            content.sent += done
            content.pace.spend(done)
            self._moved()
            content.on_sent(at, done)
            if at == self._request.stop:
                # Before any await, because the answer may come at any moment.
                self._sent_all()
                return
            await content.pace.wait()
            if done == count:
                # This task could continue at once, so let the others run first.
                await trio.lowlevel.checkpoint()

    # Receiving.

    async def _receive(self, whole: trio.CancelScope) -> None:
        try:
            await self._read_responses()
        except OSError as exc:
            self._failure = closed(exc, self._origin)
        except h11.RemoteProtocolError as exc:
            self._failure = Unhappy(Ending.NOT_UNDERSTOOD, str(exc))
        except Unhappy as exc:
            self._failure = exc
        else:
            self._failure = None  # the server's answer counts
        whole.cancel()

    async def _read_responses(self) -> None:
        status = 0
        fields = Fields()
        body = bytearray()
        interims = 0
        while True:
            event = self._parser.next_event()
            if event is h11.NEED_DATA:
                data = await self._sock.recv(RECEIVE_BYTES)
                if not data and status == 0:
                    raise Unhappy(Ending.CLOSED, "closed without an answer", retry=True)
                self._parser.receive_data(data)
                if self._failure is None:
                    self._moved()
            elif isinstance(event, h11.InformationalResponse):
                interims += 1
                if interims > MAX_INTERIMS:
                    raise Unhappy(Ending.NOT_UNDERSTOOD, "interim responses no end")
                self._interim(event)
            elif isinstance(event, h11.Response):
                status, fields = event.status_code, Fields.from_wire(event.headers)
            elif isinstance(event, h11.Data):
                if self._on_body is not None and status == 200:
                    self._on_body(event.data)
                elif len(body) < MAX_BODY:
                    body += event.data
            elif isinstance(event, h11.EndOfMessage):
                unread, _ = self._parser.trailing_data
                self.left_clean = not unread and self._parser.their_state is h11.DONE
                self._response = Response(status, fields, bytes(body[:MAX_BODY]))
                return
            else:  # PAUSED or ConnectionClosed: there is nothing more to come
                raise Unhappy(Ending.CLOSED, "closed without an answer", retry=True)

    def _interim(self, event: h11.InformationalResponse) -> None:
        response = Response(event.status_code, Fields.from_wire(event.headers))
        if response.status == 100:
            self._may_send.set()
        if self._on_interim is not None:
            self._on_interim(response)
