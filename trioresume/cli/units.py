"""Format quantities for the output of the commands. The units are powers of 1024."""

from __future__ import annotations

__all__ = ["duration", "rate", "size"]


def size(count: float | None) -> str:
    """Return *count* bytes as text: ``512 B``, ``1.5 MiB``; ``?`` if it is not known."""
    if count is None:
        return "?"
    if count < 1024:
        return f"{count:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        count /= 1024
        if count < 1024:
            return f"{count:.1f} {unit}"
    return f"{count / 1024:.1f} TiB"


def rate(bytes_per_second: float) -> str:
    """Return a rate as text: ``1.5 MiB/s``."""
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """Return a time span as text, in whole seconds: ``3 s``, ``2:05``, ``1:02:05``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02}"
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
