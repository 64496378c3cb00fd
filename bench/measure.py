"""One run: a fresh server, one load, figures, and every byte read back.

The order keeps the figures clean. A server starts in an empty data directory and
takes a few small uploads, so that nothing is done for the first time under the
clock. Then CPU time is read, the load runs, and CPU time is read again once the
server rests. Only afterwards are the uploads fetched and their digests compared.
"""

from __future__ import annotations

import contextlib
import http.client
from dataclasses import dataclass
from urllib.parse import urljoin, urlsplit

from blake3 import blake3

from bench.content import Buffer, Piece, Slots
from bench.load import Generator, Job, Outcome
from bench.server import Cpu, Server, Target, machine_cpu
from bench.workspace import Workspace

__all__ = ["Bench", "Run", "VerificationFailed", "verify"]

GIB = 1 << 30
WARM_UP = (8, 5 << 20)
"""Uploads before the clock starts: how many, how large. More than a chunk each."""


class VerificationFailed(Exception):
    """What was stored is not what was sent."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """The figures of one run. CPU in seconds, memory in bytes."""

    target: str
    n: int
    bytes: int
    outcome: Outcome
    server: Cpu
    peak_resident: int
    elsewhere: float
    stolen: float

    @property
    def rate(self) -> float:
        """MiB/s, from the first connection to the last response."""
        return self.bytes / self.outcome.seconds / (1 << 20)

    @property
    def cpu_per_gib(self) -> float:
        return self.server.total * GIB / self.bytes

    def as_json(self) -> dict[str, object]:
        outcome = self.outcome
        return {
            "target": self.target,
            "n": self.n,
            "bytes": self.bytes,
            "seconds": outcome.seconds,
            "first_done": outcome.first_done,
            "server_user": self.server.user,
            "server_system": self.server.system,
            "peak_resident": self.peak_resident,
            "load_user": outcome.cpu_user,
            "load_system": outcome.cpu_system,
            "load_was_limit": outcome.was_limit,
            "cpu_elsewhere": self.elsewhere,
            "cpu_stolen": self.stolen,
        }


@dataclass(kw_only=True)
class Bench:
    """What all runs share."""

    buffer: Buffer
    workspace: Workspace
    resume: bool = False
    timeout: float = 120.0

    def __post_init__(self) -> None:
        self._slots = Slots()

    def job(self, server: Server, n: int, size: int, *, mark: int = 0) -> Job:
        """*n* uploads of *size* bytes to *server*, of content that was never sent before."""
        pieces = [self._slots.take(size) for _ in range(n)]
        return Job(
            host=server.host,
            port=server.port,
            path=server.path,
            content_fd=self.buffer.fd,
            uploads=[(piece.position, piece.length) for piece in pieces],
            resume=self.resume,
            timeout=self.timeout,
            mark=mark,
        )

    def run(self, target: Target, n: int, size: int) -> Run:
        """Measure *n* concurrent uploads of *size* bytes into *target*.

        Raises :class:`VerificationFailed`, and what starting, loading and reading raise.
        """
        with self.workspace.data_dir() as directory:
            with Server(target, directory) as server:
                Generator(self.job(server, *WARM_UP)).run()
                server.settle()
                job = self.job(server, n, size)
                run = self._measure(target, server, job)
                verify(server, self.buffer, job, run.outcome)
                return run

    def _measure(self, target: Target, server: Server, job: Job) -> Run:
        generator = Generator(job)
        # Last of all: memory begins to cool down at once.
        self.workspace.prepare(sum(length for _, length in job.uploads))
        before, (busy, stolen) = server.cpu(), machine_cpu()
        outcome = generator.run()
        during, (busy_after, stolen_after) = server.cpu() - before, machine_cpu()
        return Run(
            target=target.name,
            n=len(job.uploads),
            bytes=sum(length for _, length in job.uploads),
            outcome=outcome,
            server=server.settle() - before,
            peak_resident=server.peak_resident(),
            elsewhere=max(0.0, busy_after - busy - during.total - outcome.cpu),
            stolen=stolen_after - stolen,
        )


def verify(server: Server, buffer: Buffer, job: Job, outcome: Outcome) -> None:
    """Fetch every upload and compare digests. Raises :class:`VerificationFailed`."""
    origin = f"http://{server.host}:{server.port}"
    connection = http.client.HTTPConnection(
        server.host, server.port, timeout=job.timeout
    )
    with contextlib.closing(connection):
        for upload, location in zip(job.uploads, outcome.locations, strict=True):
            target = urlsplit(urljoin(origin + job.path, location))
            connection.request("GET", target.path)
            if _fetched(connection) != buffer.digest(Piece(*upload)):
                raise VerificationFailed(f"{location} is not what was sent")


def _fetched(connection: http.client.HTTPConnection) -> bytes:
    """The digest of the body that comes."""
    response = connection.getresponse()
    hasher = blake3()
    scratch = memoryview(bytearray(1 << 20))
    while count := response.readinto(scratch):
        hasher.update(scratch[:count])
    if response.status != 200:
        raise VerificationFailed(f"reading back answered {response.status}")
    return hasher.digest()
