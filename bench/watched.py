"""``python -m bench.watched REPORT serve …``: trioresume, with a watch on its event loop.

It runs the given command of trioresume. When the command ends, it writes into the file
REPORT what held up the event loop for longer than :data:`NOTED`: the *steps* and the
*rounds*. A step is the work of one task from one checkpoint to the next. A round is all
the steps between two looks for input.

On a machine that others use, elapsed time misleads: a thread that is ready but has no
processor does not hold up anything itself. Linux tells how long this lasted
(``schedstat``), and it is subtracted. The rest is the thread's own work, its waiting
within the step (for a disk, a lock, or Python's own lock), and the kernel's interrupts.

The package does not know about the watch: trio gets an instrument.
"""

from __future__ import annotations

import functools
import json
import os
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import CoroutineType, FrameType
from typing import Any

import trio

from trioresume.cli import main as command

__all__ = ["LoopWatch", "Step", "longest", "read_report"]

NOTED = 0.001
"""Seconds: shorter steps and rounds are not recorded."""
MOST_NOTED = 100_000


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a task, or one round of the loop (then *where* is empty)."""

    ended: float
    """On the monotonic clock, which all processes share."""
    seconds: float
    """How long the loop was held up, without the time its thread waited for a processor."""
    waited: float
    """The seconds that the thread waited for a processor during the step."""
    cpu: float
    """The CPU time of the thread, in seconds."""
    where: str
    """The checkpoint that ended the step: the task's innermost function, and its line."""


@dataclass(frozen=True, slots=True)
class _Moment:
    at: float
    cpu: float
    schedstat: bytes
    """For the thread: its run time (not up to date), its time waiting to run, its turns."""

    @property
    def waited(self) -> float:
        return int(self.schedstat.split()[1]) / 1e9


class LoopWatch(trio.abc.Instrument):
    """Records the steps and rounds that take long."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self.rounds: list[Step] = []
        self._schedstat = os.open("/proc/thread-self/schedstat", os.O_RDONLY)
        self._step = self._round = _Moment(0.0, 0.0, b"")

    def _now(self) -> _Moment:
        return _Moment(
            time.monotonic(), time.thread_time(), os.pread(self._schedstat, 64, 0)
        )

    def _since(self, begun: _Moment, where: str) -> Step | None:
        now = self._now()
        elapsed = now.at - begun.at
        if elapsed < NOTED:
            return None
        waited = now.waited - begun.waited
        own = max(0.0, elapsed - waited)
        return (
            Step(now.at, own, waited, now.cpu - begun.cpu, where)
            if own >= NOTED
            else None
        )

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step = self._now()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        step = self._since(self._step, "")
        if step is not None and len(self.steps) < MOST_NOTED:
            self.steps.append(
                Step(step.ended, step.seconds, step.waited, step.cpu, _place(task))
            )

    def before_io_wait(self, timeout: float) -> None:
        if self._round.at:
            found = self._since(self._round, "")
            if found is not None and len(self.rounds) < MOST_NOTED:
                self.rounds.append(found)

    def after_io_wait(self, timeout: float) -> None:
        self._round = self._now()

    def report(self, path: Path) -> None:
        """Write the steps and rounds to *path*; :func:`read_report` reads them."""
        found = {
            "steps": [asdict(step) for step in self.steps],
            "rounds": [asdict(step) for step in self.rounds],
        }
        path.write_text(json.dumps(found))


def _place(task: trio.lowlevel.Task) -> str:
    """Return where the task waits now: the innermost function of the package's code."""
    place = task.name
    awaited: object = task.coro
    while isinstance(awaited, CoroutineType):
        frame: FrameType | None = awaited.cr_frame
        if frame is None:
            return f"{place} (ended)"
        if "trioresume" in frame.f_code.co_filename:
            place = f"{frame.f_code.co_qualname}:{frame.f_lineno}"
        awaited = awaited.cr_await
    return place


def read_report(path: Path) -> tuple[list[Step], list[Step]]:
    """Return the steps and the rounds of a report."""
    found: dict[str, list[dict[str, Any]]] = json.loads(path.read_text())
    return (
        [Step(**step) for step in found["steps"]],
        [Step(**step) for step in found["rounds"]],
    )


def longest(steps: list[Step], start: float, end: float) -> list[Step]:
    """Return the steps that ended between *start* and *end*, the longest first."""
    return sorted(
        (step for step in steps if start <= step.ended <= end),
        key=lambda step: -step.seconds,
    )


def main() -> None:
    """Run the command line after the first argument."""
    report, sys.argv = Path(sys.argv[1]), [sys.argv[0], *sys.argv[2:]]
    watch = LoopWatch()
    # The command calls trio.run itself and has no option for instruments, so replace the
    # function.
    vars(trio)["run"] = functools.partial(trio.run, instruments=[watch])
    try:
        command()
    finally:
        watch.report(report)


if __name__ == "__main__":
    main()
