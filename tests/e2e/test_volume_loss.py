"""A file system that loses what was not synced, while the machine stays up.

A real one, on a loop device: it is shut down without writing its log, as it does itself
after an error, then detached and mounted again. The service is killed meanwhile, beside
clients that send. Nothing of this changes the machine's boot.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.command import Service
from tests.sockets import wait_until_read

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

# _IOR('X', 125, __u32): EXT4_IOC_SHUTDOWN is XFS_IOC_GOINGDOWN. 2: without the log.
_SHUTDOWN = 0x8004587D
_WITHOUT_LOG = 2

_MNT_DETACH = 2
VOLUME_SIZE = 512 * 1024 * 1024
LENGTH = 1 << 20
UPLOADS = 24
ROUNDS = 2


def run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"


class Volume:
    """A file system of its own under *path*."""

    def __init__(self, path: Path, kind: str) -> None:
        self.path = path / "volume"
        self.path.mkdir()
        self._image = path / "image"
        self._kind = kind
        with self._image.open("wb") as image:
            image.truncate(VOLUME_SIZE)
        run(f"mkfs.{kind}", "-q", str(self._image))

    def mount(self) -> None:
        run("mount", "-t", self._kind, "-o", "loop", str(self._image), str(self.path))

    def sync(self) -> None:
        """Write what is in this file system, and leave all others alone (syncfs(2))."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            assert ctypes.CDLL(None, use_errno=True).syncfs(fd) == 0, ctypes.get_errno()
        finally:
            os.close(fd)

    def lose(self) -> None:
        """Lose what was not synced: nothing more is written, the log neither."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, ctypes.c_uint32(_WITHOUT_LOG))
        finally:
            os.close(fd)

    def detach(self) -> None:
        deadline = time.monotonic() + 10
        while subprocess.run(
            ["umount", str(self.path)], capture_output=True, check=False
        ).returncode:
            assert time.monotonic() < deadline, "somebody still has files open there"
            time.sleep(0.05)

    def close(self) -> None:
        if os.path.ismount(self.path):
            run("umount", str(self.path))


@pytest.fixture(params=["ext4", "xfs"])
def volume(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Volume]:
    kind = request.param
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("mounting a file system takes Linux and root")
    if shutil.which(f"mkfs.{kind}") is None:
        pytest.skip(f"mkfs.{kind} is not installed")
    volume = Volume(tmp_path, kind)
    try:
        volume.mount()
    except AssertionError as exc:
        pytest.skip(f"no {kind} can be mounted here: {exc}")
    try:
        yield volume
    finally:
        volume.close()


class Upload:
    """An upload of random content, and what its client was told."""

    def __init__(self, service: Service, number: int, draw: random.Random) -> None:
        self._service = service
        self.name = f"/files/{number}"
        self.content = draw.randbytes(LENGTH + draw.randrange(3 * LENGTH))
        self.first = draw.randrange(1, 60_000)
        self.asks = number % 3 == 0
        self.announced = 0
        self.place = ""

    def _request(
        self, method: str, path: str, body: bytes | None = None, **fields: str
    ) -> tuple[HTTPResponse, bytes]:
        connection = HTTPConnection(*self._service.address, timeout=60)
        names = {name.replace("_", "-"): value for name, value in fields.items()}
        try:
            connection.request(method, path, body, names)
            response = connection.getresponse()
            return response, response.read()
        finally:
            connection.close()

    def _offset(self) -> int:
        response, _ = self._request("HEAD", self.place)
        assert response.status in {200, 204}, response.status
        return int(response.headers["Upload-Offset"])

    def create(self) -> None:
        response, _ = self._request("PUT", self.name, b"", Upload_Complete="?0")
        assert response.status == 201, response.status
        self.place = urlsplit(response.headers["Location"]).path

    def send_some(self) -> socket.socket:
        """Two writes that do not end at a page, and the connection that is left open.

        Some clients ask what arrived, and go on.
        """
        size = random.Random(self.first).randrange(self.first + 1, len(self.content))
        sent = self._send(0, self.first, rest=len(self.content))
        wait_until_read(sent)
        if self.asks:
            # The newcomer ends the other request.
            self.announced = self._offset()
            sent.close()
            return self._send(self.announced, size, rest=len(self.content))
        sent.sendall(self.content[self.first : size])
        return sent

    def _send(self, start: int, end: int, *, rest: int) -> socket.socket:
        connection = socket.create_connection(self._service.address, timeout=60)
        head = (
            f"PATCH {self.place} HTTP/1.1\r\nHost: here\r\n"
            "Upload-Complete: ?1\r\n"
            "Content-Type: application/partial-upload\r\n"
            f"Upload-Offset: {start}\r\nContent-Length: {rest - start}\r\n\r\n"
        )
        connection.sendall(head.encode() + self.content[start:end])
        return connection

    def finish(self) -> None:
        """Go on from where the service says; compare what it says and what it has."""
        offset = self._offset()
        assert offset >= self.announced, self.name
        _, prefix = self._request("GET", self.place)
        assert prefix[:offset] == self.content[:offset], self.name
        response, _ = self._request(
            "PATCH",
            self.place,
            self.content[offset:],
            Upload_Offset=str(offset),
            Upload_Complete="?1",
            Content_Type="application/partial-upload",
        )
        assert response.status == 201, response.status
        self.check_file()

    def check_file(self) -> None:
        response, body = self._request("GET", self.name)
        assert response.status == 200, response.status
        assert body == self.content, self.name


def send_all(volume: Volume, uploads: list[Upload]) -> list[socket.socket]:
    """All at a time, so that the syncs of some write the log of the others."""

    with ThreadPoolExecutor(len(uploads)) as threads:
        list(threads.map(Upload.create, uploads))
        volume.sync()  # durability=process would lose the uploads themselves
        return list(threads.map(Upload.send_some, uploads))


@pytest.mark.parametrize("durability", ["disk", "process"])
def test_no_zeros_are_believed_after_a_file_system_lost_its_bytes(
    volume: Volume, durability: str, tmp_path: Path
) -> None:
    """G9, promise 2: what was announced is there, and each byte that is told of is right."""
    seed = int(os.environ.get("TRIORESUME_SEED") or int.from_bytes(os.urandom(4)))
    print(f"TRIORESUME_SEED={seed}")  # noqa: T201 - pytest shows it on failure
    draw = random.Random(seed)
    service = Service(
        volume.path / "data",
        ("serve", "--durability", durability),
        log=tmp_path / "service.log",
    )
    stored: list[Upload] = []
    try:
        service.start()
        for number in range(ROUNDS):
            first = number * UPLOADS
            uploads = [Upload(service, first + n, draw) for n in range(UPLOADS)]
            connections = send_all(volume, uploads)
            # Those who ask have the log written, with lengths of files that have no bytes.
            for upload in uploads:
                if upload.asks:
                    upload.announced = max(upload.announced, upload._offset())
            volume.lose()
            service.kill()
            for connection in connections:
                connection.close()
            volume.detach()
            volume.mount()
            service.start()
            if durability == "process":
                check_what_is_left(uploads)
                continue
            for upload in uploads:
                upload.finish()
            stored += uploads
            for upload in stored:
                upload.check_file()
        service.stop()
        verify = [sys.executable, "-m", "trioresume", "verify"]
        verify += ["--data-dir", str(service.data_dir)]
        done = subprocess.run(verify, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
    finally:
        service.close()


def check_what_is_left(uploads: list[Upload]) -> None:
    """durability=process does not promise that anything is left, but what is, is right."""
    left = 0
    for upload in uploads:
        response, _ = upload._request("HEAD", upload.place)
        if response.status not in {200, 204}:
            assert response.status in {404, 410, 500}, response.status
            continue
        left += 1
        upload.announced = 0
        upload.finish()
    assert left
