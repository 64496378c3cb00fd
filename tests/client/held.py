"""Connections of the client whose every call can be held, failed and released.

:class:`HeldConnector` stands around a connector, such as the :class:`~tests.client.peer.Peer`
of a scripted server. Its calls are ``connect``, and of each stream ``send``, ``receive``
and ``close``::

    connector = HeldConnector(peer)
    sending = connector.hold("send", lambda data: b"PATCH" in data)
    …                         # the client's run begins
    await sending.reached()   # it is about to send that
    sending.fail(trio.BrokenResourceError("cut"))

The names of all calls are in :attr:`HeldConnector.calls`, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import trio

from trioresume.client import Connector, Origin, Route

__all__ = ["HeldCall", "HeldConnector", "HeldStream"]

Which = Callable[[bytes], bool]
"""Whether a call is meant. ``send`` shows what is sent, ``receive`` what arrived."""


def _any(data: bytes) -> bool:
    return True


class HeldCall:
    """A call that is to be held, or is."""

    def __init__(self) -> None:
        self._reached = trio.Event()
        self._released = trio.Event()
        self._error: BaseException | None = None

    @property
    def is_reached(self) -> bool:
        return self._reached.is_set()

    async def reached(self) -> None:
        """Return when the call is there and waits."""
        with trio.fail_after(3600):
            await self._reached.wait()

    def release(self) -> None:
        """Have the call performed, or its result given."""
        self._released.set()

    def fail(self, error: BaseException) -> None:
        """Have the call raise *error*."""
        self._error = error
        self._released.set()

    async def meet(self) -> None:
        self._reached.set()
        await self._released.wait()
        if self._error is not None:
            raise self._error


class HeldConnector:
    """See the module's text."""

    def __init__(self, connector: Connector) -> None:
        self._connector = connector
        self._plans: list[tuple[str, Which, HeldCall]] = []
        self.calls: list[str] = []
        self.sent: list[bytes] = []
        """What was sent over each connection, in the order of their making."""

    def hold(self, call: str, which: Which = _any) -> HeldCall:
        """Hold the next *call* that is meant."""
        held = HeldCall()
        self._plans.append((call, which, held))
        return held

    def fail(self, call: str, error: BaseException, which: Which = _any) -> None:
        """Have the next *call* that is meant raise *error* at once."""
        self.hold(call, which).fail(error)

    async def connect(self, origin: Origin) -> Route:
        await self.meet("connect", b"")
        route = await self._connector.connect(origin)
        self.sent.append(b"")
        stream = HeldStream(self, route.stream, len(self.sent) - 1)
        return Route(stream, http2=route.http2)

    async def meet(self, call: str, data: bytes) -> None:
        """A call was made: wait or raise as it was planned."""
        self.calls.append(call)
        for number, (planned, which, held) in enumerate(self._plans):
            if planned == call and which(data):
                del self._plans[number]
                await held.meet()
                return


class HeldStream(trio.abc.Stream):
    """A connection of a :class:`HeldConnector`."""

    def __init__(
        self, connector: HeldConnector, stream: trio.abc.Stream, number: int
    ) -> None:
        self._connector = connector
        self._stream = stream
        self._number = number
        self._is_cut = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._meet("send", bytes(data))
        with self._cut():
            await self._stream.send_all(data)
        self._connector.sent[self._number] += bytes(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        with self._cut():
            data = await self._stream.receive_some(max_bytes)
        await self._meet("receive", bytes(data))
        return data

    async def _meet(self, call: str, data: bytes) -> None:
        """A connection that breaks in one call is over for all others, and the peer."""
        try:
            await self._connector.meet(call, data)
        except trio.BrokenResourceError:
            self._is_cut = True
            await trio.aclose_forcefully(self._stream)
            raise

    @contextmanager
    def _cut(self) -> Iterator[None]:
        try:
            yield
        except trio.ClosedResourceError as exc:
            if not self._is_cut:
                raise
            raise trio.BrokenResourceError("the connection was cut") from exc

    async def aclose(self) -> None:
        try:
            await self._connector.meet("close", b"")
        finally:
            await self._stream.aclose()
