"""The results of a run: typed records, and the figures that follow from them.

All times are seconds since the load began (:attr:`Results.started` is the wall
clock of that moment), sizes are bytes, rates bytes a second, CPU times seconds.
A record holds observations. Figures that can be computed from it are properties, so a
file that ``--json`` wrote has the same figures after reading.
:func:`~trioresume.bench.document.to_json` adds the computed figures under
``"summary"`` for readers in other languages.

*Sent* bytes went to the network. If a connection was reset, the bytes in the
generator's own socket buffer do not count.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import Enum
from math import ceil

from trioresume.bench.records import (
    Bytes,
    BytesPerSecond,
    CpuSeconds,
    EpochSeconds,
    Offset,
    Seconds,
)
from trioresume.bench.settings import FaultKind, FaultPlace, Protocol, Settings

__all__ = [
    "FORMAT",
    "Attempt",
    "Check",
    "CheckedBy",
    "Ending",
    "Fault",
    "Generator",
    "Kill",
    "Latency",
    "Machine",
    "Results",
    "Series",
    "ServerSample",
    "ServerUsage",
    "Snapshot",
    "Upload",
]

FORMAT = 1
"""The format of the JSON document. It rises when a member changes its meaning or is removed."""

GIB = 1 << 30


class Ending(Enum):
    """How an attempt ended. An upload ends like its last attempt."""

    DONE = "done"
    """The server answered that the upload is complete."""
    CUT = "cut"
    """Cut by the generator; the attempt's ``fault`` says how."""
    KILLED = "server-killed"
    """The connection broke, or could not be made, while the server was killed."""
    REFUSED = "refused"
    """There was no connection."""
    CLOSED = "closed"
    """The server closed the connection unexpectedly, with FIN or RST."""
    TIMEOUT = "timeout"
    """The server was silent for as long as ``idle_timeout``."""
    REJECTED = "rejected"
    """The server answered with a status that does not continue the upload."""
    NOT_UNDERSTOOD = "not-understood"
    """The server's answer is not HTTP, or breaks the protocol."""
    OFFSET_FELL = "offset-fell"
    """The server forgot bytes that it had announced."""
    OFFSET_BEYOND = "offset-beyond"
    """The server announced more bytes than were ever sent to it."""
    FORGOTTEN = "forgotten"
    """The server does not know the upload any more."""
    STOPPED = "stopped"
    """The run's time was over, or it was interrupted. This is no failure."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A cut that the generator made."""

    kind: FaultKind
    place: FaultPlace


@dataclass(frozen=True, slots=True, kw_only=True)
class Attempt:
    """The work of one connection for an upload.

    Content from byte *first* up to, but not including, *last* was sent. The two are
    equal if no content was sent. *offset_query* is the time from the query for the
    offset to its answer, on an open connection. *resume* is the time from the last cut
    to the first byte after it that the server took, without the *think* seconds of
    waiting on purpose. The attempt that resumed the upload has it. *status* is the last
    final status. *detail* says more about an ending with an error. *sending* is when
    the first byte of content was sent; before it the connection only asked, or waited
    for a lock of the server. It is None if no content was sent.
    """

    begun: Seconds
    ended: Seconds
    first: Offset
    last: Offset
    ending: Ending
    fault: Fault | None = None
    offset_query: Seconds | None = None
    resume: Seconds | None = None
    think: Seconds = 0.0
    status: int | None = None
    detail: str = ""
    sending: Seconds | None = None

    @property
    def sent(self) -> int:
        return self.last - self.first


class CheckedBy(Enum):
    """How an upload's content was checked."""

    DIGEST = "digest"
    LENGTH = "length"
    NONE = "none"


@dataclass(frozen=True, slots=True)
class Check:
    """The result of checking one finished upload. *detail* says what is wrong."""

    by: CheckedBy
    ok: bool
    detail: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One upload with all its attempts. *check* is None if it did not finish."""

    number: int
    name: str
    size: Bytes
    begun: Seconds
    ended: Seconds
    ending: Ending
    attempts: tuple[Attempt, ...]
    process: int = 0
    location: str | None = None
    check: Check | None = None
    detail: str = ""

    @property
    def seconds(self) -> float:
        """The seconds from beginning to end, without waiting on purpose."""
        return self.ended - self.begun - sum(a.think for a in self.attempts)

    @property
    def sent(self) -> int:
        return sum(attempt.sent for attempt in self.attempts)

    @property
    def sent_again(self) -> int:
        """Bytes that were sent again, counted each time."""
        again = reached = 0
        for attempt in self.attempts:
            again += max(0, min(reached, attempt.last) - attempt.first)
            reached = max(reached, attempt.last)
        return again

    @property
    def cuts(self) -> int:
        return sum(attempt.ending is Ending.CUT for attempt in self.attempts)

    @property
    def failed(self) -> bool:
        return self.ending not in (Ending.DONE, Ending.STOPPED)

    @property
    def rate(self) -> float | None:
        """The size divided by the seconds; None if it did not finish or has no content."""
        if self.ending is not Ending.DONE or not self.size or self.seconds <= 0:
            return None
        return self.size / self.seconds


@dataclass(frozen=True, slots=True)
class Kill:
    """The server was killed at *down* and accepted connections again at *up*."""

    down: Seconds
    up: Seconds | None


@dataclass(frozen=True, slots=True)
class Series:
    """What happened in each interval of *interval* seconds from the beginning on.

    *sent* counts bytes handed to the kernel. At the end of a connection that was cut it
    may be up to a socket buffer more than the attempts say.
    """

    interval: Seconds
    sent: tuple[Bytes, ...] = ()
    finished: tuple[int, ...] = ()
    cuts: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """One process of the load generator, while the load ran."""

    process: int
    user: CpuSeconds
    system: CpuSeconds
    seconds: Seconds

    @property
    def busy(self) -> float:
        """The part of the time, 0 to 1, in which it kept a core busy."""
        return (self.user + self.system) / self.seconds if self.seconds > 0 else 0.0


@dataclass(frozen=True, slots=True)
class ServerSample:
    """The server's CPU time so far and its resident memory, at one moment."""

    at: Seconds
    user: CpuSeconds
    system: CpuSeconds
    resident: Bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerUsage:
    """What the server and its child processes used.

    *user* and *system* are for the load and for the work that the server did after its
    answers. If it was killed, they cover all its processes in turn. *peak_resident* is
    the sum of the processes' high-water marks.
    """

    pid: int
    user: CpuSeconds
    system: CpuSeconds
    peak_resident: Bytes
    samples: tuple[ServerSample, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The machine, which a reader must know to judge the figures."""

    cpus: int
    cpu: str
    kernel: str
    python: str
    trioresume: str


@dataclass(frozen=True, slots=True)
class Latency:
    """A distribution in seconds: nearest-rank percentiles of *count* samples."""

    count: int
    p50: Seconds
    p90: Seconds
    p99: Seconds
    max: Seconds

    @classmethod
    def of(cls, samples: Iterable[float]) -> Latency | None:
        """Return the distribution of *samples*; None without samples."""
        ordered = sorted(samples)
        if not ordered:
            return None
        n = len(ordered)
        p50, p90, p99 = (ordered[ceil(n * p / 100) - 1] for p in (50, 90, 99))
        return cls(n, p50, p90, p99, ordered[-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything about one run. *started* is seconds since the epoch.

    *seconds* is the load's duration, from its beginning to the last upload's end. The
    check comes after it and does not count. *interrupted* says that Ctrl-C ended the
    run. *protocol* is the protocol that was used, never AUTO. *carrier* is the version of HTTP,
    with that of TLS, if it was used. *server_name* is the
    server's own name for itself.
    """

    settings: Settings
    protocol: Protocol
    machine: Machine
    started: EpochSeconds
    seconds: Seconds
    uploads: tuple[Upload, ...]
    series: Series
    generators: tuple[Generator, ...]
    server: ServerUsage | None = None
    server_name: str | None = None
    kills: tuple[Kill, ...] = ()
    interrupted: bool = False
    carrier: str = "HTTP/1.1"
    format: int = field(default=FORMAT)

    # Uploads.

    @property
    def done(self) -> tuple[Upload, ...]:
        return tuple(u for u in self.uploads if u.ending is Ending.DONE)

    @property
    def failures(self) -> dict[Ending, int]:
        """The number of failed uploads, by ending."""
        return dict(Counter(u.ending for u in self.uploads if u.failed))

    @property
    def stopped(self) -> int:
        return sum(u.ending is Ending.STOPPED for u in self.uploads)

    @property
    def checks(self) -> dict[CheckedBy, int]:
        """The number of finished uploads that passed the check, by kind of check."""
        return dict(Counter(u.check.by for u in self.uploads if u.check and u.check.ok))

    @property
    def wrong(self) -> tuple[Upload, ...]:
        """Uploads whose stored content differs from what was sent."""
        return tuple(u for u in self.uploads if u.check and not u.check.ok)

    @property
    def unchecked(self) -> int:
        """The number of finished uploads that were not checked."""
        return sum(u.check is None or u.check.by is CheckedBy.NONE for u in self.done)

    @property
    def ok(self) -> bool:
        """Whether no upload failed and none is wrong."""
        return not self.failures and not self.wrong

    # Bytes.

    @property
    def sent(self) -> int:
        return sum(upload.sent for upload in self.uploads)

    @property
    def sent_again(self) -> int:
        return sum(upload.sent_again for upload in self.uploads)

    @property
    def stored(self) -> int:
        """The content of the finished uploads, in bytes."""
        return sum(upload.size for upload in self.done)

    @property
    def throughput(self) -> float:
        """The content that was sent, divided by the load's seconds."""
        return self.sent / self.seconds if self.seconds > 0 else 0.0

    @property
    def goodput(self) -> float:
        """The content of finished uploads that are not wrong, divided by the load's seconds."""
        right = self.stored - sum(upload.size for upload in self.wrong)
        return right / self.seconds if self.seconds > 0 else 0.0

    # Times.

    @property
    def cuts(self) -> dict[Fault, int]:
        """The generator's cuts by kind and place."""
        return dict(
            Counter(a.fault for u in self.uploads for a in u.attempts if a.fault)
        )

    @property
    def resume(self) -> Latency | None:
        """Time to resume."""
        return Latency.of(
            a.resume for u in self.uploads for a in u.attempts if a.resume is not None
        )

    @property
    def offset_query(self) -> Latency | None:
        return Latency.of(
            a.offset_query
            for u in self.uploads
            for a in u.attempts
            if a.offset_query is not None
        )

    @property
    def upload_seconds(self) -> Latency | None:
        return Latency.of(upload.seconds for upload in self.done)

    @property
    def fairness(self) -> float | None:
        """The fastest upload's rate divided by the slowest's: 1 is fair. None for fewer
        than two.
        """
        rates = [upload.rate for upload in self.done if upload.rate is not None]
        return max(rates) / min(rates) if len(rates) > 1 else None

    # Costs.

    @property
    def generator_was_limit(self) -> bool:
        """Whether a process of the generator was so busy that it may have limited the rate."""
        return any(generator.busy > 0.9 for generator in self.generators)

    @property
    def server_user_per_gib(self) -> float | None:
        """The server's user CPU seconds for each GiB that was sent."""
        return self._per_gib(self.server.user) if self.server else None

    @property
    def server_system_per_gib(self) -> float | None:
        return self._per_gib(self.server.system) if self.server else None

    @property
    def server_cpu_per_gib(self) -> float | None:
        if self.server is None:
            return None
        return self._per_gib(self.server.user + self.server.system)

    def _per_gib(self, seconds: float) -> float | None:
        return seconds * GIB / self.sent if self.sent else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """How far a run is, for a display during the run.

    *phase* is ``detecting``, ``loading``, ``settling`` (the server finishes postponed
    work) or ``checking``. *sent* counts bytes handed to the kernel so far. *stored* is
    the content of finished uploads, *planned* the content of all uploads. *rate* is the
    rate of the last second. *resumed* counts connections that continued after a cut.
    *checked* counts finished checks.
    """

    phase: str
    at: Seconds
    total: int
    running: int = 0
    done: int = 0
    failed: int = 0
    sent: Bytes = 0
    stored: Bytes = 0
    planned: Bytes = 0
    rate: BytesPerSecond = 0.0
    cuts: int = 0
    resumed: int = 0
    kills: int = 0
    checked: int = 0
    wrong: int = 0
    server: ServerSample | None = None
