"""The supervisor: starts worker processes, replaces those that end, and ends them.

Workers come in *generations*. The first one starts with the service. A reload starts another
one, with the program and the configuration as they are then. Once all of its workers listen,
the workers of the old generation stop accepting connections, and *drain*: they end when their
requests have ended. If a worker of the new generation cannot start, the whole new generation
ends, and the old one goes on. All generations accept from the same sockets, which the parent
has opened once, so no connection is refused meanwhile.

A worker that ends unasked is replaced by one of the same number, also while a new generation
starts. If workers end at once, again and again, the next one starts later each time. In the end
the service ends, unless another worker serves: its clients lose nothing by a wrong configuration
that only the replacement has read.

One worker *leads*: it does what only one process should, such as trying again what a backend
could not take. If it ends, another one leads.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

import trio

from trioresume.errors import StorageError, WorkersFailed
from trioresume.server.http.connection_counts import MOST_SLOTS, SharedCounts
from trioresume.server.keeper.conversation import Message
from trioresume.server.workers.channel import Channel
from trioresume.server.workers.process import WorkerProcess
from trioresume.server.workers.seat import Seat

__all__ = ["Supervisor", "SupervisorTimes", "Worker"]

logger = logging.getLogger("trioresume.workers")


@dataclass(frozen=True, slots=True, kw_only=True)
class SupervisorTimes:
    """Times in seconds, and numbers, that nobody has to set; tests set them."""

    start: float = 120.0
    """How long a worker may take until it listens."""
    drain: float = 3600.0
    """How long the requests of a replaced worker may go on."""
    grace: float = 7.0
    """How long running requests may go on at a shutdown."""
    last: float = 3.0
    """How long a worker may take to end beyond its grace period, before it is killed."""
    ping: float = 10.0
    """How often a worker is asked whether its event loop lives."""
    pong: float = 30.0
    """How long it may take to answer. After two questions without an answer it is killed."""
    quick: float = 1.0
    """A worker that ends so soon after its start counts as one that cannot run."""
    most_quick: int = 10
    """So many of these, one after the other, end the service, if no worker serves."""
    first_delay: float = 0.1
    longest_delay: float = 5.0
    """How long the replacement of such a worker waits, at first and at most."""
    most_draining: int = 3
    """Generations that drain at a time. Beyond this, the oldest one has the grace period."""


@dataclass(eq=False)
class Worker:
    """A worker process and what is known about it."""

    number: int
    generation: int
    slot: int
    process: WorkerProcess
    channel: Channel
    started_at: float
    is_ready: bool = False
    is_leaving: bool = False
    """Whether it was asked to end."""
    is_on_trial: bool = True
    """Whether the rest of its generation does not listen yet."""
    reason: str = ""
    """Why it cannot start, in its own words."""
    settled: trio.Event = field(default_factory=trio.Event)
    """Set when it listens, or has ended."""
    facts: Message = field(default_factory=dict)
    """What it said of itself when it was ready."""
    report: list[object] | None = None
    """The metrics that it told last."""


class Supervisor:
    """Runs *count* workers. *command* makes a worker's command line from its channel.

    *make_seat* makes a seat of a number, a slot, and the descriptor of the catalog's
    connection; *descriptors* are the others that a worker inherits. *serve_catalog* serves
    the keeper's end of that connection for the process with the given id until it is closed.
    """

    def __init__(
        self,
        *,
        count: int,
        command: Callable[[int], Sequence[str]],
        make_seat: Callable[[int, int, int], Seat],
        descriptors: Sequence[int],
        counts: SharedCounts,
        serve_catalog: Callable[[socket.socket, int], Awaitable[None]],
        times: SupervisorTimes,
    ) -> None:
        self._count = count
        self._command = command
        self._make_seat = make_seat
        self._descriptors = descriptors
        self._counts = counts
        self._serve_catalog = serve_catalog
        self._times = times
        self._workers: list[Worker] = []
        self._free_slots = list(range(MOST_SLOTS - 1, -1, -1))
        self._generation = 1
        self._quick_deaths = 0
        self._leader: Worker | None = None
        self._replacing = trio.Lock()
        self._changed = trio.Event()
        self._failure: WorkersFailed | None = None
        self._ending = trio.Event()
        self._nursery: trio.Nursery
        self.stopping = trio.Event()
        """Set to ask for a shutdown."""
        self.recovered = trio.Event()
        """Set when a worker has taken up again what an earlier run left unprocessed."""
        self.retire: Callable[[Worker], None] = lambda worker: None
        """Called with each worker that has ended, and with its last report."""

    # What others see.

    @property
    def workers(self) -> Sequence[Worker]:
        """The workers that listen, or drain."""
        return [worker for worker in self._workers if worker.is_ready]

    async def end_process(self, pid: int) -> None:
        """Kill the worker with the process id *pid*, which does not do what it has to.

        Returns when it can do nothing any more. Another one takes its place.
        """
        for worker in self._workers:
            if worker.process.pid == pid:
                worker.process.kill()
                await worker.process.ended.wait()

    async def ask(self, message: Message, patience: float) -> Message:
        """Ask the worker that leads. Raises :class:`StorageError` if it does not answer."""
        if self._leader is None:
            raise StorageError("no worker process is ready now")
        return await self._leader.channel.ask(message, patience)

    async def gather(self, patience: float) -> None:
        """Have each worker report its metrics, within *patience* seconds."""

        async def gather_from(worker: Worker) -> None:
            try:
                answer = await worker.channel.ask({"do": "report"}, patience)
            except StorageError:
                return  # what it told last still counts
            report = answer.get("report")
            if isinstance(report, list):
                worker.report = report

        async with trio.open_nursery() as nursery:
            for worker in self.workers:
                nursery.start_soon(gather_from, worker)

    # Its life.

    async def run(self, started: Callable[[], None]) -> None:
        """Run the workers until a shutdown was asked for and all have ended.

        Calls *started* once all workers listen. Raises :class:`WorkersFailed` if they cannot.
        When this is cancelled, the workers end at once.
        """
        async with trio.open_nursery() as self._nursery:
            try:
                await self._run(started)
            except WorkersFailed as exc:
                self._failure = exc  # a nursery would put it into a group
            finally:
                self._ending.set()
                with trio.CancelScope(shield=True):
                    await self._end_all()
            self._nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _run(self, started: Callable[[], None]) -> None:
        await self._hire_all(self._generation)
        self._choose_leader()
        started()
        await self.stopping.wait()
        self._ending.set()
        if self._failure is None:
            await self._stop()

    async def replace_workers(self) -> None:
        """Start a new generation, and have the present one drain once the new one listens.

        Raises :class:`WorkersFailed` if a worker of the new one does not start; then nothing
        changes.
        """
        async with self._replacing:
            if self.stopping.is_set():
                return
            await self._hire_all(self._generation + 1)
            self._generation += 1
            logger.info(
                "generation %d of the workers listens; the ones before it drain",
                self._generation,
            )
            self._choose_leader()
            self._nursery.start_soon(self._drain)

    async def _hire_all(self, generation: int) -> None:
        """Start a generation. Raises :class:`WorkersFailed`, and none of it is left then."""
        hired: list[Worker] = []
        try:
            hired += (self._hire(n, generation) for n in range(1, self._count + 1))
            with trio.move_on_after(self._times.start):
                for worker in hired:
                    await worker.settled.wait()
                    if not worker.is_ready:
                        break
            for worker in hired:
                if not worker.is_ready:
                    raise WorkersFailed(self._failure_of(worker))
            for worker in hired:
                worker.is_on_trial = False
        except BaseException:
            for worker in hired:
                worker.is_leaving = True
                worker.process.kill()
            raise

    def _failure_of(self, worker: Worker) -> str:
        reason = worker.reason or f"it {worker.process.outcome}"
        if not worker.settled.is_set():
            reason = f"it does not listen after {self._times.start:g} seconds"
        return f"worker {worker.number} did not start: {reason}"

    def _hire(self, number: int, generation: int) -> Worker:
        """Start a worker. Raises :class:`WorkersFailed`."""
        if not self._free_slots:
            raise WorkersFailed(f"more than {MOST_SLOTS} workers have not ended yet")
        slot = self._free_slots.pop()
        self._counts.open(slot)
        ours, theirs = socket.socketpair()
        catalog, far_catalog = socket.socketpair()
        with theirs, far_catalog:
            try:
                # There is nothing in the socket yet, so this waits for nobody.
                ours.sendall(self._make_seat(number, slot, far_catalog.fileno()).line())
                process = WorkerProcess(
                    self._command(theirs.fileno()),
                    [theirs.fileno(), far_catalog.fileno(), *self._descriptors],
                )
            except OSError as exc:
                ours.close()
                catalog.close()
                self._free_slots.append(slot)
                raise WorkersFailed(f"a worker cannot be started: {exc}") from exc
        worker = Worker(
            number,
            generation,
            slot,
            process,
            Channel(ours, self._times.pong),
            trio.current_time(),
        )
        self._workers.append(worker)
        self._nursery.start_soon(self._tend, worker)
        self._nursery.start_soon(self._watch_over, worker)
        self._nursery.start_soon(self._serve_catalog, catalog, process.pid)
        logger.info("worker %d is process %d", number, process.pid)
        return worker

    # One worker.

    async def _tend(self, worker: Worker) -> None:
        """Listen to *worker* until it has ended, and replace it if it ended unasked."""
        # It does end: _end_all() kills it, whatever ends the supervisor.
        with trio.CancelScope(shield=True):
            await self._listen_to(worker)
        # One that ends on trial is missed by those who started its generation.
        if not (worker.is_leaving or worker.is_on_trial or self._ending.is_set()):
            await self._replace(worker)

    async def _listen_to(self, worker: Worker) -> None:
        async with worker.channel.talk, trio.open_nursery() as nursery:
            nursery.start_soon(worker.process.wait)
            async for message in worker.channel.lines():
                self._heard(worker, message)
            # It closed the channel, so it is ending.
            with trio.move_on_after(self._times.last):
                await worker.process.ended.wait()
            if not worker.process.ended.is_set():
                worker.process.kill()
        self._workers.remove(worker)
        self._counts.clear(worker.slot)
        self._free_slots.append(worker.slot)
        worker.settled.set()
        worker.is_ready = False
        self.retire(worker)
        if worker is self._leader:
            self._choose_leader()
        self._changed.set()
        self._changed = trio.Event()
        level = logging.INFO if worker.is_leaving else logging.ERROR
        logger.log(
            level,
            "worker %d (process %d) %s",
            worker.number,
            worker.process.pid,
            worker.process.outcome,
        )

    def _heard(self, worker: Worker, message: Message) -> None:
        if message.get("ready"):
            worker.is_ready, worker.facts = True, message
            worker.settled.set()
            if self._leader is None:
                self._choose_leader()
        elif "failed" in message:
            worker.reason = str(message["failed"])
        elif message.get("recovered"):
            self.recovered.set()
        elif isinstance(message.get("report"), list):
            worker.report = message["report"]

    async def _watch_over(self, worker: Worker) -> None:
        """Kill *worker* if its event loop does not live any more."""
        times = self._times
        missed = 0
        while not worker.process.ended.is_set():
            with trio.move_on_after(times.ping):
                await worker.process.ended.wait()
            if not worker.is_ready:
                # One on trial is given up by those who started its generation.
                age = trio.current_time() - worker.started_at
                if age > times.start and not (worker.is_on_trial or worker.is_leaving):
                    worker.reason = f"it does not listen after {times.start:g} seconds"
                    logger.error(
                        "worker %d (process %d) is killed: %s",
                        worker.number,
                        worker.process.pid,
                        worker.reason,
                    )
                    await self.end_process(worker.process.pid)
                continue
            try:
                await worker.channel.ask({"do": "ping"}, times.pong)
            except StorageError:
                missed += 1
            else:
                missed = 0
            if missed == 2 and worker.is_ready:
                logger.error(
                    "the event loop of worker %d (process %d) does not answer",
                    worker.number,
                    worker.process.pid,
                )
                await self.end_process(worker.process.pid)

    async def _replace(self, worker: Worker) -> None:
        times = self._times
        if trio.current_time() > worker.started_at + times.quick and worker.facts:
            self._quick_deaths = 0
        else:
            self._quick_deaths += 1
        if self._quick_deaths >= times.most_quick and not self._any_serves():
            self._failure = WorkersFailed(
                f"{self._quick_deaths} workers, one after the other, ended at once; the"
                f" last one {worker.process.outcome} {worker.reason}".rstrip()
            )
            self.stopping.set()
            return
        if self._quick_deaths:
            exponent = min(self._quick_deaths, times.most_quick) - 1
            delay = min(times.longest_delay, times.first_delay * 2**exponent)
            with trio.move_on_after(delay):
                await self._ending.wait()
        # If a new generation starts now and will listen, the successor drains with the old one.
        if self._ending.is_set() or worker.generation != self._generation:
            return
        try:
            successor = self._hire(worker.number, worker.generation)
        except WorkersFailed as exc:
            self._failure = exc
            self.stopping.set()
        else:
            successor.is_on_trial = False

    def _any_serves(self) -> bool:
        """Whether a worker listens that did not begin just now."""
        lately = trio.current_time() - self._times.quick
        return any(each.started_at < lately for each in self.workers)

    def _choose_leader(self) -> None:
        """Have the first worker lead that is ready, of the newest generation."""
        ready = [
            worker
            for worker in self.workers
            if worker.generation == self._generation
            and not (worker.is_leaving or worker.is_on_trial)
        ]
        leader = min(ready, key=lambda worker: worker.number, default=None)
        if leader is None or leader is self._leader:
            self._leader = leader
            return
        before, self._leader = self._leader, leader
        if before is not None and before.is_ready:
            self._nursery.start_soon(before.channel.say, {"do": "follow"})
        self._nursery.start_soon(leader.channel.say, {"do": "lead"})

    # Many workers.

    async def _drain(self) -> None:
        """Have the old generations end, each when its requests have ended."""
        times = self._times
        oldest = self._generation - times.most_draining
        for worker in list(self._workers):
            if worker.generation <= oldest:
                self._nursery.start_soon(self._end, worker, "stop", times.grace)
            elif worker.generation < self._generation and not worker.is_leaving:
                self._nursery.start_soon(self._end, worker, "drain", times.drain)

    async def _stop(self) -> None:
        """End every worker within the grace period."""
        async with trio.open_nursery() as nursery:
            for worker in list(self._workers):
                nursery.start_soon(self._end, worker, "stop", self._times.grace)

    async def _end(self, worker: Worker, do: str, seconds: float) -> None:
        worker.is_leaving = True
        if not worker.is_ready:
            worker.process.kill()  # it serves nobody yet, and may hang
            return
        await worker.channel.say({"do": do, "seconds": seconds})
        with trio.move_on_after(seconds + self._times.last):
            await worker.process.ended.wait()
        if not worker.process.ended.is_set():
            logger.error("worker %d does not end: it is killed", worker.number)
            worker.process.kill()

    async def _end_all(self) -> None:
        """End every worker now. What it has acknowledged is stored."""
        with trio.move_on_after(self._times.last):
            async with trio.open_nursery() as nursery:
                for worker in list(self._workers):
                    worker.is_leaving = True
                    nursery.start_soon(worker.channel.say, {"do": "end"})
            while self._workers:
                await self._changed.wait()
        for worker in list(self._workers):
            worker.process.kill()
        while self._workers:
            await self._changed.wait()
