"""No space left: 507, and nothing worse than that (G8, promise 10).

On a small file system of its own where one can be mounted, and wherever the tests run
with a limit on the size of files, which fails in the same place with another error.
"""

from __future__ import annotations

import random
import resource
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import Wire, ask

DISK_SIZE = 40 * MIB
OLD = random.Random(1).randbytes(14 * MIB)
NEW = random.Random(2).randbytes(24 * MIB)


def run(*command: str) -> bool:
    """Whether *command* could be run and succeeded."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """An empty file system of 40 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not run("mount", "-t", "tmpfs", "-o", f"size={DISK_SIZE}", "none", str(place)):
        pytest.skip("nothing can be mounted here; the limit on file sizes is tested")
    yield place
    assert run("umount", str(place))


@pytest.fixture
def cramped(small_disk: Path, tmp_path: Path) -> Iterator[Service]:
    """A service on that disk."""
    service = Service(small_disk / "data", log=tmp_path / "log")
    service.start()
    yield service
    service.close()
    service.check_log()


def make_upload(service: Service, content: bytes, target: str) -> Upload:
    """An upload that sends all it has, every time."""
    draw = random.Random(3)
    return Upload(
        service.address, "PUT", target, content, draw, Pace(MIB), whole_patches=True
    )


async def refuse(upload: Upload) -> None:
    """Try; 507 has to come, and to be readable though content is still being sent."""
    upload.answer = None
    answer = await upload.run()
    assert answer.status == 507, str(answer)
    assert b"insufficient-storage" in answer.body
    upload.answer = None


async def check_offset(upload: Upload) -> int:
    """What HEAD says is there, is there."""
    with await Wire.connect(upload.address) as wire:
        head = await wire.ask("HEAD", upload.content_at)
        assert head.status == 200, str(head)
        offset = int(head.fields["upload-offset"])
        assert offset >= upload.announced
        prefix = await wire.ask("GET", upload.content_at)
        assert prefix.status == 200, str(prefix)
        assert prefix.body == upload.content[:offset]
    return offset


async def finish(upload: Upload) -> None:
    """It goes through now, and what is stored is right; then the client is done."""
    answer = await upload.run()
    assert answer.status == 201, str(answer)
    assert (await ask(upload.address, "GET", upload.target)).body == upload.content
    # R29: until then the operation, too, keeps the content.
    released = await ask(upload.address, "DELETE", upload.message_at)
    assert released.status == 204


async def test_an_upload_goes_on_after_space_was_made(cramped: Service) -> None:
    """G8: refused twice with a true offset; a DELETE makes space, and it completes."""
    await finish(make_upload(cramped, OLD, "/files/old"))
    upload = make_upload(cramped, NEW, "/files/new")
    await refuse(upload)
    offset = await check_offset(upload)
    assert offset > 8 * MIB
    await refuse(upload)
    assert await check_offset(upload) >= offset
    assert (await ask(cramped.address, "GET", "/files/old")).body == OLD
    answer = await ask(cramped.address, "DELETE", "/files/old")
    assert answer.status == 204, str(answer)
    released = await ask(cramped.address, "GET", "/files/old")
    assert released.status == 404
    await trio.to_thread.run_sync(cramped.wait_for_collection, len(NEW))
    await finish(upload)


async def test_a_full_disk_survives_a_kill(cramped: Service) -> None:
    """G8, G9: killed while the disk is full, started on the full disk, offset not lower."""
    await finish(make_upload(cramped, OLD, "/files/old"))
    upload = make_upload(cramped, NEW, "/files/new")
    await refuse(upload)
    offset = await check_offset(upload)
    await trio.to_thread.run_sync(cramped.kill)
    await trio.to_thread.run_sync(cramped.start)
    assert await check_offset(upload) >= offset
    assert (await ask(cramped.address, "DELETE", "/files/old")).status == 204
    await trio.to_thread.run_sync(cramped.wait_for_collection, len(NEW))
    await finish(upload)


async def test_a_limit_on_file_sizes_is_a_full_disk(service: Service) -> None:
    """G8: EFBIG in the tail, the offset true; it goes on once the limit is raised."""
    unlimited = resource.prlimit(service.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, (MIB, unlimited[1]))
    upload = make_upload(service, NEW, "/files/new")
    await refuse(upload)
    assert await check_offset(upload) <= MIB
    small = make_upload(service, b"small", "/files/small")
    await finish(small)
    resource.prlimit(service.pid, resource.RLIMIT_FSIZE, unlimited)
    await finish(upload)
