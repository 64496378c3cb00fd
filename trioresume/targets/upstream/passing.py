"""Requests that stream through to a backend, and tunnels.

Nothing is stored. The content goes on while it arrives, and the response while the backend
makes it, each only as fast as its receiver takes it. If the client goes away, the backend's
connection is closed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import trio

from trioresume.targets.upstream.round_trip import send_in_time

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trioresume.server.async_store.receive_memory import Piece
    from trioresume.server.http.exchange import Exchange, Tunnel
    from trioresume.targets.upstream.connections import Connection

__all__ = ["ContentPasser", "run_tunnel", "while_client_waits"]

READ_SIZE = 64 * 1024


class ContentPasser:
    """Sends content of a client on to a backend: a sink for :meth:`Body.receive`."""

    plain: int | None = None
    work = 0

    def __init__(self, exchange: Exchange, timeout: float) -> None:
        self._exchange = exchange
        self._timeout = timeout
        self._connection: Connection
        self._unsent = b""
        self.taken = 0
        self.ended = trio.Event()
        """Set when the client has sent all."""

    async def send(self, connection: Connection, head: bytes) -> None:
        """Send *head*, and the content while it arrives.

        Raises :class:`trio.BrokenResourceError` if the backend is gone, or takes nothing for
        too long, and what :meth:`Body.receive` raises.
        """
        self._connection = connection
        await self._send(head)
        await self._exchange.send_continue()
        await self._exchange.body.receive(self)
        self.ended.set()
        await self.room()

    async def _send(self, data: bytes) -> None:
        await send_in_time(self._connection.transport, data, self._timeout)

    @property
    def offset(self) -> int:
        return self.taken

    @property
    def has_room(self) -> bool:
        return not self._unsent

    async def room(self) -> None:
        if self._unsent:
            unsent, self._unsent = self._unsent, b""
            await self._send(unsent)

    def relax(self) -> None:
        """Hold nothing."""

    def append(self, data: memoryview, piece: Piece | None = None) -> None:
        block = bytes(data)
        sent = self._connection.transport.send_some_nowait(block) or 0
        self._unsent = block[sent:]
        self.taken += len(block)


async def while_client_waits(
    exchange: Exchange, ready: trio.Event | None, answer: Callable[[], Awaitable[None]]
) -> None:
    """Call *answer*, and cancel it when the client goes away.

    *ready* is set when the client's content was received, and is None if there is none.
    Raises what *answer* raises, and :class:`trio.BrokenResourceError` if it was cancelled.
    """
    failure: Exception | None = None
    is_over = False

    async with trio.open_nursery() as nursery:

        async def watch() -> None:
            if ready is not None:
                await ready.wait()
            try:
                await exchange.until_gone()
            except trio.BrokenResourceError:
                pass  # it was reset
            nursery.cancel_scope.cancel()

        nursery.start_soon(watch)
        try:
            await answer()
            is_over = True
        except Exception as exc:  # noqa: BLE001 - raised below, without a group
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    if not is_over:
        raise trio.BrokenResourceError("the client is gone")


async def run_tunnel(client: Tunnel, connection: Connection, seconds: float) -> None:
    """Carry bytes both ways until both ends have closed, or nothing came for *seconds*."""
    transport = connection.transport
    early, _ = connection.parser.trailing_data
    memory = memoryview(bytearray(READ_SIZE))
    if early:
        await client.send_all(bytes(early))

    async def receive_from_backend() -> bytes:
        while (count := transport.receive_nowait(memory)) is None:
            await transport.wait_readable()
        return bytes(memory[:count])

    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        scope.deadline = trio.current_time() + seconds

        async def carry(
            receive: Callable[[], Awaitable[bytes]],
            send: Callable[[bytes], Awaitable[None]],
            end: Callable[[], Awaitable[None]],
        ) -> None:
            try:
                while data := await receive():
                    scope.deadline = trio.current_time() + seconds
                    await send(data)
                await end()
            except trio.BrokenResourceError:
                scope.cancel()  # nothing can reach the other end any more

        nursery.start_soon(
            carry, client.receive_some, transport.send_all, transport.send_eof
        )
        nursery.start_soon(
            carry, receive_from_backend, client.send_all, client.send_eof
        )
