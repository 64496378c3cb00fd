"""One request on a connection of its own, whose content can be held back.

The client of this package hides what a proxy does: it reads on after odd interim responses,
and tries again. The checks have to see it, so they speak through this module.
"""

from __future__ import annotations

import socket
import ssl
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import h11
import trio

from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Origin, Url

__all__ = ["Answer", "Broken", "Wire", "ask", "wire_to"]

CONNECT_SECONDS = 10.0
ANSWER_SECONDS = 15.0
_MOST_BODY = 64 * 1024
_MOST_HEAD = 64 * 1024


class Broken(Exception):
    """The connection ended, or what came is no HTTP. The text says which, for people."""


@dataclass(frozen=True, slots=True)
class Answer:
    """A response: interim, or final with the beginning of its content."""

    status: int
    fields: Fields
    body: bytes = b""

    @property
    def is_final(self) -> bool:
        return self.status >= 200


class Wire:
    """A connection that carries one request."""

    def __init__(self, stream: trio.abc.Stream, plain: trio.SocketStream) -> None:
        self._stream = stream
        self._plain = plain
        self._http = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MOST_HEAD)
        self.interims: list[Answer] = []

    async def send_head(self, method: str, url: Url, fields: Fields) -> None:
        """Send the head of a request. Raises :class:`Broken`."""
        lines = Fields({"host": url.origin.authority}).plus(fields)
        await self._send(
            h11.Request(method=method, target=url.target, headers=lines.to_wire())
        )

    async def send(self, content: bytes) -> None:
        """Send a part of the content. Raises :class:`Broken`."""
        await self._send(h11.Data(data=content))

    async def end(self) -> None:
        """End a request that has no more content. Raises :class:`Broken`."""
        await self._send(h11.EndOfMessage())

    async def _send(self, event: h11.Event) -> None:
        try:
            data = self._http.send(event)
            if data:
                await self._stream.send_all(data)
        except h11.LocalProtocolError as exc:
            raise Broken("the connection was ended before the request was") from exc
        except trio.BrokenResourceError as exc:
            raise Broken("the connection was ended while the request was sent") from exc

    async def next(self) -> Answer:
        """Return the next interim response, or the final one. Raises :class:`Broken`."""
        head: h11.Response | None = None
        body = bytearray()
        while True:
            event = await self._event()
            if isinstance(event, h11.InformationalResponse):
                answer = Answer(event.status_code, Fields.from_wire(event.headers))
                self.interims.append(answer)
                return answer
            if isinstance(event, h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data[: _MOST_BODY - len(body)]
            elif isinstance(event, h11.EndOfMessage):
                assert head is not None
                fields = Fields.from_wire(head.headers)
                return Answer(head.status_code, fields, bytes(body))

    async def final(self, seconds: float = ANSWER_SECONDS) -> Answer:
        """Return the final response; :attr:`interims` has those before it.

        Raises :class:`Broken`, also if there is none for *seconds*.
        """
        with trio.move_on_after(seconds):
            while not (answer := await self.next()).is_final:
                pass
            return answer
        raise Broken(f"there was no answer for {seconds:g} s")

    async def final_within(self, seconds: float) -> Answer | None:
        """Return the final response if it comes within *seconds*; else None."""
        with trio.move_on_after(seconds):
            while not (answer := await self.next()).is_final:
                pass
            return answer
        return None

    async def _event(self) -> h11.Event:
        while True:
            try:
                event = self._http.next_event()
            except h11.RemoteProtocolError as exc:
                if self._http.trailing_data[1] and not self._http.trailing_data[0]:
                    raise Broken("the connection was ended without an answer") from exc
                raise Broken(f"the answer cannot be read: {exc}") from exc
            if event is h11.NEED_DATA:
                try:
                    data = await self._stream.receive_some()
                except trio.BrokenResourceError as exc:
                    raise Broken("the connection was ended without an answer") from exc
                self._http.receive_data(bytes(data))
            elif isinstance(event, h11.Event):
                return event
            else:
                raise Broken("the connection was ended without an answer")

    def cut(self) -> None:
        """End the connection at once, as a network does that goes away."""
        linger = struct.pack("ii", 1, 0)  # on, 0 seconds: a reset
        try:
            self._plain.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:
            pass  # it is over already
        self._plain.socket.close()


@asynccontextmanager
async def wire_to(origin: Origin, tls: ssl.SSLContext | None) -> AsyncIterator[Wire]:
    """Connect to *origin*. Raises :class:`Broken` if there is no connection."""
    try:
        with trio.fail_after(CONNECT_SECONDS):
            plain = await trio.open_tcp_stream(origin.host, origin.port)
            stream: trio.abc.Stream = plain
            if tls is not None:
                secured = trio.SSLStream(
                    plain, tls, server_hostname=origin.host, https_compatible=True
                )
                await secured.do_handshake()
                stream = secured
    except trio.TooSlowError as exc:
        raise Broken(f"{origin.authority} does not answer") from exc
    except (OSError, trio.BrokenResourceError) as exc:
        reason = exc.__cause__ or exc
        raise Broken(f"no connection to {origin.authority}: {reason}") from exc
    wire = Wire(stream, plain)
    try:
        yield wire
    finally:
        wire.cut()


async def ask(
    method: str, url: Url, fields: Fields, tls: ssl.SSLContext | None
) -> Answer:
    """Perform a request without content. Raises :class:`Broken`."""
    async with wire_to(url.origin, tls) as wire:
        if method in ("POST", "PATCH"):
            fields = fields.plus({"content-length": "0"})
        await wire.send_head(method, url, fields)
        await wire.end()
        return await wire.final()
