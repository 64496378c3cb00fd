"""The real command as a process of its own, against a real service."""

from __future__ import annotations

import json
import os
import pty
import random
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Self
from urllib.parse import urlsplit

import pytest
import trio
from click.testing import CliRunner

import trioresume
from tests import processes
from trioresume import cli
from trioresume.testing import (
    ChaosProxy,
    Direction,
    Fault,
    FaultKind,
    MemoryStore,
    random_faults,
    scripted_faults,
)

SECONDS = 60.0


class Network:
    """The file service behind a proxy, on a thread of its own."""

    def __init__(self) -> None:
        self.url = ""
        self.bytes_up = 0
        self._started = threading.Event()
        self._proxy: ChaosProxy | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._stop: trio.Event | None = None
        self._thread = threading.Thread(target=trio.run, args=(self._run,))

    @property
    def proxy(self) -> ChaosProxy:
        """Its schedule may be set from here: it is one assignment."""
        assert self._proxy is not None
        return self._proxy

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._started.wait(SECONDS)
        return self

    def __exit__(self, *_: object) -> None:
        assert self._token is not None
        assert self._stop is not None
        self._token.run_sync_soon(self._stop.set)
        self._thread.join()

    async def _run(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stop = trio.Event()
        config = trioresume.Config(bind=["127.0.0.1:0"])
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                lambda **started: trioresume.serve(
                    trioresume.FileService(), config, store=MemoryStore(), **started
                )
            )
            parts = urlsplit(server.urls[0])
            async with ChaosProxy((str(parts.hostname), int(parts.port or 0))) as proxy:
                self._proxy = proxy
                self.url = f"{proxy.url}/files/"
                self._started.set()
                await self._stop.wait()
            nursery.cancel_scope.cancel()

    def fetch(self, url: str) -> bytes:
        """What the service has there, past all faults."""
        self.proxy.schedule = scripted_faults([])
        with urllib.request.urlopen(url, timeout=SECONDS) as response:
            content = response.read()
        assert isinstance(content, bytes)
        return content


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(network: Network) -> None:
    network.proxy.schedule = scripted_faults([])


def command(
    directory: Path, *arguments: object, options: Sequence[str] = ()
) -> tuple[list[str], dict[str, str]]:
    environment = processes.environment_of(directory / "state")
    words = [sys.executable, "-m", "trioresume", "upload", *options]
    return [*words, *map(str, arguments)], environment


def run(
    directory: Path, *arguments: object, options: Sequence[str] = ()
) -> subprocess.CompletedProcess[str]:
    words, environment = command(directory, *arguments, options=options)
    return processes.run(words[2:], environment=environment, timeout=SECONDS)


def file_of(directory: Path, size: int, name: str = "file.bin") -> tuple[Path, bytes]:
    data = random.Random(size).randbytes(size)
    path = directory / name
    path.write_bytes(data)
    return path, data


def journal_of(directory: Path) -> list[Path]:
    return list((directory / "state" / "trioresume" / "uploads").glob("*"))


def test_prints_where_the_file_is(network: Network, tmp_path: Path) -> None:
    """POST to a collection: the Location, absolute, and nothing else on standard output."""
    path, data = file_of(tmp_path, 100_000)
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.startswith(network.url)
    assert network.fetch(done.stdout.strip()) == data


def test_put_names_the_file(network: Network, tmp_path: Path) -> None:
    """By the URL, or with a collection by its own name, escaped."""
    path, data = file_of(tmp_path, 1000, "ü & co?.txt")
    done = run(tmp_path, path, network.url + "named.txt")
    assert done.stdout.strip() == network.url + "named.txt"
    assert network.fetch(network.url + "named.txt") == data
    done = run(tmp_path, path, network.url, options=["--method", "put"])
    assert done.returncode == 0, done.stderr
    assert network.fetch(network.url + "%C3%BC%20%26%20co%3F.txt") == data


def test_type_and_name_are_told(network: Network, tmp_path: Path) -> None:
    """So that whoever fetches it can save it under its name."""
    path, _ = file_of(tmp_path, 10, "page.html.gz")
    location = run(tmp_path, path, network.url).stdout.strip()
    with urllib.request.urlopen(location, timeout=SECONDS) as response:
        assert response.headers["Content-Type"] == "application/gzip"
        assert 'filename="page.html.gz"' in response.headers["Content-Disposition"]


def test_cuts_are_survived(network: Network, tmp_path: Path) -> None:
    """And told, where there is no terminal, in lines on standard error."""
    path, data = file_of(tmp_path, 5_000_000)
    network.proxy.schedule = random_faults(5, mean_bytes=1_000_000, limit=10)
    network.proxy.totals.connections = 0
    done = run(tmp_path, path, network.url, options=["--json"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == 201
    assert result["attempts"] > 1
    assert "attempt 2" in done.stderr
    assert network.fetch(result["location"]) == data
    assert journal_of(tmp_path) == []


@pytest.mark.parametrize("protocol", ["seed", "rufh", "tus"])
def test_every_protocol_survives_cuts(
    network: Network, tmp_path: Path, protocol: str
) -> None:
    """Named here; the name and the type of the file arrive in each."""
    path, data = file_of(tmp_path, 2_000_000, "page.html.gz")
    places = [(Direction.UP, 300_000), (Direction.UP, 100), (Direction.DOWN, 50)]
    places += [(Direction.UP, 700_000), (Direction.DOWN, 200)]
    network.proxy.schedule = scripted_faults(
        [Fault(FaultKind.RST, *place) for place in places]
    )
    network.proxy.totals.connections = 0
    before = network.proxy.totals.cuts
    options = ["--json", "--protocol", protocol]
    done = run(tmp_path, path, network.url, options=options)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["status"], result["protocol"]) == (201, protocol)
    assert network.proxy.totals.cuts == before + len(places)
    assert network.fetch(result["location"]) == data
    with urllib.request.urlopen(result["location"], timeout=SECONDS) as response:
        assert response.headers["Content-Type"] == "application/gzip"
        assert 'filename="page.html.gz"' in response.headers["Content-Disposition"]
    assert journal_of(tmp_path) == []


def test_interrupted_upload_goes_on_in_its_protocol(
    network: Network, tmp_path: Path
) -> None:
    """The next run need not name it."""
    path, data = file_of(tmp_path, 4_000_000)
    options = ["--protocol", "tus", "--limit-rate", "2MB"]
    words, environment = command(tmp_path, path, network.url, options=options)
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    while network.proxy.totals.bytes_up < before + 2_000_000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.wait(SECONDS) == 130
    done = run(tmp_path, path, network.url, options=["--json"])
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["protocol"] == "tus"
    assert network.fetch(result["location"]) == data
    assert network.proxy.totals.bytes_up - before < 5_000_000


def test_several_files_at_once(network: Network, tmp_path: Path) -> None:
    """One line each; an empty file is a file."""
    files = [file_of(tmp_path, size, f"{size}") for size in (0, 10, 200_000, 30)]
    paths = [path for path, _ in files]
    done = run(tmp_path, *paths, network.url, options=["--concurrency", "3"])
    assert done.returncode == 0, done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert {path: network.fetch(url) for path, url in lines.items()} == {
        str(path): data for path, data in files
    }


def test_refusal_is_explained(network: Network, tmp_path: Path) -> None:
    """Exit code 1: running it again will not help. The other file was sent."""
    good, _ = file_of(tmp_path, 10, "good")
    url = network.url.removesuffix("files/") + "nothing/"
    done = run(tmp_path, good, url, options=["--json"])
    assert done.returncode == 1
    assert "answered 404: There is nothing here" in done.stderr
    result = json.loads(done.stdout)
    assert result["status"] == 404
    assert "404" in result["error"]


def test_unreachable_server_is_worth_another_run(tmp_path: Path) -> None:
    """Exit code 75, after the time that was asked for."""
    path, _ = file_of(tmp_path, 10)
    start = time.monotonic()
    done = run(
        tmp_path, path, "http://127.0.0.1:9/files/", options=["--retry-for", "500ms"]
    )
    assert done.returncode == 75
    assert "retries are used up" in done.stderr
    assert 0.5 <= time.monotonic() - start < 20


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_upload_goes_on_with_the_same_command(
    network: Network, tmp_path: Path, number: signal.Signals
) -> None:
    """Exit code 130 and a hint; the next run sends the rest only."""
    path, data = file_of(tmp_path, 8_000_000)
    words, environment = command(
        tmp_path, path, network.url, options=["--limit-rate", "4MB"]
    )
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True
    )
    while network.proxy.totals.bytes_up < before + 6_000_000:
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 130
    assert "run the same command again" in errors
    assert len(journal_of(tmp_path)) == 1
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    assert network.fetch(done.stdout.strip()) == data
    assert network.proxy.totals.bytes_up - before < 10_000_000
    assert journal_of(tmp_path) == []


def test_killed_upload_goes_on_with_the_same_command(
    network: Network, tmp_path: Path
) -> None:
    """kill -9 too: the journal was written before the first byte was sent."""
    path, data = file_of(tmp_path, 8_000_000)
    words, environment = command(
        tmp_path, path, network.url, options=["--limit-rate", "4MB"]
    )
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    while network.proxy.totals.bytes_up < before + 6_000_000:
        time.sleep(0.01)
    process.kill()
    process.wait(SECONDS)
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    assert network.fetch(done.stdout.strip()) == data
    assert network.proxy.totals.bytes_up - before < 10_000_000


def test_second_interrupt_does_not_wait(network: Network, tmp_path: Path) -> None:
    """Whatever is going on."""
    path, _ = file_of(tmp_path, 10)
    stall = Fault(FaultKind.STALL, Direction.UP, 0)
    network.proxy.schedule = scripted_faults([stall] * 1000)
    words, environment = command(tmp_path, path, network.url)
    connections = network.proxy.totals.connections
    process = subprocess.Popen(words, env=environment, stderr=subprocess.DEVNULL)
    while network.proxy.totals.connections == connections:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.send_signal(signal.SIGINT)
    assert process.wait(5) == 130


def test_without_a_journal_nothing_is_remembered(
    network: Network, tmp_path: Path
) -> None:
    """And whoever stops it is told."""
    path, _ = file_of(tmp_path, 8_000_000)
    options = ["--limit-rate", "4MB", "--no-journal"]
    words, environment = command(tmp_path, path, network.url, options=options)
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True
    )
    while network.proxy.totals.bytes_up < before + 1_000_000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert "nothing was kept" in process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 130
    assert journal_of(tmp_path) == []


def test_bar_on_a_terminal(network: Network, tmp_path: Path) -> None:
    """Name, bytes and rate; the cursor comes back."""
    path, _ = file_of(tmp_path, 2_000_000)
    words, environment = command(
        tmp_path, path, network.url, options=["--limit-rate", "4MB"]
    )
    environment |= {"TERM": "xterm", "COLUMNS": "100"}
    master, slave = pty.openpty()
    process = subprocess.Popen(
        words, env=environment, stdout=subprocess.PIPE, stderr=slave
    )
    os.close(slave)
    shown = b""
    while True:
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            break
        if not piece:
            break
        shown += piece
    os.close(master)
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0
    assert output.decode().startswith(network.url)
    assert b"file.bin" in shown
    assert b"MiB" in shown
    assert shown.rindex(b"\x1b[?25h") > shown.rindex(b"\x1b[?25l")


def test_token_is_sent(tmp_path: Path) -> None:
    """From a file, because a command line is seen by others."""
    seen: list[str] = []

    async def once() -> None:
        async def answer(stream: trio.SocketStream) -> None:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some()
            seen.extend(re.findall(r"(?im)^authorization: (.*)\r$", head.decode()))
            await stream.send_all(
                b"HTTP/1.1 403 No\r\nContent-Length: 9\r\n"
                b"Content-Type: application/problem+json\r\n\r\n" + b'{"title":'
            )
            await stream.send_eof()

        async with trio.open_nursery() as nursery:
            listeners = await nursery.start(trio.serve_tcp, answer, 0)
            port = listeners[0].socket.getsockname()[1]
            done = await trio.to_thread.run_sync(
                lambda: run(
                    tmp_path,
                    path,
                    f"http://127.0.0.1:{port}/",
                    options=[
                        "--token-file",
                        str(tmp_path / "token"),
                        "--retry-for",
                        "0",
                    ],
                )
            )
            assert done.returncode in (1, 75)
            nursery.cancel_scope.cancel()

    path, _ = file_of(tmp_path, 10)
    (tmp_path / "token").write_text("secret-token\n")
    trio.run(once)
    assert seen[0] == "Bearer secret-token"


# What cannot be meant.


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["{file}", "ftp://host/"], "not an http"),
        (["{file}", "host/path"], "not an http"),
        (["{file}"], "Missing argument"),
        (["missing", "http://host/"], "does not exist"),
        (["{file}", "{other}", "http://host/name"], "ends with a slash"),
        (["{file}", "{file}", "http://host/"], "named twice"),
        (["{file}", "http://host/", "--concurrency", "0"], "--concurrency"),
        (["{file}", "http://host/", "--limit-rate", "0"], "--limit-rate"),
        (["{file}", "http://host/", "--retry-for", "soon"], "--retry-for"),
        (["{file}", "http://host/", "--protocol", "ftp"], "--protocol"),
        (
            ["{file}", "http://host/", "--protocol", "tus", "--method", "put"],
            "begins with POST",
        ),
    ],
)
def test_senseless_arguments_are_usage_errors(
    tmp_path: Path, arguments: list[str], complaint: str
) -> None:
    """Exit code 2, and nothing was tried."""
    file, _ = file_of(tmp_path, 1)
    other, _ = file_of(tmp_path, 2, "other")
    words = [word.format(file=file, other=other) for word in arguments]
    result = CliRunner().invoke(cli.main, ["upload", *words])
    assert result.exit_code == 2
    assert complaint in result.output


def test_protocol_has_a_variable_and_a_line_in_the_file(tmp_path: Path) -> None:
    """As every option."""
    file, _ = file_of(tmp_path, 1)
    words = ["upload", str(file), "http://host/", "--method", "PUT"]
    config = tmp_path / "config.toml"
    config.write_text('[upload]\nprotocol = "tus"\n')
    for arguments, environment in (
        (words, {"TRIORESUME_UPLOAD_PROTOCOL": "tus"}),
        ([*words, "--config", str(config)], {}),
    ):
        result = CliRunner().invoke(cli.main, arguments, env=environment)
        assert result.exit_code == 2
        assert "begins with POST" in result.output


def test_every_option_has_an_environment_variable() -> None:
    """By the group's prefix; those of all commands have their own."""
    result = CliRunner().invoke(
        cli.main,
        ["upload", __file__, "http://host/"],
        env={"TRIORESUME_UPLOAD_CONCURRENCY": "many"},
        auto_envvar_prefix="TRIORESUME",
    )
    assert result.exit_code == 2
    assert "many" in result.output
