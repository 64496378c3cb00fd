"""``trioresume upload --parallel``: one file in several parts."""

from __future__ import annotations

import hashlib
import json
import os
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from tests.cli.test_upload import Network
from trioresume import cli
from trioresume.testing import (
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    no_faults,
)

MIB = 1 << 20


def _run(*words: str | Path) -> Result:
    return CliRunner().invoke(cli.main, [*map(str, words)])


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as running:
        yield running


@pytest.fixture(autouse=True)
def _no_faults(network: Network) -> None:
    network.proxy.schedule = no_faults


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "large.bin"
    path.write_bytes(random.Random(1).randbytes(4 * MIB))
    return path


def _listed() -> list[dict[str, object]]:
    result = _run("uploads", "ls", "--json")
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_parts_become_one_file_with_its_name_and_digest(
    network: Network, file: Path
) -> None:
    result = _run(
        "upload", "--parallel", "4", "--checksum", "--json", file, network.url
    )
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["parts"], told["protocol"], told["bytes"]) == (4, "tus", 4 * MIB)
    assert told["sha256"] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert told["confirmed"]
    assert network.fetch(told["location"]) == file.read_bytes()
    assert _listed() == []


def _cut_every_connection(network: Network, file: Path) -> None:
    """Leave *file* unfinished in four parts, of which much has arrived."""
    plan = ConnectionPlan((Fault(FaultKind.RST, Direction.UP, 900_000),))
    network.proxy.schedule = lambda _: plan
    result = _run("upload", "--parallel", "4", "--retry-for", "0s", file, network.url)
    assert result.exit_code == 75, result.output
    network.proxy.schedule = no_faults


def test_same_command_goes_on_after_a_failed_run(network: Network, file: Path) -> None:
    _cut_every_connection(network, file)
    before = network.proxy.totals.bytes_up
    result = _run("upload", "--parallel", "4", file, network.url)
    assert result.exit_code == 0, result.output
    assert network.proxy.totals.bytes_up - before < 3.5 * MIB
    assert network.fetch(result.stdout.strip()) == file.read_bytes()


def test_unfinished_parts_are_one_upload_to_list_resume_and_forget(
    network: Network, file: Path
) -> None:
    _cut_every_connection(network, file)
    (known,) = _listed()
    assert (known["path"], known["parts"]) == (str(file), 4)
    assert f"4.0 MiB  {file}  POST {network.url}  in 4 parts" in (
        _run("uploads", "ls").stdout
    )
    before = network.proxy.totals.bytes_up
    result = _run("uploads", "resume", "--all")
    assert result.exit_code == 0, result.output
    assert network.proxy.totals.bytes_up - before < 3.5 * MIB
    assert network.fetch(result.stdout.strip()) == file.read_bytes()
    assert _listed() == []
    _cut_every_connection(network, file)
    assert _run("uploads", "forget", "--all").exit_code == 0
    assert _listed() == []


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["-", "http://h/files/"], "standard input is none"),
        (["{pipe}", "http://h/files/"], "pipe is none"),
        (["{file}", "http://h/files/x"], "joins the parts by POST, not by PUT"),
        (["--method", "PUT", "{file}", "http://h/"], "by POST, not by PUT"),
        (["--protocol", "rufh", "{file}", "http://h/"], "of tus, not of rufh"),
        (["--protocol", "seed", "{file}", "http://h/"], "of tus, not of seed"),
    ],
)
def test_what_cannot_go_in_parts_is_a_usage_error(
    words: list[str], reason: str, file: Path, tmp_path: Path
) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    filled = [word.format(file=file, pipe=pipe) for word in words]
    result = _run("upload", "--parallel", "2", *filled)
    assert result.exit_code == 2
    assert reason in " ".join(result.output.split())


class _Plain(BaseHTTPRequestHandler):
    """A server that stores what it gets, and speaks no protocol of uploads."""

    protocol_version = "HTTP/1.1"
    stored = b""

    def do_POST(self) -> None:
        type(self).stored = self.rfile.read(int(self.headers["content-length"]))
        self.send_response(201)
        self.send_header("Location", "/stored")
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def test_server_that_cannot_join_gets_one_upload_and_the_user_is_told(
    file: Path,
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Plain)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/files/"
        result = _run("upload", "--parallel", "4", "--json", file, url)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["parts"] == 1
    assert _Plain.stored == file.read_bytes()
    assert "does not offer to join parts" in result.stderr
