"""The view of a run while it goes on: on a terminal, in a pipe, and what it computes."""

from __future__ import annotations

import io
import os
import pty
import re
import select
import subprocess
import sys
from dataclasses import replace

import pytest
from rich.console import Console

from trioresume.bench import Settings, Snapshot
from trioresume.bench.report.live import LINE_SECONDS, eta, progress, watching

MIB = 1 << 20
SETTINGS = Settings(url="http://127.0.0.1:8080/files/", total=40)
HALFWAY = Snapshot(
    phase="loading",
    at=10.0,
    total=40,
    running=16,
    done=12,
    failed=2,
    sent=300 * MIB,
    stored=200 * MIB,
    planned=600 * MIB,
    rate=31.5 * MIB,
    cuts=37,
    resumed=35,
)

# What the command does, with snapshots that are made up.
SHOWING = """
import dataclasses, sys
from rich.console import Console
from tests.bench_command.test_live import HALFWAY, SETTINGS
from trioresume.bench.report.live import watching
with watching(SETTINGS, Console(stderr=True)) as show:
    for index in range(12):
        show(dataclasses.replace(HALFWAY, at=10.0 + index))
    sys.stdin.readline()  # the test has seen it
    show(dataclasses.replace(HALFWAY, phase="checking", at=23.0, checked=7, wrong=1))
    sys.stdin.readline()
print("the result")
"""


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "TERM": "xterm",
        "COLUMNS": "100",
    }


def test_terminal_shows_a_panel_and_takes_it_away() -> None:
    """In a pseudo-terminal everything one wants to know is redrawn in place."""
    master, slave = pty.openpty()
    shown = bytearray()

    def read_until(part: bytes | None) -> None:
        """Read what is shown, up to *part*; None stands for the end."""
        try:
            while part is None or part not in shown:
                assert select.select([master], [], [], 60)[0]
                shown.extend(os.read(master, 65536))
        except OSError:
            assert part is None  # EIO: the other end is closed

    with subprocess.Popen(
        [sys.executable, "-c", SHOWING],
        stdin=subprocess.PIPE,
        stdout=slave,
        stderr=slave,
        env=environment(),
    ) as process:
        os.close(slave)
        try:
            assert process.stdin is not None
            for seen in (b"ETA", b"checking"):
                read_until(seen)
                process.stdin.write(b"\n")
                process.stdin.flush()
            read_until(None)
            assert process.wait(timeout=60) == 0
        finally:
            process.kill()
            os.close(master)
    text = shown.decode()
    bare = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)
    for part in ("uploading", "throughput now", "31.5 MiB/s", "ETA"):
        assert part in bare
    assert re.search(r"goodput +[0-9.]+ MiB/s", bare)
    assert re.search(r"cuts +37", bare)
    assert re.search(r"resumes +35", bare)
    assert re.search(r"failures +2", bare)
    assert re.search(r"finished +12 of 40", bare)
    assert re.search(r"checked +7 of 12", bare)
    assert re.search(r"wrong +1", bare)
    assert "\x1b[1A" in text  # drawn over itself, not below
    assert text.rstrip().endswith("the result")
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") > 0  # the cursor is back


def test_pipe_gets_plain_lines() -> None:
    """No escape sequence, one line each few seconds, and the result apart from them."""
    done = subprocess.run(
        [sys.executable, "-c", SHOWING],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        env=environment(),
        timeout=60,
        check=True,
    )
    assert done.stdout == "the result\n"
    assert "\x1b" not in done.stderr
    lines = done.stderr.splitlines()
    assert lines[0] == "uploading ..."
    assert lines[-1] == "checking what was stored ..."
    assert len(lines) == 2 + 11 // int(LINE_SECONDS)
    assert lines[1] == (
        "15 s, 50 %, 12 of 40 uploads finished, now 31.5 MiB/s, goodput 13.3 MiB/s, "
        "37 cuts, 35 resumes, 2 failures, ETA 15.0 s"
    )


def test_narrow_terminal_is_no_error() -> None:
    """Whatever the window, it is drawn."""
    console = Console(file=io.StringIO(), width=20, force_terminal=True)
    with watching(SETTINGS, console) as show:
        show(HALFWAY)
        show(replace(HALFWAY, phase="settling"))


@pytest.mark.parametrize(
    ("snapshot", "part"),
    [
        (replace(HALFWAY, phase="detecting"), 0.0),
        (HALFWAY, 0.5),
        # Sent again and again: the end is not reached before the last upload is.
        (replace(HALFWAY, sent=900 * MIB), 0.99),
        (replace(HALFWAY, done=38, sent=600 * MIB), 1.0),
        # Nobody knows the sizes: by count.
        (replace(HALFWAY, planned=0), 14 / 40),
        (replace(HALFWAY, phase="settling"), 1.0),
        (replace(HALFWAY, phase="checking", checked=3), 0.25),
        (replace(HALFWAY, phase="checking", done=0, checked=0), 1.0),
    ],
)
def test_progress_is_of_the_phase(snapshot: Snapshot, part: float) -> None:
    """By bytes as long as they can be believed, else by uploads."""
    assert progress(SETTINGS, snapshot) == pytest.approx(part)


def test_eta_is_what_is_left_at_this_pace() -> None:
    """Half was done in ten seconds; and a limit of time is one."""
    assert eta(SETTINGS, HALFWAY) == pytest.approx(10.0)
    timed = replace(SETTINGS, duration=14.0)
    left = eta(timed, HALFWAY)
    assert left is not None
    assert 0 < left <= 4.0


@pytest.mark.parametrize(
    "snapshot",
    [
        replace(HALFWAY, at=0.2),
        replace(HALFWAY, phase="checking"),
        replace(HALFWAY, sent=0, done=0, failed=0),
    ],
)
def test_eta_is_not_guessed(snapshot: Snapshot) -> None:
    """Too early to tell, or not the load."""
    assert eta(SETTINGS, snapshot) is None
