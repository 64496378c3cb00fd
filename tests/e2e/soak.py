"""``kill -9`` again and again while uploads run; the core of tests/e2e/test_kill.py.

Clients upload files and delete some of them, a keeper collects beside them, and the
service dies: after a time, after some bytes, or just after an upload's last byte. In the
end every response that was given, and every file that was not deleted, is looked at
again; everything that is stored is verified; and nothing is there that nobody refers to.

For longer than CI has time for::

    python -m tests.e2e.soak --kills 1000 --carrier h2

It prints the seed first, and a line of figures in the end; its exit code is 0 only if
nothing was lost. Several services live and die side by side, because a start takes
longer than the time to the next kill.
"""

from __future__ import annotations

import argparse
import hashlib
import random
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import trio

import trioresume
from tests.e2e.carriers import CARRIERS, HTTP1, Carrier
from tests.e2e.command import Service
from tests.e2e.uploads import TRY_AGAIN_SECONDS, Pace, Upload
from tests.e2e.wire import Cut, ask
from trioresume.errors import CollectionCut
from trioresume.server.keeper.control_socket import ask_to_collect

__all__ = [
    "Report",
    "Soak",
    "check_file",
    "delete_file",
    "make_file_upload",
    "run_all",
]

PATIENCE_SECONDS = 600.0
"""For one upload: where much else runs, few lives are long enough for any progress."""
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
    deleted: int = 0
    cuts: int = 0
    content_bytes: int = 0
    sent_bytes: int = 0
    seconds: float = 0.0

    def add(self, other: Report) -> None:
        """Count what came of another service's life as well."""
        self.kills += other.kills
        self.uploads += other.uploads
        self.deleted += other.deleted
        self.cuts += other.cuts
        self.content_bytes += other.content_bytes
        self.sent_bytes += other.sent_bytes
        self.seconds = max(self.seconds, other.seconds)

    def __str__(self) -> str:
        kills = ", ".join(f"{n} {kind}" for kind, n in sorted(self.kills.items()))
        again = self.sent_bytes / self.content_bytes - 1 if self.content_bytes else 0.0
        return (
            f"{self.kills.total()} kills ({kills}), {self.uploads} uploads of "
            f"{self.content_bytes / MIB:.0f} MiB cut {self.cuts} times, "
            f"{again:.1%} sent again, {self.deleted} deleted, 0 lost, "
            f"{self.seconds:.1f} s"
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
    kill that waited for it: through completion, processing and response. *delete* undoes
    some of the uploads as soon as they are done.
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
        delete: CheckUpload | None = None,
    ) -> None:
        self._service = service
        self._draw = random.Random(seed)
        self._seed = seed
        self._make = make
        self._check = check
        self._delete = delete
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
            keeping = trio.CancelScope()
            nursery.start_soon(self._collect_on, keeping)
            for _ in range(self._kills):
                await self._wait_for_instant()
                await self._restart()
            self._done = True
            keeping.cancel()
        await self._restart()
        for upload in self.finished:
            await self._check(self._service, upload)
        await trio.to_thread.run_sync(self._service.stop)
        await self._check_directory()
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

    async def _collect_on(self, scope: trio.CancelScope) -> None:
        """Have the service collect and look at every file, again and again."""
        with scope:
            while True:
                await trio.sleep(self._draw.uniform(0.1, 1))
                try:
                    await ask_to_collect(self._service.data_dir, lambda done: None)
                except (OSError, CollectionCut):
                    pass  # it is dead, or died meanwhile

    async def _check_directory(self) -> None:
        """Nothing that is stored is damaged, and nothing is left over."""
        await trioresume.collect(self._service.data_dir)
        with trioresume.Inventory(self._service.data_dir) as inventory:
            assert list(inventory.verify()) == []
            totals = inventory.totals()
        assert totals.unheld_chunks == 0
        assert self._service.chunk_bytes() == totals.chunk_bytes

    async def _upload_on(self) -> None:
        while not self._done:
            self._count += 1
            draw = random.Random(f"{self._seed}/{self._count}")
            upload = self._make(self._service, self._count, draw)
            upload.pace.on_sent = self._trigger.on_sent
            upload.patience = PATIENCE_SECONDS
            await upload.run()
            report = self.report
            report.uploads += 1
            report.cuts += upload.cuts
            report.content_bytes += len(upload.content)
            report.sent_bytes += upload.sent_bytes
            upload.digest = hashlib.sha256(upload.content).hexdigest()
            upload.content = b""
            if self._delete is not None and draw.random() < 0.3:
                await self._delete(self._service, upload)
                report.deleted += 1
            self.finished.append(upload)


def make_file_upload(
    service: Service, number: int, draw: random.Random, carrier: Carrier = HTTP1
) -> Upload:
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
        carrier=carrier,
    )


async def delete_file(service: Service, upload: Upload) -> None:
    """Delete it, until the service says that it is gone."""
    assert upload.answer is not None
    location = upload.answer.fields["location"]
    while True:
        try:
            gone = await ask(
                service.address, "DELETE", location, carrier=upload.carrier
            )
        except Cut:
            await trio.sleep(TRY_AGAIN_SECONDS)
        else:
            # 404 if it died between the deletion and its response.
            assert gone.status in (204, 404), f"{gone} for {upload}"
            upload.is_deleted = True
            return


async def check_file(service: Service, upload: Upload) -> None:
    """The response was the right one, and the file has the right bytes, or is gone."""
    answer = upload.answer
    assert answer is not None
    assert answer.status == 201, f"{answer} for {upload}"
    location = answer.fields["location"]
    file = await ask(service.address, "GET", location, carrier=upload.carrier)
    if upload.is_deleted:
        assert file.status == 404, f"{file} for {upload}"
        return
    assert file.status == 200, f"{file} for {upload}"
    assert file.fields["etag"] == answer.fields["etag"]
    assert hashlib.sha256(file.body).hexdigest() == upload.digest, str(upload)


async def run_all(soaks: Sequence[Soak]) -> Report:
    """All *soaks* at once; what came of them together."""
    async with trio.open_nursery() as nursery:
        for soak in soaks:
            nursery.start_soon(soak.run)
    report = Report(soaks[0].report.seed)
    for soak in soaks:
        report.add(soak.report)
    return report


def main() -> None:
    """The long form, as a command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--services", type=int, default=2)
    parser.add_argument("--uploaders", type=int, default=6)
    parser.add_argument(
        "--carrier", choices=[str(carrier) for carrier in CARRIERS], default="h1"
    )
    parser.add_argument(
        "--seed", type=int, default=random.SystemRandom().getrandbits(32)
    )
    options = parser.parse_args()
    (carrier,) = [each for each in CARRIERS if each.name == options.carrier]
    print(f"seed {options.seed}", flush=True)  # noqa: T201
    with tempfile.TemporaryDirectory() as directory:
        services = [
            Service(
                Path(directory, f"data{number}"),
                ("serve", *carrier.options(Path(directory))),
            )
            for number in range(options.services)
        ]
        soaks = [
            Soak(
                service,
                options.seed + number,
                partial(make_file_upload, carrier=carrier),
                check_file,
                kills=-(-options.kills // options.services),
                uploaders=options.uploaders,
                delete=delete_file,
            )
            for number, service in enumerate(services)
        ]
        try:
            print(trio.run(run_all, soaks))  # noqa: T201
            for service in services:
                service.check_log()
        finally:
            for service in services:
                service.close()


if __name__ == "__main__":
    main()
