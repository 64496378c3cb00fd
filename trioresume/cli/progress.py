"""Show the progress of uploads: bars on a terminal, a line every ten seconds elsewhere.

Both show only facts:

* A rate counts the bytes that the connection accepted within the last seconds. It falls to
  zero when the connection accepts nothing, and is zero while there is no connection. It
  does not count the bytes that an earlier run sent.
* The progress of a file goes back when the server turns out to have fewer bytes.
* While something is wrong, the reason is shown, with the time until the next try.

Progress goes to standard error. Results go to standard output.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import click
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Column, Table
from rich.text import Text

from trioresume import ProcessingProgress, Progress
from trioresume.cli import units
from trioresume.text import printable

__all__ = ["Display", "FileProgress", "RateMeter", "Total", "display"]

RATE_SECONDS = 5.0
"""The time over which a rate is averaged."""

LINE_INTERVAL_SECONDS = 10.0
"""The time between two lines where there is no terminal for bars."""

_SAMPLE_SECONDS = 0.1
_FRAMES_PER_SECOND = 5
_BAR_WIDTH = 20
_LEAST_NAME = 12
_KEPT_LINES = 3
"""Lines of the terminal that the bars leave free."""


class RateMeter:
    """Measures the rate of a growing byte count over the last :data:`RATE_SECONDS`."""

    def __init__(self, now: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(now, 0)])

    def note(self, now: float, count: int) -> None:
        """Record that the count is *count* at the time *now*."""
        samples = self._samples
        if len(samples) > 1 and now - samples[-2][0] < _SAMPLE_SECONDS:
            samples.pop()
        samples.append((now, count))
        # Keep one older sample: the rate is the difference from it.
        while len(samples) > 1 and samples[1][0] <= now - RATE_SECONDS:
            samples.popleft()

    def restart(self, now: float) -> None:
        """Forget the bytes before *now*: the connection failed, so the rate is zero."""
        self._samples = deque([(now, self._samples[-1][1])])

    def rate(self, now: float) -> float:
        """Return the rate at *now*, in bytes a second."""
        start = now - RATE_SECONDS
        samples = list(self._samples)
        first_at, first = samples[0]
        for at, count in samples:
            if at > start:
                break
            first_at, first = at, count
        return (samples[-1][1] - first) / max(now - max(first_at, start), 0.5)


@dataclass(eq=False)
class FileProgress:
    """The progress of one file, as it is shown."""

    name: str
    """The short name, for a bar."""
    path: str
    """The path as the user gave it, for a line."""
    size: int | None
    """Bytes; None while it is not known."""
    sent: int = 0
    attempt: int = 1
    trouble: str | None = None
    retry_at: float | None = None
    ok: bool | None = None
    """Whether the file is stored; None while it is being sent."""
    meter: RateMeter = field(default_factory=lambda: RateMeter(time.monotonic()))
    started: float = field(default_factory=time.monotonic)
    transferred: int = 0
    ended: float | None = None
    processing: ProcessingProgress | None = None

    def note(self, progress: Progress, now: float) -> None:
        """Take over the numbers that the client reports."""
        self.sent = progress.sent
        self.attempt = progress.attempt
        self.transferred = progress.transferred
        if progress.total is not None:
            self.size = progress.total
        self.meter.note(now, progress.transferred)
        if progress.trouble is not None and self.trouble is None:
            self.meter.restart(now)
        self.trouble = progress.trouble
        self.retry_at = None if progress.retry_in is None else now + progress.retry_in
        self.processing = progress.processing

    def rate(self, now: float) -> float:
        """Return bytes a second: at present, or the average of a file that has ended."""
        if self.ended is not None:
            return self.transferred / max(self.ended - self.started, 0.001)
        return 0.0 if self.trouble is not None else self.meter.rate(now)

    def note_in_words(self, now: float) -> str:
        """Return a remark to show with the numbers; "" if there is none."""
        if self.ended is not None:
            return "" if self.ok else "failed"
        if self.trouble is not None:
            left = 0.0 if self.retry_at is None else self.retry_at - now
            again = f" in {units.duration(left)}" if left >= 0.5 else ""
            return f"{self.trouble}, trying again{again}"
        if self.processing is not None:
            return _steps_in_words(self.processing)
        if self.size is not None and 0 < self.size <= self.sent:
            return "all sent, waiting for the answer"
        return "" if self.attempt == 1 else f"attempt {self.attempt}"


def _steps_in_words(processing: ProcessingProgress) -> str:
    """Return what the server says about processing, as ``…, 3 of 20: counting``."""
    words = "all sent, the server processes it"
    if processing.total is not None:
        words += f", {processing.done} of {processing.total}"
    elif processing.done:
        words += f", {processing.done}"
    return f"{words}: {processing.remark}" if processing.remark else words


@dataclass(eq=False)
class Total:
    """The progress of all files together, including those that have not begun."""

    count: int
    size: int
    """Bytes of all files whose size is known."""
    running: list[FileProgress] = field(default_factory=list)
    done: int = 0
    failed: int = 0
    settled: int = 0
    """Bytes of the files that are stored."""
    started: float = field(default_factory=time.monotonic)
    transferred: int = 0
    meter: RateMeter | None = None
    """Of all files together: a file that has just begun has no rate of its own yet."""

    def begin(self, file: FileProgress) -> None:
        """Record that sending *file* begins."""
        self.running.append(file)

    def note(self, now: float) -> None:
        """Record what was transferred until *now*."""
        if self.meter is None:
            self.meter = RateMeter(self.started)
        running = sum(file.transferred for file in self.running)
        self.meter.note(now, self.transferred + running)
        if self.running and all(file.trouble is not None for file in self.running):
            self.meter.restart(now)

    def end(self, file: FileProgress, *, ok: bool, now: float) -> None:
        """Record that *file* is stored (*ok*) or has failed."""
        if file not in self.running:
            return
        self.running.remove(file)
        file.ended, file.ok = now, ok
        self.transferred += file.transferred
        if ok:
            self.done += 1
            self.settled += file.size or 0
        else:
            self.failed += 1
            self.size -= file.size or 0  # it will not be sent

    @property
    def over(self) -> bool:
        """Whether every file is stored or has failed."""
        return self.done + self.failed == self.count

    @property
    def sent(self) -> int:
        """Bytes that the server has, as far as the client knows."""
        return self.settled + sum(file.sent for file in self.running)

    def rate(self, now: float) -> float:
        """Return bytes a second of all files; at the end the overall average."""
        if self.over:
            return self.transferred / max(now - self.started, 0.001)
        self.note(now)
        assert self.meter is not None
        return self.meter.rate(now)

    def in_words(self) -> str:
        """Return how many files are stored and how many have failed, as text."""
        words = f"{self.done} of {self.count} files"
        return f"{words}, {self.failed} failed" if self.failed else words


class Display(Protocol):
    """Shows the progress of uploads, and prints lines beside it."""

    def begin(self, file: FileProgress) -> None: ...

    def show(self, file: FileProgress, progress: Progress) -> None: ...

    def end(self, file: FileProgress, *, ok: bool) -> None: ...

    def write(self, line: str, *, err: bool = False) -> None: ...


@contextmanager
def display(*, quiet: bool, count: int, size: int) -> Iterator[Display]:
    """Give a display for *count* files with *size* bytes in total."""
    console = Console(stderr=True)
    if quiet:
        yield _Quiet()
    elif console.is_terminal:
        bars = _Bars(console, Total(count, size))
        with bars.drawn():
            yield bars
    else:
        yield _Lines(Total(count, size))


class _Quiet:
    """Shows no progress, only results."""

    def begin(self, file: FileProgress) -> None:
        """Not shown."""

    def show(self, file: FileProgress, progress: Progress) -> None:
        """Not shown."""

    def end(self, file: FileProgress, *, ok: bool) -> None:
        """Not shown."""

    def write(self, line: str, *, err: bool = False) -> None:
        click.echo(line, err=err)


class _Bars(_Quiet):
    """Shows a bar for each file that is being sent, and one for all files."""

    def __init__(
        self,
        console: Console,
        total: Total,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console
        self._total = total
        self._clock = clock
        self._last: FileProgress | None = None
        # rich draws in another thread.
        self._lock = threading.Lock()

    @contextmanager
    def drawn(self) -> Iterator[None]:
        """Draw the bars until the end of the block. The last state stays on the screen."""
        with Live(
            console=self._console,
            get_renderable=self.render,
            refresh_per_second=_FRAMES_PER_SECOND,
            redirect_stdout=False,
        ):
            yield

    def begin(self, file: FileProgress) -> None:
        with self._lock:
            self._last = file
            self._total.begin(file)

    def show(self, file: FileProgress, progress: Progress) -> None:
        with self._lock:
            now = self._clock()
            file.note(progress, now)
            self._total.note(now)

    def end(self, file: FileProgress, *, ok: bool) -> None:
        with self._lock:
            self._last = file
            self._total.end(file, ok=ok, now=self._clock())

    def write(self, line: str, *, err: bool = False) -> None:
        # If standard output is the same terminal, printing there would damage the bars.
        if err or sys.stdout.isatty():
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line)

    # Drawing.

    def render(self) -> RenderableType:
        """Return the current bars: the files that are being sent, then all files together."""
        with self._lock:
            now = self._clock()
            shown = list(self._total.running)
            if self._total.count == 1 and not shown and self._last is not None:
                shown = [self._last]
            room = max(1, (self._console.height - _KEPT_LINES) // 2)
            pieces = [piece for file in shown[:room] for piece in self._file(file, now)]
            if len(shown) > room:
                pieces.append(Text(f"… and {len(shown) - room} more", style="dim"))
            if self._total.count > 1:
                pieces.append(self._sum(now))
            return Group(*pieces)

    def _file(self, file: FileProgress, now: float) -> Iterator[RenderableType]:
        rate = file.rate(now)
        steps = None if file.ended is not None else file.processing
        yield self._row(
            file.name,
            file.sent,
            file.size,
            rate,
            running=file.ended is None,
            steps=None if file.trouble is not None else steps,
        )
        words = printable(file.note_in_words(now))
        if words:
            style = "red" if file.trouble or file.ok is False else "dim"
            yield Text(
                f"  {words}", style=style, no_wrap=True, overflow="ellipsis", end="\n"
            )

    def _sum(self, now: float) -> RenderableType:
        total = self._total
        return self._row(
            total.in_words(),
            total.sent,
            total.size,
            total.rate(now),
            running=not total.over,
        )

    def _row(
        self,
        name: str,
        sent: int,
        size: int | None,
        rate: float,
        *,
        running: bool,
        steps: ProcessingProgress | None = None,
    ) -> RenderableType:
        """Return a line with a bar. The bar shows *steps* of the server, if it tells them."""
        left = ""
        if running and size is not None and sent < size and rate >= 1:
            left = f"{units.duration((size - sent) / rate)} left"
        if steps is not None:
            total, completed = steps.total, steps.done
        else:
            total, completed = size, sent
        bar = ProgressBar(
            total=None if total is None else max(total, 1),
            completed=completed if total != 0 else 1,
            width=_BAR_WIDTH,
            pulse=total is None and running,
        )
        numbers = f"{units.size(sent)} of {units.size(size)}"
        cells: list[tuple[int, RenderableType]] = [
            (_BAR_WIDTH, bar),
            (22, Text(numbers, justify="right")),
            (12, Text(units.rate(rate), justify="right")),
            (12, Text(left, justify="right")),
        ]
        # On a narrow terminal drop the bar first, then columns from the right. The name stays.
        width = self._console.width
        while len(cells) > 1 and _LEAST_NAME + sum(w + 1 for w, _ in cells) > width:
            del cells[0 if cells[0][0] == _BAR_WIDTH else -1]
        for_name = max(_LEAST_NAME, width - sum(w + 1 for w, _ in cells) - 1)
        columns = [
            Column(width=min(for_name, 40), no_wrap=True, overflow="ellipsis"),
            *(Column(width=w, no_wrap=True) for w, _ in cells),
        ]
        table = Table.grid(*columns, padding=(0, 1, 0, 0))
        table.add_row(Text(printable(name)), *(cell for _, cell in cells))
        return table


class _Lines(_Quiet):
    """Writes a line every :data:`LINE_INTERVAL_SECONDS`, and at news; for logs."""

    def __init__(
        self, total: Total, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._total = total
        self._clock = clock
        self._told: dict[FileProgress, tuple[float, int, str | None]] = {}
        self._told_total = clock()

    def begin(self, file: FileProgress) -> None:
        self._total.begin(file)
        self._told[file] = (self._clock(), 1, None)

    def show(self, file: FileProgress, progress: Progress) -> None:
        now = self._clock()
        file.note(progress, now)
        self._total.note(now)
        told_at, attempt, trouble = self._told[file]
        if file.trouble is not None and file.retry_at is None:
            return  # the next attempt has begun; its outcome will be reported
        news = file.attempt != attempt and file.trouble is None
        news = news or (file.trouble is not None and file.trouble != trouble)
        if news or now - told_at >= LINE_INTERVAL_SECONDS:
            self._told[file] = (now, file.attempt, file.trouble or trouble)
            self.write(self._line(file, now), err=True)
        if self._total.count > 1 and now - self._told_total >= LINE_INTERVAL_SECONDS:
            self._told_total = now
            self.write(self._sum(now), err=True)

    def _line(self, file: FileProgress, now: float) -> str:
        words = [_amount(file.sent, file.size), units.rate(file.rate(now))]
        note = file.note_in_words(now)
        return printable(f"{file.path}: {', '.join(filter(None, [*words, note]))}")

    def _sum(self, now: float) -> str:
        total = self._total
        amount = _amount(total.sent, total.size)
        return f"{total.in_words()}: {amount}, {units.rate(total.rate(now))}"

    def end(self, file: FileProgress, *, ok: bool) -> None:
        self._total.end(file, ok=ok, now=self._clock())
        self._told.pop(file, None)


def _amount(sent: int, size: int | None) -> str:
    if size is None:
        return f"{units.size(sent)} so far"
    percent = 100 * sent // size if size else 100
    return f"{percent} %, {units.size(sent)} of {units.size(size)}"
