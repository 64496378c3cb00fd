"""The load generator: many uploads at once, from a process of its own.

It must cost less than what it measures, so it makes no content: every body goes
from a memfd to its socket by ``sendfile``, one thread waits for all sockets with
epoll, and a turn is bounded so that no upload starves the others. It reports its
own CPU time; whoever reads the result can see when the generator was the limit.

The parent talks to it over its standard streams: one JSON line with the job; it
answers ``ready``; one line starts it; it answers with the outcome as JSON.
"""

from __future__ import annotations

import errno
import json
import os
import select
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.content import Piece, pieces
from bench.wire import BadResponse, Response, ResponseReader

__all__ = ["Generator", "Job", "LoadFailed", "Outcome", "run"]

TURN = 1 << 20
"""At most this much goes to one socket before the others have their turn."""


class LoadFailed(Exception):
    """An upload was refused, broke, or did not end in time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to upload, and where.

    ``resume`` asks for the seed's interim response (``Prefer: resume``) and waits
    for it before the body. ``timeout`` is in seconds and bounds the whole job.
    ``mark`` is a count of bytes: the outcome tells when so many had been sent.
    """

    host: str
    port: int
    path: str
    content_fd: int
    uploads: list[tuple[int, int]]
    resume: bool = False
    timeout: float = 120.0
    mark: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What happened. Times are seconds; ``started`` and ``marked`` of the monotonic clock."""

    started: float
    seconds: float
    first_done: float
    marked: float
    cpu_user: float
    cpu_system: float
    locations: list[str]

    @property
    def cpu(self) -> float:
        return self.cpu_user + self.cpu_system

    @property
    def was_limit(self) -> bool:
        """Whether the generator kept a core so busy that it may have set the pace."""
        return self.cpu > 0.9 * self.seconds


class _Upload:
    """One request on one connection."""

    def __init__(self, job: Job, piece: Piece) -> None:
        self._content_fd = job.content_fd
        self._head = _head(job, piece.length)
        self._pieces = list(pieces(piece))[::-1]
        self._may_send_body = not job.resume
        self._reader = ResponseReader()
        self.sent = 0
        self.final: Response | None = None
        self.sock = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        self.sock.setblocking(False)
        self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        error = self.sock.connect_ex((job.host, job.port))
        if error not in (0, errno.EINPROGRESS):
            raise LoadFailed(f"cannot connect: {os.strerror(error)}")

    @property
    def wants_to_send(self) -> bool:
        return bool(self._head) or (self._may_send_body and bool(self._pieces))

    def send(self) -> None:
        """Send what fits, a turn at most."""
        if self._head:
            self._head = self._head[self.sock.send(self._head) :]
        budget = TURN
        while budget and not self._head and self._may_send_body and self._pieces:
            offset, count = self._pieces[-1]
            want = min(count, budget)
            done = os.sendfile(self.sock.fileno(), self._content_fd, offset, want)
            self.sent += done
            budget -= done
            if done == count:
                self._pieces.pop()
            else:
                self._pieces[-1] = (offset + done, count - done)
            if done < want:
                return

    def receive(self) -> None:
        """Read what is there; a 100 opens the body, a final response ends the upload."""
        data = self.sock.recv(65536)
        if not data:
            raise LoadFailed("the server closed the connection without an answer")
        for response in self._reader.feed(data):
            if response.status == 100:
                self._may_send_body = True
            elif response.status >= 200:
                self.final = response

    def location(self) -> str:
        """Where the upload went. Raises :class:`LoadFailed` if it was not stored."""
        if self.final is None or self.final.status != 201:
            raise LoadFailed(f"answered with {self.final}")
        if self._pieces:
            raise LoadFailed("stored before it was sent")
        return self.final.fields["location"]


def _head(job: Job, length: int) -> bytes:
    lines = [
        f"POST {job.path} HTTP/1.1",
        f"Host: {job.host}:{job.port}",
        "Content-Type: application/octet-stream",
        f"Content-Length: {length}",
    ]
    if job.resume:
        lines += ["Expect: 100-continue", "Prefer: resume"]
    return "\r\n".join([*lines, "", ""]).encode("ascii")


def run(job: Job) -> Outcome:
    """Do *job*. Raises :class:`LoadFailed`."""
    started = time.monotonic()
    times = os.times()
    uploads = [_Upload(job, Piece(*upload)) for upload in job.uploads]
    first_done, marked = _pump(job, uploads, started)
    seconds = time.monotonic() - started
    after = os.times()
    for upload in uploads:
        upload.sock.close()
    return Outcome(
        started=started,
        seconds=seconds,
        first_done=first_done,
        marked=marked,
        cpu_user=after.user - times.user,
        cpu_system=after.system - times.system,
        locations=[upload.location() for upload in uploads],
    )


def _pump(job: Job, uploads: Sequence[_Upload], started: float) -> tuple[float, float]:
    """Run all uploads to their ends; seconds to the first end, and when the mark passed."""
    open_uploads = {upload.sock.fileno(): upload for upload in uploads}
    sending = set(open_uploads)
    first_done = 0.0
    marked = 0.0
    total_sent = 0
    with select.epoll(len(uploads)) as epoll:
        for fd in open_uploads:
            epoll.register(fd, select.EPOLLIN | select.EPOLLOUT)
        while open_uploads:
            left = started + job.timeout - time.monotonic()
            if left <= 0:
                raise LoadFailed(
                    f"{len(open_uploads)} uploads unfinished at the time limit"
                )
            for fd, events in epoll.poll(left):
                upload = open_uploads[fd]
                before = upload.sent
                _step(upload, events)
                total_sent += upload.sent - before
                if not marked and total_sent >= job.mark:
                    marked = time.monotonic()
                if upload.final is not None:
                    epoll.unregister(fd)
                    del open_uploads[fd]
                    first_done = first_done or time.monotonic() - started
                elif upload.wants_to_send != (fd in sending):
                    # Level-triggered: a socket with nothing to send is always writable.
                    sending ^= {fd}
                    out = select.EPOLLOUT if upload.wants_to_send else 0
                    epoll.modify(fd, select.EPOLLIN | out)
    return first_done, marked


def _step(upload: _Upload, events: int) -> None:
    try:
        if events & ~select.EPOLLOUT:
            upload.receive()
        if events & select.EPOLLOUT and upload.final is None:
            upload.send()
    except BlockingIOError:
        pass  # readiness is a hint
    except (OSError, BadResponse) as exc:
        raise LoadFailed(f"an upload broke after {upload.sent} bytes: {exc}") from exc


class Generator:
    """A generator process for one job, seen from its parent."""

    def __init__(self, job: Job) -> None:
        self._timeout = job.timeout
        self._process = subprocess.Popen(
            [sys.executable, "-m", "bench.load"],
            cwd=Path(__file__).parent.parent,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[job.content_fd],
            text=True,
        )
        try:
            self._say(json.dumps(asdict(job)))
            self._hear("ready")
        except BaseException:
            self._process.kill()
            self._process.communicate()
            raise

    def run(self) -> Outcome:
        """Start the job and wait for its end. Raises :class:`LoadFailed`."""
        try:
            self._say("go")
            # The job has its own limit; this one is for a generator that hangs.
            output, _ = self._process.communicate(timeout=self._timeout + 10)
        except subprocess.TimeoutExpired as exc:
            raise LoadFailed("the load generator hangs") from exc
        finally:
            self._process.kill()
            self._process.communicate()
        answer = json.loads(output) if output else {"error": "the load generator died"}
        if "error" in answer:
            raise LoadFailed(answer["error"])
        return Outcome(**answer)

    def _say(self, line: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def _hear(self, expected: str) -> None:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if line != expected:
            raise LoadFailed(f"the load generator said {line!r}")


def main() -> None:
    """The generator process."""
    job = Job(**json.loads(sys.stdin.readline()))
    print("ready", flush=True)
    if not sys.stdin.readline():
        return  # the parent is gone, or does not want the job any more
    try:
        answer = asdict(run(job))
    except LoadFailed as exc:
        answer = {"error": str(exc)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
