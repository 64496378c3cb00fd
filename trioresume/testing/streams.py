"""In-memory transports that behave as a kernel's sockets do, with switches for faults.

:func:`memory_transport_pair` joins two :class:`MemoryTransport` ends by two
bounded pipes, one for each direction. Tests can rely on this:

* A full pipe blocks its sender (back-pressure), as a full socket buffer does.
* Closing an end that still has unread bytes is a *reset*, and so is sending to a
  closed end. A reset destroys the bytes that the other side had not read yet. Real
  kernels differ in this (Linux keeps the bytes that have arrived, others drop them).
  The fake drops them, because code that is right here is right on every kernel.
* ``receive_nowait`` never blocks and never checkpoints; ``wait_readable``,
  ``send_all``, ``send_eof`` and ``aclose`` always checkpoint.

The switches are plain attributes, so a test can change them at any time.
"""

from __future__ import annotations

import math
from itertools import count

import trio

from trioresume.protocol.tls_facts import TLSFacts

__all__ = ["MemoryTransport", "memory_transport_pair"]

DEFAULT_CAPACITY_BYTES = 64 * 1024

_numbers = count(1)


class _Pipe:
    """One direction: the bytes that were sent and not received yet."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.data = bytearray()
        self.sender_closed = False
        self.receiver_closed = False
        self.reset = False
        self._changed = trio.Event()

    def changed(self) -> None:
        """Wake all waiting tasks; each checks for itself whether it can go on."""
        self._changed.set()
        self._changed = trio.Event()

    async def wait_change(self) -> None:
        await self._changed.wait()

    @property
    def settled(self) -> bool:
        """Whether a reader would get something: bytes, the end, or a reset."""
        return bool(self.data) or self.sender_closed or self.reset

    @property
    def broken_for_sender(self) -> bool:
        return self.reset or self.receiver_closed or self.sender_closed

    @property
    def room(self) -> int:
        return max(0, self.capacity - len(self.data))

    def abort(self) -> None:
        self.reset = True
        self.data.clear()
        self.changed()


class MemoryTransport:
    """One end of :func:`memory_transport_pair`; a ``trioresume.server`` Transport.

    Switches (all may be changed at any time):

    ``never_readable``
        ``wait_readable`` never returns and ``receive_nowait`` has nothing: the
        peer is connected and silent. Set it back with :meth:`set_readable`.
    ``max_receive``
        ``receive_nowait`` returns at most this many bytes a call, which splits
        the peer's bytes anywhere.
    ``max_send``
        The "kernel" takes at most this many bytes at once (short writes), with a
        checkpoint in between.
    ``receive_delay``
        A slow reader: ``wait_readable`` first sleeps this many seconds.
    """

    tls: TLSFacts | None = None

    def __init__(self, incoming: _Pipe, outgoing: _Pipe, peer: str) -> None:
        self._incoming = incoming
        self._outgoing = outgoing
        self._unsent = b""
        self._closed = False
        self._interruptions = 0
        self.peer = peer
        self.never_readable = False
        self.max_receive: float = math.inf
        self.max_send: float = math.inf
        self.receive_delay = 0.0

    @property
    def closed(self) -> bool:
        """Whether ``aclose`` was called on this end."""
        return self._closed

    @property
    def unread(self) -> int:
        """The number of bytes that the other end sent and this one has not received yet."""
        return len(self._incoming.data)

    def set_readable(self, readable: bool = True) -> None:
        """Set the ``never_readable`` switch and wake a reader that waits."""
        self.never_readable = not readable
        self._incoming.changed()

    def reset(self) -> None:
        """Break the connection at once for both ends, as a TCP reset does."""
        self._incoming.abort()
        self._outgoing.abort()

    async def wait_readable(self) -> None:
        interruptions = self._interruptions
        await trio.lowlevel.checkpoint()
        if self.receive_delay:
            await trio.sleep(self.receive_delay)
        while True:
            if self._closed or self._interruptions != interruptions:
                raise trio.BrokenResourceError("the connection is closed")
            if self._incoming.settled and not self.never_readable:
                return
            await self._incoming.wait_change()

    def interrupt(self) -> None:
        """Have the ``wait_readable`` that waits now, if any, raise BrokenResourceError."""
        self._interruptions += 1
        self._incoming.changed()

    def receive_nowait(self, buffer: memoryview) -> int | None:
        pipe = self._incoming
        if self._closed or pipe.reset:
            raise trio.BrokenResourceError("the connection was reset")
        if self.never_readable:
            return None
        if not pipe.data:
            return 0 if pipe.sender_closed else None
        size = int(min(len(buffer), len(pipe.data), self.max_receive))
        buffer[:size] = pipe.data[:size]
        del pipe.data[:size]
        pipe.changed()
        return size

    @property
    def readable(self) -> int:
        return 0  # unknown, as on some systems

    def set_low_water(self, size: int) -> None:
        """Ignore the hint: memory has no use for it."""

    async def receive_some(self, max_bytes: int = DEFAULT_CAPACITY_BYTES) -> bytes:
        """Return the next bytes, or ``b""`` at the end: a convenience for scripted peers.

        Raises :class:`trio.BrokenResourceError` on a reset. A checkpoint; if it is
        cancelled, no bytes were taken.
        """
        buffer = bytearray(max_bytes)
        while True:
            await self.wait_readable()
            size = self.receive_nowait(memoryview(buffer))
            if size is not None:
                return bytes(buffer[:size])

    async def receive_all(self) -> bytes:
        """Return all bytes up to the end of the stream. Unbounded: for tests only."""
        received = bytearray()
        while data := await self.receive_some():
            received += data
        return bytes(received)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.lowlevel.checkpoint()
        unsent, self._unsent = self._unsent, b""
        for piece in (memoryview(unsent), memoryview(data)):
            view = piece
            while view:
                sent = self._accept(view)
                view = view[sent:]
                if view and sent:
                    await trio.lowlevel.checkpoint()
                elif view:
                    await self._outgoing.wait_change()

    def _accept(self, view: memoryview) -> int:
        """Take the bytes that fit now, as the kernel would; return 0 if the pipe is full."""
        pipe = self._outgoing
        if self._closed or pipe.broken_for_sender:
            raise trio.BrokenResourceError("the connection is closed or was reset")
        size = int(min(len(view), pipe.room, self.max_send))
        if size:
            pipe.data += view[:size]
            pipe.changed()
        return size

    def send_some_nowait(self, data: bytes) -> int | None:
        if self._unsent or self._closed or self._outgoing.broken_for_sender:
            return None
        return self._accept(memoryview(data))

    def send_nowait(self, data: bytes) -> bool:
        sent = self.send_some_nowait(data)
        if sent is None:
            return False
        self._unsent = data[sent:]
        return True

    @property
    def files(self) -> None:
        """Return None: no kernel sends files here, so they must be read."""

    async def send_eof(self) -> None:
        self._outgoing.sender_closed = True
        self._outgoing.changed()
        await trio.lowlevel.checkpoint()

    async def aclose(self, *, clean: bool = False) -> None:
        if not self._closed:
            self._closed = True
            if self._incoming.data:
                self._outgoing.abort()
            self._incoming.receiver_closed = True
            self._incoming.data.clear()
            self._incoming.changed()
            self._outgoing.sender_closed = True
            self._outgoing.changed()
        await trio.lowlevel.checkpoint()


def memory_transport_pair(
    capacity: int = DEFAULT_CAPACITY_BYTES,
) -> tuple[MemoryTransport, MemoryTransport]:
    """Return two connected transports; each direction holds at most *capacity* bytes."""
    number = next(_numbers)
    forth, back = _Pipe(capacity), _Pipe(capacity)
    return (
        MemoryTransport(back, forth, f"memory:{number}b"),
        MemoryTransport(forth, back, f"memory:{number}a"),
    )
