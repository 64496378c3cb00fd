"""A run: the load, then a quiet time, then the check. Collects the reports of all processes."""

from __future__ import annotations

import socket
import subprocess
import time
from collections import deque
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import trio

from trioresume.bench.content import Region
from trioresume.bench.destination import destination_of
from trioresume.bench.detect import detect
from trioresume.bench.pipe import Counts
from trioresume.bench.plan import plan
from trioresume.bench.probe import Unhappy
from trioresume.bench.processes import BenchFailed, WorkerProcesses
from trioresume.bench.records import from_plain, to_plain
from trioresume.bench.results import (
    Check,
    Generator,
    Kill,
    Results,
    Series,
    Snapshot,
    Upload,
)
from trioresume.bench.settings import Protocol, Settings
from trioresume.bench.upload_run import Link, ServerLife
from trioresume.bench.usage import ServerWatch, machine
from trioresume.errors import TrioresumeError

__all__ = ["run"]

OBSERVE_SECONDS = 0.1

MAX_BUCKETS = 6000
"""The most intervals of the series. Beyond them its interval doubles."""

RESTART_SECONDS = 60.0
"""How long a restarted server may take to accept connections."""


async def run(
    settings: Settings,
    *,
    observe: Callable[[Snapshot], None] | None = None,
    stop: trio.Event | None = None,
) -> Results:
    """Load the server as *settings* say, check what it stored, and return the results.

    *observe* is called about ten times a second with a snapshot. If it raises, the run
    ends. When *stop* is set the load ends at once, and the result is what was found
    until then. Failed uploads and wrong content are results, not errors. Raises
    :class:`~trioresume.CallerError` for settings that make no sense, and
    :class:`BenchFailed` if the run itself cannot go on. If cancelled, it first ends its
    processes.
    """
    destination = destination_of(settings, "0")
    settings = replace(settings, processes=min(settings.processes, settings.at_once))
    address = await _resolve(destination.url.origin.host, destination.url.origin.port)
    total = sum(planned.size for planned in plan(settings))
    with Region.make(settings.seed, total) as region:
        try:
            return await _Run(settings, address, region, observe, stop).run()
        except BaseExceptionGroup as group:
            # The caller gets the error of one task, without the groups of the nurseries.
            own, others = group.split(TrioresumeError)
            if own is None or others is not None:
                raise
            raise _first(own) from group


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc


async def _resolve(host: str, port: int) -> tuple[str, int]:
    try:
        found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as exc:
        raise BenchFailed(f"{host} has no address: {exc}") from exc
    first = found[0][4]
    return str(first[0]), int(first[1])


class _Buckets:
    """A series that grows coarser instead of longer."""

    def __init__(self) -> None:
        self._interval = 0.1
        self._rows: list[list[int]] = []

    def add(self, at: float, counts: tuple[int, int, int]) -> None:
        index = max(0, int(at / self._interval))
        while index >= MAX_BUCKETS:
            if len(self._rows) % 2:
                self._rows.append([0, 0, 0])
            pairs = zip(self._rows[::2], self._rows[1::2], strict=True)
            self._rows = [[x + y for x, y in zip(a, b, strict=True)] for a, b in pairs]
            self._interval *= 2
            index //= 2
        while len(self._rows) <= index:
            self._rows.append([0, 0, 0])
        for column, count in enumerate(counts):
            self._rows[index][column] += count

    def series(self) -> Series:
        sent, finished, cuts = (tuple(row[i] for row in self._rows) for i in range(3))
        return Series(self._interval, sent, finished, cuts)


class _Run:
    """The state of one run in the parent process."""

    def __init__(
        self,
        settings: Settings,
        address: tuple[str, int],
        region: Region,
        observe: Callable[[Snapshot], None] | None,
        stop: trio.Event | None,
    ) -> None:
        self._settings = settings
        self._address = address
        self._region = region
        self._observe = observe
        self._stop = trio.Event() if stop is None else stop
        self._phase = "detecting"
        self._zero = time.monotonic()
        self._started = time.time()
        self._uploads: dict[int, Upload] = {}
        self._checks: dict[int, Check] = {}
        self._generators: list[Generator] = []
        self._kills: list[Kill] = []
        self._buckets = _Buckets()
        self._counts = [Counts()] * settings.processes
        self._planned = sum(planned.size for planned in plan(settings))
        self._recent: deque[tuple[float, int]] = deque(maxlen=12)
        self._ready = 0
        self._all_ready = trio.Event()
        self._loaded = trio.Event()
        self._carrier = "HTTP/1.1"
        self._interrupted = False
        self._watch: ServerWatch | None = None
        if settings.server_pid is not None or settings.server_pid_file is not None:
            self._watch = ServerWatch(
                settings.server_pid, settings.server_pid_file, self._clock
            )

    def _clock(self) -> float:
        return time.monotonic() - self._zero

    async def run(self) -> Results:
        protocol, server_name = await self._detect()
        async with WorkerProcesses(self._hear) as workers:
            for index in range(self._settings.processes):
                job = {
                    "settings": to_plain(self._settings, secrets=True),
                    "protocol": protocol.value,
                    "process": index,
                    "address": self._address,
                    "region_fd": self._region.fd,
                    "region_length": self._region.length,
                }
                await workers.start(job, self._region)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._show)
                async with trio.open_nursery() as talking:
                    talking.start_soon(workers.listen)
                    await self._load(workers)
                    await self._settle()
                    self._phase = "checking"
                    await workers.tell("check")
                nursery.cancel_scope.cancel()
        self._tell()
        return self._results(protocol, server_name)

    async def _detect(self) -> tuple[Protocol, str | None]:
        """Return the protocol and the server's name. Raises BenchFailed without a server."""
        destination = destination_of(
            self._settings, f"bench-{self._settings.seed}-probe"
        )
        link = Link(
            self._settings,
            self._address,
            destination.url.origin,
            ServerLife(),
            self._clock,
            Link.tls_of(self._settings),
        )
        found: tuple[Protocol, str | None] = self._settings.protocol, None
        async with trio.open_nursery() as nursery:
            link = link.sharing(nursery)
            try:
                plain = link.tls is None and link.shared is None
                if not plain or self._settings.protocol is not Protocol.AUTO:
                    connection = await link.open()
                    self._carrier = connection.carrier
                    connection.close()
                if self._settings.protocol is Protocol.AUTO:
                    found = await detect(link, destination)
            except Unhappy as exc:
                raise BenchFailed(
                    f"{destination.url.origin.authority}: {exc.detail}"
                ) from exc
            nursery.cancel_scope.cancel()
        return found

    # The load.

    async def _load(self, workers: WorkerProcesses) -> None:
        await self._all_ready.wait()
        self._phase = "loading"
        async with trio.open_nursery() as nursery:
            self._started = time.time()
            self._zero = time.monotonic()
            self._tell()  # a small load may be over before the next snapshot
            if self._watch is not None:
                self._watch.sample()
                nursery.start_soon(self._watch.run)
            await workers.tell("go", self._zero)
            nursery.start_soon(self._end_early, workers)
            if self._settings.faults.kill_command is not None:
                nursery.start_soon(self._kill, workers)
            await self._loaded.wait()
            nursery.cancel_scope.cancel()

    async def _end_early(self, workers: WorkerProcesses) -> None:
        """Stop the load when its time is over, or when *stop* is set."""
        with trio.move_on_after(self._settings.duration or float("inf")):
            await self._stop.wait()
        self._interrupted = True
        await workers.tell("stop")

    async def _kill(self, workers: WorkerProcesses) -> None:
        """Kill the server and start it again, until cancelled. Leave it running."""
        faults = self._settings.faults
        assert faults.kill_command is not None
        assert faults.restart_command is not None
        while True:
            await trio.sleep(faults.kill_every)
            limit = 2 * RESTART_SECONDS + faults.down_seconds
            with trio.CancelScope(shield=True) as scope:
                scope.deadline = trio.current_time() + limit
                await workers.tell("down")
                if self._watch is not None:
                    self._watch.sample()
                down = self._clock()
                self._kills.append(Kill(down, None))
                await _shell("kill", faults.kill_command)
                await trio.sleep(faults.down_seconds)
                await _shell("restart", faults.restart_command)
                await self._until_it_listens()
                self._kills[-1] = Kill(down, self._clock())
                if self._watch is not None:
                    self._watch.restarted()
                await workers.tell("up")
            if scope.cancelled_caught:
                raise BenchFailed("the server was not started again in time")

    async def _until_it_listens(self) -> None:
        with trio.move_on_after(RESTART_SECONDS):
            while True:
                try:
                    stream = await trio.open_tcp_stream(*self._address)
                except OSError:
                    await trio.sleep(0.02)
                else:
                    await trio.aclose_forcefully(stream)
                    return
        raise BenchFailed("the server accepts no connections after its restart")

    async def _settle(self) -> None:
        self._phase = "settling"
        if self._watch is not None:
            await self._watch.settle()

    # Messages from the processes.

    def _hear(self, process: int, message: list[Any]) -> None:
        match message:
            case ["ready"]:
                self._ready += 1
                if self._ready == self._settings.processes:
                    self._all_ready.set()
            case ["tick", at, plain]:
                before, now = self._counts[process], from_plain(Counts, plain)
                ended = now.done + now.failed - before.done - before.failed
                self._buckets.add(
                    at, (now.sent - before.sent, ended, now.cuts - before.cuts)
                )
                self._counts[process] = now
            case ["upload", plain]:
                upload = from_plain(Upload, plain)
                self._uploads[upload.number] = upload
            case ["loaded", plain]:
                self._generators.append(from_plain(Generator, plain))
                if len(self._generators) == self._settings.processes:
                    self._loaded.set()
            case ["checked", number, plain]:
                self._checks[number] = from_plain(Check, plain)

    # Showing.

    async def _show(self) -> None:
        while True:
            self._tell()
            await trio.sleep(OBSERVE_SECONDS)

    def _tell(self) -> None:
        counts = Counts.total(self._counts)
        at = self._clock()
        self._recent.append((at, counts.sent))
        (before, sent_before) = self._recent[0]
        if self._observe is None:
            return
        self._observe(
            Snapshot(
                phase=self._phase,
                at=at,
                total=self._settings.total,
                running=counts.running,
                done=counts.done,
                failed=counts.failed,
                sent=counts.sent,
                stored=counts.stored,
                planned=self._planned,
                rate=(counts.sent - sent_before) / (at - before)
                if at > before
                else 0.0,
                cuts=counts.cuts,
                resumed=counts.resumed,
                kills=len(self._kills),
                checked=len(self._checks),
                wrong=sum(not check.ok for check in self._checks.values()),
                server=None if self._watch is None else self._watch.last,
            )
        )

    def _results(self, protocol: Protocol, server_name: str | None) -> Results:
        uploads = tuple(
            replace(upload, check=self._checks.get(number))
            for number, upload in sorted(self._uploads.items())
        )
        return Results(
            settings=self._settings,
            protocol=protocol,
            machine=machine(),
            started=self._started,
            seconds=max((upload.ended for upload in uploads), default=0.0),
            uploads=uploads,
            series=self._buckets.series(),
            generators=tuple(sorted(self._generators, key=lambda g: g.process)),
            server=None if self._watch is None else self._watch.usage(),
            server_name=server_name,
            carrier=self._carrier,
            kills=tuple(self._kills),
            interrupted=self._interrupted,
        )


async def _shell(what: str, command: str) -> None:
    """Run the user's command. Processes that it starts may outlive this program."""
    done = await trio.run_process(
        ["sh", "-c", command],
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    if done.returncode:
        raise BenchFailed(f"the {what} command ended with status {done.returncode}")
