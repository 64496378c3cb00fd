"""The scaling of workers is measured on the real command; its figures are not judged here."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from bench.workers import LOADS, Load, Measured, Turns, limited, measure, report

SMALL = Load(8, 1 << 20)


def _cpu(process: subprocess.Popen[bytes]) -> float:
    fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def _spinning() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "while True: pass"])


def test_processes_that_take_turns_get_their_share_at_most() -> None:
    """A process that wants a whole processor gets no more than that."""
    processes = [_spinning() for _ in range(2)]
    try:
        with Turns([process.pid for process in processes], 0.25):
            before = list(map(_cpu, processes))
            began = time.monotonic()
            used, seconds = [0.0, 0.0], 0.0
            while min(used) < 0.2:  # both have had some turns
                time.sleep(0.02)
                seconds = time.monotonic() - began
                assert seconds < 60
                used = [
                    _cpu(process) - earlier
                    for process, earlier in zip(processes, before, strict=True)
                ]
        assert all(each < 0.4 * seconds + 0.05 for each in used), (used, seconds)
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_limited_processes_run_on_afterwards() -> None:
    """Whatever limits them, it is taken away at the end."""
    process = _spinning()
    try:
        with limited([process.pid], 0.25) as quota:
            assert quota in ("turns", "control groups")
        assert not Path(f"/sys/fs/cgroup/cpu/trioresume-bench-{process.pid}").exists()
        before = _cpu(process)
        deadline = time.monotonic() + 60
        while _cpu(process) < before + 0.1:
            assert time.monotonic() < deadline, "the process does not run any more"
            time.sleep(0.05)
    finally:
        process.kill()
        process.wait()


def test_service_with_two_workers_is_measured(tmp_path: Path) -> None:
    """Rate, CPU time of all and of the parent, memory: none of them is zero."""
    run = measure(tmp_path, SMALL, 2, 1.0)
    assert run.rate > 0
    assert 0 < run.parent_cpu < run.cpu
    assert run.peak > 10 << 20


def test_report_compares_with_the_first_number_in_each_round() -> None:
    """The machine may be twice as fast in the second round."""
    few, many = LOADS[1], LOADS[2]
    rounds = []
    for speed in (1.0, 2.0):
        found = {}
        for load in (few, many):
            for count in (1, 2):
                parent = load.uploads * (0.3e-3 + load.chunks * 0.05e-3) * (count > 1)
                found[load, count] = Measured(
                    rate=count * speed * (1 << 20),
                    cpu=10 / speed * (1.1 if count > 1 else 1.0),
                    parent_cpu=parent,
                    peak=50 << 20,
                    quota="turns",
                )
        rounds.append(found)
    lines = list(report(rounds, [few, many], [1, 2]))
    assert lines[3] == (
        "| 1000 x 1 MiB | 2 | 3.0 (2.0-4.0) | 2.00 | 8.45 (5.63-11.26) | 1.10 | 0.35 | 50 |"
    )
    assert lines[-1] == "2 workers: the parent's CPU for a chunk more is 0.050 ms."
