"""HTTP clients and tus libraries of other people, against the real command.

What is tried with whom is the table in ``registry.py``.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.certificates import authority, write_server_files
from tests.e2e.command import Service
from tests.e2e.compat.programs import command_of
from tests.e2e.compat.registry import CLIENTS, LIMITS, Client
from tests.e2e.tus_uploads import check_stored, request

CONTENT = os.urandom(2_000_000)
LIMIT = 1_000_000
RUN_SECONDS = 120
CELLS = [(client, trial) for client in CLIENTS for trial in client.trials]


@dataclass(frozen=True)
class Pair:
    """A service for most trials, and one that refuses the content for its length."""

    service: Service
    limited: Service


def running_pair(folder: Path, *options: str) -> Iterator[Pair]:
    limit = ("--max-upload-size", str(LIMIT))
    pair = Pair(
        Service(folder / "data", ("serve", *options)),
        Service(folder / "limited", ("serve", *options, *limit)),
    )
    for service in (pair.service, pair.limited):
        service.start()
    yield pair
    for service in (pair.service, pair.limited):
        service.stop()
        service.check_log()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    yield from running_pair(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    folder = tmp_path_factory.mktemp("secured")
    certificate, key = write_server_files(folder)
    options = ("--ssl-certfile", str(certificate), "--ssl-keyfile", str(key))
    yield from running_pair(folder, *options)


class Runner:
    """Does all trials of a client in one process, once."""

    def __init__(self, pair: Pair, folder: Path) -> None:
        self.service = pair.service
        self._limited = pair.limited
        self.path = folder / "content.bin"
        self.path.write_bytes(CONTENT)
        authorities = folder / "ca.pem"
        authority().cert_pem.write_to_path(str(authorities))
        # By their names: Go and Python; Node; our own drivers of curl.
        trusting = dict.fromkeys(
            ("SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"), str(authorities)
        )
        self._environment = {**os.environ, **trusting}
        self._said: dict[str, dict[str, dict[str, Any]]] = {}

    def said(self, client: Client, trial: str) -> dict[str, Any]:
        """What the client's driver said of one trial."""
        if client.key not in self._said:
            self._said[client.key] = self._run(client)
        return self._said[client.key][trial]

    def _run(self, client: Client) -> dict[str, dict[str, Any]]:
        roots = [self.service.root, self._limited.root]
        name = f"{client.key}-{secrets.token_hex(4)}"
        command = [*command_of(client), *roots, str(self.path), name, *client.trials]
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            env=self._environment,
            timeout=RUN_SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        lines = [json.loads(line) for line in done.stdout.strip().split("\n")]
        assert [line["trial"] for line in lines] == list(client.trials), done.stderr
        return {line["trial"]: {**line, "name": name} for line in lines}


@pytest.fixture(scope="module")
def plain_runner(plain: Pair, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(plain, tmp_path_factory.mktemp("content"))


@pytest.fixture(scope="module")
def secured_runner(secured: Pair, tmp_path_factory: pytest.TempPathFactory) -> Runner:
    return Runner(secured, tmp_path_factory.mktemp("content"))


def check(runner: Runner, said: dict[str, Any]) -> None:
    """Whether the trial succeeded, by what the client saw and by what is stored."""
    trial = said["trial"]
    assert "error" not in said, said
    if trial.startswith("tus-"):
        fields = check_stored(runner.service, said["url"], CONTENT)
        if trial != "tus-parallel":
            assert "content.bin" in fields["content-disposition"]
        return
    status = {"refused": 413, "range": 206, "delete": 204}.get(trial, 201)
    assert said["status"] == status, said
    if trial == "range":
        assert said["digest"] == hashlib.sha256(CONTENT[1000:]).hexdigest()
    elif trial == "refused":
        assert said["fields"]["content-type"] == "application/problem+json"
    elif trial == "delete":
        answer, _ = request("GET", f"{runner.service.root}/files/{said['name']}-put")
        assert answer.status == 404
    else:
        check_file(runner, said)


def check_file(runner: Runner, said: dict[str, Any]) -> None:
    """The file that the client was told of is what it sent."""
    trial, fields = said["trial"], said["fields"]
    if trial in ("put", "prefer", "expect"):
        place = f"/files/{said['name']}-{trial}"
    elif trial == "stream":
        place = fields["location"]
    else:
        # The response's own content names the file, whatever Location says.
        place = json.loads(said["text"])["location"]
    place = place.removeprefix(runner.service.root)
    if trial != "put":  # deleted by now, perhaps
        answer, body = request("GET", runner.service.root + place)
        assert (answer.status, body) == (200, CONTENT)
    if trial in ("prefer", "expect"):
        content = fields["request-content-location"]
        answer, body = request("GET", runner.service.root + content)
        assert (answer.status, body) == (200, CONTENT)
    if trial == "resume":
        assert said["offset"] > 0


@pytest.mark.xdist_group("compat")
@pytest.mark.parametrize(
    ("client", "trial"), CELLS, ids=[f"{client.key}-{trial}" for client, trial in CELLS]
)
def test_trial(request: pytest.FixtureRequest, client: Client, trial: str) -> None:
    """D5 to D7, R5, R11, C2, C4, C8: each cell of the table in docs/compatibility.md."""
    name = "secured_runner" if client.is_secure else "plain_runner"
    runner: Runner = request.getfixturevalue(name)
    said = runner.said(client, trial)
    if client.carrier.startswith("HTTP/2") and "error" not in said:
        assert said["version"] in (2, "2", "HTTP/2", "HTTP/2.0")
    if (client.key, trial) in LIMITS:
        with pytest.raises((AssertionError, KeyError)):
            check(runner, said)
    else:
        check(runner, said)


def test_limits_are_of_trials_that_are_made() -> None:
    """A limit that names no cell of the table would be a claim without a test."""
    assert set(LIMITS) <= {(client.key, trial) for client, trial in CELLS}
