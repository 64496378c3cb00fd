"""Slowloris: many connections that send as little as they can (G5).

The attackers come from one address of the loopback and the good clients from another,
each of which asks for the offset of an upload of its own, over and over. In full::

    python -m tests.e2e.slowloris --connections 2000 --seconds 30

It prints a line of figures; its exit code is 0 only if the good clients' 99th
percentile was below 100 ms and none of their requests failed.
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.e2e.command import Service
from tests.e2e.wire import Cut, Wire, request_head

__all__ = ["GOOD_P99", "Attack", "Report"]

GOOD_P99 = 0.1
"""Seconds. What the good clients may have to wait."""
BYTE_EVERY = 1.0
"""Seconds between two bytes of an attacker."""
LARGE = 16 * 1024 * 1024
"""Bytes of a file that is more than the kernel buffers."""

KINDS = ("idle", "head", "content", "chunks", "unread")


@dataclass
class Report:
    """What the good clients saw, and what became of the attackers."""

    latencies: list[float] = field(default_factory=list)
    ended: Counter[str] = field(default_factory=Counter)
    """How often the server ended a connection of the attack, by its kind."""
    connections: int = 0
    """How many of the attack's were open in the end."""
    resident: int = 0
    """Bytes of memory of the service in the end."""

    def percentile(self, number: int) -> float:
        """Seconds."""
        return statistics.quantiles(self.latencies, n=100)[number - 1]

    def __str__(self) -> str:
        ended = ", ".join(f"{n} {kind}" for kind, n in sorted(self.ended.items()))
        return (
            f"{self.connections} hostile connections, ended: {ended or 'none'}; "
            f"{len(self.latencies)} good HEADs, p50 {self.percentile(50) * 1000:.1f} ms, "
            f"p99 {self.percentile(99) * 1000:.1f} ms, "
            f"max {max(self.latencies) * 1000:.1f} ms; "
            f"{self.resident / 2**20:.0f} MiB resident"
        )


async def connect_from(host: str, address: tuple[str, int]) -> Wire:
    """A connection whose own end is *host*, one of the loopback's."""
    sock = trio.socket.socket()
    try:
        await sock.bind((host, 0))
        await sock.connect(address)
    except BaseException:
        sock.close()
        raise
    return Wire(trio.SocketStream(sock))


class Attack:
    """*connections* hostile ones of all kinds, and *good* clients beside them."""

    def __init__(
        self, service: Service, *, connections: int, good: int = 8, seconds: float
    ) -> None:
        self._service = service
        self._most = connections
        self._good = good
        self._seconds = seconds
        self.report = Report()

    async def run(self) -> Report:
        """Attack, let it settle for a third of the time, and measure for the rest."""
        await self._upload_large()
        locations = [await self._begin_upload() for _ in range(self._good)]
        async with trio.open_nursery() as nursery:
            for number in range(self._most):
                nursery.start_soon(self._attack, number)
            await trio.sleep(self._seconds / 3)
            async with trio.open_nursery() as clients:
                for location in locations:
                    clients.start_soon(self._ask, location)
                await trio.sleep(self._seconds * 2 / 3)
                clients.cancel_scope.cancel()
            self.report.resident = self._service.resident()
            nursery.cancel_scope.cancel()
        return self.report

    async def _begin_upload(self) -> str:
        with await connect_from("127.0.0.3", self._service.address) as wire:
            fields = [("Prefer", "resume"), ("Content-Length", "1000000")]
            await wire.send(request_head("POST", "/files/", fields) + bytes(1000))
            interim = await wire.next_head()
        location = interim.fields["request-content-location"]
        with await connect_from("127.0.0.3", self._service.address) as wire:
            # The first one has the bytes synced: what the disk takes is not asked here.
            assert (await wire.ask("HEAD", location)).status == 200
        return location

    async def _upload_large(self) -> None:
        with await connect_from("127.0.0.3", self._service.address) as wire:
            length = [("Content-Length", str(LARGE))]
            await wire.send(request_head("PUT", "/files/large", length) + bytes(LARGE))
            assert (await wire.answer("PUT")).status in (201, 204)

    async def _ask(self, location: str) -> None:
        with await connect_from("127.0.0.3", self._service.address) as wire:
            while True:
                began = time.perf_counter()
                answer = await wire.ask("HEAD", location)
                self.report.latencies.append(time.perf_counter() - began)
                assert answer.status == 200, answer
                await trio.sleep(0.01)

    async def _attack(self, number: int) -> None:
        kind = KINDS[number % len(KINDS)]
        await trio.sleep(random.Random(number).random() * self._seconds / 10)
        while True:
            try:
                with await connect_from("127.0.0.2", self._service.address) as wire:
                    self.report.connections += 1
                    await self._trickle(kind, wire)
            except Cut:
                self.report.connections -= 1
                self.report.ended[kind] += 1
            except OSError:
                pass  # not let in: once more
            await trio.sleep(0.1)

    async def _trickle(self, kind: str, wire: Wire) -> None:
        if kind == "idle":
            await wire.next_head()
        elif kind == "head":
            await wire.send(b"GET /files/ HTTP/1.1\r\nX: ")
        elif kind == "content":
            length = [("Content-Length", "1000000")]
            await wire.send(request_head("POST", "/files/", length))
        elif kind == "chunks":
            coding = [("Transfer-Encoding", "chunked")]
            await wire.send(request_head("POST", "/files/", coding))
        else:
            # Asks for much, and reads none of it.
            await wire.send(request_head("GET", "/files/large"))
            await trio.sleep(self._seconds)
        while True:
            await wire.send(b"1\r\nx\r\n" if kind == "chunks" else b"x")
            await trio.sleep(BYTE_EVERY)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=2000)
    parser.add_argument("--seconds", type=float, default=30.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trioresume-slowloris-") as directory:
        service = Service(Path(directory) / "data")
        service.start()
        try:
            attack = Attack(
                service, connections=options.connections, seconds=options.seconds
            )
            report = trio.run(attack.run)
            service.stop()
            service.check_log()
        finally:
            service.close()
    print(report)  # noqa: T201
    return 0 if report.percentile(99) < GOOD_P99 else 1


if __name__ == "__main__":
    sys.exit(_main())
