"""A process of the load generator.

It talks to its parent over the standard streams, in msgpack messages. Each message is a
list whose first member is its kind. The parent sends the job, then ``go`` with the
moment that counts as zero (on the monotonic clock, which all processes share). It sends
``down`` and ``up`` when the server is killed, ``stop``, and at the end ``check``. The
process sends ticks, each upload that ended, its CPU time after the last upload, and
each check. It ends when all work is done, or when its parent is gone.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from typing import Any

import trio

from trioresume.bench.check import check
from trioresume.bench.content import Region
from trioresume.bench.destination import destination_of
from trioresume.bench.pipe import Counts, Unpacker, pack
from trioresume.bench.plan import Planned, plan
from trioresume.bench.probe import Destination, Probe
from trioresume.bench.protocol_probes import make_probe
from trioresume.bench.records import from_plain, to_plain
from trioresume.bench.results import Ending, Generator
from trioresume.bench.settings import Protocol, Settings
from trioresume.bench.upload_run import Link, ServerLife, UploadRun
from trioresume.bench.usage import raise_file_limit

__all__ = ["main"]

TICK_SECONDS = 0.1

CHECKS_AT_ONCE = 4


class Worker:
    """The uploads of one process."""

    def __init__(self, job: dict[str, Any]) -> None:
        self._settings = from_plain(Settings, job["settings"])
        self._protocol = Protocol(job["protocol"])
        self._process = int(job["process"])
        host, port = job["address"]
        self._region = Region(job["region_fd"], job["region_length"])
        self._life = ServerLife()
        self._zero = 0.0
        destination = destination_of(self._settings, "")
        self._link = Link(
            self._settings,
            (host, port),
            destination.url.origin,
            self._life,
            self._clock,
            Link.tls_of(self._settings),
        )
        self._go = trio.Event()
        self._check = trio.Event()
        self._stopping = False
        self._running: set[UploadRun] = set()
        self._finished: list[tuple[Probe, Planned]] = []
        self._counts = Counts()
        # Bounded: a sender waits until the parent has read.
        self._outbox, self._letters = trio.open_memory_channel[Any](1000)

    def _clock(self) -> float:
        return time.monotonic() - self._zero

    async def run(self, unpacker: Unpacker) -> None:
        """Run the process from the first message to the last."""
        async with trio.open_nursery() as nursery:
            self._link = self._link.sharing(nursery)
            nursery.start_soon(self._write)
            nursery.start_soon(self._read, unpacker, nursery.cancel_scope)
            await self._outbox.send(["ready"])
            await self._go.wait()
            await self._load()
            await self._check.wait()
            await self._check_all()
            await self._outbox.send(["end"])
            self._outbox.close()

    # The parent.

    async def _read(self, unpacker: Unpacker, whole: trio.CancelScope) -> None:
        async with trio.lowlevel.FdStream(os.dup(0)) as stream:
            async for data in stream:
                for message in unpacker.feed(data):
                    self._hear(message)
        whole.cancel()  # the parent is gone

    def _hear(self, message: list[Any]) -> None:
        match message:
            case ["go", zero]:
                self._zero = zero
                self._go.set()
            case ["down"]:
                self._life.down()
            case ["up"]:
                self._life.up()
            case ["stop"]:
                self._stopping = True
                for uploader in self._running:
                    uploader.stop()
            case ["check"]:
                self._check.set()

    async def _write(self) -> None:
        async with trio.lowlevel.FdStream(os.dup(1)) as stream:
            async for message in self._letters:
                await stream.send_all(pack(message))

    # The load.

    def _own(self) -> Iterator[Planned]:
        for planned in plan(self._settings):
            if planned.number % self._settings.processes == self._process:
                yield planned

    async def _load(self) -> None:
        cpu, begun = os.times(), self._clock()
        async with trio.open_nursery() as ticking:
            ticking.start_soon(self._tick_on)
            uploads = self._own()
            async with trio.open_nursery() as nursery:
                for _ in range(self._at_once()):
                    nursery.start_soon(self._work, uploads)
            ticking.cancel_scope.cancel()
        after, ended = os.times(), self._clock()
        generator = Generator(
            process=self._process,
            user=after.user - cpu.user,
            system=after.system - cpu.system,
            seconds=ended - begun,
        )
        await self._tick()
        await self._outbox.send(["loaded", to_plain(generator)])

    def _at_once(self) -> int:
        """Return this process's share of the uploads at once."""
        whole, rest = divmod(self._settings.at_once, self._settings.processes)
        return whole + (self._process < rest)

    async def _work(self, uploads: Iterator[Planned]) -> None:
        """Perform one upload after the other, until there are none."""
        for planned in uploads:
            if self._stopping:
                return
            destination = destination_of(self._settings, planned.name)
            await self._upload(planned, destination)

    async def _upload(self, planned: Planned, destination: Destination) -> None:
        probe = make_probe(self._protocol, destination, planned.size)
        uploader = UploadRun(
            self._link,
            probe,
            planned,
            self._region,
            self._counts,
            self._process,
        )
        self._running.add(uploader)
        try:
            upload = await uploader.run()
        finally:
            self._running.remove(uploader)
        if upload.ending is Ending.DONE:
            self._counts.done += 1
            self._counts.stored += planned.size
            self._finished.append((probe, planned))
        elif upload.failed:
            self._counts.failed += 1
        await self._outbox.send(["upload", to_plain(upload)])

    async def _tick_on(self) -> None:
        while True:
            await trio.sleep(TICK_SECONDS)
            await self._tick()

    async def _tick(self) -> None:
        self._counts.running = len(self._running)
        await self._outbox.send(["tick", self._clock(), to_plain(self._counts)])

    # The check.

    async def _check_all(self) -> None:
        left = iter(self._finished)
        async with trio.open_nursery() as nursery:
            for _ in range(CHECKS_AT_ONCE):
                nursery.start_soon(self._check_some, left)

    async def _check_some(self, left: Iterator[tuple[Probe, Planned]]) -> None:
        for probe, planned in left:
            outcome = await check(self._link, probe, planned, self._region)
            await self._outbox.send(["checked", planned.number, to_plain(outcome)])


def main() -> None:
    """Run the process. The job is the first message."""
    # Ctrl-C reaches the whole process group. The parent decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_file_limit()
    unpacker = Unpacker()
    while data := os.read(0, 65536):
        # Nothing follows the job until this process has said that it is ready.
        for job in unpacker.feed(data):
            trio.run(Worker(job).run, unpacker)
            return
    sys.exit("no job")


if __name__ == "__main__":
    main()
