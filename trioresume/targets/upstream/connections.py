"""Connections to backends, and the pool that keeps them."""

from __future__ import annotations

import logging
import os
import select
import socket
import ssl
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.server.http.tls.transport import TLSTransport
from trioresume.server.http.transport import SocketTransport

if TYPE_CHECKING:
    from trioresume.server.http.stored_body import FileSender
    from trioresume.targets.upstream.endpoints import Endpoint

__all__ = ["Connection", "PatientSender", "Pool"]

logger = logging.getLogger("trioresume.upstream")

MOST_IDLE = 32
"""Connections that are kept for each backend."""
IDLE_SECONDS = 30.0
"""For how long they are kept. Most servers keep theirs for longer; see :class:`Pool`."""
READ_SIZE = 64 * 1024
MOST_UNSENT = 4 * 1024 * 1024
"""Content that may wait in the kernel, as pages of its files: a backend seldom is slow."""
PATIENCE = 5
"""Milliseconds for which a thread waits until a backend has read more."""
MOST_HEAD = 64 * 1024
"""The longest head of a response that is read; one read more may come on top."""


def client_context(cafile: str | os.PathLike[str] | None = None) -> ssl.SSLContext:
    """Make the context for backends, whose certificates *cafile* or the system's sign.

    Raises :class:`ssl.SSLError`.
    """
    context = ssl.create_default_context(cafile=cafile)
    # With this option the end of a connection that was cut would look like TLS's own.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    return context


class Connection:
    """A connection to *endpoint*, and the parser of the response on it."""

    def __init__(
        self, transport: SocketTransport | TLSTransport, endpoint: Endpoint
    ) -> None:
        self.transport = transport
        self.endpoint = endpoint
        self.is_reused = False
        self.is_sending = False
        """Whether content is still to be sent: then no other request can follow."""
        self.idle_since = 0.0
        self.parser: h11.Connection
        self._memory = memoryview(bytearray(READ_SIZE))
        self.begin()

    def begin(self) -> None:
        """Prepare for a request. Each has a parser of its own: content passes by it."""
        self.parser = h11.Connection(h11.CLIENT, max_incomplete_event_size=MOST_HEAD)

    @property
    def files(self) -> FileSender | None:
        """The sender of content that lies in files; None if it has to be read."""
        files = self.transport.files
        if files is None or not hasattr(select, "poll"):
            return files
        self.transport.set_most_unsent(MOST_UNSENT)
        return PatientSender(files, self.transport.fileno())

    async def receive(self) -> None:
        """Give the parser what comes next: bytes, or the end of the stream.

        Raises :class:`trio.BrokenResourceError`.
        """
        while (count := self.transport.receive_nowait(self._memory)) is None:
            await self.transport.wait_readable()
        self.parser.receive_data(bytes(self._memory[:count]))

    @property
    def is_stale(self) -> bool:
        """Whether the backend has closed the idle connection, or sent what nobody asked for."""
        poll = select.poll()
        poll.register(self.transport.fileno(), select.POLLIN)
        return bool(poll.poll(0))

    @property
    def can_be_kept(self) -> bool:
        """Whether another request can follow, once the response has ended."""
        unread, ended = self.parser.trailing_data
        over = self.parser.their_state is h11.DONE and not self.is_sending
        return over and not unread and not ended

    def close(self) -> None:
        """Close at once: nothing has to be sent any more."""
        self.transport.close_nowait()


class PatientSender:
    """Sends files on a connection, as *files* does, and waits a moment for the backend.

    A backend that keeps pace reads on within :data:`PATIENCE`. Then the thread goes on at
    once, which costs less than to wake the event loop, and from there another thread. For any
    other backend the task waits.
    """

    def __init__(self, files: FileSender, fileno: int) -> None:
        self._files = files
        self._room = select.poll()
        self._room.register(fileno, select.POLLOUT)

    async def wait_writable(self) -> None:
        await self._files.wait_writable()

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        sent = self._files.send_file_nowait(descriptor, offset, size)
        if sent is None and self._room.poll(PATIENCE):
            sent = self._files.send_file_nowait(descriptor, offset, size)
        return sent


class Pool:
    """Idle connections, the most recently used first.

    A backend may close an idle connection at the very moment when a request is sent on it.
    Then nobody knows whether it has read the request. So only requests that may be sent twice
    go out on a connection that was used before; for all others a new one is made. It is kept
    afterwards, for the requests of the first kind.
    """

    def __init__(
        self, tls: ssl.SSLContext | None = None, connect_timeout: float = 10.0
    ) -> None:
        self._tls = tls
        self._timeout = connect_timeout
        self._idle: defaultdict[Endpoint, list[Connection]] = defaultdict(list)
        self._is_open = False

    def take_idle(self, endpoint: Endpoint) -> Connection | None:
        """Return an idle connection that seems to be alive; None if there is none."""
        idle = self._idle[endpoint]
        while idle:
            connection = idle.pop()
            age = trio.current_time() - connection.idle_since
            if age < IDLE_SECONDS and not connection.is_stale:
                connection.is_reused = True
                connection.begin()
                return connection
            connection.close()
        return None

    async def connect(self, endpoint: Endpoint) -> Connection:
        """Return a new connection. Raises :class:`OSError` if there is none in time."""
        with trio.move_on_after(self._timeout):
            if endpoint.socket is not None:
                stream = await trio.open_unix_socket(endpoint.socket)
            else:
                stream = await trio.open_tcp_stream(
                    endpoint.origin.host, endpoint.origin.port
                )
            if endpoint.origin.scheme == "http":
                return Connection(SocketTransport(stream.socket), endpoint)
            return await self._secure(stream, endpoint)
        raise TimeoutError(f"no connection to {endpoint} in {self._timeout:g} s")

    async def _secure(
        self, stream: trio.SocketStream, endpoint: Endpoint
    ) -> Connection:
        if self._tls is None:
            self._tls = await trio.to_thread.run_sync(client_context)
        plain = socket.socket(fileno=stream.socket.detach())
        plain.setblocking(False)
        try:
            secured = self._tls.wrap_socket(
                plain,
                server_hostname=endpoint.origin.host,
                do_handshake_on_connect=False,
                suppress_ragged_eofs=False,
            )
        except BaseException:
            plain.close()
            raise
        transport = TLSTransport(secured, str(endpoint))
        try:
            await transport.handshake()
        except BaseException:
            transport.close_nowait()
            raise
        return Connection(transport, endpoint)

    def give_back(self, connection: Connection) -> None:
        """Keep *connection* for another request, if that is possible; else close it."""
        idle = self._idle[connection.endpoint]
        if not self._is_open or not connection.can_be_kept or len(idle) >= MOST_IDLE:
            connection.close()
            return
        connection.idle_since = trio.current_time()
        idle.append(connection)

    @contextmanager
    def open(self) -> Iterator[None]:
        """Keep connections while the block runs. Those in use later close by themselves."""
        self._is_open = True
        try:
            yield
        finally:
            self._is_open = False
            for idle in self._idle.values():
                for connection in idle:
                    connection.close()
                idle.clear()
