"""``trioresume upload`` over HTTP/2: several files at once, cuts, kills, foreign servers."""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

import pytest
import trio

from tests.certificates import client_context, write_server_files
from tests.e2e import proxies
from tests.e2e.command import Service, free_port
from tests.e2e.soak import MIB
from tests.e2e.test_behind_a_proxy import Front, caddy
from tests.processes import environment_of
from trioresume import Client, ClientTls, RetryPolicy, TransferFailed
from trioresume.testing import ChaosProxy, random_faults

__all__ = ["caddy"]

SECONDS = 120.0
PATIENT = RetryPolicy(attempts=100, first_delay=0.01, longest_delay=0.05)


def files_in(folder: Path, count: int, size: int) -> dict[str, bytes]:
    """*count* files of random content, by name."""
    contents = {}
    for number in range(count):
        data = random.Random(number).randbytes(size)
        (folder / f"{number}.bin").write_bytes(data)
        contents[f"{number}.bin"] = data
    return contents


def command(folder: Path, *arguments: str) -> tuple[list[str], dict[str, str]]:
    """``trioresume upload``, and its environment without proxies."""
    environment = environment_of(folder / "state")
    words = [sys.executable, "-m", "trioresume", "upload", "--quiet", "--json"]
    return [*words, *arguments], environment


async def upload(folder: Path, *arguments: str) -> list[dict[str, object]]:
    """Run the command; return its results, one for each file."""
    words, environment = command(folder, *arguments)
    with trio.fail_after(SECONDS):
        done = await trio.run_process(
            words,
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


async def check_stored(
    service: Service, results: list[dict[str, object]], contents: dict[str, bytes]
) -> None:
    """Read every stored file back."""
    assert len(results) == len(contents)
    for result in results:
        location = str(result["location"])
        place = service.root + location[location.index("/files/") :]

        def get(place: str = place) -> bytes:
            with urlopen(place, context=client_context()) as response:
                data: bytes = response.read()
                return data

        stored = await trio.to_thread.run_sync(get)
        assert stored == contents[Path(str(result["file"])).name]


async def test_files_go_over_one_connection_that_is_cut(
    tmp_path: Path, secured: Service, cacert: str
) -> None:
    """Four at once; a cut hits all of them, and each goes on where it was."""
    contents = files_in(tmp_path, 6, 4 * MIB)
    paths = [str(tmp_path / name) for name in contents]
    faults = random_faults(5, mean_bytes=5 * MIB, limit=4)
    async with ChaosProxy(secured.address, faults) as proxy:
        url = f"https://127.0.0.1:{proxy.address[1]}/files/"
        options = ["--concurrency", "4", "--idle-timeout", "5s", "--cacert", cacert]
        results = await upload(tmp_path, "--http2", *options, *paths, url)
        cuts, connections = proxy.totals.cuts, len(proxy.connections)
        assert cuts > 0
        assert connections <= 1 + cuts + proxy.totals.stalls
    await check_stored(secured, results, contents)


async def test_killed_server_is_survived(
    tmp_path: Path, secured: Service, cacert: str
) -> None:
    """``kill -9`` with several uploads on one connection; they go on after the restart."""
    contents = files_in(tmp_path, 3, 2 * MIB)
    paths = [str(tmp_path / name) for name in contents]
    options = ["--concurrency", "3", "--limit-rate", "6MiB", "--cacert", cacert]
    results: list[dict[str, object]] = []

    async with ChaosProxy(secured.address) as proxy:
        url = f"https://127.0.0.1:{proxy.address[1]}/files/"
        async with trio.open_nursery() as nursery:

            async def go() -> None:
                results.extend(await upload(tmp_path, *options, *paths, url))

            nursery.start_soon(go)
            await secured.wait_for_tail(MIB)
            secured.kill()
            await trio.to_thread.run_sync(secured.start)
    await check_stored(secured, results, contents)


async def test_command_uploads_through_caddy(caddy: Front, tmp_path: Path) -> None:
    """Caddy speaks HTTP/2 to the client, and HTTP/1.1 to the server behind it."""
    contents = files_in(tmp_path, 3, 2 * MIB)
    paths = [str(tmp_path / name) for name in contents]
    faults = random_faults(9, mean_bytes=2 * MIB, limit=3)
    address = "127.0.0.1", caddy.proxy.tls_port
    async with ChaosProxy(address, faults) as proxy:
        url = f"https://localhost:{proxy.address[1]}{caddy.files}"
        options = ["--http2", "--insecure", "--concurrency", "3"]
        results = await upload(tmp_path, *options, "--idle-timeout", "5s", *paths, url)
        assert proxy.totals.cuts > 0
    assert len(results) == 3
    assert all(result["status"] in (201, 204) for result in results)


DAV = """\
server {{
    listen 80;
    listen 127.0.0.1:{port} ssl http2;
    listen 127.0.0.1:{old} ssl;
    ssl_certificate {cert};
    ssl_certificate_key {key};
    client_max_body_size 0;
    location / {{
        root {root};
        dav_methods PUT;
    }}
    location /small/ {{
        client_max_body_size 1k;
        root {root};
        dav_methods PUT;
    }}
}}
"""


@pytest.fixture
def nginx(tmp_path: Path) -> Iterator[tuple[int, int, Path]]:
    """nginx with DAV: its ports with HTTP/2 and without it, and its folder of files."""
    cert, key = write_server_files(tmp_path)
    root, run = tmp_path / "stored", tmp_path / "nginx"
    root.mkdir()
    run.mkdir()
    port, old = free_port(), free_port()
    block = DAV.format(port=port, old=old, cert=cert, key=key, root=root)
    with proxies.run("nginx", block, 0, run):
        yield port, old, root


async def test_nginx_stores_files_over_http2(
    nginx: tuple[int, int, Path], tmp_path: Path, cacert: str
) -> None:
    """A server that cannot resume: a file that is cut begins again, the others, too."""
    port, _, root = nginx
    data = random.Random(1).randbytes(3 * MIB)
    (tmp_path / "file").write_bytes(data)
    faults = random_faults(4, mean_bytes=6 * MIB, limit=3)
    async with ChaosProxy(("127.0.0.1", port), faults) as proxy:
        url = f"https://127.0.0.1:{proxy.address[1]}"
        async with Client(
            tls=ClientTls(cacert=cacert), http2=True, retry=PATIENT, expect_timeout=0.1
        ) as client:

            async def put(number: int) -> None:
                body = tmp_path / "file"
                response = await client.request("PUT", f"{url}/{number}", body=body)
                assert response.status in (201, 204)

            async with trio.open_nursery() as nursery:
                for number in range(4):
                    nursery.start_soon(put, number)
            # An answer before the content has ended.
            refused = await client.request("PUT", f"{url}/small/a", body=data)
            assert refused.status == 413
        assert proxy.totals.cuts > 0
    for number in range(4):
        assert (root / str(number)).read_bytes() == data


async def test_server_that_refuses_http2_in_the_handshake_is_named(
    nginx: tuple[int, int, Path], cacert: str
) -> None:
    """To insist is hopeless with it; by default it gets HTTP/1.1."""
    _, old, root = nginx
    url = f"https://127.0.0.1:{old}/file"
    tls = ClientTls(cacert=cacert)
    async with Client(tls=tls, http2=True, retry=PATIENT) as client:
        with pytest.raises(
            TransferFailed, match="does not speak the version"
        ) as caught:
            await client.request("PUT", url, body=b"content")
    assert not caught.value.resumable
    async with Client(tls=tls, expect_timeout=0.1) as client:
        assert (await client.request("PUT", url, body=b"content")).status == 201
    assert (root / "file").read_bytes() == b"content"
