"""A damaged log of the catalog is told from one that a power loss cut short."""

from __future__ import annotations

import io
import random
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from tests.store.helpers import CHUNK, OP, FaultyDisk, copy_directory, do, record
from trioresume.errors import StorageError
from trioresume.store.catalog.log_check import has_lost_commits
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import CreateOperation, OperationId

HEADER, FRAME, PAGE = 32, 24, 4096
LAST = OperationId("last")


def open_with(data_dir: Path, *, durable: bool = True) -> DiskStore:
    return open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk(durable=durable))


def killed(path: Path, *, durable: bool = True) -> Path:
    """The data directory of a killed process, whose log has several commits."""
    store = open_with(path / "data", durable=durable)
    for name in (OP, OperationId("second"), OperationId("third"), LAST):
        do(store, CreateOperation(record(name)))
    copy_directory(path / "data", path / "killed")
    store.close()
    return path / "killed"


@pytest.fixture
def data_dir(tmp_path: Path) -> Path:
    return killed(tmp_path)


def log_of(data_dir: Path) -> Path:
    return data_dir / "catalog.sqlite3-wal"


def frames(log: bytes) -> list[int]:
    """Where the frames begin."""
    return list(range(HEADER, len(log) - FRAME - PAGE + 1, FRAME + PAGE))


def commits(log: bytes) -> list[int]:
    """The numbers of the frames that end a commit."""
    return [n for n, at in enumerate(frames(log)) if any(log[at + 4 : at + 8])]


def flipped(log: bytes, at: int) -> bytes:
    return log[:at] + bytes([log[at] ^ 1]) + log[at + 1 :]


def is_lost(log: bytes) -> bool:
    return has_lost_commits(io.BytesIO(log))


def test_right_log_is_right_wherever_it_ends(data_dir: Path) -> None:
    """A kill, or a power loss, may end it anywhere."""
    log = log_of(data_dir).read_bytes()
    assert len(commits(log)) >= 5
    for end in (0, 1, HEADER - 1, HEADER, *frames(log), len(log) - 1, len(log)):
        assert not is_lost(log[:end])
        assert not is_lost(log[:end] + bytes(len(log) - end))


def test_damage_of_a_page_is_found_before_the_last_commits(data_dir: Path) -> None:
    """In each frame: a commit after it was synced if the next one was begun."""
    log = log_of(data_dir).read_bytes()
    ends = commits(log)
    for number, at in enumerate(frames(log)):
        damaged = flipped(log, at + FRAME + number % PAGE)
        assert is_lost(damaged) == (number < ends[-2]), number


def test_damage_of_a_frames_head_is_found_before_the_last_two_commits(
    data_dir: Path,
) -> None:
    """The head has the checksum that the next frame continues, and says what commits."""
    log = log_of(data_dir).read_bytes()
    ends = commits(log)
    for number, at in enumerate(frames(log)):
        for byte in (0, 7, 8, 15, 16, 23):
            found = is_lost(flipped(log, at + byte))
            if number <= ends[-3]:
                assert found, (number, byte)
            elif number > ends[-2]:
                assert not found, (number, byte)


def test_lost_blocks_of_the_last_commit_are_no_damage(
    data_dir: Path, draw: random.Random
) -> None:
    """It was not synced: any of its frames may be there, in any order."""
    log = log_of(data_dir).read_bytes()
    first = frames(log)[commits(log)[-2] + 1]
    # Before it: nothing, or an older log in which each frame ends a commit.
    older = bytearray(log)
    for at in frames(log):
        older[at + 4 : at + 16] = bytes(3) + b"\1" * 9
    for number in range(60):
        left = bytearray(log)
        before = older if number % 2 else bytes(len(log))
        for at in range(first, len(log), 8 if number % 3 else 512):
            if draw.random() < 0.1 * (number % 10):
                left[at : at + 8] = before[at : at + 8]
        assert not is_lost(bytes(left))


def test_what_an_abandoned_transaction_left_is_no_damage(tmp_path: Path) -> None:
    """Its frames stay behind a shorter commit, and one of them may end a commit."""
    path = tmp_path / "a.sqlite3"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA cache_size = 5")
        connection.execute("CREATE TABLE t (x)")
        before = log = (tmp_path / "a.sqlite3-wal").read_bytes()
        connection.execute("BEGIN")
        for _ in range(50):
            connection.execute("INSERT INTO t VALUES (randomblob(3000))")
        connection.execute("ROLLBACK")
        log = (tmp_path / "a.sqlite3-wal").read_bytes()
        assert len(log) > len(before)  # written, and abandoned
        connection.execute("INSERT INTO t VALUES (1)")
        now = (tmp_path / "a.sqlite3-wal").read_bytes()
        assert not is_lost(now)
        assert not is_lost(now[: len(now) // 2] + log[len(now) // 2 :])


@pytest.fixture
def damaged(data_dir: Path) -> Path:
    log = log_of(data_dir)
    content = log.read_bytes()
    log.write_bytes(flipped(content, frames(content)[commits(content)[-3]] + 100))
    return data_dir


def test_store_with_lost_commits_does_not_open(damaged: Path) -> None:
    """Again and again, and nothing is changed: the log can still be repaired."""
    before = log_of(damaged).read_bytes()
    for _ in range(2):
        with pytest.raises(StorageError, match="damaged before its end"):
            open_with(damaged)
        assert log_of(damaged).read_bytes() == before


def test_store_opens_once_the_loss_is_accepted(damaged: Path) -> None:
    """As docs/howto/keep.md says: SQLite keeps what is before the damage."""
    with closing(sqlite3.connect(damaged / "catalog.sqlite3")) as catalog:
        catalog.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store = open_with(damaged)
    assert store.operation(OP) is not None
    assert store.operation(LAST) is None
    store.close()


def test_log_that_nobody_synced_is_not_judged(tmp_path: Path) -> None:
    """With durability=process a power loss may take any of its frames."""
    data_dir = killed(tmp_path, durable=False)
    log = log_of(data_dir)
    content = log.read_bytes()
    log.write_bytes(flipped(content, frames(content)[commits(content)[-3]] + 100))
    store = open_with(data_dir, durable=False)
    assert store.operation(LAST) is None
    store.close()
    shutil.rmtree(data_dir)
