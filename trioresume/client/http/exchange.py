"""The port of the carriers: one request on a connection, and what comes back.

A carrier is a version of HTTP: a folder beside this module. Its connections give an
:class:`Exchange` for each request. :class:`~trioresume.client.http.round_trip.RoundTrip`
performs the request on it, and knows no carrier.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import h11

from trioresume.client.content.file_source import Piece
from trioresume.protocol.heads import Fields

__all__ = [
    "MAX_HEAD_BYTES",
    "Connection",
    "Content",
    "End",
    "Event",
    "Exchange",
    "Head",
    "Interim",
    "MalformedAnswer",
    "Moved",
    "NotProcessed",
]

MAX_HEAD_BYTES = 64 * 1024
"""The longest response head that is read."""

Moved = Callable[[int], None]
"""Called when bytes have moved in either direction, with how many were content of the
request."""


class Interim(NamedTuple):
    """An interim response (1xx)."""

    status: int
    fields: Fields


class Head(NamedTuple):
    """The head of the final response."""

    status: int
    fields: Fields


class Content(NamedTuple):
    """Content of the final response."""

    data: bytes | bytearray


class End(NamedTuple):
    """The final response is whole."""


Event = Interim | Head | Content | End


class NotProcessed(Exception):
    """The server says that it has not processed the request, so it may be sent again."""


class MalformedAnswer(Exception):
    """The server's bytes are not HTTP, or break its rules."""


class Exchange(Protocol):
    """One request and its response. One task sends while another receives.

    All methods raise :class:`trio.BrokenResourceError` if the connection is cut, and
    ``receive`` also :class:`EOFError` if the response ends too early,
    :class:`NotProcessed` and :class:`MalformedAnswer`.
    """

    async def send_head(self, *, ends: bool) -> None:
        """Send the request's head; *ends* says that it is the whole request."""
        ...

    async def send_content(self, piece: Piece) -> None:
        """Send *piece*, or raise :class:`SourceChanged` if its file became shorter."""
        ...

    async def send_end(self) -> None:
        """Say that the content has ended."""
        ...

    async def receive(self) -> Event:
        """Return what comes next of the response; after :class:`End` nothing does."""
        ...


class Connection(Protocol):
    """A connection, or a place on one, that can carry one request now."""

    def begin(self, request: h11.Request, on_moved: Moved) -> Exchange:
        """Return the exchange for *request*. *on_moved* hears of all bytes that move."""
        ...
