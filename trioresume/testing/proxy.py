"""A TCP proxy that misbehaves on a seeded schedule.

:class:`ChaosProxy` stands between loopback clients and one upstream address. It cuts,
stalls and throttles the connections that it carries. A :class:`ConnectionPlan` says what
happens to connection number *i*. The plans come from a *schedule*, which is any function
from *i* to a plan. Plans count bytes, never time, and a random schedule derives each plan
from its seed and *i* alone. So a run that failed can be repeated::

    async with ChaosProxy(server_address, random_faults(seed=7)) as proxy:
        ...  # clients use proxy.url
        proxy.upstream = new_address        # the server came back elsewhere
    print(proxy.totals)

A fault is exact in its own direction: it strikes when precisely ``after_bytes`` bytes
were passed on. The proxy holds at most 64 KiB in each direction.
"""

from __future__ import annotations

import random
import socket
import struct
from collections import deque
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING, Self, TypeAlias

import trio

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from types import TracebackType

__all__ = [
    "ChaosProxy",
    "ConnectionPlan",
    "ConnectionRecord",
    "Direction",
    "Ending",
    "Fault",
    "FaultKind",
    "Schedule",
    "Totals",
    "no_faults",
    "random_faults",
    "scripted_faults",
]

BUFFER_BYTES = 64 * 1024

# After a FIN the proxy reads and drops further input for this long. Closing a socket
# with unread input would turn the orderly end into a reset (RFC 9112, section 9.6).
FIN_LINGER_SECONDS = 1.0

# A throttled direction passes on one portion in each step of this length.
_THROTTLE_STEP_SECONDS = 0.05


class FaultKind(Enum):
    """The kind of a fault."""

    FIN = "fin"
    """Both sides see an orderly end of the stream."""
    RST = "rst"
    """Both sides see "connection reset by peer"."""
    STALL = "stall"
    """Nothing passes in either direction any more; both connections stay open."""


class Direction(Enum):
    """The direction in which bytes flow."""

    UP = "up"
    """From the client to the upstream server: requests."""
    DOWN = "down"
    """From the upstream server to the client: responses."""


class Ending(Enum):
    """How a connection ended."""

    OPEN = "open"
    """It has not ended yet."""
    CLOSED = "closed"
    """Client and server ended it themselves."""
    FIN = "fin"
    RST = "rst"
    UNREACHABLE = "unreachable"
    """The upstream server could not be reached; the client was reset."""
    SHUTDOWN = "shutdown"
    """The proxy was stopped."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault that strikes once *after_bytes* bytes have passed in *direction*.

    *seconds* is the length of a stall. By default it lasts until the proxy ends or
    :meth:`ChaosProxy.cut_all` is called.
    """

    kind: FaultKind
    direction: Direction
    after_bytes: int
    seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class ConnectionPlan:
    """Everything that will happen to one connection."""

    faults: tuple[Fault, ...] = ()
    bytes_per_second: float | None = None
    """A limit for each direction; None means no limit."""


Schedule: TypeAlias = "Callable[[int], ConnectionPlan]"
"""A function from the number of a connection, counted from 0, to its plan."""


def no_faults(index: int) -> ConnectionPlan:
    """A schedule without faults."""
    del index
    return ConnectionPlan()


def scripted_faults(
    plans: Sequence[ConnectionPlan | Fault | None],
) -> Schedule:
    """Return a schedule that gives connection *i* ``plans[i]``, and later ones no faults."""
    script = [_as_plan(plan) for plan in plans]

    def schedule(index: int) -> ConnectionPlan:
        return script[index] if index < len(script) else ConnectionPlan()

    return schedule


def _as_plan(plan: ConnectionPlan | Fault | None) -> ConnectionPlan:
    if isinstance(plan, Fault):
        return ConnectionPlan((plan,))
    return plan or ConnectionPlan()


def random_faults(
    seed: int,
    *,
    mean_bytes: float = 1 << 20,
    kinds: Sequence[FaultKind] = (FaultKind.FIN, FaultKind.RST),
    share_in_head: float = 0.15,
    share_in_response: float = 0.25,
    head_bytes: int = 400,
    response_bytes: int = 1500,
    limit: int | None = None,
    bytes_per_second: float | None = None,
) -> Schedule:
    """Return a schedule that strikes every connection once, at a place drawn from *seed*.

    *share_in_head* of the faults hit within the first *head_bytes* of the request
    and *share_in_response* within the first *response_bytes* of the response. The
    others strike after an exponentially distributed number of upstream bytes with mean
    *mean_bytes*: every byte has the same chance of a cut, as on a bad link.
    Connections from number *limit* on are spared.
    """

    def schedule(index: int) -> ConnectionPlan:
        if limit is not None and index >= limit:
            return ConnectionPlan((), bytes_per_second)
        draw = random.Random(f"{seed}/{index}")
        kind = draw.choice(list(kinds))
        place = draw.random()
        if place < share_in_head:
            fault = Fault(kind, Direction.UP, draw.randrange(head_bytes))
        elif place < share_in_head + share_in_response:
            fault = Fault(kind, Direction.DOWN, draw.randrange(response_bytes))
        else:
            after = int(draw.expovariate(1 / mean_bytes))
            fault = Fault(kind, Direction.UP, after)
        return ConnectionPlan((fault,), bytes_per_second)

    return schedule


@dataclass(slots=True)
class ConnectionRecord:
    """The record of one connection."""

    index: int
    plan: ConnectionPlan
    passed: dict[Direction, int] = field(
        default_factory=lambda: dict.fromkeys(Direction, 0)
    )
    """Bytes passed on, by direction."""
    struck: list[Fault] = field(default_factory=list)
    """The faults of the plan that took place, in order."""
    ending: Ending = Ending.OPEN


@dataclass(slots=True)
class Totals:
    """Sums over all connections, including those no longer in ``connections``."""

    connections: int = 0
    fins: int = 0
    resets: int = 0
    stalls: int = 0
    bytes_up: int = 0
    bytes_down: int = 0

    @property
    def cuts(self) -> int:
        """The number of connections that the proxy ended."""
        return self.fins + self.resets


class ChaosProxy:
    """The proxy. Use it with ``async with``, or ``await nursery.start(proxy.serve)``.

    *upstream* is a ``(host, port)``; assigning to ``proxy.upstream`` redirects
    connections that come later. *schedule* may be replaced at any time as well.
    ``connections`` keeps the records of the last *history* connections.

    As with every nursery, an exception raised inside the ``async with`` block comes out
    of it in an :class:`ExceptionGroup`.
    """

    def __init__(
        self,
        upstream: tuple[str, int],
        schedule: Schedule = no_faults,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        history: int = 10_000,
    ) -> None:
        self.upstream = upstream
        self.schedule = schedule
        self.connections: deque[ConnectionRecord] = deque(maxlen=history)
        self.totals = Totals()
        self._bind = (host, port)
        self._address: tuple[str, int] | None = None
        self._links: set[_Link] = set()
        self._idle = trio.Event()
        self._running: AbstractAsyncContextManager[None] | None = None

    @property
    def address(self) -> tuple[str, int]:
        """The address that clients connect to. It is known once the proxy has started."""
        if self._address is None:
            raise RuntimeError("the proxy has not been started")
        return self._address

    @property
    def url(self) -> str:
        """``http://HOST:PORT`` of :attr:`address`, without a trailing slash."""
        host, port = self.address
        return f"http://{host}:{port}"

    @property
    def open_connections(self) -> int:
        """The number of connections being carried, including stalled ones."""
        return len(self._links)

    def cut_all(self, kind: FaultKind = FaultKind.RST) -> int:
        """End every open connection, including stalled ones; return how many.

        *kind* is ``FIN`` or ``RST``.
        """
        links = list(self._links)
        for link in links:
            link.end(Ending(kind.value))
        return len(links)

    async def wait_idle(self) -> None:
        """Wait until no connection is being carried. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._links:
            await self._idle.wait()

    async def serve(
        self,
        *,
        task_status: trio.TaskStatus[tuple[str, int]] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept and carry connections until cancelled; report the address when started.

        Cancellation resets the open connections.
        """
        host, port = self._bind
        listeners = await trio.open_tcp_listeners(port, host=host)
        name = listeners[0].socket.getsockname()
        self._address = (name[0], name[1])
        async with trio.open_nursery() as nursery:
            await nursery.start(trio.serve_listeners, self._carry, listeners)
            task_status.started(self._address)

    async def __aenter__(self) -> Self:
        self._running = self._run()
        await self._running.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        assert self._running is not None
        return await self._running.__aexit__(kind, value, traceback)

    @asynccontextmanager
    async def _run(self) -> AsyncGenerator[None]:
        async with trio.open_nursery() as nursery:
            await nursery.start(self.serve)
            yield
            nursery.cancel_scope.cancel()

    async def _carry(self, client: trio.SocketStream) -> None:
        index = self.totals.connections
        self.totals.connections += 1
        record = ConnectionRecord(index, self.schedule(index))
        self.connections.append(record)
        try:
            upstream = await trio.open_tcp_stream(*self.upstream)
        except OSError:
            record.ending = Ending.UNREACHABLE
            _reset(client)
            return
        link = _Link(client, upstream, record, self.totals)
        self._links.add(link)
        try:
            await link.run()
        finally:
            self._links.discard(link)
            if not self._links:
                self._idle.set()
                self._idle = trio.Event()


class _Link:
    """One carried connection: two sockets and a pump for each direction."""

    def __init__(
        self,
        client: trio.SocketStream,
        upstream: trio.SocketStream,
        record: ConnectionRecord,
        totals: Totals,
    ) -> None:
        self._client = client
        self._upstream = upstream
        self._record = record
        self._totals = totals
        self._pumps = trio.CancelScope()
        self._stalled: trio.Event | None = None

    def end(self, how: Ending) -> None:
        """Decide how the connection ends and stop the pumps; the first call counts."""
        if self._record.ending is Ending.OPEN:
            self._record.ending = how
        self._pumps.cancel()

    async def run(self) -> None:
        try:
            with self._pumps:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(
                        self._pump, Direction.UP, self._client, self._upstream
                    )
                    nursery.start_soon(
                        self._pump, Direction.DOWN, self._upstream, self._client
                    )
            self.end(Ending.CLOSED)
            await self._close()
        finally:
            self.end(Ending.SHUTDOWN)  # has no effect if the connection ended by itself
            # A socket that was not closed in order is reset, never leaked.
            _reset(self._client)
            _reset(self._upstream)

    async def _close(self) -> None:
        ending = self._record.ending
        if ending is Ending.RST:
            self._totals.resets += 1
        elif ending is Ending.FIN:
            self._totals.fins += 1
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_finish, self._client)
                nursery.start_soon(_finish, self._upstream)
        else:
            await self._client.aclose()
            await self._upstream.aclose()

    async def _pump(
        self, way: Direction, source: trio.SocketStream, sink: trio.SocketStream
    ) -> None:
        faults = deque(
            sorted(
                (fault for fault in self._record.plan.faults if fault.direction is way),
                key=lambda fault: fault.after_bytes,
            )
        )
        try:
            while True:
                await self._strike_due(way, faults)
                data = await source.receive_some(self._portion(way, faults))
                await self._wait_out_stall()
                if not data:
                    await sink.send_eof()
                    return
                await sink.send_all(data)
                self._count(way, len(data))
                await self._throttle(len(data))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            # One side was reset, so reset the other, as if the proxy were not there.
            if self._record.ending is Ending.OPEN:
                self._record.ending = Ending.CLOSED
                _reset(source)
                _reset(sink)
            self._pumps.cancel()

    def _portion(self, way: Direction, faults: deque[Fault]) -> int:
        """Return how many bytes to read at most: never past the next fault."""
        size = BUFFER_BYTES
        if rate := self._record.plan.bytes_per_second:
            size = min(size, max(1, int(rate * _THROTTLE_STEP_SECONDS)))
        if faults:
            size = min(size, faults[0].after_bytes - self._record.passed[way])
        return size

    def _count(self, way: Direction, size: int) -> None:
        self._record.passed[way] += size
        if way is Direction.UP:
            self._totals.bytes_up += size
        else:
            self._totals.bytes_down += size

    async def _throttle(self, size: int) -> None:
        if rate := self._record.plan.bytes_per_second:
            await trio.sleep(size / rate)

    async def _strike_due(self, way: Direction, faults: deque[Fault]) -> None:
        while faults and faults[0].after_bytes <= self._record.passed[way]:
            fault = faults.popleft()
            self._record.struck.append(fault)
            if fault.kind is FaultKind.STALL:
                await self._stall(fault.seconds)
            else:
                self.end(Ending(fault.kind.value))
                await trio.lowlevel.checkpoint_if_cancelled()

    async def _stall(self, seconds: float) -> None:
        self._totals.stalls += 1
        over = self._stalled = trio.Event()
        with trio.move_on_after(seconds):
            await trio.sleep_forever()
        over.set()
        if self._stalled is over:
            self._stalled = None

    async def _wait_out_stall(self) -> None:
        while self._stalled is not None:
            await self._stalled.wait()


async def _finish(stream: trio.SocketStream) -> None:
    """Send a FIN, drop further input for a moment, then close."""
    with trio.move_on_after(FIN_LINGER_SECONDS):
        try:
            await stream.send_eof()
            while await stream.receive_some(BUFFER_BYTES):
                pass
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the other side closed first, or reset the connection
    stream.socket.close()


def _reset(stream: trio.SocketStream) -> None:
    """Close with SO_LINGER 0, which makes the kernel send a RST (see socket(7))."""
    if stream.socket.fileno() == -1:
        return
    linger = struct.pack("ii", 1, 0)
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    stream.socket.close()
