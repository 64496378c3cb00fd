"""One upload: attempt after attempt until it is done or given up.

The end of an attempt decides what follows. After the generator's own cut the upload
waits for ``think`` seconds and is resumed. After a failure of the server it tries again
after a growing pause, up to ``retries`` times in a row. A contradiction of the server
ends the upload, because the server cannot be believed any more.
"""

from __future__ import annotations

import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import trio

from trioresume.bench.content import Region
from trioresume.bench.load_connection import LoadConnection, Pace, SentContent, WasCut
from trioresume.bench.load_stream import LoadStream, SharedConnections
from trioresume.bench.pipe import Counts
from trioresume.bench.plan import Cuts, Planned, cuts_of
from trioresume.bench.probe import Probe, Request, Unhappy
from trioresume.bench.results import Attempt, Ending, Fault, Upload
from trioresume.bench.settings import FaultKind, Settings
from trioresume.client.http.tls import ClientTls
from trioresume.protocol.urls import Origin

__all__ = ["Link", "ServerLife", "UploadRun"]

FIRST_PAUSE = 0.05
LONGEST_PAUSE = 2.0
"""Seconds between attempts after failures of the server. Each pause is twice the one before."""

MAX_SILENCED = 8
"""How many silent connections one upload leaves open. Beyond that the oldest is reset."""


class ServerLife:
    """Whether the server is running, as the task that kills it reports."""

    GRACE = 1.0
    """For how many seconds after a restart a broken connection still counts as killed."""

    def __init__(self) -> None:
        self._up: trio.Event | None = None
        self._blamed_until = 0.0

    def down(self) -> None:
        """Note that the server is about to be killed."""
        self._up = trio.Event()

    def up(self) -> None:
        """Note that the server accepts connections again."""
        if self._up is not None:
            self._up.set()
        self._up = None
        self._blamed_until = trio.current_time() + self.GRACE

    @property
    def to_blame(self) -> bool:
        """Whether a kill is the cause of a connection that breaks now."""
        return self._up is not None or trio.current_time() < self._blamed_until

    async def wait(self, seconds: float) -> None:
        """Wait until the server is running, at most *seconds*."""
        if self._up is not None:
            with trio.move_on_after(seconds):
                await self._up.wait()


@dataclass(frozen=True, slots=True)
class Link:
    """How a process makes its connections, and the process's clock."""

    settings: Settings
    address: tuple[str, int]
    origin: Origin
    life: ServerLife
    clock: Callable[[], float]
    tls: ssl.SSLContext | None = None
    shared: SharedConnections | None = None
    """The connections of HTTP/2, which uploads share; None for HTTP/1.1."""

    @staticmethod
    def tls_of(settings: Settings) -> ssl.SSLContext | None:
        """Return the context for the URL; None without TLS. Raises :class:`CallerError`."""
        if not settings.url.startswith("https:"):
            return None
        tls = ClientTls(
            cacert=settings.cacert,
            cert=settings.cert,
            key=settings.key,
            insecure=settings.insecure,
        )
        context = tls.context()
        context.set_alpn_protocols(["h2" if settings.http2 else "http/1.1"])
        return context

    def sharing(self, nursery: trio.Nursery) -> Link:
        """Return the link whose connections of HTTP/2, if it has any, run in *nursery*."""
        if not self.settings.http2:
            return self
        return replace(self, shared=SharedConnections(self.settings.streams, nursery))

    async def open(self) -> LoadConnection | LoadStream:
        """Raises :class:`Unhappy`."""
        if self.shared is not None:
            return await self.shared.open(
                self.address, self.origin, self.settings.idle_timeout, self.tls
            )
        return await LoadConnection.open(
            self.address, self.origin, self.settings.idle_timeout, self.tls
        )


@dataclass(slots=True)
class _Running:
    """An attempt while it runs."""

    begun: float
    thought: float = 0.0
    first: int | None = None
    last: int = 0
    offset_query: float | None = None
    resumed: float | None = None
    sending: float | None = None
    status: int | None = None


class UploadRun:
    """Performs *planned*. Adds the bytes, cuts and resumptions to *counts*."""

    def __init__(
        self,
        link: Link,
        probe: Probe,
        planned: Planned,
        region: Region,
        counts: Counts,
        process: int = 0,
    ) -> None:
        settings = link.settings
        self._link = link
        self._probe = probe
        self._planned = planned
        self._process = process
        self._counts = counts
        self._content = SentContent(
            region,
            planned.position,
            Cuts(cuts_of(settings.faults, settings.seed, planned.number, planned.size)),
            Pace(settings.rate),
            self._sent,
        )
        self._silenced: deque[LoadConnection | LoadStream] = deque()
        self._attempts: list[Attempt] = []
        self._running = _Running(0.0)
        self._connection: LoadConnection | LoadStream | None = None
        self._cut_at: float | None = None
        self._thought_since_cut = 0.0
        self._scope = trio.CancelScope()

    def stop(self) -> None:
        """Stop the upload where it is."""
        self._scope.cancel()

    async def run(self) -> Upload:
        """Make all attempts. If cancelled from outside, nothing is left open."""
        begun = self._link.clock()
        try:
            with self._scope:
                await self._attempt_until_settled()
            if self._scope.cancelled_caught:
                self._record(Ending.STOPPED)
        finally:
            self._drop(FaultKind.RST)
            for connection in self._silenced:
                connection.reset()
        last = self._attempts[-1]
        result = self._probe.result
        return Upload(
            number=self._planned.number,
            name=self._planned.name,
            size=self._planned.size,
            begun=begun,
            ended=last.ended,
            ending=last.ending,
            attempts=tuple(self._attempts),
            process=self._process,
            location=None if result is None else str(result),
            detail=last.detail,
        )

    async def _attempt_until_settled(self) -> None:
        fruitless = 0
        pause = 0.0
        furthest = 0
        while True:
            self._running = _Running(self._link.clock())
            if self._attempts:
                await self._rest(pause)
            retry = await self._attempt()
            ending = self._attempts[-1].ending
            if not retry:
                return
            self._probe.cut()
            if ending is Ending.CUT:
                self._counts.cuts += 1
                pause = 0.0
                continue
            # Only bytes that the server has confirmed are progress.
            if self._probe.announced > furthest:
                furthest = self._probe.announced
                fruitless = 0
            else:
                fruitless += 1
            if fruitless > self._link.settings.retries:
                return
            pause = min(LONGEST_PAUSE, FIRST_PAUSE * 2.0 ** min(fruitless, 20))

    async def _rest(self, pause: float) -> None:
        """Wait on purpose, or for the server to recover. Both count as *think*."""
        seconds = max(self._link.settings.think, pause)
        before = self._link.clock()
        if seconds:
            await trio.sleep(seconds)
        self._running.begun = self._link.clock()
        self._running.thought = self._running.begun - before
        self._thought_since_cut += self._running.thought

    async def _attempt(self) -> bool:
        """Make one attempt and record it. Return whether another may follow."""
        try:
            await self._link.life.wait(self._link.settings.idle_timeout)
            while (request := self._probe.next()) is not None:
                await self._ask(request)
        except WasCut as cut:
            unsent = 0
            if cut.fault.kind is FaultKind.RST and self._connection is not None:
                unsent = self._connection.unsent()
            self._drop(cut.fault.kind)
            self._record(Ending.CUT, fault=cut.fault, unsent=unsent)
            return True
        except Unhappy as exc:
            self._drop(FaultKind.FIN)
            ending = exc.ending
            broken = ending in (Ending.REFUSED, Ending.CLOSED, Ending.TIMEOUT)
            if broken and self._link.life.to_blame:
                ending = Ending.KILLED
            self._record(ending, detail=exc.detail)
            return exc.retry
        self._drop(FaultKind.FIN)
        self._record(Ending.DONE)
        return False

    async def _ask(self, request: Request) -> None:
        """Send one request, on the last request's connection if that can be used again."""
        if self._connection is not None and not self._connection.reusable:
            self._drop(FaultKind.FIN)
        if self._connection is None:
            self._connection = await self._link.open()
        before = self._link.clock()
        response = await self._connection.ask(
            request, self._link.settings.headers, self._content, self._probe.interim
        )
        self._running.status = response.status
        if request.asks_offset and response.ok:
            self._running.offset_query = self._link.clock() - before
        self._probe.final(request, response)
        if self._running.first is None:
            self._confirmed(self._probe.announced)

    def _confirmed(self, offset: int) -> None:
        """Correct an earlier attempt: the server has the bytes below *offset*.

        The present attempt sent none of them. The number of unsent bytes of a reset
        connection is read a moment before the reset. In that moment the server may
        still have taken some of them.
        """
        reached = max((attempt.last for attempt in self._attempts), default=0)
        if offset <= reached:
            return
        for index in reversed(range(len(self._attempts))):
            attempt = self._attempts[index]
            if attempt.fault is not None and attempt.fault.kind is FaultKind.RST:
                self._attempts[index] = replace(attempt, last=offset)
                return

    def _sent(self, position: int, count: int) -> None:
        """Note that *count* bytes of content up to *position* were sent."""
        running = self._running
        if running.first is None:
            running.first = position - count
            running.sending = self._link.clock()
            if self._cut_at is not None:
                running.resumed = running.sending
        running.last = position
        self._probe.wrote(position)
        self._counts.sent += count

    def _drop(self, kind: FaultKind) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and connection.end(kind):
            self._silenced.append(connection)
            if len(self._silenced) > MAX_SILENCED:
                self._silenced.popleft().reset()

    def _record(
        self,
        ending: Ending,
        *,
        fault: Fault | None = None,
        unsent: int = 0,
        detail: str = "",
    ) -> None:
        now = self._link.clock()
        running = self._running
        first = running.first or 0
        last = running.last if running.first is not None else first
        resume = None
        # The server did not take bytes that it answered with a refusal.
        taken = ending in (Ending.DONE, Ending.CUT, Ending.STOPPED, Ending.KILLED)
        if taken and self._cut_at is not None and running.resumed is not None:
            resume = running.resumed - self._cut_at - self._thought_since_cut
            self._cut_at = None
            self._counts.resumed += 1
        if ending in (Ending.CUT, Ending.KILLED) and self._cut_at is None:
            self._cut_at = now
            self._thought_since_cut = 0.0
        self._attempts.append(
            Attempt(
                begun=running.begun,
                ended=now,
                first=first,
                last=max(first, last - unsent),
                ending=ending,
                fault=fault,
                offset_query=running.offset_query,
                resume=resume,
                think=running.thought,
                status=running.status,
                detail=detail,
                sending=running.sending,
            )
        )
