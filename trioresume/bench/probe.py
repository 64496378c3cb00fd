"""A probe: one upload as requests and answers, without I/O; the base of all protocols'.

A :class:`Probe` returns the :meth:`~Probe.next` request. It is told the result:
interim responses, the final response, or the end of the connection. It remembers where
the upload is and what the server has announced, and finds contradictions of the server.
It knows no sockets, clocks or faults.

Statement numbers such as C7 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from http import HTTPStatus

from trioresume.bench.results import Ending
from trioresume.errors import PeerError
from trioresume.protocol.dialects.client import ClientDialect
from trioresume.protocol.fields import parse_integer
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import ContentRange
from trioresume.protocol.urls import Url

__all__ = ["Destination", "Probe", "Request", "Response", "Unhappy", "integer_field"]

_TRY_AGAIN = {408, 409, 423, 425, 429, 500, 502, 503, 504, 507}
"""Statuses after which the upload may still go on."""


@dataclass(frozen=True, slots=True)
class Request:
    """A request to send: *prefix*, then the content from byte *start* to *stop*.

    *asks_offset* marks a query whose latency is measured. With *expect*, the content
    waits for ``100 Continue`` for a while.
    """

    method: str
    url: Url
    fields: Fields = field(default_factory=Fields)
    start: int = 0
    stop: int = 0
    prefix: bytes = b""
    has_content: bool = False
    expect: bool = False
    asks_offset: bool = False

    @property
    def length(self) -> int:
        """The length of the request's content on the wire, in bytes."""
        return len(self.prefix) + self.stop - self.start


@dataclass(frozen=True, slots=True)
class Response:
    """A response, interim or final, with the beginning of its content."""

    status: int
    fields: Fields
    body: bytes = b""

    @property
    def ok(self) -> bool:
        return 200 <= self.status < 300


@dataclass(frozen=True, slots=True)
class Destination:
    """Where and how an upload is made. *url* and *method* are for this upload."""

    method: str
    url: Url
    name: str
    chunk: int | None = None
    interop_version: int | None = None


class Unhappy(Exception):
    """The server's answer ends this attempt. With *retry* another attempt makes sense."""

    def __init__(self, ending: Ending, detail: str, *, retry: bool = False) -> None:
        super().__init__(detail)
        self.ending = ending
        self.detail = detail
        self.retry = retry


def integer_field(response: Response, name: str) -> int:
    """Return a non-negative integer of at most 15 digits. Raises :class:`Unhappy`."""
    value = response.fields.get(name)
    if value is None:
        raise Unhappy(Ending.NOT_UNDERSTOOD, f"{response.status} without {name}")
    try:
        return parse_integer(value.strip(), what=name)
    except PeerError as exc:
        raise Unhappy(Ending.NOT_UNDERSTOOD, f"{name}: {value[:40]!r}") from exc


class Probe(ABC):
    """One upload of *size* bytes to *destination*.

    :attr:`offset` is where the next content starts. :attr:`url` is the upload's own
    resource, once it is known. :attr:`result` is where the finished content is.
    """

    resumes = True
    """Whether a cut upload continues where it was."""

    def __init__(self, destination: Destination, size: int) -> None:
        self.destination = destination
        self.size = size
        self.offset = 0
        self.announced = 0
        self.written = 0
        self.url: Url | None = None
        self.result: Url | None = None
        self.complete = False
        self._must_ask = False

    @abstractmethod
    def next(self) -> Request | None:
        """Return the next request; None once the upload is complete."""

    @abstractmethod
    def final(self, request: Request, response: Response) -> None:
        """Take the final response to *request*. Raises :class:`Unhappy`."""

    def interim(self, response: Response) -> None:
        """Take a 1xx response during a request. Raises :class:`Unhappy`."""
        del response  # most protocols ignore it

    def wrote(self, position: int) -> None:
        """Note that content up to *position* was handed to the network."""
        self.written = max(self.written, position)

    def cut(self) -> None:
        """Note that the connection ended. How much arrived is not known."""
        if self.url is None:
            # Without a URL there is nothing to ask, so the upload begins again, as a new one.
            self.offset = self.announced = self.written = 0
        else:
            self._must_ask = True

    # For checking the content of a finished upload.

    def read_fields(self) -> Fields:
        """Return the fields that a request for the finished content needs."""
        return Fields()

    def stored_length(self, response: Response) -> int | None:
        """Return the length in the answer to a HEAD of :attr:`result`; None without one."""
        value = response.fields.get("content-length", "")
        return int(value) if value and value.isdecimal() and len(value) < 16 else None

    # For the protocols.

    def _announce(self, offset: int) -> None:
        """Note that the server says that it has the bytes below *offset* (C7)."""
        if offset < self.announced:
            raise Unhappy(
                Ending.OFFSET_FELL,
                f"offset {offset} after {self.announced} was announced",
            )
        if offset > self.written:
            raise Unhappy(
                Ending.OFFSET_BEYOND,
                f"offset {offset}, but only {self.written} bytes were ever sent",
            )
        self.announced = offset

    def _go_on_from(self, offset: int) -> None:
        self._announce(offset)
        self.offset = offset
        self._must_ask = False

    def _stop(self) -> int:
        """Return where the content of the next request ends."""
        chunk = self.destination.chunk
        return self.size if chunk is None else min(self.size, self.offset + chunk)

    def _append(self, words: ClientDialect, url: Url, stop: int) -> Request:
        """Return a PATCH of *url* with the content from the offset to *stop*."""
        completes = stop == self.size
        range_ = ContentRange(None, None, self.size)
        if stop > self.offset:
            range_ = ContentRange(self.offset, stop - 1, self.size)
        said = words.append(range_, completes=completes)
        return Request(
            "PATCH",
            url,
            said.fields,
            self.offset,
            stop,
            said.prefix,
            has_content=True,
        )

    def _own_url(self, response: Response) -> Url:
        """Return the ``Location`` of a response. Raises :class:`Unhappy`."""
        url = self._location(response)
        if url is None:
            raise Unhappy(
                Ending.NOT_UNDERSTOOD,
                f"{response.status} without a Location on this server",
            )
        return url

    def _location(self, response: Response) -> Url | None:
        value = response.fields.get("location")
        return None if value is None else self.destination.url.resolve(value)

    def _refused(self, request: Request, response: Response) -> Unhappy:
        """Return the error for an answer that does not continue the upload."""
        words = f"{request.method} answered {response.status}"
        try:
            words += f" {HTTPStatus(response.status).phrase}"
        except ValueError:
            pass
        own = self.url is not None and request.url == self.url
        if own and response.status in (HTTPStatus.NOT_FOUND, HTTPStatus.GONE):
            return Unhappy(Ending.FORGOTTEN, words)
        again = response.status in _TRY_AGAIN
        if again and self.url is not None:
            self._must_ask = True
        return Unhappy(Ending.REJECTED, words, retry=again)
