"""One request over each version of HTTP, by clients that others have written."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import httpx
from aioquic.asyncio.client import connect
from aioquic.asyncio.protocol import QuicConnectionProtocol
from aioquic.h3.connection import H3Connection
from aioquic.h3.events import DataReceived, HeadersReceived
from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.events import QuicEvent, StreamReset

from tests.certificates import authority, client_context

__all__ = ["Client", "Reply", "client_of"]

SECONDS = 30.0


@dataclass(frozen=True)
class Reply:
    """A final response."""

    status: int
    fields: Mapping[str, str]
    body: bytes


class Client(Protocol):
    """Sends requests to one server, each on a connection of its own."""

    def request(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        """Send a whole request and read its response."""
        ...

    def cut(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes, sent: int
    ) -> None:
        """Send a request with *sent* bytes of its *body*, and break it off."""
        ...


class _Broken(Exception):
    pass


class HttpxClient:
    """HTTP/1.1 and HTTP/2."""

    def __init__(self, port: int, *, http2: bool) -> None:
        self._root = f"https://127.0.0.1:{port}"
        self._http2 = http2
        self._context: ssl.SSLContext = client_context()

    def _client(self) -> httpx.Client:
        return httpx.Client(
            http1=not self._http2,
            http2=self._http2,
            verify=self._context,
            trust_env=False,
            timeout=SECONDS,
        )

    def request(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        with self._client() as client:
            reply = client.request(
                method, self._root + path, headers=fields, content=body or None
            )
        version = "HTTP/2" if self._http2 else "HTTP/1.1"
        assert reply.http_version == version
        return Reply(reply.status_code, reply.headers, reply.content)

    def cut(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes, sent: int
    ) -> None:
        def content() -> Iterator[bytes]:
            yield body[:sent]
            raise _Broken

        length = {"Content-Length": str(len(body))}
        with self._client() as client:
            try:
                client.request(
                    method,
                    self._root + path,
                    headers={**fields, **length},
                    content=content(),
                )
            except _Broken:
                return
        raise AssertionError("it was answered")


class _HeadConnection(H3Connection):
    """aioquic takes the ``Content-Length`` of an answer to HEAD for that of content."""

    def _check_content_length(self, stream: object) -> None:
        return


class _Http3(QuicConnectionProtocol):
    """One request on one connection."""

    def begin(self, pairs: list[tuple[bytes, bytes]]) -> int:
        is_head = (b":method", b"HEAD") in pairs
        self._http = (_HeadConnection if is_head else H3Connection)(self._quic)
        self._fields: dict[str, str] = {}
        self._body = b""
        self.done: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        stream = self._quic.get_next_available_stream_id()
        self._http.send_headers(stream, pairs)
        return stream

    def send(self, stream: int, data: bytes, *, ends: bool) -> None:
        self._http.send_data(stream, data, ends)
        self.transmit()

    def reset(self, stream: int) -> None:
        self._quic.reset_stream(stream, 0x10C)  # H3_REQUEST_CANCELLED
        self.transmit()

    def quic_event_received(self, event: QuicEvent) -> None:
        if not hasattr(self, "_http") or self.done.done():
            return
        if isinstance(event, StreamReset):
            self.done.set_exception(ConnectionError("the stream was reset"))
            return
        for each in self._http.handle_event(event):
            if isinstance(each, HeadersReceived):
                self._fields = {n.decode(): v.decode() for n, v in each.headers}
                ended = each.stream_ended
            elif isinstance(each, DataReceived):
                self._body += each.data
                ended = each.stream_ended
            else:
                continue
            if ended:
                status = int(self._fields.pop(":status"))
                self.done.set_result(Reply(status, self._fields, self._body))


class AioquicClient:
    """HTTP/3."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._configuration = QuicConfiguration(
            is_client=True, alpn_protocols=["h3"], server_name="127.0.0.1"
        )
        self._configuration.load_verify_locations(cadata=authority().cert_pem.bytes())

    def request(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        reply = asyncio.run(self._talk(method, path, fields or {}, body, None))
        assert reply is not None
        return reply

    def cut(
        self, method: str, path: str, fields: Mapping[str, str], body: bytes, sent: int
    ) -> None:
        asyncio.run(self._talk(method, path, fields, body, sent))

    async def _talk(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str],
        body: bytes,
        sent: int | None,
    ) -> Reply | None:
        pairs = {
            ":method": method,
            ":scheme": "https",
            ":authority": f"127.0.0.1:{self._port}",
            ":path": path,
            **{name.lower(): value for name, value in fields.items()},
        }
        if body:
            pairs["content-length"] = str(len(body))
        async with (
            asyncio.timeout(SECONDS),
            connect(
                "127.0.0.1",
                self._port,
                configuration=self._configuration,
                create_protocol=_Http3,
            ) as protocol,
        ):
            assert isinstance(protocol, _Http3)
            encoded = [(n.encode(), v.encode()) for n, v in pairs.items()]
            stream = protocol.begin(encoded)
            if sent is not None:
                protocol.send(stream, body[:sent], ends=False)
                await protocol.ping()  # what was sent has arrived
                protocol.reset(stream)
                await protocol.ping()
                return None
            protocol.send(stream, body, ends=True)
            return await protocol.done


def client_of(version: str, port: int) -> Client:
    """The client for *version* of HTTP."""
    if version == "HTTP/3":
        return AioquicClient(port)
    return HttpxClient(port, http2=version == "HTTP/2")
