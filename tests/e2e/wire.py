"""A second HTTP client, for these tests alone: it has nothing of trioresume.

It exists so that client and server are not only tested against each other's idea of
the protocol. It sends exactly the bytes that a test asks for, and records every response. It
speaks HTTP/1.1; a :class:`~tests.e2e.carriers.Carrier` can put that into TLS and HTTP/2.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Self, cast

import trio
from h2.exceptions import ProtocolError

from tests.e2e.carriers import HTTP1, Carrier, Stream
from tests.server.http2_client import Http2Stream
from tests.sockets import until_read

__all__ = ["Answer", "Cut", "Refused", "Wire", "ask", "parse_message", "request_head"]

READ_SIZE = 64 * 1024
# What a stream raises at its end. h2 refuses to send on a connection that is over.
_ENDED = (
    trio.BrokenResourceError,
    trio.ClosedResourceError,
    ProtocolError,
)


class Cut(Exception):
    """The connection ended before the answer was there."""


class Refused(Cut):
    """There was no connection to begin with."""


@dataclass(frozen=True)
class Answer:
    """One response, interim or final. Field names are in lower case."""

    status: int
    fields: dict[str, str]
    body: bytes = b""
    interims: list[Answer] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.status} {self.fields} {self.body[:300]!r}"


def request_head(
    method: str,
    target: str,
    fields: Iterable[tuple[str, str]] = (),
    *,
    version: str = "1.1",
) -> bytes:
    """A request's head, ready to be sent."""
    lines = [f"{method} {target} HTTP/{version}", "Host: e2e.test"]
    lines += [f"{name}: {value}" for name, value in fields]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def _parse_head(raw: bytes) -> Answer:
    first, *lines = raw.decode("ascii").split("\r\n")
    version, status, _ = first.split(" ", 2)
    assert version == "HTTP/1.1", first
    fields: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        name = name.lower()
        assert name not in fields, f"{name} is there twice"
        fields[name] = value.strip(" \t")
    return Answer(int(status), fields)


def parse_message(raw: bytes) -> Answer:
    """A recorded response message (R26): head, ``Content-Length`` framing, content."""
    head, separator, body = raw.partition(b"\r\n\r\n")
    assert separator
    answer = _parse_head(head)
    assert len(body) == int(answer.fields.get("content-length", 0))
    return Answer(answer.status, answer.fields, body)


class Wire:
    """One connection. Every way it can break comes out as :class:`Cut`.

    As a context manager it is closed at the end of the block.
    """

    def __init__(self, socket: trio.SocketStream, stream: Stream | None = None) -> None:
        self._socket = socket
        self._stream = stream or socket
        self._received = bytearray()

    @property
    def port(self) -> int:
        """The port of this end."""
        port: int = self._socket.socket.getsockname()[1]
        return port

    async def until_read(self) -> None:
        """Return when the service has read all that was sent."""
        await until_read(self._socket.socket)

    @classmethod
    async def connect(cls, address: tuple[str, int], carrier: Carrier = HTTP1) -> Wire:
        try:
            plain = await trio.open_tcp_stream(*address)
        except OSError as exc:
            raise Refused(str(exc)) from exc
        try:
            return cls(plain, await carrier.over(plain))
        except trio.BrokenResourceError as exc:
            plain.socket.close()
            raise Cut(str(exc)) from exc
        except BaseException:
            plain.socket.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def send(self, data: bytes | memoryview) -> None:
        try:
            await self._stream.send_all(bytes(data))
        except _ENDED as exc:
            raise Cut(str(exc)) from exc

    async def _more(self) -> bool:
        try:
            data = await self._stream.receive_some(READ_SIZE)
        except _ENDED as exc:
            raise Cut(str(exc)) from exc
        self._received += data
        return bool(data)

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        try:
            await self._socket.send_eof()
        except (*_ENDED, OSError) as exc:
            raise Cut(str(exc)) from exc

    async def drop(self) -> bool:
        """Read what comes next and forget it; False at the end of the connection."""
        more = await self._more()
        self._received.clear()
        return more

    async def next_head(self) -> Answer:
        """The next response's head, be it interim or final."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            if not await self._more():
                raise Cut("the connection ended")
        raw = bytes(self._received[:end])
        del self._received[: end + 4]
        return _parse_head(raw)

    async def answer(
        self, method: str, on_interim: Callable[[Answer], None] | None = None
    ) -> Answer:
        """The final response, with its content and the interims before it."""
        interims = []
        while (head := await self.next_head()).status < 200:
            interims.append(head)
            if on_interim is not None:
                on_interim(head)
        body = b""
        if method != "HEAD" and head.status not in (204, 304):
            body = await self._content(head)
        return Answer(head.status, head.fields, body, interims)

    async def _content(self, head: Answer) -> bytes:
        if head.fields.get("transfer-encoding") == "chunked":
            return await self._chunks()
        if "content-length" in head.fields:
            return await self.exactly(int(head.fields["content-length"]))
        while await self._more():
            pass
        return await self.exactly(len(self._received))

    @property
    def received(self) -> bytes:
        """What has come and was not taken yet."""
        return bytes(self._received)

    async def exactly(self, size: int) -> bytes:
        """The next *size* bytes."""
        while len(self._received) < size:
            if not await self._more():
                raise Cut("the connection ended within the content")
        data = bytes(self._received[:size])
        del self._received[:size]
        return data

    async def _chunks(self) -> bytes:
        content = b""
        while True:
            while (end := self._received.find(b"\r\n")) < 0:
                if not await self._more():
                    raise Cut("the connection ended within a chunk's head")
            size = int(self._received[:end], 16)
            await self.exactly(end + 2)
            content += await self.exactly(size)
            assert await self.exactly(2) == b"\r\n"
            if size == 0:
                return content

    async def ask(
        self, method: str, target: str, fields: Iterable[tuple[str, str]] = ()
    ) -> Answer:
        """A request without content, and its answer."""
        await self.send(request_head(method, target, fields))
        return await self.answer(method)

    async def end(self) -> None:
        """Send a FIN and stay able to read."""
        try:
            await self._socket.send_eof()
        except _ENDED as exc:
            raise Cut(str(exc)) from exc

    async def say_end(self) -> None:
        """Send TLS's own end, ``close_notify``, and wait until the server has noticed."""
        stream = self._stream
        if isinstance(stream, Http2Stream):
            stream = cast("trio.SSLStream[trio.SocketStream]", stream.wire)
        assert isinstance(stream, trio.SSLStream)
        try:
            await stream.unwrap()
        except trio.BrokenResourceError:
            pass  # the server has cut what was not whole

    def close(self) -> None:
        """Close in the ordinary way: a FIN, or a RST if something came unread."""
        self._socket.socket.close()

    def reset(self) -> None:
        """Close with a RST (SO_LINGER with a time of zero, socket(7))."""
        if self._socket.socket.fileno() != -1:
            linger = struct.pack("ii", 1, 0)
            self._socket.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            self._socket.socket.close()


async def ask(
    address: tuple[str, int],
    method: str,
    target: str,
    fields: Iterable[tuple[str, str]] = (),
    *,
    carrier: Carrier = HTTP1,
) -> Answer:
    """A request without content on a connection of its own."""
    with await Wire.connect(address, carrier) as wire:
        return await wire.ask(method, target, fields)
