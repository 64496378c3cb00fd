"""The port between the wings that answer requests and whatever carries the requests.

``routes`` and ``uploads`` know this module and :mod:`~trioresume.server.http.stored_body`,
and nothing else of ``http``. HTTP/1.1, HTTP/2 and ASGI are carriers: each has its own
:class:`Exchange`, and most of it comes from
:class:`~trioresume.server.http.base_exchange.BaseExchange`.

What a carrier guarantees
=========================

* It calls the service once for each request, when the head has been read and judged. The
  service answers before it returns, or it raises.
* The service raises :class:`~trioresume.errors.PeerError`,
  :class:`~trioresume.errors.StorageError`, :class:`ContentCut`, or anything else because of
  a bug. The carrier answers with a problem document where that is possible. None of them hurts
  another request, on the same connection or not.
* :class:`trio.BrokenResourceError` means that this request's peer is gone. It ends the
  request, and nothing is sent any more.
* What is sent comes out in the order of the calls. A final response follows all interim ones.
* Content is read only while :meth:`Body.receive` runs. Before that the carrier holds no more
  of it than came with the head, or than its window lets the peer send ahead.

What the service guarantees
===========================

* It sends one final response, and no interim response after it.
* It need not read the content. A final response before the content's end is an answer like
  any other; the carrier decides whether the connection can go on.
* It calls the methods of one exchange from one task at a time. Only ``offer_interim`` may be
  called from another task, between the calls.

The numbered statements (R5, R30, C19 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Awaitable, Callable

    from trioresume.errors import ProblemCode
    from trioresume.protocol.dialects import Interim, ServerDialect, UploadLimits
    from trioresume.protocol.dialects.seed.server import Preferences
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.api.config import Principal
    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.http.stored_body import FileSender, StoredBody

__all__ = ["Body", "ContentCut", "Exchange", "Sink", "Tunnel", "Watched"]


class ContentCut(Exception):
    """The peer ended the request, or was silent for too long, before the content ended.

    The end of a connection and the reset of a stream both raise it.
    """

    def __init__(self, *, timed_out: bool) -> None:
        super().__init__("timed out" if timed_out else "connection ended")
        self.timed_out = timed_out


class Sink(Protocol):
    """The receiver of content.

    Bytes that a sink has taken are out of the carrier's hands: a carrier with windows gives
    its peer credit for them then, and not before.
    """

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        """Consume *data* before returning, or hold the *piece* that contains it.

        Any exception ends ``receive`` and leaves it.
        """
        ...

    @property
    def offset(self) -> int:
        """The offset in the content where the next byte will most likely belong."""
        ...

    @property
    def taken(self) -> int:
        """A count that grows by each byte of content taken, and by nothing else.

        The framing of a patch is no content, so it is no progress.
        """
        ...

    @property
    def plain(self) -> int | None:
        """How many of the next bytes need no parsing; None: all of them.

        The bytes after them have to be parsed, which may be much work.
        """
        ...

    @property
    def work(self) -> int:
        """A count of the parsing work: one for each field, chunk or part."""
        ...

    @property
    def has_room(self) -> bool:
        """Whether it takes more data now. If not, wait for ``room`` first."""
        ...

    async def room(self) -> None: ...

    def relax(self) -> None:
        """Hold less memory, because no data comes for a while. Fast, and cannot fail."""
        ...


class Body(Protocol):
    """The content of one request, as it comes."""

    @property
    def trailers(self) -> Fields:
        """The trailers, when the content has ended; empty if there were none."""
        ...

    async def receive(self, sink: Sink) -> None:
        """Receive the whole content into *sink*.

        Call it once. It appends to the sink only while the sink has room, and leaves a
        peer that is too fast to wait. It ends a peer that sends nothing for ``body_timeout``,
        or less than ``min_body_rate``. It never waits with bytes in hand: when it returns, or
        raises, the sink has got everything that was read.

        Raises :class:`ContentCut`, :class:`~trioresume.errors.PeerError` for malformed
        framing, and any exception of the sink. When cancelled, it may take the bytes that
        are on their way already, for some hundredths of a second, before it raises.
        """
        ...


class Tunnel(Protocol):
    """The bytes of a connection after a 101. One task may send while another receives."""

    async def receive_some(self) -> bytes:
        """Return what comes next, b"" at the end.

        Raises :class:`trio.BrokenResourceError`.
        """
        ...

    async def send_all(self, data: bytes) -> None:
        """Send everything. Raises :class:`trio.BrokenResourceError`."""
        ...

    async def send_eof(self) -> None:
        """Say that nothing more comes."""
        ...


class Watched(Protocol):
    """Notes how one request is answered. A service that is not watched has none."""

    problem: ProblemCode | None
    """The last problem that the request was answered with."""

    def note_interim(self, fields: Fields) -> None:
        """Note the fields of an interim response that tells locations."""
        ...

    def finish_head(self, status: int, fields: Fields) -> Fields:
        """Note the head of the final response; return the fields to send."""
        ...

    def counted(self, blocks: AsyncIterable[bytes]) -> AsyncIterable[bytes]:
        """Return *blocks*, and count their bytes as they are sent."""
        ...

    def counting(
        self,
        begun: int,
        files: FileSender | None,
        send: Callable[[bytes], Awaitable[None]],
    ) -> tuple[FileSender | None, Callable[[bytes], Awaitable[None]]]:
        """Return *files* and *send* so that what goes through them is counted.

        *begun* bytes of the content were sent already.
        """
        ...


class Exchange(Protocol):
    """One request and its answer, whatever carries them."""

    head: RequestHead
    """The head, validated, with the sender's address and the origin it used."""

    dialect: ServerDialect
    """The dialect of the request, and so of its answers.

    It begins as what ``early_dialect`` says; the routes replace it by what ``classify`` says.
    """

    preferences: Preferences
    """What the request's ``Prefer`` asks for. The routes may drop what is not granted."""

    limits: UploadLimits
    """The limits of uploads that clients are told."""

    sender: Principal
    """Who sent the request. It is set only if the service authenticates its senders."""

    watched: Watched | None
    """Notes how this request is answered, if the service is watched."""

    @property
    def body(self) -> Body:
        """The content of the request."""
        ...

    @property
    def can_switch(self) -> bool:
        """Whether this request's connection can be given to another protocol."""
        ...

    async def switch(self, fields: Fields) -> Tunnel:
        """Send a 101 with *fields*; return what the connection becomes.

        It is valid until the service's call for this exchange returns, and no other method
        may be called. Only if ``can_switch`` is true.
        """
        ...

    async def until_gone(self) -> None:
        """Return when the client has ended its connection. It may never return.

        Call it when the content was received. It may be cancelled.
        """
        ...

    @property
    def can_interim(self) -> bool:
        """Whether an interim response can still be sent to this client (R7)."""
        ...

    async def send_continue(
        self, fields: Fields = ..., *, always: bool = False
    ) -> None:
        """Send the 100 if the client waits for it, or if *always* is true (R5).

        Call it before receiving content. Without *always* it does nothing if no 100 is owed.
        """
        ...

    async def send_interim(self, interim: Interim) -> None:
        """Send an interim response and wait until it is sent.

        It does nothing if the client or the settings allow none. The final response will
        have the ``Location`` that was sent here (C19).
        """
        ...

    def offer_interim(self, interim: Interim) -> None:
        """Send an interim response, unless the peer reads too slowly (R30). Never waits."""
        ...

    async def respond(
        self,
        status: int,
        fields: Fields,
        body: bytes | StoredBody | AsyncIterable[bytes] = b"",
    ) -> None:
        """Send the final response, and return when it is sent.

        Bytes and stored content get their ``Content-Length``. An iterable is sent with the
        ``Content-Length`` in *fields*, which the carrier enforces, or else without one. The
        response to HEAD, or with a status that has no content, is sent without *body*.

        The first bytes of an iterable or of stored content are awaited before the head is
        sent. So a failure to read them can still be answered with an error.

        Raises :class:`trio.BrokenResourceError` if the peer is gone or does not read for
        ``send_timeout``, any exception of the iterable, and
        :class:`~trioresume.errors.StorageError`. When cancelled, an unknown part was sent.
        """
        ...
