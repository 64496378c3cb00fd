"""The types that a handler receives and returns: requests, their content, responses.

The numbered statements (R31, B10, G4) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import io
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, TypeVar, runtime_checkable

import trio

from trioresume.errors import CallerError
from trioresume.protocol.fields import TOKEN, header_safe
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.operation import CallPolicy
from trioresume.server.parts import WHOLE, Part
from trioresume.store.port import Content, Mutation

if TYPE_CHECKING:
    from collections.abc import AsyncIterable

    from _typeshed import WriteableBuffer

    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.api.rulebook import Rulebook
    from trioresume.server.async_store.storage import Storage
    from trioresume.store.port import ContentReader

__all__ = [
    "AnyTarget",
    "CallPolicy",
    "ContentFile",
    "Handler",
    "HandlerTarget",
    "LastingTarget",
    "NamingTarget",
    "Progress",
    "RecordedWith",
    "Representation",
    "Request",
    "RequestBody",
    "Response",
    "Services",
    "StoreTarget",
    "Target",
    "as_target",
    "idempotent",
]

BLOCK_SIZE = 256 * 1024
"""Bytes per step when stored content is read for sending or for iteration."""


@asynccontextmanager
async def closing_iterator(
    body: AsyncIterable[bytes],
) -> AsyncIterator[AsyncIterator[bytes]]:
    """Iterate over *body* within the block; close a generator at the block's end.

    Otherwise the garbage collector would have to end a generator that was left early.
    """
    iterator = aiter(body)
    try:
        yield iterator
    finally:
        aclose = getattr(iterator, "aclose", None)
        if aclose is not None:
            await aclose()


class RequestBody:
    """The whole content of a request, in the store. Immutable.

    ``async for block in body`` yields it in order, in blocks of bytes.
    """

    def __init__(self, content: Content, storage: Storage) -> None:
        self.content = content
        """The content's description in the store."""
        self._storage = storage

    @property
    def length(self) -> int:
        """The length in bytes."""
        return self.content.length

    @property
    def digest(self) -> str | None:
        """The content's address: hexadecimal multihash of its recipe, None if empty.

        Equal content has an equal digest if ``chunk_size`` is equal and it was not joined:
        content that tus concatenated is named by its parts.
        """
        digest = self.content.digest
        return None if digest is None else digest.hex()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        reader = await self._open()
        try:
            offset = 0
            while offset < reader.length:
                block = await self._storage.run(reader.read, offset, BLOCK_SIZE)
                offset += len(block)
                yield block
        finally:
            reader.close()

    async def read(self, limit: int = 16 * 1024 * 1024) -> bytes:
        """Return all of it, for content that is known to be small.

        Raises :class:`~trioresume.errors.CallerError` if it is longer than *limit* bytes.
        """
        if self.length > limit:
            raise CallerError(
                f"the content has {self.length} bytes, over the limit of {limit}"
            )
        reader = await self._open()
        try:
            blocks = []
            offset = 0
            while offset < reader.length:
                block = await self._storage.run(reader.read, offset, BLOCK_SIZE)
                offset += len(block)
                blocks.append(block)
            return b"".join(blocks)
        finally:
            reader.close()

    async def open(self) -> ContentFile:
        """Return a seekable, readable binary file, for libraries that need one.

        Its methods block on the disk: use it in a worker thread
        (:func:`trio.to_thread.run_sync`), and close it.
        """
        return ContentFile(await self._open())

    async def _open(self) -> ContentReader:
        return await self._storage.run(self._storage.store.open_reader, self.content)


class ContentFile(io.RawIOBase):
    """Stored content as a raw binary file: seekable, read-only, blocking."""

    def __init__(self, reader: ContentReader) -> None:
        super().__init__()
        self._reader = reader
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {
            io.SEEK_SET: 0,
            io.SEEK_CUR: self._position,
            io.SEEK_END: self._reader.length,
        }[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: WriteableBuffer) -> int:
        view = memoryview(buffer).cast("B")
        block = self._reader.read(self._position, len(view))
        view[: len(block)] = block
        self._position += len(block)
        return len(block)

    def close(self) -> None:
        if not self.closed:
            self._reader.close()
        super().close()


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a handler: ``done`` of ``total`` steps, and a remark (B10)."""

    done: int
    total: int | None = None
    remark: str = ""

    def following(self, earlier: Progress | None) -> Progress:
        """Return this progress, but never behind *earlier*: a handler's tasks may overtake."""
        done = max(self.done, 0 if earlier is None else earlier.done)
        total = None if self.total is None else max(self.total, done)
        return Progress(done, total, self.remark)


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """A complete request, as a handler gets it: its content has arrived."""

    head: RequestHead
    body: RequestBody
    principal: str | None
    """The sender's name from ``Config.authenticate``; None without authentication."""
    on_progress: Callable[[Progress], None]
    operation_id: str | None = None
    """Names the upload, the same in each call for it; None if the request is not recorded.

    It is part of the secret locations that its client knows: do not show it to others."""
    earlier_conflicts: int = 0
    """How often the effects of this call could not be committed, because others had come
    before. Then the target is called again."""
    on_interim: Callable[[int, Fields], None] | None = None
    """Passes an interim response to the clients that wait for the final response."""
    digests: Mapping[str, bytes] = field(default_factory=dict)
    """The digests of the content that the client announced or asked for, as RFC 9530 names
    them: ``sha-256``, ``sha-512``."""

    @property
    def method(self) -> str:
        return self.head.method

    @property
    def target(self) -> str:
        """The request target as sent: path and query, percent-encoded."""
        return self.head.target

    @property
    def path(self) -> str:
        return self.head.path

    @property
    def headers(self) -> Fields:
        return self.head.fields

    async def progress(
        self, done: int, total: int | None = None, remark: str = ""
    ) -> None:
        """Report that *done* of *total* steps are done. A checkpoint.

        The progress is shown in the 202 at ``Response-Message-Location``, and in a 102 to
        clients that asked for it (``Prefer: processing``). Raises
        :class:`~trioresume.errors.CallerError` if *done* is negative or above *total*.
        """
        if done < 0 or (total is not None and total < done):
            raise CallerError("progress needs 0 <= done <= total")
        self.on_progress(Progress(done, total, remark))
        await trio.lowlevel.checkpoint()

    def inform(self, status: int, headers: Fields) -> None:
        """Pass on an interim response, such as a 103, to the clients that wait.

        Never blocks. A client that reads too slowly does not get it.
        """
        if self.on_interim is not None:
            self.on_interim(status, headers)


_FIELD_NAME = re.compile(TOKEN)


@dataclass(frozen=True, slots=True)
class Response:
    """A final response. The server adds ``Date`` and the framing.

    Framing fields among ``headers`` are dropped. Raises
    :class:`~trioresume.errors.CallerError` for a status that is not final and for
    fields that cannot be sent.

    ``body`` is bytes or an async iterable of bytes. If the request can be resumed, the body
    is stored before its first byte is sent.
    """

    status: int = 200
    headers: Fields | Mapping[str, str] | Iterable[tuple[str, str]] = field(
        default_factory=Fields
    )
    body: bytes | AsyncIterable[bytes] = b""

    def __post_init__(self) -> None:
        if not 200 <= self.status <= 599:
            raise CallerError(f"{self.status} is not the status of a final response")
        for name, value in self.fields:
            if _FIELD_NAME.fullmatch(name) is None or not header_safe(value):
                raise CallerError(f"the field {name!r} cannot be sent (G4)")

    @property
    def fields(self) -> Fields:
        headers = self.headers
        return headers if isinstance(headers, Fields) else Fields(headers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Representation:
    """Stored content, for Range and conditional requests (RFC 9110, sections 13 and 14)."""

    content: Content
    fields: Fields
    etag: str
    """A strong entity-tag, quotes included."""
    last_modified: float | None = None
    """Unix seconds."""


@dataclass(frozen=True, slots=True)
class RecordedWith:
    """A response, and its effects as mutations of the store.

    The commit that records the response applies them, too: both happen or neither does. So
    the target's effects happen exactly once. On a conflict the target is called again.
    """

    response: Response
    mutations: tuple[Mutation, ...]


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of the server that a target needs to keep things in its store."""

    storage: Storage
    clock: ServiceClock
    config: Config
    rulebook: Rulebook | None = None
    """The rules of the service, if it has any."""
    part: Part = WHOLE
    """What this process does of the service's work."""


@runtime_checkable
class Target(Protocol):
    """A receiver of complete requests, if a plain handler is not enough."""

    @property
    def policy(self) -> CallPolicy:
        """The consequence of a crash in the middle of ``respond``. Do not use TRANSACTIONAL:
        it needs all effects to be in this server's own store."""
        ...

    async def admit(self, head: RequestHead, principal: str | None) -> Response | None:
        """Called before any content is asked for. Return None to go on, or the final answer.

        *head* describes the whole upload, in any dialect: its length (None while unknown),
        its media type, its name. So the server calls this once for an upload, even if many
        requests send its content. It calls this once more before ``respond`` if the upload
        took more than one request or its length was not known. For tus's partial uploads it
        calls this only when they are joined, with the head of the joined upload.
        A :class:`~trioresume.PeerError` is answered with its problem document.
        """
        ...

    async def respond(self, request: Request) -> Response:
        """Called with the complete request, like a :data:`Handler`."""
        ...


@runtime_checkable
class StoreTarget(Protocol):
    """A target that keeps things in the server's own store, and serves them from it."""

    @property
    def policy(self) -> CallPolicy: ...

    def attach(self, services: Services) -> None:
        """Called once, before the first request."""
        ...

    async def admit(
        self, head: RequestHead, principal: str | None
    ) -> Response | Representation | None:
        """As :meth:`Target.admit`, or return stored content as the final answer."""
        ...

    async def respond(self, request: Request) -> Response | RecordedWith:
        """As :meth:`Target.respond`, or return the effects to be recorded as well."""
        ...


AnyTarget = Target | StoreTarget


@runtime_checkable
class LastingTarget(Protocol):
    """A target or an authenticator that runs beside its calls, or holds something.

    For example, an application with a lifespan.
    """

    def running(self, config: Config) -> AbstractAsyncContextManager[None]:
        """Entered before the first request, and left after the last one.

        An exception on entering is raised by :func:`trioresume.serve`. Leaving is cancelled a
        second after the grace period.
        """
        ...


@runtime_checkable
class RepeatingTarget(Protocol):
    """A target that may be called again for some requests, and not for others."""

    def policy_for(self, head: RequestHead) -> CallPolicy:
        """Return the policy for one request, instead of ``policy``."""
        ...


@runtime_checkable
class RecordingTarget(Protocol):
    """A target that needs more of a request than its head will tell it later."""

    def fields_to_record(self, head: RequestHead) -> Fields:
        """Return the fields to record, and to show to ``respond``, instead of the head's.

        *head* still knows its sender and its connection.
        """
        ...


@runtime_checkable
class PartTarget(Protocol):
    """A target that says where a tus partial upload may begin."""

    def check_part(self, head: RequestHead) -> None:
        """Raises :class:`~trioresume.PeerError` for a path at which no upload begins.

        It judges the path of *head*, and nothing else: a part's type and length say
        nothing of the whole.
        """
        ...


@runtime_checkable
class NamingTarget(Protocol):
    """A target that stores an upload under a name that somebody else chooses."""

    def named(self, head: RequestHead, name: str) -> RequestHead | None:
        """Return the head that would store the upload of *head* under *name*; None if it cannot."""
        ...


Handler = Callable[[Request], Awaitable[Response]]
"""An async function from a complete request to its response.

The server calls it at most once for each request, over any number of reconnects and
restarts, unless it is marked with :func:`idempotent`. It runs in the server's nursery and
goes on when the client is gone. Only the end of the server cancels it.
"""

_H = TypeVar("_H", bound=Handler)


def idempotent(handler: _H) -> _H:
    """Declare that calling *handler* again for the same request does no harm.

    After a crash in the middle of a call the server then calls it again, instead of
    reporting the outcome as indeterminate (R31).
    """
    handler.__trioresume_idempotent__ = True  # type: ignore[attr-defined]
    return handler


class HandlerTarget:
    """A :class:`Target` from a plain handler, which is called only with complete requests."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        repeatable = getattr(handler, "__trioresume_idempotent__", False)
        self.policy = CallPolicy.IDEMPOTENT if repeatable else CallPolicy.AT_MOST_ONCE

    async def admit(self, head: RequestHead, principal: str | None) -> None:
        """Admit everything. The handler refuses requests later, in ``respond``."""

    async def respond(self, request: Request) -> Response:
        response = await self._handler(request)
        if not isinstance(response, Response):
            raise CallerError(f"the handler returned {response!r}, not a Response")
        return response


def as_target(handler: Handler | AnyTarget) -> AnyTarget:
    """Return *handler* as a target."""
    if isinstance(handler, (Target, StoreTarget)):
        return handler
    return HandlerTarget(handler)
