"""Putting a file into a directory: whole or not at all, whatever is there already."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.store.helpers import store_content
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import Content
from trioresume.targets.on_success.directory import Stopped, place

CHUNK = 64 * 1024
SMALL = b"small content"
LARGE = os.urandom(CHUNK * 2 + 5)
ONE = os.urandom(CHUNK)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[DiskStore]:
    with closing(open_store(tmp_path / "data", chunk_size=CHUNK)) as store:
        yield store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "in"
    path.mkdir()
    return path


def put(
    store: DiskStore,
    content: Content,
    folder: Path,
    *segments: str,
    mark: str = "m" * 32,
    links: bool = False,
    stop: Callable[[], bool] = lambda: False,
) -> str:
    with closing(store.open_reader(content)) as reader:
        return place(reader, str(folder), segments, mark, links=links, stop=stop)


def names(folder: Path) -> list[str]:
    """Every file below *folder*, hidden ones included."""
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(str(path.relative_to(folder)) for path in found)


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("data", [b"", SMALL, ONE, LARGE])
def test_file_has_the_content_and_its_folders(
    data: bytes, links: bool, store: DiskStore, folder: Path
) -> None:
    """Inline, of one chunk, and of several; the rights are those of any new file."""
    content = store_content(store, data)
    assert put(store, content, folder, "a", "b", "c.txt", links=links) == "a/b/c.txt"
    assert (folder / "a/b/c.txt").read_bytes() == data
    assert names(folder) == ["a/b/c.txt"]
    if not links:
        plain = folder / "plain"
        plain.touch()
        assert (folder / "a/b/c.txt").stat().st_mode == plain.stat().st_mode


def test_link_is_the_chunk_itself_if_it_is_the_only_one(
    store: DiskStore, folder: Path, tmp_path: Path
) -> None:
    """And a copy if there are several, or without /proc."""
    put(store, store_content(store, ONE), folder, "one", links=True)
    put(store, store_content(store, LARGE, "b"), folder, "large", links=True)
    chunks = {path.stat().st_ino for path in (tmp_path / "data/chunks").rglob("*")}
    linked = (folder / "one").stat().st_ino in chunks
    assert linked is os.path.isdir("/proc/self/fd")
    assert (folder / "large").stat().st_ino not in chunks


def test_copying_without_help_of_the_kernel_is_the_same(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between file systems, or on an old one, the bytes are read and written."""
    content = store_content(store, LARGE)

    def refuse(*args: Any) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    if hasattr(os, "copy_file_range"):
        monkeypatch.setattr(os, "copy_file_range", refuse)
    put(store, content, folder, "a")
    assert (folder / "a").read_bytes() == LARGE


def test_other_content_is_never_replaced(store: DiskStore, folder: Path) -> None:
    """The next free number, and in the end characters of its own."""
    for number in ("", *(f"-{n}" for n in range(2, 10))):
        (folder / f"a{number}.txt").write_bytes(b"SMALL content"[: len(SMALL)])
    content = store_content(store, SMALL)
    mark = "0123456789abcdef" * 2
    for _ in range(2):
        found = put(store, content, folder, "a.txt", mark=mark)
        assert found == "a-0123456789abcdef.txt"
    assert len(names(folder)) == 10
    (folder / "a-3.txt").unlink()
    assert put(store, content, folder, "a.txt", mark="x" * 32) == "a-3.txt"


def test_equal_file_counts_as_this_one(store: DiskStore, folder: Path) -> None:
    """Whoever put it there."""
    (folder / "a").write_bytes(LARGE)
    before = (folder / "a").stat().st_ino
    assert put(store, store_content(store, LARGE), folder, "a") == "a"
    assert (folder / "a").stat().st_ino == before
    assert names(folder) == ["a"]


@pytest.mark.parametrize("kind", ["folder", "file", "dangling"])
def test_symbolic_link_leads_nowhere(
    kind: str, store: DiskStore, folder: Path, tmp_path: Path
) -> None:
    """Promise 8: neither a folder nor a name that somebody made there is followed."""
    outside = tmp_path / "outside"
    outside.mkdir()
    content = store_content(store, SMALL)
    if kind == "folder":
        (folder / "a").symlink_to(outside)
        with pytest.raises(OSError, match=r"[Nn]ot a directory|symbolic"):
            put(store, content, folder, "a", "b")
    else:
        (outside / "there").write_bytes(SMALL)
        target = outside / ("there" if kind == "file" else "missing")
        (folder / "b").symlink_to(target)
        assert put(store, content, folder, "b") == "b-2"
    assert names(outside) == ([] if kind == "folder" else ["there"])


class Crash(BaseException):
    """The process ends here."""


CALLS = ("mkdir", "open", "write", "copy_file_range", "fsync", "link", "unlink")


@contextmanager
def crashing_at(step: int, *, after: bool) -> Iterator[Callable[[], int]]:
    """Crash before or after the *step*-th call that changes something."""
    done = 0
    patch = pytest.MonkeyPatch()

    def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            nonlocal done
            done += 1
            if done == step and not after:
                raise Crash
            result = function(*args, **options)
            if done == step:
                raise Crash
            return result

        return call

    for name in CALLS:
        if hasattr(os, name):
            patch.setattr(os, name, wrapped(getattr(os, name)))
    try:
        yield lambda: done
    finally:
        patch.undo()


@pytest.mark.parametrize("links", [False, True])
@pytest.mark.parametrize("data", [ONE, LARGE])
@pytest.mark.parametrize("after", [False, True])
def test_crash_at_any_step_is_made_good(
    after: bool, data: bytes, links: bool, store: DiskStore, folder: Path
) -> None:
    """Never a part of a file under its name; and once repeated, one file and no other."""
    content = store_content(store, data)
    steps = 0
    for step in range(1, 100):
        part = folder / str(step)
        part.mkdir()
        with crashing_at(step, after=after) as done:
            try:
                put(store, content, part, "a", "b", links=links)
            except Crash:
                steps += 1
            finished = done() < step
        for name in names(part):
            if not name.startswith("a/.trioresume-"):
                assert (part / name).read_bytes() == data
        assert put(store, content, part, "a", "b", links=links) == "a/b"
        assert names(part) == ["a/b"]
        assert (part / "a/b").read_bytes() == data
        if finished:
            break
    assert steps >= 8
    with closing(store.open_reader(content)) as reader:
        offset = 0
        while offset < reader.length:  # no step has written into a chunk
            block = reader.read(offset, CHUNK)
            assert block == data[offset : offset + len(block)]
            offset += len(block)


def test_bytes_are_synced_before_the_name_and_the_name_before_the_end(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power loss leaves a whole file under its name or none, and what is done is durable."""
    content = store_content(store, LARGE)
    calls: list[str] = []

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            is_folder = name == "fsync" and stat.S_ISDIR(os.fstat(args[0]).st_mode)
            calls.append("fsync folder" if is_folder else name)
            return function(*args, **options)

        return call

    for name in ("mkdir", "fsync", "link", "unlink"):
        monkeypatch.setattr(os, name, noted(name, getattr(os, name)))
    put(store, content, folder, "a", "b")
    made = ["mkdir", "fsync folder"]
    written = ["unlink", "fsync", "link", "unlink", "fsync folder"]
    assert calls == made + written


def test_folder_that_was_there_is_synced_before_the_file_counts(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A killed process may have made it, or another thread may be just making it."""
    (folder / "a").mkdir()
    content = store_content(store, LARGE)
    synced: list[int] = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    put(store, content, folder, "a", "b")
    folders = [os.stat(path).st_ino for path in (folder, folder / "a")]
    assert [inode for inode in synced if inode in folders] == folders


def test_equal_file_of_another_program_is_synced(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With ``move`` the stored file is removed after this."""
    content = store_content(store, LARGE)
    (folder / "a").write_bytes(LARGE)
    synced: list[int] = []

    def sync(file: int) -> None:
        synced.append(os.fstat(file).st_ino)

    monkeypatch.setattr(os, "fsync", sync)
    assert put(store, content, folder, "a") == "a"
    assert (folder / "a").stat().st_ino in synced


def test_file_is_put_there_anew_after_a_failed_sync_of_its_folder(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later sync proves nothing about the name that the failed one was for."""
    content = store_content(store, LARGE)
    sync = os.fsync

    def fail(file: int) -> None:
        if stat.S_ISDIR(os.fstat(file).st_mode):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        sync(file)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        with pytest.raises(OSError, match="error"):
            put(store, content, folder, "a")
    assert names(folder) == []
    assert put(store, content, folder, "a") == "a"
    assert names(folder) == ["a"]


def test_stopped_file_is_finished_later(store: DiskStore, folder: Path) -> None:
    """A shutdown does not wait for a large file."""
    content = store_content(store, LARGE)
    with pytest.raises(Stopped):
        put(store, content, folder, "a", stop=lambda: True)
    assert not (folder / "a").exists()
    put(store, content, folder, "a")
    assert names(folder) == ["a"]


def test_file_system_without_hard_links_will_do(
    store: DiskStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """FAT, and some network file systems: the file is renamed, and still replaces none."""

    def refuse(*args: Any, **options: Any) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    (folder / "a").write_bytes(b"another")
    content = store_content(store, SMALL)
    assert put(store, content, folder, "a", links=True) == "a-2"
    assert names(folder) == ["a", "a-2"]
