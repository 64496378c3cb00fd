"""Much hashing for few bytes, against the real command (C15).

A part of 64 MiB is uploaded once. Then requests of 16 KiB each join it with itself some 370
times, and want the digest of that. Meanwhile an innocent client stores small files::

    python -m tests.e2e.hashing

It prints what the service and the innocent client had of it, also after all was deleted.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import trio

from tests.e2e.command import Service
from tests.e2e.wire import Wire, request_head

__all__ = ["Figures", "attack"]

MIB = 1024 * 1024
PART = 64 * MIB
REQUESTS = 40
_TUS = ("Tus-Resumable", "1.0.0")


@dataclass
class Figures:
    """Seconds, but for the counts."""

    cpu: float = 0.0
    """Of the service, while the requests were there."""
    afterwards: float = 0.0
    """The same, after all that they made was deleted."""
    waits: list[float] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.cpu:.1f} s of CPU, {self.afterwards:.1f} s after DELETE, "
            f"longest wait of {len(self.waits)} PUTs {max(self.waits) * 1000:.0f} ms"
        )


async def attack(
    service: Service, seconds: float, claims: str = "Want-Repr-Digest: sha-256=1"
) -> Figures:
    """Join and want for so many seconds, delete it all, and look on for as long."""
    figures = Figures()
    name, _, value = claims.partition(": ")
    with await Wire.connect(service.address) as wire:
        path = await _upload_part(wire)
        joined = "final;" + " ".join([path] * (15_000 // (len(path) + 1)))
        fields = [_TUS, ("Upload-Concat", joined), (name, value)]
        cpu = service.cpu_seconds()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_store_files, service, figures)
            began = time.perf_counter()
            made = []
            for _ in range(REQUESTS):
                await wire.send(request_head("POST", "/files/", fields))
                answer = await wire.answer("POST")
                assert answer.status in (201, 413), answer
                if answer.status == 201:
                    made.append(_path(answer.fields["location"]))
            await trio.sleep(max(0.0, seconds - (time.perf_counter() - began)))
            nursery.cancel_scope.cancel()
        figures.cpu = service.cpu_seconds() - cpu
        for path in made:
            await wire.send(request_head("DELETE", path, [_TUS]))
            assert (await wire.answer("DELETE")).status == 204
    await trio.sleep(1)
    cpu = service.cpu_seconds()
    await trio.sleep(seconds)
    figures.afterwards = service.cpu_seconds() - cpu
    return figures


def _path(location: str) -> str:
    return location[location.index("/operations/") :]


async def _upload_part(wire: Wire) -> str:
    fields = [_TUS, ("Upload-Length", str(PART)), ("Upload-Concat", "partial")]
    octets = ("Content-Type", "application/offset+octet-stream")
    length = ("Content-Length", str(PART))
    await wire.send(request_head("POST", "/files/", [*fields, octets, length]))
    await wire.send(bytes(PART))
    answer = await wire.answer("POST")
    assert answer.status == 201, answer
    return _path(answer.fields["location"])


async def _store_files(service: Service, figures: Figures) -> None:
    with await Wire.connect(service.address) as wire:
        while True:
            began = time.perf_counter()
            length = [("Content-Length", "4")]
            await wire.send(request_head("PUT", "/files/innocent", length) + b"good")
            assert (await wire.answer("PUT")).status in (201, 204)
            figures.waits.append(time.perf_counter() - began)
            await trio.sleep(0.05)


def _main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="trioresume-hashing-") as directory:
        service = Service(Path(directory) / "data")
        service.start()
        try:
            print(trio.run(attack, service, options.seconds))  # noqa: T201
        finally:
            service.close()
    return 0


if __name__ == "__main__":
    sys.exit(_main())
