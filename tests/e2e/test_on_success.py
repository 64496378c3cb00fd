"""``--on-success`` by the real command: killed at any moment, and with a full directory."""

from __future__ import annotations

import json
import os
import random
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from http.client import HTTPException
from itertools import islice
from pathlib import Path

import pytest

from tests.e2e.command import Service
from tests.e2e.test_full_disk import small_disk
from tests.processes import environment_of, run

__all__ = ["small_disk"]

MakeService = Callable[..., Service]
KIB = 1024


def _put(service: Service, name: str, body: bytes) -> bool:
    """Whether the server has said that it has the file."""
    url = f"{service.root}/files/{name}"
    request = urllib.request.Request(url, body, method="PUT")
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return int(response.status) in (201, 204)
    except (OSError, HTTPException):
        return False


def _until(fact: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.slow
def test_every_acknowledged_file_arrives_whatever_is_killed(
    make_service: MakeService, tmp_path: Path, seed: int
) -> None:
    """At least once, whole, and without leftovers, after four kills at any moment."""
    folder = tmp_path / "in"
    folder.mkdir()
    service = make_service("--on-success", f"move:{folder}")
    chance = random.Random(seed)
    known: dict[str, bytes] = {}
    service.start()
    for attempt in range(4):
        bodies = {
            f"{attempt}-{number}": chance.randbytes(chance.choice((10, 300 * KIB)))
            for number in range(6)
        }
        with ThreadPoolExecutor(6) as threads:
            stored = {
                name: threads.submit(_put, service, name, body)
                for name, body in bodies.items()
            }
            for ended in islice(as_completed(stored.values()), attempt + 1):
                assert ended.result()
            time.sleep(chance.uniform(0, 0.02))
            service.kill()
        known |= {name: bodies[name] for name in stored if stored[name].result()}
        service.start()
    assert len(known) >= 10

    def arrived() -> bool:
        there = {path.name for path in folder.iterdir()}
        return known.keys() <= there and not any(n.startswith(".") for n in there)

    _until(arrived)
    for name, body in known.items():
        assert (folder / name).read_bytes() == body


@pytest.mark.slow
@pytest.mark.parametrize("small_disk", ["tmpfs"], indirect=True)
def test_full_directory_is_waited_for_and_shown(
    small_disk: Path, make_service: MakeService
) -> None:
    """The upload is answered; ``ls`` and ``show`` name the fault; it arrives later."""
    service = make_service("--on-success", f"copy:{small_disk}")
    service.start()
    ballast = small_disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        try:
            while file.write(bytes(KIB)):
                pass
        except OSError:
            pass
    body = os.urandom(64 * KIB)
    assert _put(service, "a", body)
    command = ["trioresume", "show", "--json", "--data-dir", str(service.data_dir), "a"]

    def shown() -> str:
        result = run(command, environment=environment_of(), timeout=20)
        return str(json.loads(result.stdout)["pending"])

    _until(lambda: "No space left" in shown())
    ballast.unlink()
    _until((small_disk / "a").exists)
    assert (small_disk / "a").read_bytes() == body
    _until(lambda: shown() == "None")
