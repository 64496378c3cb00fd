"""Standard output and standard error of the command, even if they are closed, full or slow.

A stream may be closed (``2>&-``), full (``/dev/full``, a log on a full disk), without a
reader (``| head -1``), or with a slow reader (a stopped pager, a log collector that
hangs). None of these must disturb the work of the command. So:

* Writing never raises. Lost writes are counted. They are reported when the stream accepts
  text again, or at the end on the other stream.
* Standard error never makes the command wait. A thread writes it from a queue of bounded
  size. If nobody reads the log of a server, the server continues, and drops the lines
  that do not fit.
* Standard output waits for its reader, as in every filter. A command that runs an event
  loop calls :meth:`Output.never_wait`; then standard output works like standard error.
* The exit code is about the work. Only a command whose output *is* its work, such as
  ``ls``, fails when its output was lost; see :class:`Purpose`.
* A closed descriptor 0, 1 or 2 is opened on the null device before anything else is
  opened. Otherwise the first socket or file would get its number, and text for "standard
  error" would go there.

All writers (click, rich, structlog, tracebacks) look up ``sys.stdout`` and ``sys.stderr``
when they write. So :func:`guard` replaces both, once.
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

__all__ = [
    "STDERR_LINGER_SECONDS",
    "GuardedWriter",
    "Output",
    "Purpose",
    "guard",
    "output",
    "text_stream",
]

STDERR_QUEUE_BYTES = 1024 * 1024
"""Bytes of text that may wait for a slow reader of standard error; more is dropped."""

STDOUT_QUEUE_BYTES = 16 * 1024 * 1024
"""The same for standard output: the results of some 50,000 uploads."""

STDERR_LINGER_SECONDS = 2.0
"""How long the ending command waits for a standard error that accepts nothing."""

STDOUT_LINGER_SECONDS = 10.0
"""The same for standard output. It is longer, because results are more important."""

_FIRST_PAUSE = 0.02
"""Seconds before the next try on a descriptor that accepts nothing now; it doubles."""

_NOBODY_WANTS_IT = frozenset({errno.EPIPE, errno.EBADF})
"""The reader went away, or there never was one. The command does not report this."""


class Purpose(Enum):
    """The role of standard output for a command. It decides what lost output means."""

    PRODUCT = auto()
    """The output is the work, as with ``ls``: if it is lost, the command failed."""
    REPORT = auto()
    """The output describes the work, as with ``gc``: the exit code is about the work."""


class GuardedWriter(io.RawIOBase):
    """Writes to a descriptor. It never raises, and waits for the reader only with *waits*.

    *descriptor* is None for a stream that was closed: all text is dropped. Without *waits*
    a thread writes from a queue.
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
        """Why text was last lost; None if none was. For a slow reader a TimeoutError."""
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

    # The methods of a raw stream that text streams and terminal libraries call.

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        if self._descriptor is None:
            raise io.UnsupportedOperation("the stream is closed")
        return self._descriptor

    def isatty(self) -> bool:
        return self._descriptor is not None and os.isatty(self._descriptor)

    def close(self) -> None:
        """Do nothing: the descriptor belongs to the process and stays open."""

    @property
    def reader_gone(self) -> bool:
        """Whether the reader is gone, so that nobody reads later text."""
        return self.error is not None and self.error.errno == errno.EPIPE

    def take_lost(self) -> int:
        """Return the number of writes lost since the last call; 0 while writes still fail."""
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
                # Another process that shares the descriptor made it non-blocking.
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
                # A daemon thread: waiting for a reader must not keep the process alive.
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
                # Remove the text only now: an empty queue means that all was written.
                self._queue.popleft()
                self._queued -= len(text)
                self._changed.notify_all()

    def drain(self) -> bool:
        """Wait until the queue is written. Return False if the stream accepts nothing.

        It gives up after ``linger`` seconds without any progress, and does not try again.
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
        """Write *text* if the descriptor accepts it now. A signal handler may call this."""
        if self._descriptor is None:
            return
        with suppress(
            OSError, ValueError
        ):  # ValueError: the number is above select's limit
            if select.select([], [self._descriptor], [], 0)[1]:
                os.write(self._descriptor, text)


class Output:
    """Both streams of the command. A stream is None if :func:`guard` did not replace it."""

    def __init__(self) -> None:
        self.stdout: GuardedWriter | None = None
        self.stderr: GuardedWriter | None = None
        self.log: GuardedWriter | None = None
        """The file of the log, if it has one of its own."""
        self.purpose = Purpose.PRODUCT

    def is_report(self) -> None:
        """Declare that standard output only describes the work (:attr:`Purpose.REPORT`)."""
        self.purpose = Purpose.REPORT

    def never_wait(self, linger: float = STDOUT_LINGER_SECONDS) -> None:
        """Do the same as :meth:`is_report`, and never wait for the reader while running.

        When the command ends, it waits for a reader that accepts nothing for at most
        *linger* seconds.
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
        """Write the queued text. Return a message if standard output was lost, else None."""
        _drain()
        if self.stdout is None or self.stdout.error is None:
            return None
        error = self.stdout.error
        if error.errno in _NOBODY_WANTS_IT:
            return None
        return f"standard output could not be written: {error.strerror}"


output = Output()
"""The streams of this process. There is one object, because descriptors are per process."""


def guard() -> Output:
    """Replace the process's own streams by guarded ones, until the process ends.

    If an embedding program or a test has replaced ``sys.stdout`` or ``sys.stderr``, that
    stream stays as it is.
    """
    closed = _fill_closed_descriptors()
    output.purpose = Purpose.PRODUCT
    if sys.stdout is sys.__stdout__:
        fd = None if 1 in closed or sys.__stdout__ is None else 1
        output.stdout = GuardedWriter(fd, waits=True, queue_bytes=STDOUT_QUEUE_BYTES)
        sys.stdout = text_stream(output.stdout, sys.__stdout__)
    if sys.stderr is sys.__stderr__:
        fd = None if 2 in closed or sys.__stderr__ is None else 2
        output.stderr = GuardedWriter(fd, waits=False, linger=STDERR_LINGER_SECONDS)
        sys.stderr = text_stream(output.stderr, sys.__stderr__)
    # The interpreter writes a traceback after the command has ended, and then calls this.
    atexit.register(_drain)
    return output


def _drain() -> None:
    """Write the text in the queues, or give it up."""
    try:
        for writer in (output.log, output.stderr, output.stdout):
            if writer is not None:
                writer.drain()
    except KeyboardInterrupt:
        pass  # after Ctrl-C the user does not want to wait for a reader


def _fill_closed_descriptors() -> frozenset[int]:
    """Open the null device on those of 0, 1 and 2 that are closed. Return their numbers.

    It is opened only for writing. Reading a closed standard input must give an error, not
    an empty file that could be taken for content.
    """
    closed = set()
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            closed.add(number)
            # The system gives the lowest free number, which is usually this one.
            opened = os.open(os.devnull, os.O_WRONLY)
            if opened != number:
                os.dup2(opened, number)
                os.close(opened)
            os.set_inheritable(number, True)
    return frozenset(closed)


def text_stream(writer: GuardedWriter, model: TextIO | None) -> TextIO:
    """Return a text stream on *writer* in *model*'s encoding. No character makes it fail."""
    encoding = "utf-8" if model is None else model.encoding
    errors = None if model is None else model.errors
    if errors in (None, "strict"):
        errors = "backslashreplace"
    # write_through: each write of the program becomes one write of the writer, so that only
    # whole lines are dropped.
    return io.TextIOWrapper(
        # A raw stream, as with "python -u". typeshed allows only buffered streams here.
        cast("BinaryIO", writer),
        encoding=encoding,
        errors=errors,
        newline=None if os.name == "nt" else "\n",
        line_buffering=False,
        write_through=True,
    )
