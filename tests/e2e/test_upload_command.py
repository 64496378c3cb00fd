"""``trioresume upload`` as a process, against the real service over a bad link.

The short form sends 64 MiB. ``TRIORESUME_E2E_FULL=1`` makes it 1 GiB.
"""

from __future__ import annotations

import hashlib
import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.wire import Wire
from tests.processes import environment_of
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
)

CUTS = 10
# A loopback link would be through before anybody could be killed.
RATE = 100 * MIB


def make_file(path: Path, size: int) -> str:
    """Random content, no MiB like another; its SHA-256."""
    block = bytearray(random.Random(size).randbytes(MIB))
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for number in range(size // MIB):
            block[:8] = number.to_bytes(8)
            file.write(block)
            digest.update(block)
    return digest.hexdigest()


class Uploader:
    """Runs the command, with a state directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.environment = environment_of(directory / "state")

    async def run(
        self,
        path: Path,
        url: str,
        *,
        task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED,
    ) -> subprocess.CompletedProcess[bytes]:
        """Upload *path*; reports the process once it runs."""
        command = [sys.executable, "-m", "trioresume", "upload", "--json", "--quiet"]

        results: list[subprocess.CompletedProcess[bytes]] = []

        async def run(*, task_status: trio.TaskStatus[trio.Process]) -> None:
            completed = await trio.run_process(
                [*command, str(path), url],
                capture_stdout=True,
                capture_stderr=True,
                check=False,
                env=self.environment,
                task_status=task_status,
            )
            results.append(completed)

        async with trio.open_nursery() as nursery:
            task_status.started(await nursery.start(run))
        return results[0]


class Stored(NamedTuple):
    """What a GET showed."""

    digest: str
    fields: dict[str, str]


async def download(service: Service, location: str) -> Stored:
    """What is to be found at *location*, with the content hashed in passing."""
    target = location.removeprefix(location[: location.index("/files/")])
    digest = hashlib.sha256()
    with await Wire.connect(service.address) as wire:
        head = await wire.ask("HEAD", target)
        assert head.status == 200
        size = int(head.fields["content-length"])
        for start in range(0, size, 32 * MIB):
            stop = min(size, start + 32 * MIB)
            part = await wire.ask(
                "GET", target, [("Range", f"bytes={start}-{stop - 1}")]
            )
            assert part.status == 206
            digest.update(part.body)
    return Stored(digest.hexdigest(), head.fields)


def ten_cuts(proxy: ChaosProxy, size: int) -> None:
    """Have *proxy* cut ten times: in a head, in responses, and all along the content."""
    tenth = size // (CUTS + 2)

    def plan(index: int) -> ConnectionPlan:
        del index
        number = proxy.totals.cuts
        kind = FaultKind.FIN if number % 2 else FaultKind.RST
        if number >= CUTS:
            faults: tuple[Fault, ...] = ()
        elif number == 0:
            faults = (Fault(kind, Direction.UP, 50),)
        elif number == 1:
            faults = (Fault(kind, Direction.DOWN, 20),)
        else:
            faults = (Fault(kind, Direction.UP, tenth),)
        return ConnectionPlan(faults, RATE)

    proxy.schedule = plan


async def reach(proxy: ChaosProxy, size: int) -> None:
    """Wait until *size* bytes have gone to the server."""
    while proxy.totals.bytes_up < size:  # noqa: ASYNC110 - the proxy has no event for it
        await trio.sleep(0.005)


@pytest.mark.slow
async def test_upload_survives_ten_cuts_and_two_kills_of_the_server(
    service: Service, tmp_path: Path, full: bool
) -> None:
    """Exit code 0, the 201 of the original request, and every byte in its place."""
    size = (1024 if full else 64) * MIB
    path = tmp_path / "large.bin"
    digest = await trio.to_thread.run_sync(make_file, path, size)
    uploader = Uploader(tmp_path)
    began = time.monotonic()
    async with ChaosProxy(service.address) as proxy:
        ten_cuts(proxy, size)
        results = []

        async def upload() -> None:
            results.append(await uploader.run(path, proxy.url + "/files/"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(upload)
            for third in (1, 2):
                await reach(proxy, third * size // 3)
                assert proxy.totals.bytes_up < size
                await trio.to_thread.run_sync(service.kill)
                await trio.to_thread.run_sync(service.start)
        totals = proxy.totals
    (completed,) = results
    assert completed.returncode == 0, completed
    result = json.loads(completed.stdout)
    print(  # noqa: T201
        f"{size // MIB} MiB in {time.monotonic() - began:.1f} s, {totals}, "
        f"{totals.bytes_up / size - 1:.2%} sent again; {result}"
    )
    assert totals.cuts == CUTS
    assert result["status"] == 201
    assert result["bytes"] == size
    stored = await download(service, result["location"])
    assert stored.digest == digest
    assert "large.bin" in stored.fields["content-disposition"]
    service.stop()
    assert len(service.file_names()) == 1
    assert service.unfinished() == []


async def test_the_command_killed_and_run_again_goes_on(
    service: Service, tmp_path: Path
) -> None:
    """The journal survives ``kill -9``: the second run sends only what is missing."""
    size = 48 * MIB
    path = tmp_path / "file.bin"
    digest = await trio.to_thread.run_sync(make_file, path, size)
    uploader = Uploader(tmp_path)
    async with ChaosProxy(service.address, lambda _: ConnectionPlan((), RATE)) as proxy:
        url = proxy.url + "/files/file.bin"
        async with trio.open_nursery() as nursery:
            process = await nursery.start(uploader.run, path, url)
            await reach(proxy, size // 2)
            process.kill()
        completed = await uploader.run(path, url)
        sent = proxy.totals.bytes_up
    assert completed.returncode == 0, completed
    assert json.loads(completed.stdout)["status"] == 201
    assert (await download(service, "/files/file.bin")).digest == digest
    assert sent < size * 1.1


@pytest.mark.parametrize("when", ["during the run", "between two runs"])
async def test_an_upload_of_an_old_version_is_not_left_behind(
    service: Service, tmp_path: Path, when: str
) -> None:
    """The server is told to drop what no version of the file can complete."""
    size = 16 * MIB
    path = tmp_path / "file.bin"
    await trio.to_thread.run_sync(make_file, path, size)
    uploader = Uploader(tmp_path)
    slow = ConnectionPlan((), 4 * MIB)
    async with ChaosProxy(service.address, lambda _: slow) as proxy:
        url = proxy.url + "/files/file.bin"
        results = []

        async def upload(
            *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
        ) -> None:
            results.append(await uploader.run(path, url, task_status=task_status))

        async with trio.open_nursery() as nursery:
            process = await nursery.start(upload)
            await reach(proxy, size // 4)
            if when == "between two runs":
                process.kill()
                await process.wait()
            with path.open("ab") as file:
                file.write(b"one line more")
        proxy.schedule = lambda _: ConnectionPlan()
        if when == "during the run":
            assert results[0].returncode == 75, results[0]
        completed = await uploader.run(path, url)
    assert completed.returncode == 0, completed
    stored = await download(service, "/files/file.bin")
    assert stored.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    service.stop()
    assert service.unfinished() == []
