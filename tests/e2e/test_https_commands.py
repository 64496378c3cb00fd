"""``trioresume upload`` and ``bench`` as processes, over the TLS of ``trioresume serve``."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from urllib.request import urlopen

import pytest
import trio

from tests.certificates import authority, client_context, write_server_files
from tests.client.http_proxy import HttpProxy
from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.processes import environment_of
from trioresume.testing import ChaosProxy, random_faults

SIZE = 16 * MIB
SECONDS = 120.0


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """What the command sees: no proxies, and a state directory of its own."""
    return environment_of(tmp_path / "state")


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "trioresume", "upload", "--quiet", *arguments]


async def run(
    environment: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            command(*arguments),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )


def make_file(path: Path, size: int = SIZE) -> bytes:
    data = random.Random(size).randbytes(size)
    path.write_bytes(data)
    return data


async def fetched(service: Service, location: str) -> bytes:
    """Return the content stored at *location*."""
    place = service.root + location[location.index("/files/") :]

    def get() -> bytes:
        with urlopen(place, context=client_context()) as response:
            data: bytes = response.read()
            return data

    return await trio.to_thread.run_sync(get)


async def test_file_arrives_over_tls_that_is_cut(
    tmp_path: Path, secured: Service, environment: dict[str, str], cacert: str
) -> None:
    """Each cut is within TLS; what the server has is not sent again."""
    path = tmp_path / "file.bin"
    data = make_file(path)
    faults = random_faults(3, mean_bytes=3 * MIB, limit=5)
    async with ChaosProxy(secured.address, faults) as proxy:
        url = f"https://127.0.0.1:{proxy.address[1]}/files/"
        few = ["--json", "--idle-timeout", "5s", "--cacert", cacert]
        done = await run(environment, *few, str(path), url)
        assert proxy.totals.cuts > 0
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["attempts"] > 1
    assert await fetched(secured, result["location"]) == data


async def test_stopped_run_is_continued_over_tls(
    tmp_path: Path, secured: Service, environment: dict[str, str], cacert: str
) -> None:
    """The journal's locations are those of https."""
    path = tmp_path / "file.bin"
    data = make_file(path)
    url = secured.root + "/files/"
    arguments = ["--json", "--cacert", cacert, str(path), url]
    slow = await trio.lowlevel.open_process(
        command("--limit-rate", "2MiB", *arguments),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    journal = tmp_path / "state" / "trioresume" / "uploads"
    begun = time.monotonic()
    while not list(journal.glob("*.upload")):
        assert time.monotonic() < begun + SECONDS
        await trio.sleep(0.05)
    slow.send_signal(signal.SIGTERM)
    assert await slow.wait() == 130
    done = await run(environment, *arguments)
    assert done.returncode == 0, done.stderr
    assert not list(journal.glob("*.upload"))
    assert await fetched(secured, json.loads(done.stdout)["location"]) == data


async def test_untrusted_server_gets_nothing_and_exits_with_1(
    tmp_path: Path, secured: Service, environment: dict[str, str]
) -> None:
    """The message names the host and the option that helps; 1 is not "run it again"."""
    path = tmp_path / "file.bin"
    make_file(path, 1000)
    done = await run(environment, str(path), secured.root + "/files/")
    assert done.returncode == 1
    assert f"127.0.0.1:{secured.port}".encode() in done.stderr
    assert b"--cacert" in done.stderr
    assert done.stdout == b""


async def test_insecure_run_warns_and_uploads(
    tmp_path: Path, secured: Service, environment: dict[str, str]
) -> None:
    """Also with --quiet."""
    path = tmp_path / "file.bin"
    make_file(path, 1000)
    done = await run(environment, "--insecure", str(path), secured.root + "/files/")
    assert done.returncode == 0, done.stderr
    assert b"certificate is not checked" in done.stderr


async def test_proxy_of_the_environment_is_used(
    tmp_path: Path, secured: Service, environment: dict[str, str], cacert: str
) -> None:
    """A tunnel leads to the service; no_proxy leads there directly."""
    path = tmp_path / "file.bin"
    make_file(path, MIB)
    arguments = ["--cacert", cacert, str(path), secured.root + "/files/"]
    async with HttpProxy("me:secret").serving() as proxy:
        named = proxy.url.replace("//", "//me:secret@")
        through = {**environment, "HTTPS_PROXY": named}
        done = await run(through, *arguments)
        assert done.returncode == 0, done.stderr
        assert proxy.requests == [f"CONNECT 127.0.0.1:{secured.port}"]
        direct = {**through, "no_proxy": "127.0.0.0/8"}
        done = await run(direct, *arguments)
        assert done.returncode == 0, done.stderr
        assert len(proxy.requests) == 1
        socks = {**environment, "all_proxy": "socks5://127.0.0.1:1"}
        done = await run(socks, *arguments)
    assert done.returncode == 1
    assert b"all_proxy names a SOCKS proxy" in done.stderr


async def run_bench(
    environment: Mapping[str, str], *arguments: str
) -> subprocess.CompletedProcess[bytes]:
    with trio.fail_after(SECONDS):
        return await trio.run_process(
            [sys.executable, "-m", "trioresume", "bench", "--quiet", *arguments],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env=environment,
        )


@pytest.mark.parametrize("protocol", ["auto", "tus", "rufh"])
async def test_load_with_cuts_over_tls_is_stored_right(
    secured: Service, environment: dict[str, str], cacert: str, protocol: str
) -> None:
    """Every byte is verified, and the version of TLS is told."""
    few = ["--at-once", "3", "--total", "6", "--size", "1MiB", "--cut-every", "700k"]
    few += ["--protocol", protocol, "--json", "-", "--cacert", cacert]
    done = await run_bench(environment, *few, secured.root + "/files/")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["carrier"] == "HTTP/1.1 over TLSv1.3"
    assert document["summary"]["done"] == 6
    assert sum(document["summary"]["cuts"].values()) > 0
    assert b"HTTP/1.1 over TLSv1.3" in done.stderr


async def test_bench_says_why_it_does_not_trust_a_server(
    secured: Service, environment: dict[str, str]
) -> None:
    """Before the load."""
    done = await run_bench(environment, secured.root + "/files/")
    assert done.returncode == 1
    assert f"the certificate of 127.0.0.1:{secured.port}".encode() in done.stderr
    done = await run_bench(
        environment, "--insecure", "--total", "1", secured.root + "/files/"
    )
    assert done.returncode == 0, done.stderr
    assert b"certificate is not checked" in done.stderr


async def test_bench_over_http2_with_a_certificate(
    tmp_path: Path,
    make_service: Callable[..., Service],
    environment: dict[str, str],
    cacert: str,
) -> None:
    """The server takes no other client; the page and the proxy are told, too."""
    cert, key = write_server_files(tmp_path)
    service = make_service(
        *("--ssl-certfile", str(cert), "--ssl-keyfile", str(key)),
        *("--ssl-client-auth", "required", "--ssl-ca-certs", cacert),
    )
    url = service.root.replace("http:", "https:") + "/files/"
    service.start()
    issued = authority().issue_cert("somebody@example.org")
    both, page = tmp_path / "both.pem", tmp_path / "page.html"
    issued.private_key_and_cert_chain_pem.write_to_path(str(both))
    few = ["--http2", "--cacert", cacert, "--at-once", "4", "--total", "8"]
    few += ["--size", "500k", "--cut-every", "400k", "--json", "-"]
    through = {**environment, "https_proxy": "http://127.0.0.1:1"}
    done = await run_bench(through, *few, "--cert", str(both), "--html", str(page), url)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["carrier"] == "HTTP/2 over TLSv1.3"
    assert b"HTTP/2 over TLSv1.3" in done.stderr
    assert b"proxy of the environment is not used" in done.stderr
    assert "HTTP/2 over TLSv1.3" in page.read_text("utf-8")
    done = await run_bench(environment, *few, url)
    assert done.returncode == 1
    assert b"give one with --cert" in done.stderr


async def test_bench_over_http2_needs_a_server_that_speaks_it(
    tmp_path: Path,
    make_service: Callable[..., Service],
    environment: dict[str, str],
) -> None:
    """Over TLS and without it, in words."""
    cert, key = write_server_files(tmp_path)
    service = make_service(
        *("--ssl-certfile", str(cert), "--ssl-keyfile", str(key), "--http2", "false")
    )
    service.start()
    url = service.root.replace("http:", "https:") + "/files/"
    done = await run_bench(environment, "--http2", "--insecure", url)
    assert done.returncode == 1
    assert b"HTTP" in done.stderr
    assert b"Traceback" not in done.stderr
