"""Logging of the commands: structlog renders the records of the standard library.

The library logs through ``logging.getLogger("trioresume…")`` and configures nothing, so
that an embedding program decides. The command sends those records and its own through
one structlog formatter to standard error. Standard output is for the results of a
command.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

from trioresume.cli.output import (
    STDERR_LINGER_SECONDS,
    GuardedWriter,
    output,
    text_stream,
)

__all__ = ["FORMATS", "LEVELS", "LogFile", "configure", "every_line_says"]

FORMATS = ("text", "json")
LEVELS = ("debug", "info", "warning", "error")


_facts: dict[str, object] = {}
"""What every line says."""


def every_line_says(**facts: object) -> None:
    """Add *facts*, such as the number of this worker, to each line from now on."""
    _facts.update(facts)


def _add_facts(logger: object, name: str, line: EventDict) -> EventDict:
    for fact, value in _facts.items():
        line.setdefault(fact, value)
    return line


def configure(level: str, format: str, stream: TextIO | None = None) -> None:
    """Send the records of *level* and above to *stream*, or to standard error if None.

    *format* is ``text``, coloured on a terminal unless ``NO_COLOR`` is set, or
    ``json``: one object a line with ``timestamp`` (ISO 8601, UTC), ``level``,
    ``logger``, ``event``, the members of ``extra``, and ``exception``.
    """
    out = sys.stderr if stream is None else stream
    _send_to(out, output.stderr if stream is None else None, level, format)


class LogFile:
    """A file for the records that otherwise go to standard error.

    As with standard error, the file never makes the command wait, and a full disk costs
    lines of the log and nothing else. Raises :class:`OSError` if the file cannot be opened.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = os.path.abspath(path)  # the working directory may change
        self._descriptor = _open(self.path)
        writer = GuardedWriter(
            self._descriptor, waits=False, linger=STDERR_LINGER_SECONDS
        )
        output.log = writer
        root = logging.getLogger()
        (handler,) = root.handlers
        assert isinstance(handler, _TellingHandler)
        level = logging.getLevelName(root.level)
        _send_to(text_stream(writer, None), writer, level, handler.format_name)

    def reopen(self) -> None:
        """Open the file of this name again: the old one may have been renamed.

        A line is written to one file as a whole: the descriptor changes between two writes.
        Raises :class:`OSError`; the records go on to the old file then.
        """
        opened = _open(self.path)
        try:
            os.dup2(opened, self._descriptor, inheritable=False)
        finally:
            os.close(opened)


def _open(path: str) -> int:
    """Open *path* for appending. The log names people and files: others do not read it."""
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0)
    # Opened so, a pipe without a reader is an error, and does not make the start wait.
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0), 0o640)


def _send_to(
    out: TextIO, guarded: GuardedWriter | None, level: str, format: str
) -> None:
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_facts,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
    )
    handler = _TellingHandler(out, guarded, format)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*shared, structlog.stdlib.ExtraAdder()],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(format, out),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]  # a second call replaces the first
    root.setLevel(level.upper())
    # It logs every field of every message of HTTP/2, credentials included.
    logging.getLogger("hpack").setLevel(max(root.level, logging.INFO))


class _TellingHandler(logging.StreamHandler[TextIO]):
    """Writes records. When the stream accepts text again, logs how many records were lost."""

    def __init__(
        self, out: TextIO, guarded: GuardedWriter | None, format_name: str
    ) -> None:
        super().__init__(out)
        self._guarded = guarded
        self.format_name = format_name

    def emit(self, record: logging.LogRecord) -> None:
        lost = 0 if self._guarded is None else self._guarded.take_lost()
        if lost:
            told = "lines of this log that could not be written: %d"
            super().emit(
                logging.LogRecord(
                    __name__, logging.WARNING, __file__, 0, told, (lost,), None
                )
            )
        super().emit(record)


def _renderers(format: str, out: TextIO) -> list[Processor]:
    if format == "json":
        return [
            structlog.processors.format_exc_info,
            structlog.processors.JSONRenderer(default=str),
        ]
    colors = out.isatty() and "NO_COLOR" not in os.environ
    return [
        structlog.dev.ConsoleRenderer(
            colors=colors, exception_formatter=structlog.dev.plain_traceback
        )
    ]
