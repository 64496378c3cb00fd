"""``kill -9`` again and again while uploads run; the core of tests/e2e/test_kill.py.

For longer than CI has time for::

    python -m tests.e2e.soak --kills 1000

It prints the seed first, and a line of figures in the end; its exit code is 0 only if
nothing was lost.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.e2e.command import Service
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import ask

__all__ = ["Report", "Soak", "check_file", "make_file_upload"]

KIB = 1024
MIB = 1024 * KIB

MakeUpload = Callable[[Service, int, random.Random], Upload]
CheckUpload = Callable[[Service, Upload], Awaitable[None]]


@dataclass
class Report:
    """What came of it."""

    seed: int
    kills: Counter[str] = field(default_factory=Counter)
    """By what they waited for: a time, some bytes, or the last byte of an upload."""
    uploads: int = 0
    cuts: int = 0
    content_bytes: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0

    def __str__(self) -> str:
        kills = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kills.items()))
        again = self.sent_bytes / self.content_bytes - 1 if self.content_bytes else 0.0
        return (
            f"{self.kills.total()} kills ({kills}), {self.uploads} uploads of "
            f"{self.content_bytes / MIB:.0f} MiB cut {self.cuts} times, "
            f"{again:.1%} sent again, nothing lost, {self.seconds:.1f} s"
        )


class _Trigger:
    """Waits for the next instant to strike, told of everything that is sent."""

    def __init__(self) -> None:
        self._bytes_left = 0
        self._wants_last = False
        self._struck = trio.Event()

    def on_sent(self, size: int, is_last: bool) -> None:
        self._bytes_left -= size
        if is_last if self._wants_last else self._bytes_left <= 0:
            self._struck.set()

    async def wait_bytes(self, count: int) -> None:
        self._wants_last, self._bytes_left = False, count
        await self._wait()

    async def wait_last(self) -> None:
        self._wants_last = True
        await self._wait()

    async def _wait(self) -> None:
        self._struck = trio.Event()
        with trio.move_on_after(5):  # all uploads may be waiting for their answers
            await self._struck.wait()


class Soak:
    """*uploaders* tasks that upload one thing after the other, and one that kills.

    *after_last* is the longest time in seconds between an upload's last byte and a
    kill that waited for it: through completion, processing and response.
    """

    def __init__(
        self,
        service: Service,
        seed: int,
        make: MakeUpload,
        check: CheckUpload,
        *,
        kills: int,
        uploaders: int = 6,
        after_last: float = 0.03,
    ) -> None:
        self._service = service
        self._draw = random.Random(seed)
        self._seed = seed
        self._make = make
        self._check = check
        self._kills = kills
        self._uploaders = uploaders
        self._after_last = after_last
        self._trigger = _Trigger()
        self._done = False
        self._count = 0
        self.report = Report(seed)
        self.finished: list[Upload] = []

    async def run(self) -> Report:
        """All kills, then the end of all uploads, then one more kill and the check."""
        started = time.monotonic()
        await trio.to_thread.run_sync(self._service.start)
        async with trio.open_nursery() as nursery:
            for _ in range(self._uploaders):
                nursery.start_soon(self._upload_on)
            for _ in range(self._kills):
                await self._wait_for_instant()
                await self._restart()
            self._done = True
        await self._restart()
        for upload in self.finished:
            await self._check(self._service, upload)
        await trio.to_thread.run_sync(self._service.stop)
        self.report.seconds = time.monotonic() - started
        return self.report

    async def _wait_for_instant(self) -> None:
        kind = self._draw.choice(["time", "bytes", "last", "last"])
        self.report.kills[f"by {kind}"] += 1
        if kind == "time":
            await trio.sleep(self._draw.uniform(0, 0.2))
        elif kind == "bytes":
            await self._trigger.wait_bytes(self._draw.randrange(8 * MIB))
        else:
            await self._trigger.wait_last()
            await trio.sleep(self._draw.uniform(0, self._after_last))

    async def _restart(self) -> None:
        await trio.to_thread.run_sync(self._service.kill)
        await trio.to_thread.run_sync(self._service.start)

    async def _upload_on(self) -> None:
        while not self._done:
            self._count += 1
            draw = random.Random(f"{self._seed}/{self._count}")
            upload = self._make(self._service, self._count, draw)
            upload.pace.on_sent = self._trigger.on_sent
            await upload.run()
            report = self.report
            report.uploads += 1
            report.cuts += upload.cuts
            report.content_bytes += len(upload.content)
            report.sent_bytes += upload.sent_bytes
            upload.digest = hashlib.sha256(upload.content).hexdigest()
            upload.content = b""
            self.finished.append(upload)


def make_file_upload(service: Service, number: int, draw: random.Random) -> Upload:
    """A POST or a PUT of a few hundred KiB to a few MiB to the file service."""
    put = draw.random() < 0.5
    return Upload(
        service.address,
        "PUT" if put else "POST",
        f"/files/{number}" if put else "/files/",
        draw.randbytes(draw.randint(256 * KIB, 9 * MIB)),
        draw,
        Pace(256 * KIB, pause=0.008),
        acknowledge=draw.random() < 0.5,
        chunked=draw.random() < 0.25,
    )


async def check_file(service: Service, upload: Upload) -> None:
    """The response was the right one, and the file has the right bytes."""
    answer = upload.answer
    assert answer is not None
    assert answer.status == 201, f"{answer} for {upload}"
    location = answer.fields["location"]
    file = await ask(service.address, "GET", location)
    assert file.status == 200, f"{file} for {upload}"
    assert file.fields["etag"] == answer.fields["etag"]
    assert hashlib.sha256(file.body).hexdigest() == upload.digest, str(upload)


def main() -> None:
    """The long form, as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--uploaders", type=int, default=6)
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as directory:
        service = Service(Path(directory, "data"))
        soak = Soak(
            service,
            options.seed,
            make_file_upload,
            check_file,
            kills=options.kills,
            uploaders=options.uploaders,
        )
        try:
            print(trio.run(soak.run))  # noqa: T201
            service.check_log()
        finally:
            service.close()


if __name__ == "__main__":
    main()
