"""No space left: 507, and nothing worse than that (G8, promise 10).

On small file systems of their own where they can be mounted, one in memory and ext4 on a
loop device, in a quota of btrfs, and wherever the tests run with a limit on the size of files, which fails in
the same place with another error. What uploads leave for the catalog can be taken by
others only, so a file from outside takes it to the last byte. What then is left is the
service's own reserve, for what releases something.
"""

from __future__ import annotations

import base64
import os
import random
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Self

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.test_keep import make_garbage
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import Answer, Cut, Wire, ask, request_head
from tests.processes import SOURCE
from trioresume.store.file_system.free_space import RESERVE_SIZE

DISK_SIZE = 40 * MIB
EXT4_IMAGE_SIZE = 46 * MIB
OLD = random.Random(1).randbytes(14 * MIB)
NEW = random.Random(2).randbytes(24 * MIB)


def run(*command: str) -> bool:
    """Whether *command* could be run and succeeded."""
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


def mount(kind: str, place: Path, image: Path) -> bool:
    """Mount an empty file system with about 40 MiB of space, if that is possible."""
    if kind == "tmpfs":
        size = f"size={DISK_SIZE}"
        return run("mount", "-t", "tmpfs", "-o", size, "none", str(place))
    image.touch()
    os.truncate(image, EXT4_IMAGE_SIZE)
    # Nothing reserved, or root would be given what others are refused.
    return run("mkfs.ext4", "-q", "-F", "-m", "0", str(image)) and run(
        "mount", "-o", "loop", str(image), str(place)
    )


@pytest.fixture(params=["tmpfs", "ext4"])
def small_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """An empty file system of about 40 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    if not mount(request.param, place, tmp_path / "image"):
        pytest.skip(f"no {request.param} can be mounted here")
    try:
        assert 0.9 < shutil.disk_usage(place).free / DISK_SIZE < 1.1
        yield place
    finally:
        assert run("umount", str(place))


@pytest.fixture
def cramped(small_disk: Path, tmp_path: Path) -> Iterator[Service]:
    """A service on that disk."""
    service = Service(small_disk / "data", log=tmp_path / "log")
    service.start()
    try:
        yield service
    finally:
        service.close()
    service.check_log()


class Ballast:
    """A file beside the service's own that takes all the space there is."""

    def __init__(self, service: Service) -> None:
        self._path = service.data_dir.parent / "ballast"

    def __enter__(self) -> Self:
        self.grow()
        return self

    def grow(self) -> None:
        """Take what there is by now."""
        with self._path.open("ab", buffering=0) as file:
            for size in (MIB, 4096, 1):
                try:
                    while file.write(bytes(size)):
                        pass
                except OSError:
                    continue  # in smaller pieces
            os.fsync(file.fileno())

    def __exit__(self, *exc_info: object) -> None:
        self._path.unlink()


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


def wait_for_removal(data_dir: Path, most_bytes: int) -> None:
    """Wait until all content takes no more than *most_bytes*, tails without names included."""

    def held() -> int:
        sizes: dict[int, int] = {}
        for folder in ("chunks", "tails"):
            for at, _, names in os.walk(data_dir / folder):
                for name in names:
                    with suppress(FileNotFoundError):  # removed while we looked
                        status = os.stat(Path(at, name))
                        sizes[status.st_ino] = status.st_size
        return sum(sizes.values())

    deadline = time.monotonic() + 15
    while (size := held()) > most_bytes:
        assert time.monotonic() < deadline, f"{size} bytes are still there"
        time.sleep(0.05)


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
    await trio.to_thread.run_sync(wait_for_removal, cramped.data_dir, len(NEW))
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
    await trio.to_thread.run_sync(wait_for_removal, cramped.data_dir, len(NEW))
    await finish(upload)


@pytest.fixture
def within_quota(tmp_path: Path) -> Iterator[Service]:
    """A service whose directory may take 40 MiB of a larger disk: beyond that is EDQUOT.

    It is a subvolume of btrfs, because this quota holds for root as well.
    """
    place, image = tmp_path / "disk", tmp_path / "image"
    place.mkdir()
    image.touch()
    os.truncate(image, 256 * MIB)
    made = run("mkfs.btrfs", "-q", "-f", str(image))
    if not made or not run("mount", "-o", "loop", str(image), str(place)):
        pytest.skip("no btrfs can be mounted here")
    limited = place / "limited"
    service = Service(limited / "data", log=tmp_path / "log")
    try:
        assert run("btrfs", "quota", "enable", str(place))
        assert run("btrfs", "subvolume", "create", str(limited))
        assert run("btrfs", "qgroup", "limit", str(DISK_SIZE), str(limited))
        service.start()
        yield service
    finally:
        service.close()
        assert run("umount", str(place))
    service.check_log()


@pytest.mark.parametrize(
    ("filled", "killed"), [(False, True), (True, False), (True, True)]
)
async def test_a_used_up_quota_is_a_full_disk(
    within_quota: Service, filled: bool, killed: bool
) -> None:
    """G8: statvfs does not show a quota. The reserve stays for changes that free space."""
    service = within_quota
    reserve = service.data_dir / "reserve"
    await finish(make_upload(service, OLD, "/files/old"))
    await finish(make_upload(service, b"to be deleted", "/files/small"))
    upload = make_upload(service, NEW, "/files/new")
    await refuse(upload)
    offset = await check_offset(upload)
    assert offset > 8 * MIB
    for number in range(3):
        await refuse(upload)
        is_short_of_space(await ask(service.address, "PUT", f"/files/empty-{number}"))
    assert reserve.stat().st_size == RESERVE_SIZE
    ballast = Ballast(service) if filled else nullcontext()
    with ballast:
        if killed:
            await trio.to_thread.run_sync(service.kill)
            await trio.to_thread.run_sync(service.start)
        assert await check_offset(upload) >= offset
        assert (await ask(service.address, "GET", "/files/old")).body == OLD
        for path in ("/files/small", "/files/old"):
            answer = await ask(service.address, "DELETE", path)
            assert answer.status == 204, str(answer)
            assert (await ask(service.address, "HEAD", path)).status == 404
        await trio.to_thread.run_sync(wait_for_removal, service.data_dir, len(NEW))
    await finish(upload)
    assert reserve.stat().st_size == RESERVE_SIZE
    # Now the limit is known, so content stops before it.
    await refuse(make_upload(service, OLD + NEW, "/files/more"))
    assert reserve.stat().st_size == RESERVE_SIZE
    assert run("fallocate", "-l", str(MIB), str(service.data_dir.parent / "others"))


def is_short_of_space(answer: Answer) -> bool:
    """Whether it is 507; anything else must be a success."""
    if answer.status == 507:
        assert b"insufficient-storage" in answer.body
        return True
    assert answer.status in (200, 201, 204), str(answer)
    return False


async def begin(service: Service, content: bytes) -> str:
    """All of the content is there, and that it ends is not said yet; where it is."""
    fields = [
        ("Upload-Draft-Interop-Version", "6"),
        ("Upload-Complete", "?0"),
        ("Content-Length", str(len(content))),
    ]
    with await Wire.connect(service.address) as wire:
        await wire.send(request_head("POST", "/files/", fields) + content)
        answer = await wire.answer("POST")
    assert answer.status == 201, str(answer)
    return answer.fields["location"].removeprefix(service.root)


async def complete(service: Service, location: str, offset: int) -> Answer:
    """Say that the content ends: only the catalog has to change, by a recipe."""
    fields = [
        ("Upload-Draft-Interop-Version", "6"),
        ("Upload-Offset", str(offset)),
        ("Upload-Complete", "?1"),
        ("Content-Type", "application/partial-upload"),
        ("Content-Length", "0"),
    ]
    with await Wire.connect(service.address) as wire:
        return await wire.ask("PATCH", location, fields)


async def test_not_a_byte_for_the_catalog(cramped: Service) -> None:
    """G8: no creation, no recipe; reads and deletions go on, and then everything does."""
    await finish(make_upload(cramped, OLD[: 8 * MIB], "/files/old"))
    await finish(make_upload(cramped, b"to be deleted", "/files/small"))
    content = NEW[: 5 * MIB]
    cancelled = await begin(cramped, b"to be cancelled")
    location = await begin(cramped, content)
    short_of_space = 0
    with Ballast(cramped):
        # A log that was longer once has room for some commits more.
        for number in range(30):
            upload = await ask(cramped.address, "PUT", f"/files/empty-{number}")
            completion = await complete(cramped, location, len(content))
            if is_short_of_space(upload) and is_short_of_space(completion):
                short_of_space += 1
            head = await ask(cramped.address, "HEAD", location)
            assert head.status == 200, str(head)
            assert head.fields["upload-offset"] == str(len(content))
            if short_of_space == 3:
                break
        # Whatever the client would like to be told meanwhile.
        for path, fields in (
            ("/files/small", [("Prefer", "resume, processing, wait=1")]),
            (cancelled, []),
        ):
            deletion = await ask(cramped.address, "DELETE", path, fields)
            assert deletion.status == 204, str(deletion)
            gone = await ask(cramped.address, "HEAD", path)
            assert gone.status in (404, 410), str(gone)
        assert (await ask(cramped.address, "GET", "/files/old")).body == OLD[: 8 * MIB]
    assert short_of_space
    answer = await complete(cramped, location, len(content))
    assert answer.status == 201, str(answer)
    file = await ask(cramped.address, "GET", answer.fields["location"])
    assert file.body == content
    assert (await ask(cramped.address, "DELETE", "/files/old")).status == 204
    await finish(make_upload(cramped, OLD[:MIB], "/files/another"))


@pytest.mark.slow
@pytest.mark.parametrize("served", [True, False])
async def test_collection_goes_on_without_a_byte(
    cramped: Service, served: bool
) -> None:
    """It needs the catalog before it frees anything; a running service does it, or gc."""
    cramped.stop()
    make_garbage(cramped.data_dir, 300)
    if served:
        cramped.start()

    async def keep(command: str) -> tuple[int, str]:
        done = await trio.run_process(
            [
                *(sys.executable, "-m", "trioresume", command),
                *("--data-dir", str(cramped.data_dir)),
            ],
            capture_stdout=True,
            capture_stderr=True,
            check=False,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
        )
        said = (done.stdout + done.stderr).decode()
        assert "Traceback" not in said
        return done.returncode, said

    with Ballast(cramped):
        code, said = await keep("gc")
        assert code == 0, said
        assert (await keep("verify"))[0] == 0
    assert (
        sum(len(names) for _, _, names in os.walk(cramped.data_dir / "chunks")) == 100
    )
    assert (await keep("verify"))[0] == 0


async def test_start_on_a_disk_without_a_byte(cramped: Service) -> None:
    """G9: it starts by its reserve, and deletes; everything is where it was."""
    upload = make_upload(cramped, NEW, "/files/new")

    def kill_midway(size: int, is_last: bool) -> None:
        if upload.sent > 9 * MIB and cramped.is_running:
            cramped.kill()

    upload.pace = Pace(MIB, on_sent=kill_midway)
    with pytest.raises(Cut):
        await upload.attempt()
    upload.pace = Pace(MIB)
    reserve = cramped.data_dir / "reserve"
    await trio.to_thread.run_sync(cramped.start)
    await finish(make_upload(cramped, b"to be deleted", "/files/small"))
    status = reserve.stat()
    assert RESERVE_SIZE == status.st_size == status.st_blocks * 512
    await trio.to_thread.run_sync(cramped.kill)
    with Ballast(cramped):
        await trio.to_thread.run_sync(cramped.start)
        assert not reserve.exists()
        assert await check_offset(upload) > 0
        deletion = await ask(cramped.address, "DELETE", "/files/small")
        assert deletion.status == 204, str(deletion)
        await trio.to_thread.run_sync(cramped.kill)
    await trio.to_thread.run_sync(cramped.start)
    assert await check_offset(upload) > 0
    await finish(upload)


def wait_for_space(place: Path, size: int) -> None:
    """Return when *size* bytes are free; fail after 20 seconds."""
    deadline = time.monotonic() + 20
    while shutil.disk_usage(place).free < size:
        assert time.monotonic() < deadline
        time.sleep(0.05)


async def test_a_silent_patch_with_a_checksum_leaves_the_disk_to_others(
    cramped: Service,
) -> None:
    """G8: what cannot count yet stops where all content does; its space is given back."""
    await finish(make_upload(cramped, OLD[: 4 * MIB], "/files/old"))
    tus = [("Tus-Resumable", "1.0.0")]
    begun = [*tus, ("Upload-Length", str(60 * MIB)), ("Content-Length", "0")]
    created = await ask(cramped.address, "POST", "/files/", begun)
    assert created.status == 201, str(created)
    path = created.fields["location"].removeprefix("http://e2e.test")
    patch = [
        *tus,
        ("Upload-Offset", "0"),
        ("Upload-Checksum", "sha1 AAAAAAAAAAAAAAAAAAAAAAAAAAA="),
        ("Content-Type", "application/offset+octet-stream"),
        ("Content-Length", str(60 * MIB)),
    ]
    place = cramped.data_dir.parent
    with await Wire.connect(cramped.address) as wire:
        await wire.send(request_head("PATCH", path, patch))
        # As much as there is, to the last MiB, so that a disk that is not guarded is full.
        for _ in range((shutil.disk_usage(place).free - 16 * 1024) // MIB):
            try:
                await wire.send(bytes(MIB))
            except Cut:
                break  # refused
        for size in (256, 64, 16):
            try:
                while shutil.disk_usage(place).free > (size + 8) * 1024:
                    await wire.send(bytes(size * 1024))
                    await trio.sleep(0.05)
            except Cut:
                break
        await trio.to_thread.run_sync(wait_for_space, place, 2 * MIB)
        deleted = await ask(cramped.address, "DELETE", "/files/old")
        assert deleted.status == 204, str(deleted)
    await trio.to_thread.run_sync(wait_for_space, place, 30 * MIB)
    head = await ask(cramped.address, "HEAD", path, tus)
    assert (head.status, head.fields["upload-offset"]) == (200, "0")


LONG = "x" * 15_000

# Requests that leave a record, or so it seems, and what is long in them.
RECORDS: dict[str, tuple[str, str, list[tuple[str, str]]]] = {
    "fields": ("PUT", "/files/{}", [("Prefer", "resume"), ("X-Long", LONG)]),
    "target": ("PUT", "/files/{}?" + LONG[:7000], [("Prefer", "resume")]),
    "deletion": ("DELETE", "/files/{}", [("Prefer", "resume"), ("X-Long", LONG)]),
    "metadata": (
        "POST",
        "/files/",
        [
            ("Tus-Resumable", "1.0.0"),
            ("Upload-Length", "5"),
            (
                "Upload-Metadata",
                f"n{{}} {base64.b64encode(LONG[:11_000].encode()).decode()}",
            ),
        ],
    ),
}


async def flood(service: Service, kind: str, number: int) -> set[int]:
    """Send *number* such requests without content; the statuses of the answers."""
    method, target, fields = RECORDS[kind]
    seen: set[int] = set()

    async def send(numbers: range) -> None:
        for n in numbers:
            said = [(name, value.replace("{}", str(n))) for name, value in fields]
            said += [("Content-Length", "0")] * (method != "DELETE")
            path = target.replace("{}", str(n))
            seen.add((await ask(service.address, method, path, said)).status)

    async with trio.open_nursery() as nursery:
        for start in range(16):
            nursery.start_soon(send, range(start, number, 16))
    return seen


@pytest.mark.slow
@pytest.mark.parametrize("kind", list(RECORDS))
async def test_records_leave_the_disk_to_others(cramped: Service, kind: str) -> None:
    """G7: heads count as content does: 507 where it stops, and every DELETE works."""
    await finish(make_upload(cramped, OLD[: 10 * MIB], "/files/old"))
    location = await begin(cramped, b"to be cancelled")
    statuses = await flood(cramped, kind, 1500 if kind != "target" else 3000)
    free = shutil.disk_usage(cramped.data_dir.parent).free
    print(f"{kind}: {statuses}, {free / MIB:.1f} MiB free")  # noqa: T201
    assert free > MIB
    if kind != "deletion":
        assert 507 in statuses
    for path in ("/files/old", location):
        deletion = await ask(cramped.address, "DELETE", path)
        assert deletion.status == 204, str(deletion)


QUOTA = 12 * MIB


@pytest.mark.slow
@pytest.mark.parametrize("kind", [kind for kind in RECORDS if kind != "deletion"])
async def test_records_are_charged_what_they_take(
    make_service: Callable[..., Service], kind: str
) -> None:
    """G7: thousands of empty requests with long heads stay within the quota on the disk."""
    service = make_service("--max-stored-bytes", str(QUOTA))
    service.start()
    statuses = await flood(service, kind, 1500 if kind != "target" else 2500)
    paths = (Path(at, n) for at, _, names in os.walk(service.data_dir) for n in names)
    taken = sum(path.stat().st_blocks * 512 for path in paths) - RESERVE_SIZE
    print(f"{kind}: {statuses}, {taken / MIB:.1f} MiB taken")  # noqa: T201
    assert statuses == {201, 507}
    # The log of the catalog and its index come to a few MiB, however many records.
    assert taken < QUOTA + 6 * MIB


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
