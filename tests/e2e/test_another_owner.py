"""Root and a data directory of another user: nothing is left that the service cannot use.

The service has a user of its own. An administrator lists, verifies, repairs and collects as
root, and may start the service by hand once.
"""

from __future__ import annotations

import http.client
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Service
from tests.processes import environment_of, run
from trioresume import Inventory
from trioresume.store.disk_store import open_store

pytestmark = pytest.mark.skipif(
    sys.platform == "win32" or os.geteuid() != 0, reason="only root can change owners"
)

MakeService = Callable[..., Service]
USER, GROUP = 61_234, 61_235
CONTENT = os.urandom(5_000_000)


def _paths(directory: Path) -> Iterator[Path]:
    yield directory
    yield from directory.rglob("*")


def _give_away(directory: Path) -> None:
    for path in _paths(directory):
        os.chown(path, USER, GROUP, follow_symlinks=False)


def _foreign(directory: Path) -> list[str]:
    """What the service's user does not own."""
    return [
        str(path)
        for path in _paths(directory)
        if (path.lstat().st_uid, path.lstat().st_gid) != (USER, GROUP)
    ]


def _fill(service: Service) -> None:
    """A file, and an upload that is not finished."""
    service.start()
    client = http.client.HTTPConnection(*service.address, timeout=60)
    client.request("PUT", "/files/one", CONTENT)
    response = client.getresponse()
    response.read()
    assert response.status in (201, 204)
    fields = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(CONTENT))}
    client.request("POST", "/files/", headers=fields)
    created = client.getresponse()
    created.read()
    assert created.status == 201
    location = created.headers["Location"]
    fields = {"Tus-Resumable": "1.0.0", "Upload-Offset": "0"}
    fields["Content-Type"] = "application/offset+octet-stream"
    client.request("PATCH", location, CONTENT[:1_000_000], fields)
    assert client.getresponse().status == 204
    client.close()


def _open(directory: Path) -> int:
    """Open, change and read everything; return the number of files without damage."""
    store = open_store(directory)
    store.sweep()
    for _ in range(100):
        store.collect(100)
    store.close()
    with Inventory(directory) as inventory:
        verification = inventory.verify()
        assert not list(verification)
        return verification.files


def _use(directory: Path) -> None:
    """Do :func:`_open` as the service's user, in a process of its own."""
    # All that is imported on the way is imported now: Python may be in root's home.
    assert _open(directory.with_name("another")) == 0
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setgroups([])
            os.setgid(GROUP)
            os.setuid(USER)
            assert _open(directory) == 1
            code = 0
        except BaseException:
            traceback.print_exc()
            raise
        finally:
            sys.stderr.flush()
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


def _reachable(directory: Path) -> None:
    """Let another user come as far as *directory*: pytest's own folders are root's."""
    for parent in directory.parents:
        if parent.stat().st_mode & 0o001 == 0:
            parent.chmod(parent.stat().st_mode | 0o011)


@pytest.mark.parametrize("is_killed", [False, True])
def test_service_that_root_runs_leaves_files_of_the_directory_s_owner(
    is_killed: bool, make_service: MakeService
) -> None:
    """In a new directory, too; also while it runs, and after it was killed."""
    service = make_service()
    service.data_dir.mkdir()
    _reachable(service.data_dir)
    _give_away(service.data_dir)
    _fill(service)
    assert _foreign(service.data_dir) == []
    if is_killed:
        service.kill()
    else:
        service.stop()
    assert _foreign(service.data_dir) == []
    _use(service.data_dir)


def test_commands_of_root_leave_files_of_the_directory_s_owner(
    make_service: MakeService, tmp_path: Path
) -> None:
    """Beside a service that was killed: its log has to be read, and damage to be noted."""
    service = make_service()
    _fill(service)
    service.kill()
    _reachable(service.data_dir)
    _give_away(service.data_dir)
    original = tmp_path / "original"
    original.write_bytes(CONTENT)
    chunk = next(p for p in (service.data_dir / "chunks").rglob("*") if p.is_file())
    damaged = bytearray(chunk.read_bytes())
    damaged[5] ^= 1
    chunk.write_bytes(damaged)
    for words, code in (
        (["ls"], 0),
        (["show", "one"], 0),
        (["verify"], 3),
        (["verify", "--repair-from", str(original)], 0),
        (["gc"], 0),
    ):
        command = ["trioresume", *words, "--data-dir", str(service.data_dir)]
        done = run(command, environment=environment_of(), timeout=60)
        assert done.returncode == code, done.stderr
        assert _foreign(service.data_dir) == [], words
    _use(service.data_dir)
