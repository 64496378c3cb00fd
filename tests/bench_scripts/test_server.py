"""Servers under test as subprocesses, and the place for their data."""

from __future__ import annotations

import os
import sys
import time
from contextlib import closing
from pathlib import Path

import pytest

from bench.peers import find
from bench.server import Server, ServerFailed
from bench.workspace import Workspace, unwritten
from tests.bench_scripts.fakes import Fake
from tests.platforms import linux_only

pytestmark = linux_only("/proc")

MIB = 1 << 20


def test_a_server_that_does_not_start_shows_what_it_said(tmp_path: Path) -> None:
    """The error holds the server's own words."""
    broken = Fake(
        name="broken", command=(sys.executable, "-c", "print('no such luck')")
    )
    with pytest.raises(ServerFailed, match="no such luck"):
        Server(broken, tmp_path)


def test_a_server_that_says_nothing_is_ended(tmp_path: Path) -> None:
    """It is not waited for longer than told, nor left running."""
    script = "import os, pathlib, time; pathlib.Path('pid').write_text(str(os.getpid())); time.sleep(60)"
    silent = Fake(name="silent", command=(sys.executable, "-c", script))
    begun = time.monotonic()
    with pytest.raises(ServerFailed):
        Server(silent, tmp_path, start_timeout=1)
    assert time.monotonic() - begun < 10
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_children_count_and_end_with_their_server(tmp_path: Path) -> None:
    """A server that forks is measured whole, and leaves nobody behind."""
    script = """
import http.server, os, sys
child = os.fork()
if child == 0:
    data = bytearray(64 << 20)
    data[::4096] = b"x" * len(data[::4096])
    while True:
        pass
open("child", "w").write(str(child))
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_OPTIONS(self):
        self.send_response(204)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""
    forking = Fake(name="forking", command=(sys.executable, "-c", script))
    with Server(forking, tmp_path) as server:
        child = int((tmp_path / "child").read_text())
        deadline = time.monotonic() + 20
        while server.use().peak < 64 * MIB and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.use().peak > 64 * MIB
        before = server.use()
        while server.use().cpu - before.cpu < 0.1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert server.use().cpu - before.cpu >= 0.1
    with pytest.raises(ProcessLookupError):
        # A zombie until init takes it; then gone.
        while time.monotonic() < deadline:
            os.kill(child, 0)
            time.sleep(0.05)


def test_a_data_dir_is_emptied_and_removed_at_the_end(tmp_path: Path) -> None:
    """Between runs the files stay without bytes: see bench.workspace for why."""
    workspace = Workspace(tmp_path)
    with workspace.data_dir() as directory:
        (directory / "below").mkdir(parents=True)
        (directory / "below" / "file").write_bytes(b"bytes")
    assert (directory / "below" / "file").stat().st_size == 0
    workspace.close()
    assert list(tmp_path.iterdir()) == []


def test_preparing_leaves_memory_warm_and_files_empty(tmp_path: Path) -> None:
    """The file that warms the memory keeps none of it, nor of the disk."""
    with closing(Workspace(tmp_path)) as workspace:
        assert workspace.prepare(4 * MIB) >= 0
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert [path.stat().st_size for path in files] == [0]


def test_what_the_system_still_has_to_write_is_read(tmp_path: Path) -> None:
    """Dirty and being written, in bytes; nothing else."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(
        "MemFree: 7 kB\nDirty:  12 kB\nWriteback:  30 kB\nWritebackTmp: 5 kB\n"
    )
    assert unwritten(meminfo) == 42 * 1024


def test_a_raw_limit_forgets_what_it_does_not_write(tmp_path: Path) -> None:
    """What receives only must not be measured as if it stored."""
    with Server(find("raw-hash"), tmp_path) as server:
        assert server.url.endswith("/files/")
    assert list(tmp_path.iterdir()) == []
