"""The latest warnings and errors of the log, kept in memory for the admin page.

The page shows no id of an upload, so they are kept without half of each.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from dataclasses import dataclass

__all__ = ["MOST", "LoggedError", "RecentErrors"]

MOST = 200
"""Entries that are kept."""
MOST_CHARACTERS = 2000
"""Of a message, with its traceback: the end of a traceback tells most."""

# An upload's id, also within the name of a file. Nearly every id has a capital letter, which the
# names in a traceback have not.
_ID = re.compile(
    r"(?<![A-Za-z0-9_-])(?=[a-z0-9_-]*[A-Z])([A-Za-z0-9_-]{10})[A-Za-z0-9_-]{12}(?![A-Za-z0-9_-])"
)


@dataclass(frozen=True, slots=True)
class LoggedError:
    """One entry of the log."""

    number: int
    at: float
    """Unix seconds."""
    level: str
    logger: str
    text: str


class RecentErrors(logging.Handler):
    """Keeps what is logged at WARNING or above, in the ``trioresume`` loggers.

    A handler of logging may be called from any thread, and holds its lock while it is.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self._entries: deque[LoggedError] = deque(maxlen=MOST)
        self.count = 0
        """How many there were since the service began."""

    def emit(self, record: logging.LogRecord) -> None:
        try:
            text = _ID.sub(r"\1...", self.format(record))
        except Exception:  # noqa: BLE001 - as every handler of logging does
            self.handleError(record)
            return
        if len(text) > MOST_CHARACTERS:
            text = "…" + text[-MOST_CHARACTERS:]
        self.count += 1
        self._entries.append(
            LoggedError(self.count, record.created, record.levelname, record.name, text)
        )

    def newest(self) -> list[LoggedError]:
        """Return the entries, the newest first."""
        self.acquire()
        try:
            return list(reversed(self._entries))
        finally:
            self.release()
