"""How much useless traffic a peer may send before its connection is ended.

Some frames cost the sender nothing and the server some work: PING, SETTINGS, PRIORITY, empty
DATA, a request that is reset at once. Each takes units from an allowance. Time refills it, and
so does content: a peer that uploads or downloads may also ping. A peer that only floods runs
out of units, and the connection ends with ENHANCE_YOUR_CALM.

Sans-IO: the caller passes the time.
"""

from __future__ import annotations

__all__ = ["Allowance"]

MOST = 1000.0
"""Units of a new connection, and the most that one can save up."""
EACH_SECOND = 100.0
"""Units that come back in a second."""
BYTES_FOR_A_UNIT = 1024
"""Bytes of content, in either direction, that bring back one unit."""


class Allowance:
    """The allowance of one connection. *most* and *each_second* are in units."""

    __slots__ = ("_each_second", "_left", "_most", "_since")

    def __init__(
        self, now: float, most: float = MOST, each_second: float = EACH_SECOND
    ) -> None:
        self._most = self._left = most
        self._each_second = each_second
        self._since = now

    def spend(self, units: float, now: float) -> bool:
        """Take *units* at the time *now*. Returns False if there are not so many."""
        refilled = self._left + (now - self._since) * self._each_second
        self._left = min(self._most, refilled) - units
        self._since = now
        return self._left >= 0

    def earn(self, size: int) -> None:
        """Note *size* bytes of content."""
        self._left = min(self._most, self._left + size / BYTES_FOR_A_UNIT)
