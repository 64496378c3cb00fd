"""The keeper's commands as processes, beside the real service and across ``kill -9``."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import Cut, Wire, ask, request_head
from tests.platforms import unreadable_page
from tests.processes import SOURCE
from tests.store.helpers import do, store_content
from trioresume.store.disk_store import open_store
from trioresume.store.port import EndOperation, OperationId

MakeService = Callable[..., Service]
KIB = 1024
KILLS = 2


def start(command: str, data_dir: Path, *arguments: str) -> subprocess.Popen[str]:
    """A keeper's command, on its way."""
    return subprocess.Popen(
        [
            *(sys.executable, "-m", "trioresume", command, "--json"),
            *("--data-dir", str(data_dir), *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)},
    )


def run(
    command: str, data_dir: Path, *arguments: str
) -> tuple[int, list[dict[str, object]]]:
    """Its exit code, and the objects that it printed."""
    with start(command, data_dir, *arguments) as process:
        out, errors = process.communicate(timeout=60)
    assert "Traceback" not in errors, errors
    return process.returncode, [json.loads(line) for line in out.splitlines()]


def chunk_files(data_dir: Path) -> int:
    return sum(len(names) for _, _, names in os.walk(data_dir / "chunks"))


def make_garbage(data_dir: Path, count: int) -> None:
    """Released content of *count* chunks, which collection takes many steps for."""
    store = open_store(data_dir, chunk_size=16, durability="process")
    data = random.Random(1).randbytes(16 * count)
    store_content(store, data, "released")
    store_content(store, data[:1600], "kept")
    do(store, EndOperation(OperationId("released"), 9e9))
    store.close()


def wait_until_under_way(process: subprocess.Popen[str], data_dir: Path) -> bool:
    """Whether it has removed something and is not through yet."""
    before = chunk_files(data_dir)
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline
        if chunk_files(data_dir) < before:
            return True
        time.sleep(0.01)
    return False


@pytest.mark.slow
async def test_keeper_works_beside_uploads(service: Service, seed: int) -> None:
    """Files are replaced and read all the while; nothing is lost, nothing damaged."""
    draw = random.Random(seed)
    ended = trio.Event()
    contents: dict[str, bytes] = {}
    seen: list[str] = []

    async def upload(number: int) -> None:
        while not ended.is_set():
            content = draw.randbytes(draw.randint(1, 600 * KIB))
            upload = Upload(
                service.address,
                "PUT",
                f"/files/{number}",
                content,
                draw,
                Pace(64 * KIB, pause=0.005),
            )
            answer = await upload.run()
            assert answer.status in (200, 201, 204), answer
            contents[f"/files/{number}"] = content

    async def keep() -> None:
        for command in ("gc", "ls", "verify"):
            code, printed = await trio.to_thread.run_sync(
                run, command, service.data_dir
            )
            assert code == 0, (command, printed)
            seen.extend(str(line.get("state")) for line in printed)
        ended.set()

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(upload, number)
        nursery.start_soon(keep)
    assert "receiving" in seen
    for path, content in contents.items():
        assert (await ask(service.address, "GET", path)).body == content
    code, [released] = await trio.to_thread.run_sync(run, "gc", service.data_dir)
    assert code == 0, released
    [totals] = (await trio.to_thread.run_sync(run, "show", service.data_dir))[1]
    assert totals["unheld_chunks"] == 0
    assert totals["chunk_bytes"] == service.chunk_bytes()


@pytest.mark.slow
def test_gc_killed_midway_is_finished_by_the_next(tmp_path: Path) -> None:
    """``kill -9`` of a collection that has the directory: sound after each, then clean."""
    data_dir = tmp_path / "data"
    make_garbage(data_dir, 1600)
    kills = 0
    while True:
        process = start("gc", data_dir)
        with process:
            if kills < KILLS and wait_until_under_way(process, data_dir):
                process.kill()
            process.communicate()
        if process.returncode == 0:
            break
        kills += 1
        if kills == 1:
            code, printed = run("verify", data_dir)
            assert code == 0, printed
            # As if it had been killed between a commit and its unlinks.
            stray = data_dir / "chunks" / "00"
            stray.mkdir(exist_ok=True)
            (stray / ("1e20" + "00" * 32)).write_bytes(b"?")
    assert kills == KILLS
    assert chunk_files(data_dir) == 100
    code, printed = run("verify", data_dir)
    assert code == 0, printed


@pytest.mark.slow
def test_service_killed_while_it_collects_for_a_keeper(service: Service) -> None:
    """gc ends with 75; after the restart the same command finishes, and all is sound."""
    service.stop()
    make_garbage(service.data_dir, 2000)
    service.start()
    process = start("gc", service.data_dir)
    with process:
        assert wait_until_under_way(process, service.data_dir)
        service.kill()
        _, errors = process.communicate(timeout=60)
    # It may just have begun to connect, and then found the directory free.
    assert process.returncode in (0, 75), errors
    service.start()
    code, printed = run("gc", service.data_dir)
    assert code == 0, printed
    assert chunk_files(service.data_dir) == 100
    assert run("verify", service.data_dir)[0] == 0


async def test_flipped_byte_is_found_and_healed(service: Service) -> None:
    """The damaged chunk and its file are named; uploading again puts it right."""
    content = random.Random(2).randbytes(300 * KIB)

    async def put() -> None:
        upload = Upload(
            service.address, "PUT", "/files/a.bin", content, random.Random(3)
        )
        assert (await upload.run()).status in (200, 201, 204)

    await put()
    (chunk,) = (service.data_dir / "chunks").rglob("1e20*")
    data = bytearray(chunk.read_bytes())
    data[1000] ^= 0x10
    chunk.write_bytes(data)
    code, printed = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert code == 3
    damaged, file = printed[0], printed[1]
    assert (damaged["kind"], damaged["name"]) == ("chunk", chunk.name)
    assert (file["kind"], file["name"]) == ("file", "a.bin")
    chunk.unlink()
    answer = await ask(service.address, "GET", "/files/a.bin")
    assert answer.status == 500, answer
    await put()
    assert (await ask(service.address, "GET", "/files/a.bin")).body == content
    code, printed = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert (code, len(printed)) == (0, 2)
    assert (printed[0]["kind"], printed[0]["name"]) == ("healed", chunk.name)


async def test_keeper_repairs_beside_a_service(
    service: Service, tmp_path: Path
) -> None:
    """What verify reported is not served; what it repairs is, without a restart."""
    content = random.Random(8).randbytes(5 * 1024 * KIB)
    upload = Upload(service.address, "PUT", "/files/a.bin", content, random.Random(9))
    assert (await upload.run()).status == 201
    chunks = sorted((service.data_dir / "chunks").rglob("1e20*"))
    for chunk in chunks:
        data = bytearray(chunk.read_bytes())
        data[100] ^= 1
        chunk.write_bytes(data)
    code, printed = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert code == 3
    answer = await ask(service.address, "GET", "/files/a.bin")
    assert answer.status == 500
    assert (await ask(service.address, "HEAD", "/files/a.bin")).status == 200

    copies = tmp_path / "copies"
    copies.mkdir()
    (copies / "older").write_bytes(b"a line more\n" + content)
    (copies / "copy").write_bytes(content + b"and then it grew")

    def repair() -> tuple[int, list[dict[str, object]]]:
        return run("verify", service.data_dir, "--repair-from", str(copies))

    code, printed = await trio.to_thread.run_sync(repair)
    assert code == 0, printed
    repaired = [line for line in printed if line["kind"] == "repaired"]
    assert sorted(str(line["name"]) for line in repaired) == [c.name for c in chunks]
    assert {line["source"] for line in repaired} == {str(copies / "copy")}
    answer = await ask(service.address, "GET", "/files/a.bin")
    assert (answer.status, answer.body) == (200, content)
    code, printed = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert (code, len(printed)) == (0, 1)


@unreadable_page
async def test_chunk_that_cannot_be_read_fails_those_who_need_it(
    service: Service,
) -> None:
    """EIO: the answer is cut where it begins, 500 if it has not, and others go on."""
    content = random.Random(4).randbytes(6 * 1024 * KIB)
    for path, data in (("/files/a.bin", content), ("/files/b.bin", content[:KIB])):
        upload = Upload(service.address, "PUT", path, data, random.Random(5))
        assert (await upload.run()).status == 201
    chunks = (service.data_dir / "chunks").rglob("1e20*")
    (chunk,) = (path for path in chunks if path.stat().st_size == 2 * 1024 * KIB)
    chunk.unlink()
    # Whose first page nobody has: reading it fails with EIO.
    chunk.symlink_to("/proc/self/mem")

    with await Wire.connect(service.address) as wire:
        await wire.send(request_head("GET", "/files/a.bin"))
        head = await wire.next_head()
        assert head.status == 200
        assert int(head.fields["content-length"]) == len(content)
        with pytest.raises(Cut):
            await wire.exactly(len(content))
        assert wire.received == content[: len(wire.received)]
        assert len(wire.received) <= 4 * 1024 * KIB
    second = [("Range", f"bytes={4 * 1024 * KIB}-")]
    answer = await ask(service.address, "GET", "/files/a.bin", second)
    assert answer.status == 500, answer
    assert json.loads(answer.body)["code"] == "internal-error"
    assert (await ask(service.address, "GET", "/files/b.bin")).body == content[:KIB]
    assert chunk.name in service.log.read_text()

    code, printed = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert code == 3
    assert (printed[0]["kind"], printed[0]["name"]) == ("chunk", chunk.name)
    assert "Input/output error" in str(printed[0]["problem"])
    assert [line["name"] for line in printed if line["kind"] == "file"] == ["a.bin"]


async def test_keeper_sees_what_a_killed_service_left(service: Service) -> None:
    """ls, show and verify before anybody has opened the directory again; then HEAD agrees."""
    upload = Upload(
        service.address,
        "PUT",
        "/files/a.bin",
        random.Random(6).randbytes(6 * 1024 * KIB),
        random.Random(7),
    )

    def kill_midway(size: int, is_last: bool) -> None:
        if upload.sent > 5 * 1024 * KIB and service.is_running:
            service.kill()

    upload.pace = Pace(64 * KIB, on_sent=kill_midway)
    with pytest.raises(Cut):
        await upload.attempt()
    listed = await trio.to_thread.run_sync(run, "ls", service.data_dir)
    shown = await trio.to_thread.run_sync(run, "show", service.data_dir)
    verified = await trio.to_thread.run_sync(run, "verify", service.data_dir)
    assert (listed[0], shown[0], verified[0]) == (0, 0, 0)
    [row] = listed[1]
    assert row["state"] == "receiving"
    [totals] = shown[1]
    assert totals["uploads"] == {"receiving": 1}
    await trio.to_thread.run_sync(service.start)
    head = await ask(service.address, "HEAD", upload.content_at)
    assert head.fields["upload-offset"] == str(row["received"])
    upload.pace = Pace(64 * KIB)
    assert (await upload.run()).status == 201
