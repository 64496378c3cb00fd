"""The client in every protocol, with servers that are cut, killed and started again.

Ours as a process, and servers that others wrote. Of those, @tus/server is installed by npm
the first time; the rest are tested where ``python -m bench.peers install`` has put them.
"""

from __future__ import annotations

import hashlib
import json
import sys
import urllib.request
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
import trio

from bench.peers import Peer, find
from bench.peers.cache import Cache, InstallFailed
from bench.peers.peer import ToolMissing
from bench.server import Server
from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.test_upload_command import Uploader, download, make_file, reach
from trioresume import Client, Journal, ProtocolName, RetryPolicy
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    no_faults,
)

SIZE = 8 * MIB
RATE = 20 * MIB
"""Bytes a second through the proxy, so that there is time to end a server."""

INSTALLED_QUICKLY = "@tus/server"


def cuts(proxy: ChaosProxy) -> Callable[[int], ConnectionPlan]:
    """Cut in heads, contents and responses, some times."""
    places = [
        Fault(FaultKind.FIN, Direction.UP, 100),
        Fault(FaultKind.RST, Direction.UP, 3 * MIB),
        Fault(FaultKind.FIN, Direction.DOWN, 60),
        Fault(FaultKind.FIN, Direction.UP, 2 * MIB),
        Fault(FaultKind.RST, Direction.UP, 300),
    ]

    def plan(index: int) -> ConnectionPlan:
        del index
        faults = (places[proxy.totals.cuts],) if proxy.totals.cuts < len(places) else ()
        return ConnectionPlan(faults, RATE)

    return plan


@pytest.mark.parametrize("protocol", ["rufh", "tus"])
async def test_command_survives_cuts_and_a_kill_of_the_server(
    service: Service, tmp_path: Path, protocol: str
) -> None:
    """Exit code 0, the 201 of the target, and every byte in its place."""
    path = tmp_path / "large.bin"
    digest = await trio.to_thread.run_sync(make_file, path, SIZE)
    uploader = Uploader(tmp_path)
    uploader.environment["TRIORESUME_UPLOAD_PROTOCOL"] = protocol
    results = []
    async with ChaosProxy(service.address) as proxy:
        proxy.schedule = cuts(proxy)
        async with trio.open_nursery() as nursery:

            async def upload() -> None:
                results.append(await uploader.run(path, proxy.url + "/files/"))

            nursery.start_soon(upload)
            await reach(proxy, SIZE // 2)
            await trio.to_thread.run_sync(service.kill)
            await trio.to_thread.run_sync(service.start)
        totals = proxy.totals
    (completed,) = results
    assert completed.returncode == 0, completed
    result = json.loads(completed.stdout)
    print(f"{protocol}: {totals}, {result}")  # noqa: T201
    assert (result["status"], result["protocol"]) == (201, protocol)
    assert totals.cuts == 5
    assert (await download(service, result["location"])).digest == digest
    service.stop()
    assert len(service.file_names()) == 1
    assert service.unfinished() == []


@pytest.mark.parametrize("protocol", ["auto", "seed", "rufh", "tus"])
async def test_command_says_where_the_file_is(
    shared_service: Service, tmp_path: Path, protocol: str
) -> None:
    """C19: in each protocol, also where the response repeats the upload's address."""
    path = tmp_path / "small.bin"
    digest = await trio.to_thread.run_sync(make_file, path, 100_000)
    uploader = Uploader(tmp_path)
    uploader.environment["TRIORESUME_UPLOAD_PROTOCOL"] = protocol
    completed = await uploader.run(path, shared_service.root + "/files/")
    location = json.loads(completed.stdout)["location"]
    assert location.startswith(shared_service.root + "/files/")
    assert (await download(shared_service, location)).digest == digest


# Servers of others.


def installed(name: str) -> Peer:
    """The peer of that name; a test that cannot have it is skipped."""
    peer = find(name)
    if name != INSTALLED_QUICKLY and not Cache().installed(peer):
        pytest.skip(f"python -m bench.peers install {name}")
    try:
        Cache().get(peer)
    except (InstallFailed, ToolMissing) as exc:
        pytest.skip(str(exc))
    return peer


class Foreign:
    """A server that somebody else wrote, ended and started again on what it stored."""

    def __init__(self, peer: Peer, data_dir: Path) -> None:
        self._peer = peer
        self._data_dir = data_dir
        self._server = Server(peer, data_dir)

    @property
    def address(self) -> tuple[str, int]:
        return self._server.host, self._server.port

    @property
    def path(self) -> str:
        return self._server.path

    def restart(self) -> None:
        """At another port: whoever asks for it goes through a proxy."""
        self._server.stop()
        self._server = Server(self._peer, self._data_dir)

    def fetch(self, url: str) -> str:
        """The digest of what is there now."""
        place = f"http://{self.address[0]}:{self.address[1]}{urlsplit(url).path}"
        with urllib.request.urlopen(place, timeout=30) as response:
            return hashlib.file_digest(response, "sha256").hexdigest()

    def close(self) -> None:
        self._server.stop()


@pytest.fixture(params=[INSTALLED_QUICKLY, "tusd", "tuspyserver"])
def foreign(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Foreign]:
    """Each server of others that speaks tus and keeps what it got of a cut request.

    rustus does not: it takes requests whole.
    """
    if not sys.platform.startswith("linux"):
        pytest.skip("bench.server reads /proc")
    server = Foreign(installed(request.param), tmp_path / "data")
    yield server
    server.close()


ABOUT = {
    "Content-Type": "application/octet-stream",
    "Content-Disposition": 'attachment; filename="content.bin"',
}
"""As the command says it; tuspyserver does not tell the offset of an upload without."""

PATIENT = RetryPolicy(attempts=100, first_delay=0.05, longest_delay=0.5)


async def uploaded(
    foreign: Foreign, path: Path, protocol: ProtocolName, journal: Journal
) -> str:
    """Upload *path* through cuts and a restart; the protocol it was made in.

    A run that ends in the middle is followed by one that names no protocol.
    """
    digest = await trio.to_thread.run_sync(make_file, path, SIZE)
    async with ChaosProxy(foreign.address) as proxy:
        proxy.schedule = cuts(proxy)
        url = proxy.url + foreign.path
        with trio.CancelScope() as run:
            async with Client(protocol=protocol, journal=journal, retry=PATIENT) as c:
                await c.request(
                    "POST",
                    url,
                    body=path,
                    headers=ABOUT,
                    on_progress=lambda p: p.acknowledged > SIZE // 4 and run.cancel(),
                )
        assert run.cancelled_caught
        async with trio.open_nursery() as nursery:

            async def restart() -> None:
                await reach(proxy, proxy.totals.bytes_up + SIZE // 4)
                await trio.to_thread.run_sync(foreign.restart)
                proxy.upstream = foreign.address

            nursery.start_soon(restart)
            async with Client(journal=journal, retry=PATIENT) as c:
                response = await c.request("POST", url, body=path, headers=ABOUT)
        proxy.schedule = no_faults
        assert proxy.totals.cuts == 5
        # What an announcement had confirmed was not sent again; what was on its way was.
        assert proxy.totals.bytes_up < 2 * SIZE
        assert response.ok
    location = urljoin(response.url, response.headers.get("location") or "")
    assert await trio.to_thread.run_sync(foreign.fetch, location) == digest
    return response.protocol


async def test_servers_of_tus_that_others_wrote(
    foreign: Foreign, tmp_path: Path
) -> None:
    """Found out, cut, ended and started again, and gone on with by another run."""
    journal = Journal(tmp_path / "journal")
    path = tmp_path / "large.bin"
    assert await uploaded(foreign, path, "auto", journal) == "tus"
    assert list((tmp_path / "journal").iterdir()) == []


async def test_stream_to_servers_of_tus_that_others_wrote(
    foreign: Foreign, tmp_path: Path
) -> None:
    """D7: of a length that is only known at its end."""
    path = tmp_path / "stream.bin"
    digest = await trio.to_thread.run_sync(make_file, path, 4 * MIB)
    cut = [Fault(FaultKind.RST, Direction.UP, 700_000)] * 4
    async with ChaosProxy(foreign.address) as proxy:
        proxy.schedule = lambda index: ConnectionPlan(tuple(cut[index : index + 1]))
        async with Client(protocol="tus", retry=PATIENT, buffer_size=MIB) as c:
            response = await c.request(
                "POST", proxy.url + foreign.path, body=blocks(path), headers=ABOUT
            )
        assert proxy.totals.cuts == 4
    assert response.ok
    location = response.headers.get("location") or ""
    assert await trio.to_thread.run_sync(foreign.fetch, location) == digest


async def blocks(path: Path) -> AsyncIterator[bytes]:
    """The content, once."""
    async with await trio.open_file(path, "rb") as file:
        while block := await file.read(100_000):
            yield block


async def test_rufh_of_tusd(tmp_path: Path) -> None:
    """C2 to C11: in the newest version that it knows, which is found out."""
    server = Foreign(installed("tusd"), tmp_path / "data")
    try:
        journal = Journal(tmp_path / "journal")
        path = tmp_path / "large.bin"
        assert await uploaded(server, path, "rufh", journal) == "rufh"
    finally:
        server.close()
