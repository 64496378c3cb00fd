"""Backups beside the real service under load, restored and served; killed at any moment.

``TRIORESUME_BACKUPS`` says how many copies are made under load, instead of two.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
import random
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests import processes
from tests.e2e.command import Service
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import Answer, ask
from tests.processes import environment_of

MakeService = Callable[..., Service]
KIB = 1024
COPIES = int(os.environ.get("TRIORESUME_BACKUPS", "2"))
KILLS = 3


def keep(*words: str) -> subprocess.CompletedProcess[str]:
    """One of the keeper's commands, as a process."""
    return processes.run(
        ["trioresume", *words], environment=environment_of(), timeout=120
    )


class Load:
    """Clients that upload, are cut, and delete, until they are told to stop."""

    def __init__(self, service: Service, draw: random.Random) -> None:
        self._service = service
        self._draw = draw
        self.stored: dict[str, str] = {}
        """The files that nobody has begun to delete, and their SHA-256."""
        self.running: dict[int, Upload] = {}
        self.over = trio.Event()
        self.deleted = 0
        self.gone: set[str] = set()
        """The files that somebody has begun to delete."""
        self._count = 0

    async def upload(self, place: int) -> None:
        while not self.over.is_set():
            self._count += 1
            content = self._draw.randbytes(self._draw.randint(1, 5500 * KIB))
            name = f"/files/{self._count}"
            pace = Pace(self._draw.choice([32, 256]) * KIB, pause=0.004)
            upload = Upload(
                self._service.address,
                "PUT",
                name,
                content,
                random.Random(f"{place} {self._count}"),
                pace,
                acknowledge=self._draw.random() < 0.5,
            )
            self.running[place] = upload
            while True:
                answer = await self._go_on(upload)
                if answer is not None or self.over.is_set():
                    break
            if answer is not None:
                assert answer.status == 201, answer
                self.stored[name] = hashlib.sha256(content).hexdigest()
                if self._draw.random() < 0.5:
                    await self._delete(self._draw.choice(sorted(self.stored)))

    async def _go_on(self, upload: Upload) -> Answer | None:
        """Send for a while; the connection is cut then."""
        with trio.move_on_after(self._draw.uniform(0.05, 1.0)):
            return await upload.run()
        return None

    async def _delete(self, name: str) -> None:
        del self.stored[name]
        self.gone.add(name)
        assert (await ask(self._service.address, "DELETE", name)).status == 204
        self.deleted += 1


async def check_restored(
    service: Service, stored: dict[str, str], running: list[Upload], gone: set[str]
) -> None:
    """Every file is there, and every unfinished upload goes on at the offset it had.

    An upload may have been finished, and its file deleted, before the copy: see *gone*.
    """
    for name, digest in stored.items():
        file = await ask(service.address, "GET", name)
        assert file.status == 200, f"{file.status} for {name}"
        assert hashlib.sha256(file.body).hexdigest() == digest
    for upload in running:
        if not upload.content_at:
            continue  # no client was told of it
        upload.address = service.address
        head = await ask(service.address, "HEAD", upload.content_at)
        if head.status == 410:
            continue  # it was done, and its content is a file's
        assert int(head.fields["upload-offset"]) >= upload.announced, head
        upload.sent = upload.sent_loosely = len(upload.content)
        upload.announced = 0
        answer = await upload.run()
        assert answer.status in (201, 204), answer
        file = await ask(service.address, "GET", upload.target)
        if file.status != 404 or upload.target not in gone:
            assert file.body == upload.content


@pytest.mark.slow
async def test_copies_under_load_are_whole(
    make_service: MakeService, tmp_path: Path, seed: int
) -> None:
    """Uploads, cuts and deletes all the while: each copy is restored, verified, served."""
    draw = random.Random(seed)
    service = make_service()
    await trio.to_thread.run_sync(service.start)
    load = Load(service, draw)
    backups = tmp_path / "backups"
    async with trio.open_nursery() as nursery:
        for place in range(4):
            nursery.start_soon(load.upload, place)
        for number in range(COPIES):
            await trio.sleep(draw.uniform(0.1, 0.6))
            await check_one_copy(service, load, backups, tmp_path / f"copy-{number}")
        load.over.set()
    assert load.deleted
    done = await trio.to_thread.run_sync(
        keep, "backup", "--data-dir", str(service.data_dir), "--keep", "1", str(backups)
    )
    assert done.returncode == 0, done.stderr
    verified = await trio.to_thread.run_sync(keep, "verify", "--data-dir", str(backups))
    assert verified.returncode == 0, verified.stdout


async def check_one_copy(
    service: Service, load: Load, backups: Path, restored: Path
) -> None:
    run = trio.to_thread.run_sync
    before = dict(load.stored)
    running = [copy.copy(upload) for upload in load.running.values()]
    for upload in running:
        upload.pace = Pace(1024 * KIB)
    made = await run(keep, "backup", "--data-dir", str(service.data_dir), str(backups))
    assert made.returncode == 0, made.stderr
    gone = set(load.gone)
    stored = {name: before[name] for name in before if name in load.stored}
    done = await run(keep, "restore", "--data-dir", str(restored), str(backups))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Damages: 0." in done.stdout
    copied = Service(restored)
    await run(copied.start)
    try:
        await check_restored(copied, stored, running, gone)
    finally:
        await run(copied.stop)
        copied.check_log()
    await run(shutil.rmtree, restored)


@pytest.mark.slow
def test_killed_backup_leaves_the_earlier_one(
    service: Service, tmp_path: Path, seed: int
) -> None:
    """``kill -9`` at any moment: what was there is whole, and the next one is made."""
    draw = random.Random(seed)
    backups = tmp_path / "backups"
    words = ["backup", "--data-dir", str(service.data_dir), "--copy", "--keep", "1"]
    longest = 0.3
    for number in range(KILLS):
        data = draw.randbytes(4_500_000)
        (tmp_path / "content").write_bytes(data)
        put = keep(
            *("upload", "--method", "PUT", str(tmp_path / "content")),
            f"{service.root}/files/{number}",
        )
        assert put.returncode == 0, put.stderr
        if number:
            process = processes.start(
                ["trioresume", *words, str(backups)],
                environment=environment_of(),
                stderr=tmp_path / "log",
            )
            with process.stdout or open(os.devnull):
                try:
                    process.wait(draw.uniform(0, longest))
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()
            verified = keep("verify", "--data-dir", str(backups))
            assert verified.returncode == 0, verified.stdout
        if number % 2 == 0:
            made = keep(*words, str(backups))
            assert made.returncode == 0, made.stderr
    restored = tmp_path / "restored"
    assert keep("restore", "--data-dir", str(restored), str(backups)).returncode == 0
    listed = keep("ls", "--json", "--no-uploads", "--data-dir", str(restored))
    assert len(listed.stdout.splitlines()) >= KILLS - 1


def test_service_that_runs_is_not_restored_over(
    service: Service, tmp_path: Path
) -> None:
    """Nor is a directory in which half a restore is served."""
    backups = tmp_path / "backups"
    data_dir = str(service.data_dir)
    made = keep("backup", "--json", "--verify", "--data-dir", data_dir, str(backups))
    assert made.returncode == 0, made.stderr
    report, summary = map(json.loads, made.stdout.splitlines())
    assert report["name"].startswith("000001-")
    assert summary["damages"] == 0
    refused = keep("restore", "--data-dir", data_dir, str(backups))
    assert refused.returncode == 1
    assert "a service runs" in refused.stderr
    assert Path(report["path"]).parent == backups
