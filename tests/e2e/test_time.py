"""The real service on a machine whose wall clock jumps between its lives (G11)."""

from __future__ import annotations

import time
from collections.abc import Callable
from email.utils import parsedate_to_datetime
from http.client import HTTPConnection
from pathlib import Path

import pytest

import trioresume
from tests.e2e.command import Service

YEAR = 365 * 86400.0
LIFETIME = 3600.0
SLACK = 120.0

MakeService = Callable[..., Service]


class Machine:
    """One data directory, served by one process after the other."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._service: Service | None = None
        self._wrong_by = 0.0

    def start(self, wrong_by: float, *, lifetime: float = LIFETIME) -> None:
        self._wrong_by = wrong_by
        self._service = Service(
            self._data_dir,
            (
                "serve",
                *("--incomplete-lifetime", f"{lifetime}s"),
                *("--response-lifetime", f"{lifetime}s"),
                *("--file-lifetime", f"{lifetime}s"),
            ),
            module="tests.e2e.wrong_clock",
            environment={"WRONG_CLOCK": str(wrong_by)},
        )
        self._service.start()

    def stop(self) -> None:
        assert self._service is not None
        self._service.stop()

    def kill(self) -> None:
        if self._service is not None and self._service.is_running:
            self._service.kill()

    @property
    def now(self) -> float:
        return time.time() + self._wrong_by

    def request(
        self, method: str, path: str, body: bytes = b"", **fields: str
    ) -> tuple[int, dict[str, str]]:
        assert self._service is not None
        connection = HTTPConnection(*self._service.address, timeout=60)
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        try:
            connection.request(method, path, body, names)
            response = connection.getresponse()
            response.read()
            return response.status, {k.lower(): v for k, v in response.getheaders()}
        finally:
            connection.close()

    def deadlines(self) -> list[float | None]:
        """When each upload and each file expires."""
        with trioresume.Inventory(self._data_dir) as inventory:
            uploads = [upload.expires_at for upload in inventory.uploads()]
            return uploads + [file.expires_at for file in inventory.files()]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path / "data")


def date(text: str) -> float:
    return parsedate_to_datetime(text).timestamp()


def is_to_come(machine: Machine, expires_at: float | None) -> bool:
    """Whether it is a deadline within the lifetime that begins now."""
    return expires_at is not None and 0 < expires_at - machine.now < LIFETIME + SLACK


def check_all_there(machine: Machine, upload: str) -> None:
    """Nothing has expired, and all dates are right."""
    status, fields = machine.request("HEAD", upload, Tus_Resumable="1.0.0")
    assert status == 200
    assert fields["upload-offset"] == "0"
    assert abs(date(fields["date"]) - machine.now) < SLACK
    status, fields = machine.request("GET", "/files/a")
    assert status == 200
    assert date(fields["last-modified"]) <= date(fields["date"])
    # A keeper dates by the clock that the service noted last, which takes a moment.
    wait = time.monotonic() + 20
    while not all(is_to_come(machine, at) for at in machine.deadlines()):
        assert time.monotonic() < wait, (machine.deadlines(), machine.now)
        time.sleep(0.05)


@pytest.mark.slow
@pytest.mark.parametrize(
    "lives",
    [
        (0, 50 * YEAR, 0),  # one start in 2076
        (50 * YEAR, 0, 0),  # the first start
        (-56 * YEAR, 0, 0),  # 1970, then NTP
        (0, -56 * YEAR, 0),  # a battery that is empty
        (0, 0.9 * LIFETIME, 1.8 * LIFETIME),  # small steps, suspensions
    ],
)
def test_no_jump_of_the_wall_clock_ends_or_keeps_anything(
    machine: Machine, lives: tuple[float, ...]
) -> None:
    """Uploads and files are there in each life, with dates that are right in it."""
    try:
        machine.start(lives[0])
        status, _ = machine.request("PUT", "/files/a", b"content")
        assert status == 201
        status, fields = machine.request(
            "POST", "/files/", Tus_Resumable="1.0.0", Upload_Length="10"
        )
        assert status == 201
        assert abs(date(fields["upload-expires"]) - machine.now) < LIFETIME + SLACK
        upload = fields["location"].partition("://")[2]
        upload = upload[upload.index("/") :] if "/" in upload else fields["location"]
        check_all_there(machine, upload)
        for wrong_by, end in zip(lives[1:], (machine.kill, machine.stop), strict=True):
            end()
            machine.start(wrong_by)
            check_all_there(machine, upload)
    finally:
        machine.kill()


@pytest.mark.slow
def test_after_a_jump_deadlines_still_come(machine: Machine) -> None:
    """What was given a deadline in 2076 ends after its lifetime, and not in 2076."""
    try:
        machine.start(50 * YEAR, lifetime=3.0)
        assert machine.request("PUT", "/files/a", b"content")[0] == 201
        machine.stop()
        machine.start(0.0, lifetime=3.0)
        deadline = time.monotonic() + 30
        while machine.request("GET", "/files/a")[0] == 200:
            assert time.monotonic() < deadline, "it is kept for ever"
            time.sleep(0.1)
    finally:
        machine.kill()
