"""The response of an application, on its way from the task that runs the application.

An application writes its response and goes on running; a target returns a response and is
done. So the application runs in a task of its own, and an :class:`Answer` stands between the
two. It holds one block at most: the application waits in :meth:`Answer.write` until the block
before was taken. So neither a fast application nor a slow client takes memory.

Small responses, written at once, are handed over as bytes. A response that ends before its
``Content-Length``, or without its end, is an error and never taken for whole.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.errors import CallerError
from trioresume.protocol.heads import has_content
from trioresume.server.api.handler import Response

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trioresume.protocol.heads import Fields

__all__ = ["Answer"]

MOST_GATHERED = 64 * 1024
"""Bytes of the answer to OPTIONS, whose content may be replaced as a whole; the rest is dropped."""


class Answer:
    """One response: written by the application, read by the server. *method* asks for it."""

    def __init__(self, method: str) -> None:
        self.finished = trio.Event()
        """Set when the whole response was written, or when nobody reads the rest."""
        self._method = method
        self._head: tuple[int, Fields] | None = None
        self._first: bytes | None = None
        self._has_ended = False
        self.is_whole = False
        """Whether nothing of the response is missing: its end came, or all of its length."""
        self._left: int | None = None
        """Bytes that the response's ``Content-Length`` still promises; None: no promise."""
        self._failure: Exception | None = None
        self._ready = trio.Event()
        self._into, self._blocks = trio.open_memory_channel[bytes](0)

    # ------------------------------------------------------------ for the application

    @property
    def is_begun(self) -> bool:
        """Whether some of the response's content was written, so the head stands."""
        return self._first is not None

    def start(self, status: int, fields: Fields) -> None:
        """Take the head. Raises :class:`~trioresume.errors.CallerError` for a bad one."""
        if self._first is not None:
            raise CallerError("the response has begun already")
        Response(status, fields)  # checks both
        self._head = (status, fields)
        length = fields.get("content-length")
        self._left = None
        if length is not None and not self._is_bodiless:
            if not (length.isascii() and length.isdigit()):
                raise CallerError("the response's Content-Length is not a number")
            self._left = int(length)

    @property
    def _is_bodiless(self) -> bool:
        assert self._head is not None
        return self._method == "HEAD" or not has_content(self._head[0])

    async def write(self, block: bytes, *, more: bool) -> None:
        """Write a *block* of content, the last one without *more*. Waits for the reader.

        Raises :class:`trio.BrokenResourceError` if nobody reads any more, and
        :class:`~trioresume.errors.CallerError` for content out of order or of a wrong length.
        """
        if self._head is None:
            raise CallerError("content came before the response's head")
        if self._has_ended and (block or not more):
            raise CallerError("content came after the response's end")
        self._count(len(block), more=more)
        self._has_ended = not more
        if self._is_bodiless:
            self._first = b""
            self.is_whole = True
            self.finished.set()
        elif self._is_gathered:
            room = MOST_GATHERED - len(self._first or b"")
            self._first = (self._first or b"") + block[:room]
        elif self._first is None:
            self._first = block
        elif block:
            await self._into.send(block)
        if not more or self._left == 0:
            self.is_whole = True
            self._into.close()
        if self.is_whole or not self._is_gathered:
            self._ready.set()
        if not more:
            self.finished.set()

    def _count(self, size: int, *, more: bool) -> None:
        if self._left is None:
            return
        self._left -= size
        if self._left < 0 or (self._left and not more):
            raise CallerError("the response's content differs from its Content-Length")

    def end(self, failure: Exception | None = None) -> None:
        """Note that the application writes nothing any more, because of *failure* if any."""
        if not self.is_whole and self._failure is None:
            self._failure = failure or CallerError(
                "the application ended before its response did"
            )
        self._ready.set()
        self.finished.set()
        self._into.close()

    # ------------------------------------------------------------ for the server

    async def response(self) -> Response:
        """Wait for the response, and return it; large content is still to be read from it.

        Raises what the application raised, and :class:`~trioresume.errors.CallerError` if its
        response is not whole.
        """
        try:
            await self._ready.wait()
        except trio.Cancelled:
            self.abandon()
            raise
        if self._failure is not None and (self._first is None or self._is_gathered):
            raise self._failure
        assert self._head is not None
        assert self._first is not None
        status, fields = self._head
        if self.is_whole:
            return Response(status, fields, self._first)
        return Response(status, fields, self._stream(self._first))

    @property
    def _is_gathered(self) -> bool:
        return self._method == "OPTIONS"

    async def _stream(self, first: bytes) -> AsyncIterator[bytes]:
        try:
            yield first
            del first  # not kept in memory
            async for block in self._blocks:
                yield block
            if self._failure is not None:
                raise self._failure
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Read nothing any more: the application is told that its client is gone."""
        self._blocks.close()
        self.finished.set()
