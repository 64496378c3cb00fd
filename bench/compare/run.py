"""One run: a fresh server, a prepared machine, one load, and a check of every byte.

A server starts in an empty data directory and takes a few small uploads, so that
the measured time does not include things done for the first time. The machine is put
into the same state (:mod:`bench.workspace`). Then the load generator of ``trioresume
bench`` does the work, waits until the server is idle, and checks the stored uploads.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import trio

from bench import disk
from bench.compare.works import Case, Work
from bench.peers.cache import Cache
from bench.server import Server, machine_cpu
from bench.workspace import Workspace
from trioresume.bench import (
    FaultKind,
    Faults,
    Latency,
    Protocol,
    Results,
    Settings,
    Sizes,
    Verify,
    run,
)

__all__ = ["Bench", "Measured", "load"]

GIB = 1 << 30
MIB = 1 << 20

WARM_UP = (8, 5 * MIB)
"""The number and size of the uploads before the measurement. Each is larger than a chunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """The figures of one run. Times and CPU times are in seconds, sizes in bytes.

    *user* and *system* are the server's CPU time. *generator* is the share of a core that
    the busiest process of the load generator used. *elsewhere* is the share of one core
    that all other programs used during the run, and *stolen* the share that the hypervisor
    took. *unwritten* is the number of bytes that the system still had to write when the run
    began. *problems* says what went wrong; the figures of a run with problems do not count.
    """

    case: str
    work: Work
    round: int
    seconds: float
    user: float
    system: float
    peak_resident: int
    generator: float = 0.0
    generator_was_limit: bool = False
    elsewhere: float = 0.0
    stolen: float = 0.0
    unwritten: int = 0
    sent_again: int = 0
    cuts: int = 0
    resume: Latency | None = None
    offset_query: Latency | None = None
    fairness: float | None = None
    checked: dict[str, int] = field(default_factory=dict)
    problems: tuple[str, ...] = ()

    @property
    def ok(self) -> bool:
        return not self.problems

    @property
    def rate(self) -> float:
        """The stored content in MiB/s, from the first connection to the last answer."""
        return self.work.total / MIB / self.seconds if self.seconds else 0.0

    @property
    def files_rate(self) -> float:
        """The number of uploads per second."""
        return self.work.count / self.seconds if self.seconds else 0.0

    @property
    def cpu_per_file(self) -> float:
        """The CPU seconds per upload."""
        return (self.user + self.system) / self.work.count

    @property
    def cpu(self) -> float:
        """The CPU seconds per GiB of content."""
        return (self.user + self.system) * GIB / self.work.total

    @property
    def cpu_user(self) -> float:
        """The CPU seconds per GiB in the server's own code."""
        return self.user * GIB / self.work.total

    @property
    def cpu_system(self) -> float:
        """The CPU seconds per GiB in the kernel."""
        return self.system * GIB / self.work.total


def load(settings: Settings) -> Results:
    """Run ``trioresume bench`` as a function, and block until it is over."""
    return trio.run(partial(run, settings))


@dataclass(kw_only=True)
class Bench:
    """The settings that all runs share. *limit* bounds each load, in seconds."""

    workspace: Workspace
    cache: Cache
    seed: int = 1
    kinds: tuple[FaultKind, ...] = tuple(FaultKind)
    processes: int = 1
    streams: int = 16
    verify: Verify = Verify.AUTO
    limit: float = 120.0
    load: Callable[[Settings], Results] = load

    def settings(self, case: Case, server: Server, work: Work) -> Settings:
        """Return the settings of the load that does *work*."""
        assert case.peer is not None
        return Settings(
            url=server.url,
            protocol=Protocol(case.protocol),
            method=case.peer.plain_method if case.protocol == "plain" else None,
            seed=self.seed,
            at_once=work.uploads,
            total=work.count,
            sizes=Sizes(minimum=work.size, maximum=work.size),
            faults=Faults(mean_bytes=work.cuts, kinds=self.kinds),
            processes=self.processes,
            insecure=case.carrier.is_secure,
            http2=case.carrier.is_http2,
            streams=self.streams,
            duration=self.limit,
            chunk=case.peer.request_limit if case.resumes else None,
            interop_version=case.peer.interop_version,
            server_pid=server.pid,
            verify=self.verify,
        )

    def run(self, case: Case, work: Work, round_: int) -> Measured:
        """Do *work* with *case*. The result has the failures of the load.

        Raises the errors of :class:`~bench.server.Server`.
        """
        with self.workspace.data_dir() as directory:
            if case.peer is None:
                return self._disk(case, work, round_)
            with Server(
                case.peer, directory, cache=self.cache, carrier=case.carrier
            ) as server:
                count, size = WARM_UP
                warm_up = Work(count, count * size)
                self.load(self.settings(case, server, warm_up))
                server.settle()
                return self._measure(case, work, round_, server)

    def _measure(self, case: Case, work: Work, round_: int, server: Server) -> Measured:
        settings = self.settings(case, server, work)
        # Prepare last: the host may take free memory back at once.
        unwritten = self.workspace.prepare(work.total)
        begin = _Accounts.now(server)
        results = self.load(settings)
        used = _Accounts.now(server).since(begin)
        assert results.server is not None
        return Measured(
            case=case.name,
            work=work,
            round=round_,
            seconds=results.seconds,
            user=results.server.user,
            system=results.server.system,
            peak_resident=results.server.peak_resident,
            generator=max(process.busy for process in results.generators),
            generator_was_limit=results.generator_was_limit,
            elsewhere=used.elsewhere,
            stolen=used.stolen,
            unwritten=unwritten,
            sent_again=results.sent_again,
            cuts=sum(results.cuts.values()),
            resume=results.resume,
            offset_query=results.offset_query,
            fairness=results.fairness,
            checked={by.value: n for by, n in results.checks.items()},
            problems=problems(results, self.verify),
        )

    def _disk(self, case: Case, work: Work, round_: int) -> Measured:
        directory = self.workspace.current / "disk"
        unwritten = self.workspace.prepare(work.total)
        found = disk.measure(directory, work.count, work.size, self.limit)
        return Measured(
            case=case.name,
            work=work,
            round=round_,
            seconds=found.seconds,
            user=found.user,
            system=found.system,
            peak_resident=found.peak_resident,
            unwritten=unwritten,
        )


def problems(results: Results, verify: Verify) -> tuple[str, ...]:
    """Return the problems of a run: each kind once, with its count and one example."""
    found = []
    for ending, count in results.failures.items():
        example = next(u.detail for u in results.uploads if u.ending is ending)
        found.append(f"{count} uploads {ending.value} ({example})")
    if results.stopped:
        found.append(f"{results.stopped} uploads unfinished at the time limit")
    if results.wrong:
        example = next(u.check.detail for u in results.wrong if u.check)
        found.append(f"{len(results.wrong)} uploads WRONG ({example})")
    if verify is not Verify.NONE and results.unchecked:
        found.append(f"{results.unchecked} uploads could not be checked")
    return tuple(found)


@dataclass(frozen=True, slots=True)
class _Accounts:
    """The use of the CPUs up to some moment, in seconds."""

    at: float
    busy: float
    stolen: float
    known: float
    """The CPU time of the server, of this process and of its ended children."""

    @classmethod
    def now(cls, server: Server) -> _Accounts:
        busy, stolen = machine_cpu()
        return cls(
            os.times().elapsed, busy, stolen, server.use().cpu + sum(os.times()[:4])
        )

    def since(self, before: _Accounts) -> _Shares:
        seconds = max(self.at - before.at, 0.01)
        other = (self.busy - before.busy) - (self.known - before.known)
        return _Shares(
            max(0.0, other) / seconds, (self.stolen - before.stolen) / seconds
        )


@dataclass(frozen=True, slots=True)
class _Shares:
    """Shares of one core."""

    elsewhere: float
    stolen: float
