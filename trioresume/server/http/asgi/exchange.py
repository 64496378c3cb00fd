"""One request over ASGI, and its answer.

The rules for answering are those of every carrier, see
:mod:`trioresume.server.http.base_exchange`. Some of them ASGI cannot carry:

* ASGI has no interim responses, except 103. A client that waits for a 100 gets a plain one
  from the server below, when the content is first asked for. The locations stand in the final
  response. So a client that wants to resume creates its upload first and sends the content
  afterwards (*careful creation*, as tus always does).
* The server below writes ``Date``, and closes connections or keeps them.
* An application cannot reset a stream. To show that a response is not whole it raises
  :class:`ResponseCut`; servers then close the connection, or reset the stream.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import trio

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.heads import Fields, RequestHead, origin_from
from trioresume.protocol.http2_head import MalformedRequest, read_request_fields
from trioresume.server.http.asgi.body import AsgiBody
from trioresume.server.http.base_exchange import BaseExchange
from trioresume.text import concealed

if TYPE_CHECKING:
    from trioresume.server.http.asgi.body import Channel
    from trioresume.server.http.front import Front

__all__ = ["AsgiExchange", "ResponseCut", "answer_request"]

logger = logging.getLogger("trioresume.connection")

LAST_WORDS_SECONDS = 1.0
"""Seconds after the grace period in which a 503 may be sent."""

_OF_CONNECTION = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"te",
        b"transfer-encoding",
        b"upgrade",
    }
)
_OF_THE_SERVER = ("connection", "date", "keep-alive", "transfer-encoding")


class ResponseCut(Exception):
    """A response could not be finished. The ASGI server has to show that to the client."""


class AsgiExchange(BaseExchange):
    """A request from an ASGI server, and the means to answer it through *channel*."""

    __slots__ = (
        "_beside",
        "_body",
        "_channel",
        "_left",
        "_sending",
        "is_gone",
        "is_whole",
    )

    def __init__(
        self,
        head: RequestHead,
        body: AsgiBody,
        channel: Channel,
        front: Front,
        beside: trio.Nursery,
    ) -> None:
        super().__init__(head, body, front)
        self.is_whole = False
        """Whether the whole response was sent."""
        self._beside = beside
        self.is_gone = False
        """Whether the client is known to be gone."""
        self._body = body
        self._channel = channel
        self._left: int | None = None
        self._sending: trio.CancelScope | None = None

    async def _watch(self) -> None:
        """Note when the client is gone: some servers do not tell who sends to it."""
        try:
            while True:
                await self._channel.receive()
        except trio.BrokenResourceError:
            self.is_gone = True
            if self._sending is not None:
                self._sending.cancel()

    @property
    def can_interim(self) -> bool:
        return False

    def close_after(self) -> None:
        return  # the server below closes connections

    @property
    def _files(self) -> None:
        return None

    async def _send_interim(self, status: int, fields: Fields) -> None:
        return

    def _offer_interim(self, status: int, fields: Fields) -> None:
        return

    async def _start(
        self, status: int, fields: Fields, content: bytes, *, ends: bool
    ) -> None:
        length = fields.get("content-length")
        self._left = None if length is None or ends else int(length)
        own = fields.without(*_OF_THE_SERVER)
        start = {
            "type": "http.response.start",
            "status": status,
            "headers": [(n.encode("latin-1"), v.encode("latin-1")) for n, v in own],
        }
        self.status = status
        if ends:
            await self._say(start, _content(content, more=False))
            self.is_whole = True
            return
        if self._body.ended:
            self._beside.start_soon(self._watch)
        if content:
            self._count(content)
            await self._say(start, _content(content, more=True))
        else:
            await self._say(start)

    async def _send(self, data: bytes) -> None:
        self._count(data)
        await self._say(_content(data, more=True))

    async def _send_block(self, block: bytes) -> None:
        if block:
            await self._send(block)

    async def _end(self) -> None:
        if self._left:
            raise CallerError("the response has less content than its Content-Length")
        await self._say(_content(b"", more=False))
        self.is_whole = True

    def _count(self, data: bytes) -> None:
        if self._left is not None:
            self._left -= len(data)
            if self._left < 0:
                raise CallerError(
                    "the response has more content than its Content-Length"
                )

    async def _say(self, *messages: Mapping[str, object]) -> None:
        if not self.is_gone:
            with trio.move_on_after(self._front.config.send_timeout) as self._sending:
                await self._channel.send(messages)
                return
        raise trio.BrokenResourceError("the peer is gone or does not read")


def _content(data: bytes, *, more: bool) -> Mapping[str, object]:
    return {"type": "http.response.body", "body": data, "more_body": more}


class _Guest:
    """A request that counts as a connection: ASGI shows no connections."""

    def __init__(self, address: str) -> None:
        self.address = address

    def dismiss(self) -> None:
        """Do nothing: a request is never idle."""


async def answer_request(
    scope: Mapping[str, Any],
    channel: Channel,
    front: Front,
    deadline: Callable[[], float],
) -> None:
    """Answer the request of the ASGI *scope*.

    A cancellation after *deadline* answers 503, if no response has begun. Raises
    :class:`ResponseCut` if the response is not whole; else only cancellation.
    """
    body = AsgiBody(channel, front)
    refusal: PeerError | None = None
    try:
        head = await _read_head(scope, body, front)
    except PeerError as exc:
        refusal, head = exc, _NO_HEAD
    except trio.BrokenResourceError:
        return
    guest = _Guest(front.gateway.address_of(_peer(scope)))
    async with trio.open_nursery() as beside:
        exchange = AsgiExchange(head, body, channel, front, beside)
        try:
            if refusal is None:
                front.admission.enter(guest)
                is_proxy = front.gateway.is_proxy(_peer(scope))
                await front.answer(exchange, guest, _peer(scope) if is_proxy else "")
            else:
                await front.refuse(exchange, refusal)
        except PeerError as exc:
            await front.refuse(exchange, exc)
        except trio.BrokenResourceError:
            logger.debug(
                "the client of %s %s went away", head.method, concealed(head.path)
            )
        except BaseException:
            if trio.current_time() >= deadline() and exchange.can_respond:
                with trio.move_on_after(LAST_WORDS_SECONDS, shield=True):
                    try:
                        await exchange.say_unavailable()
                    except trio.BrokenResourceError:
                        pass
            raise
        finally:
            front.admission.leave(guest)
        beside.cancel_scope.cancel()
    if exchange.status and not exchange.is_whole and not exchange.is_gone:
        raise ResponseCut(f"the response to {head.method} {head.path} is not whole")


async def _read_head(
    scope: Mapping[str, Any], body: AsgiBody, front: Front
) -> RequestHead:
    """Return the request's head. Raises :class:`PeerError` if it is not one that is served."""
    pairs = [
        (bytes(name).lower(), bytes(value).strip(b" \t"))
        for name, value in scope["headers"]
    ]
    fields = [pair for pair in pairs if pair[0] not in _OF_CONNECTION]
    names = {name for name, _ in pairs}
    version = scope.get("http_version", "1.1")
    is_stated = bool(names & {b"content-length", b"transfer-encoding"})
    try:
        head = read_request_fields(
            [
                (b":method", scope["method"].encode("latin-1")),
                (b":scheme", b"http"),
                (b":path", _target(scope, front.config.root_path)),
                *fields,
            ],
            ends=not is_stated and version.startswith("1"),
            peer=_peer(scope),
            limits=front.head_limits,
        )
    except MalformedRequest as exc:
        raise PeerError(ProblemCode.MALFORMED_REQUEST, str(exc)) from exc
    head = front.gateway.identify(replace(head, http_version=version))
    if scope.get("scheme") == "https" and head.origin.startswith("http:"):
        head = replace(head, origin=origin_from("https", head.fields.get("host") or ""))
    is_unknown = head.length is None and not is_stated and "expect" not in head.fields
    # HTTP/2 and HTTP/3 tell by the first frame after the head.
    if is_unknown and await body.find_end(front.config.header_timeout):
        head = replace(head, length=0)
    body.length = head.length
    body.ended = body.ended or head.length == 0
    return head


def _peer(scope: Mapping[str, Any]) -> str:
    client = scope.get("client")
    if not client or not client[0]:
        return ""
    return f"{client[0]}:{client[1] or 0}"


def _target(scope: Mapping[str, Any], root: str) -> bytes:
    """Return the request target below *root*, as it was sent where the server tells that.

    The path of a scope includes the path at which the application is mounted, but not every
    server and framework keeps to that. So *root* is removed only if it is there.
    """
    raw = scope.get("raw_path")
    path = bytes(raw).partition(b"?")[0] if raw else quote(scope["path"]).encode()
    start = root.encode("latin-1")
    if start and path.startswith(start + b"/"):
        path = path[len(start) :]
    query = bytes(scope.get("query_string", b""))
    return path + b"?" + query if query else path


_NO_HEAD = RequestHead(
    method="", target="", fields=Fields(), http_version="1.1", length=None
)
"""Stands for a request whose head could not be used."""
