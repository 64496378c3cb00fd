"""Standard output and standard error of the command, in whatever state they are.

A stream may be closed (``2>&-``), full (``/dev/full``, a log on a full disk), without a
reader (``| head -1``) or with a reader that takes its time (a stopped pager, a log
collector that hangs). None of that is about the work. So:

* Writing never raises. What could not be written is counted, and told when the stream
  takes text again, or at the end on the other stream.
* Standard error never makes the command wait. A thread writes it, from a queue of
  bounded size; a service whose log is not read goes on, and drops what does not fit.
* Standard output waits for its reader, as that of every filter does. A command that
  runs an event loop calls :meth:`Output.never_wait`; then it is like standard error.
* The exit code tells of the work. Only a command whose output *is* its work, such as
  ``ls``, fails when its output was lost; see :class:`Purpose`.
* A descriptor that was closed is opened on the null device before anything else is
  opened. Otherwise the first socket or file would get its number, and whatever is written
  to "standard error" would go there.

Everything that writes (click, rich, structlog, tracebacks) finds ``sys.stdout`` and
``sys.stderr`` when it writes, so both are replaced, once, in :func:`guard`.
"""

from __future__ import annotations

import atexit
import errno
import io
import os
import select
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from enum import Enum, auto
from typing import TYPE_CHECKING, BinaryIO, TextIO, cast

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

__all__ = ["GuardedWriter", "Output", "Purpose", "guard", "output"]

STDERR_QUEUE_BYTES = 1024 * 1024
"""Text that waits for a slow reader of standard error; more is dropped."""

STDOUT_QUEUE_BYTES = 16 * 1024 * 1024
"""The same for standard output: the results of some 50,000 uploads."""

STDERR_LINGER_SECONDS = 2.0
"""How long the end of the command waits for a standard error that takes nothing."""

STDOUT_LINGER_SECONDS = 10.0
"""The same for standard output, whose text somebody may have asked for."""

_FIRST_PAUSE = 0.02
"""Seconds until a descriptor that takes nothing now is tried again; it doubles."""

_NOBODY_WANTS_IT = frozenset({errno.EPIPE, errno.EBADF})
"""The reader went away, or there never was one: no reason to complain."""


class Purpose(Enum):
    """What standard output is to a command: it decides what a loss of it means."""

    PRODUCT = auto()
    """The output is the work, as of ``ls``: if it is lost, the command failed."""
    REPORT = auto()
    """The output tells of the work, as of ``gc``: the exit code tells it too."""


class GuardedWriter(io.RawIOBase):
    """Writes to a descriptor; never raises, and waits only where it is to.

    *descriptor* is None for a stream that was closed: everything is dropped. With
    *waits* a write waits for the reader; without, a thread writes from a queue.
    """

    def __init__(
        self,
        descriptor: int | None,
        *,
        waits: bool,
        linger: float = 0.0,
        queue_bytes: int = STDERR_QUEUE_BYTES,
    ) -> None:
        super().__init__()
        self.error: OSError | None = None
        """Why text was lost last; None if none was. A slow reader is a TimeoutError."""
        self.waits = waits
        self.linger = linger
        self._descriptor = descriptor
        self._queue_bytes = queue_bytes
        self._lost = 0
        self._losing = False
        self._given_up = False
        self._queue: deque[bytes] = deque()
        self._queued = 0
        self._changed = threading.Condition()
        self._progress = 0
        self._thread: threading.Thread | None = None

    # What a text stream and a terminal library ask of a raw stream.

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._descriptor is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._descriptor

    def isatty(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def close(self) -> None:
        """Not the descriptor: it is the process's own."""

    @property
    def reader_gone(self) -> bool:
        """Whether nobody will read what is written from now on."""
        return self.error is not None and self.error.errno == errno.EPIPE

    def take_lost(self) -> int:
        """How many writes were lost since the last call; 0 while they are still lost."""
        if self._losing:
            return 0
        lost, self._lost = self._lost, 0
        return lost

    # Writing.

    def write(self, data: ReadableBuffer) -> int:
        text = bytes(data)
        if self._descriptor is not None and text:
            if self.waits:
                self._write(text)
            else:
                self._enqueue(text)
        return len(text)

    def _write(self, text: bytes) -> None:
        assert self._descriptor is not None
        view, pause = memoryview(text), _FIRST_PAUSE
        while view:
            try:
                view = view[os.write(self._descriptor, view) :]
            except BlockingIOError:
                # Somebody who shares the descriptor made it so that it does not wait.
                time.sleep(pause)
                pause = min(1.0, 2 * pause)
                continue
            except OSError as exc:
                self._note_loss(exc)
                return
            pause = _FIRST_PAUSE
            self._progress += 1
            self._losing = False

    def _note_loss(self, exc: OSError) -> None:
        self._lost += 1
        self._losing = True
        self.error = exc

    def _enqueue(self, text: bytes) -> None:
        with self._changed:
            if self._given_up or self._queued + len(text) > self._queue_bytes:
                self._note_loss(TimeoutError(errno.ETIMEDOUT, "nobody reads it"))
                return
            self._queue.append(text)
            self._queued += len(text)
            if self._thread is None:
                # A daemon: whoever waits for a reader must not keep the process.
                self._thread = threading.Thread(
                    target=self._run, name="output", daemon=True
                )
                self._thread.start()
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._queue:
                    self._changed.wait()
                text = self._queue[0]
            self._write(text)
            with self._changed:
                # Only now: a queue that is empty says that all of it was written.
                self._queue.popleft()
                self._queued -= len(text)
                self._changed.notify_all()

    def drain(self) -> bool:
        """Wait until the queue is written; False if the stream takes nothing.

        It gives up after ``linger`` seconds without any progress, once and for all.
        """
        with self._changed:
            while self._queue:
                if self._given_up:
                    return False
                before = self._progress
                if not self._changed.wait(self.linger) and self._progress == before:
                    self._given_up = True
                    self._note_loss(TimeoutError(errno.ETIMEDOUT, "nobody reads it"))
                    return False
        return True

    def write_if_ready(self, text: bytes) -> None:
        """Write *text* at once if the descriptor takes it now, for a signal handler."""
        if self._descriptor is None:
            return
        with suppress(OSError, ValueError):  # ValueError: a number above select's
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, text)


class Output:
    """Both streams of the command; None for one that :func:`guard` left alone."""

    def __init__(self) -> None:
        self.stdout: GuardedWriter | None = None
        self.stderr: GuardedWriter | None = None
        self.purpose = Purpose.PRODUCT

    def is_report(self) -> None:
        """Say that standard output only tells of the work."""
        self.purpose = Purpose.REPORT

    def never_wait(self, linger: float = STDOUT_LINGER_SECONDS) -> None:
        """Say the same, and that writing to it must not hold anything up.

        At its end the command waits for a reader that takes nothing for *linger*
        seconds at most.
        """
        self.is_report()
        if self.stdout is not None:
            self.stdout.waits = False
            self.stdout.linger = linger

    @property
    def unread(self) -> bool:
        """Whether the reader of standard output is gone, as behind ``| head``."""
        return self.stdout is not None and self.stdout.reader_gone

    def finish(self) -> str | None:
        """Write what waits; what to tell if standard output was lost, else None."""
        _drain()
        if self.stdout is None or self.stdout.error is None:
            return None
        error = self.stdout.error
        if error.errno in _NOBODY_WANTS_IT:
            return None
        return f"standard output could not be written: {error.strerror}"


output = Output()
"""The command's own. It is per process, as the descriptors are."""


def guard() -> Output:
    """Guard the process's own streams from now on, until it ends.

    Streams that somebody has put in the place of the process's own stay as they are:
    an embedding program, or a test, knows what it does.
    """
    closed = _fill_closed_descriptors()
    output.purpose = Purpose.PRODUCT
    if sys.stdout is sys.__stdout__:
        fd = None if 1 in closed or sys.__stdout__ is None else 1
        output.stdout = GuardedWriter(fd, waits=True, queue_bytes=STDOUT_QUEUE_BYTES)
        sys.stdout = _text_stream(output.stdout, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        fd = None if 2 in closed or sys.__stderr__ is None else 2
        output.stderr = GuardedWriter(fd, waits=False, linger=STDERR_LINGER_SECONDS)
        sys.stderr = _text_stream(output.stderr, sys.__stderr__)
    # The interpreter writes a traceback after the command is over, and then calls this.
    atexit.register(_drain)
    return output


def _drain() -> None:
    """Write what waits in the queues, or give it up."""
    try:
        for writer in (output.stderr, output.stdout):
            if writer is not None:
                writer.drain()
    except KeyboardInterrupt:
        pass  # whoever presses Ctrl-C now does not want to wait for a reader


def _fill_closed_descriptors() -> frozenset[int]:
    """Open the null device on those of 0, 1 and 2 that are closed; which these are.

    Only for writing: who reads a closed standard input must get an error, and not an
    empty file that could be taken for content.
    """
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            # The system gives the lowest number that is free, which is mostly this one.
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    return frozenset(closed)


def _text_stream(writer: GuardedWriter, model: TextIO | None) -> TextIO:
    """A text stream on *writer*, in the encoding of *model*; no character makes it fail."""
    encoding = "utf-8" if model is None else model.encoding
    errors = None if model is None else model.errors
    if errors in (None, "strict"):
        errors = "backslashreplace"
    # write_through: each write of the program is one of the writer, so that what is
    # dropped is whole lines.
    return io.TextIOWrapper(
        # A raw stream, as under "python -u"; typeshed knows only buffered ones here.
        cast("BinaryIO", writer),
        encoding=encoding,
        errors=errors,
        newline=None if os.name == "nt" else "\n",
        line_buffering=False,
        write_through=True,
    )
