"""The disk store under a real kill -9, on a real full disk, at a real size limit."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.platforms import has_file_size_limits
from tests.store.crashes import uploader
from tests.store.helpers import (
    KEY,
    OP,
    begin,
    collect_all,
    do,
    freeze,
    make_durable,
    put,
    read_content,
    read_from,
    read_prefix,
    store_content,
)
from trioresume.errors import StorageError, StorageFull
from trioresume.store.disk_store import open_store
from trioresume.store.file_system.free_space import HEADROOM
from trioresume.store.port import EndOperation, OperationId, SetMeta

ROOT = Path(__file__).parents[3]


def run_uploader(data_dir: Path, seed: int, kill_after: int) -> list[str]:
    """Let it announce *kill_after* times, kill it; what it announced."""
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "tests.store.crashes.uploader",
            str(data_dir),
            str(seed),
        ],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    said: list[str] = []
    with process, process.stdout:
        for line in process.stdout:
            said.append(line.strip())
            if len(said) == kill_after:
                process.kill()
    return said


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_kill_at_any_moment_keeps_what_was_announced(tmp_path: Path, seed: int) -> None:
    """After each kill the offset is at least the last announced one, the bytes are right (G9)."""
    data = uploader.content(seed)
    random_kills = random.Random(seed)
    announced = 0
    while True:
        said = run_uploader(tmp_path / "data", seed, random_kills.randint(3, 25))
        store = open_store(tmp_path / "data", chunk_size=uploader.CHUNK_SIZE)
        if said[-1] == "done":
            break
        offset = store.offset(uploader.KEY)
        announced = max(announced, int(said[-1]))
        assert offset >= announced
        reader = store.open_prefix(uploader.KEY, offset)
        assert read_from(reader, max(0, offset - 20_000)) == data[:offset][-20_000:]
        collect_all(store)
        store.close()
    found = store.operation(uploader.OP)
    assert found is not None
    assert found.content is not None
    assert read_content(store, found.content) == data
    collect_all(store)
    do(store, EndOperation(uploader.OP, 1.0))
    collect_all(store)
    store.close()
    left = (tmp_path / "data" / "tails").iterdir()
    assert list(left) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB beyond the headroom, where this process may make one."""
    path = tmp_path / "small"
    path.mkdir()
    if sys.platform != "linux" or os.geteuid() != 0:
        pytest.skip("only root on Linux can mount a small file system")
    mount = [
        "mount",
        "-t",
        "tmpfs",
        "-o",
        f"size={HEADROOM + (2 << 20)}",
        "none",
        str(path),
    ]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting is not allowed here")
    yield path
    subprocess.run(["umount", str(path)], check=True)


def test_full_disk_hurts_one_upload(small_disk: Path) -> None:
    """On a disk that is really full the offset holds, reads work, space heals (G8)."""
    data = random.Random(5).randbytes(3_000_000)
    store = open_store(small_disk / "data", chunk_size=65536)
    kept = store_content(store, data[:400_000], "kept")
    writer = begin(store)
    with pytest.raises(StorageFull):
        for at in range(0, len(data), 10_000):
            assert writer.offset == at
            put(store, writer, data[at : at + 10_000])
    offset = writer.offset
    assert 500_000 < offset < 2_000_000
    with pytest.raises(StorageError):
        for number in range(10_000):  # until the catalog has no space either
            do(store, SetMeta(f"{number}", "x" * 4000))
    assert store.offset(KEY) == offset
    assert read_prefix(store) == data[:offset]
    assert read_content(store, kept) == data[:400_000]
    (small_disk / "data" / "format").stat()
    store.close()

    subprocess.run(["mount", "-o", "remount,size=24m", str(small_disk)], check=True)
    store = open_store(small_disk / "data", chunk_size=65536)
    assert store.offset(KEY) == offset
    writer = store.open_writer(KEY)
    put(store, writer, data[offset:])
    make_durable(store, writer)
    frozen = freeze(store, KEY, writer)
    do(store, frozen)
    content = frozen.content
    assert read_content(store, content) == data
    do(store, EndOperation(OP, 1.0), EndOperation(OperationId("kept"), 1.0))
    collect_all(store)
    assert [p for p in (small_disk / "data/chunks").rglob("*") if p.is_file()] == []
    store.close()


_LIMITED = """
import resource, sys
from tests.store.helpers import begin, make_durable, put
from trioresume.errors import StorageFull
from trioresume.store.disk_store import open_store

store = open_store(sys.argv[1], chunk_size=1_000_000)
writer = begin(store)
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY))
try:
    for number in range(100):
        writer.append(bytes([number]) * 7_000)
except StorageFull:
    make_durable(store, writer)
    sys.stdout.write(str(writer.offset))
"""


@has_file_size_limits
def test_file_size_limit_counts_as_full(tmp_path: Path) -> None:
    """EFBIG is a full disk to whoever uploads; what fitted is kept (G8)."""
    result = subprocess.run(
        [sys.executable, "-c", _LIMITED, str(tmp_path / "data")],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "300000"
    store = open_store(tmp_path / "data")
    assert store.offset(KEY) == 300_000
    data = b"".join(bytes([number]) * 7_000 for number in range(100))
    assert read_prefix(store) == data[:300_000]
    store.close()
