"""Readers do not write: the keeper's commands on a directory that they may not change."""

from __future__ import annotations

import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

import trioresume
from tests import processes
from tests.e2e.command import Service
from tests.e2e.test_full_disk import run
from tests.e2e.wire import request_head
from tests.processes import environment_of

MakeService = Callable[..., Service]
CONTENT = random.Random(4).randbytes(300_000)
READERS = ("ls", "show", "verify")


def keep(
    command: str, data_dir: Path, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """One of the keeper's commands, as a process."""
    words = ["trioresume", command, "--data-dir", str(data_dir), *arguments]
    variables = environment_of() | environment
    return processes.run(words, environment=variables, timeout=60)


def store(service: Service) -> None:
    """A file, and an upload that is not done."""
    with closing(socket.create_connection(service.address, timeout=20)) as sock:
        fields = [("Content-Length", str(len(CONTENT)))]
        sock.sendall(request_head("PUT", "/files/stored", fields) + CONTENT)
        assert sock.recv(4096).startswith(b"HTTP/1.1 20")
    with closing(socket.create_connection(service.address, timeout=20)) as sock:
        fields = [("Prefer", "resume"), ("Content-Length", "100000")]
        sock.sendall(request_head("PUT", "/files/unfinished", fields) + bytes(5000))
        assert sock.recv(4096).startswith(b"HTTP/1.1 100 ")
        sock.shutdown(socket.SHUT_WR)
        sock.recv(4096)


def snapshot(directory: Path) -> dict[str, tuple[int, int]]:
    """Every file of it, with its size and time."""
    return {
        str(path.relative_to(directory)): (path.stat().st_size, path.stat().st_mtime_ns)
        for path in directory.rglob("*")
        if path.is_file()
    }


class ReadOnly:
    """The view of a data directory through which nothing can be written."""

    def __init__(self, data_dir: Path, place: Path) -> None:
        self._data_dir = data_dir
        self._mounted = False
        self.path = place
        if os.geteuid() == 0:
            place.mkdir()
            mounted = run("mount", "--bind", str(data_dir), str(place))
            if not (mounted and run("mount", "-o", "remount,ro,bind", str(place))):
                pytest.skip("no directory can be mounted read-only here")
            self._mounted = True
        else:
            self.path = data_dir
            self._set_writable(False)

    def _set_writable(self, writable: bool) -> None:
        for path in [self._data_dir, *self._data_dir.rglob("*")]:
            mode = path.stat().st_mode
            path.chmod(mode | 0o200 if writable else mode & ~0o222)

    def close(self) -> None:
        if self._mounted:
            assert run("umount", str(self.path))
        elif self.path == self._data_dir:
            self._set_writable(True)


def leave(service: Service, state: str) -> None:
    """Bring the directory into one of the states in which somebody finds it."""
    if state == "stopped":
        service.stop()
    elif state != "running":
        service.kill()
    catalog = service.data_dir / "catalog.sqlite3"
    if state == "backup":
        # What a backup of a killed service may leave out.
        Path(f"{catalog}-shm").unlink()
        assert Path(f"{catalog}-wal").stat().st_size > 0


STATES = ("running", "killed", "backup", "stopped")


@pytest.fixture(params=STATES)
def view(
    request: pytest.FixtureRequest, make_service: MakeService, tmp_path: Path
) -> Iterator[Path]:
    service = make_service()
    service.start()
    store(service)
    leave(service, request.param)
    read_only = ReadOnly(service.data_dir, tmp_path / "view")
    try:
        yield read_only.path
    finally:
        read_only.close()


def test_readers_need_not_be_able_to_write(view: Path) -> None:
    """They show what there is, and change nothing; what has to write says why it cannot."""
    before = snapshot(view)
    listed, shown, verified = (keep(command, view) for command in READERS)
    assert listed.returncode == 0, listed.stderr
    assert "stored" in listed.stdout
    assert "/files/unfinished" in listed.stdout
    assert shown.returncode == 0, shown.stderr
    assert "files           1" in shown.stdout
    assert verified.returncode == 0, verified.stderr
    assert "Files: 1." in verified.stdout
    assert snapshot(view) == before


def test_copies_are_made_of_a_directory_that_cannot_be_written(
    view: Path, tmp_path: Path
) -> None:
    """Backup and export read only; the backup is restored, and its upload is there."""
    before = snapshot(view)
    backups, files = tmp_path / "backups", tmp_path / "files"
    made = keep("backup", view, "--verify", str(backups))
    assert made.returncode == 0, made.stderr
    exported = keep("export", view, str(files))
    assert exported.returncode == 0, exported.stderr
    assert (files / "stored").read_bytes() == CONTENT
    assert snapshot(view) == before
    restored = tmp_path / "restored"
    done = keep("restore", restored, str(backups))
    assert done.returncode == 0, done.stderr
    listed = keep("ls", restored).stdout
    assert "stored" in listed
    assert "/files/unfinished" in listed


def test_what_must_write_says_that_it_cannot(
    make_service: MakeService, tmp_path: Path
) -> None:
    """Not as an error of the catalog."""
    service = make_service()
    service.start()
    store(service)
    service.stop()
    read_only = ReadOnly(service.data_dir, tmp_path / "view")
    try:
        (tmp_path / "files").mkdir()
        (tmp_path / "files" / "new").write_text("new")
        for words in (
            ("gc",),
            ("rm", "stored"),
            ("mv", "stored", "other"),
            ("chown", "alice", "stored"),
            ("import", str(tmp_path / "files")),
        ):
            refused = keep(words[0], read_only.path, *words[1:])
            assert refused.returncode == 1
            assert "Read-only" in refused.stderr or "Permission" in refused.stderr
            assert "Traceback" not in refused.stderr
    finally:
        read_only.close()


def test_copy_of_a_catalog_goes_with_its_reader(
    make_service: MakeService, tmp_path: Path
) -> None:
    """Nothing is left in the directory for temporary files."""
    service = make_service()
    service.start()
    store(service)
    leave(service, "backup")
    read_only = ReadOnly(service.data_dir, tmp_path / "view")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    try:
        for command in READERS:
            assert keep(command, read_only.path, TMPDIR=str(temporary)).returncode == 0
    finally:
        read_only.close()
    assert list(temporary.iterdir()) == []


def test_service_that_starts_meanwhile_is_noticed(
    make_service: MakeService, tmp_path: Path
) -> None:
    """What was taken for unchanging is not read on when somebody changes it."""
    service = make_service()
    service.start()
    store(service)
    service.stop()
    read_only = ReadOnly(service.data_dir, tmp_path / "view")
    try:
        with trioresume.Inventory(read_only.path) as inventory:
            assert [file.name for file in inventory.files()] == ["stored"]
            if read_only.path == service.data_dir:
                read_only.close()
            service.start()
            store(service)
            with pytest.raises(trioresume.StorageError, match="run the command again"):
                list(inventory.files())
    finally:
        read_only.close()


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A place for a data directory, and no room beside it once it is filled."""
    with mounted(tmp_path / "disk", "size=8m") as place:
        yield place


@pytest.fixture
def served_disk(tmp_path: Path) -> Iterator[Path]:
    """A place with enough room for a service, until it is filled."""
    with mounted(tmp_path / "disk", "size=40m") as place:
        yield place


@contextmanager
def mounted(place: Path, size: str) -> Iterator[Path]:
    place.mkdir()
    if not run("mount", "-t", "tmpfs", "-o", size, "none", str(place)):
        pytest.skip("no file system can be mounted here")
    try:
        yield place
    finally:
        assert run("umount", str(place))


def fill(place: Path) -> None:
    with (place / "ballast").open("wb", buffering=0) as file:
        for size in (4096, 1):
            try:
                while file.write(bytes(size)):
                    pass
            except OSError:
                continue


@pytest.mark.parametrize("state", ["killed", "stopped"])
def test_full_disk_is_read_and_called_that(
    make_service: MakeService, full_disk: Path, state: str
) -> None:
    """Readers need no room, and collection has its reserve. A new directory needs room."""
    service = make_service()
    service.start()
    store(service)
    leave(service, state)
    data_dir = full_disk / "data"
    shutil.copytree(
        service.data_dir, data_dir, ignore=shutil.ignore_patterns("control")
    )
    fill(full_disk)
    for command in READERS:
        done = keep(command, data_dir)
        assert done.returncode == 0, done.stderr
        assert done.stdout
    fresh = serve(full_disk / "new")
    assert fresh.returncode == 1
    assert "No space left on device" in fresh.stderr, fresh.stderr
    if state == "stopped":
        collected = keep("gc", data_dir)
        assert collected.returncode == 0, collected.stderr


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_every_keepers_command_calls_a_full_disk_full(
    served_disk: Path, make_service: MakeService, tmp_path: Path, state: str
) -> None:
    """What copies from it works, what removes works, and the others say what they lack."""
    service = make_service()
    service.data_dir = served_disk / "data"
    service._command[-1] = str(service.data_dir)
    service.start()
    store(service)
    files, backups = tmp_path / "files", tmp_path / "backups"
    files.mkdir()
    (files / "new").write_bytes(CONTENT[::-1])
    assert keep("backup", service.data_dir, str(backups)).returncode == 0
    if state == "stopped":
        service.stop()
    fill(served_disk)
    for command, *arguments in (
        ["backup", "--copy", str(served_disk / "backups")],
        ["export", str(served_disk / "files")],
        ["import", str(files)],
    ):
        refused = keep(command, service.data_dir, *arguments)
        check_called_full(refused)
    fill(served_disk)
    check_called_full(keep("restore", served_disk / "restored", str(backups)))
    for command, *arguments in (
        ["backup", "--verify", str(backups)],
        ["export", str(tmp_path / "exported")],
        ["ls"],
        ["show"],
        ["verify"],
    ):
        done = keep(command, service.data_dir, *arguments)
        assert done.returncode == 0, done.stderr
    assert (tmp_path / "exported" / "stored").read_bytes() == CONTENT
    for command, *arguments in (["mv", "stored", "new"], ["chown", "alice", "stored"]):
        changed = keep(command, service.data_dir, *arguments)
        if changed.returncode:
            check_called_full(changed)
    if state == "stopped":
        # Only a service holds its reserve: the commands above gave it up to open the catalog.
        (served_disk / "ballast").unlink()
    removed = keep("rm", service.data_dir, "--glob", "*")
    assert removed.returncode == 0, removed.stderr
    if state == "running":
        service.stop()


def check_called_full(done: subprocess.CompletedProcess[str]) -> None:
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "No space left on device" in said or "the disk is full" in said, said
    assert "I/O error" not in said
    assert "Traceback" not in said


def serve(data_dir: Path) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "trioresume", "serve", "--bind", "127.0.0.1:0"]
    return subprocess.run(
        [*words, "--data-dir", str(data_dir)],
        env=environment_of(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
