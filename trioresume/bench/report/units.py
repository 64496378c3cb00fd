"""Formats quantities for people: about three digits and a unit."""

from __future__ import annotations

__all__ = [
    "count",
    "duration",
    "factor",
    "plural",
    "rate",
    "share",
    "short_duration",
    "size",
]

_BINARY = ("B", "KiB", "MiB", "GiB", "TiB", "PiB")


def size(count: float) -> str:
    """*count* bytes: ``512 B``, ``1.50 MiB``, ``23.4 GiB``."""
    value, unit = float(count), _BINARY[0]
    for unit in _BINARY:
        if abs(value) < 1023.5 or unit == _BINARY[-1]:
            break
        value /= 1024
    return f"{value:.0f} {unit}" if unit == "B" else f"{_three(value)} {unit}"


def rate(bytes_per_second: float) -> str:
    """A rate: ``312 MiB/s``."""
    return f"{size(bytes_per_second)}/s"


def duration(seconds: float) -> str:
    """A time span: ``340 µs``, ``12.3 ms``, ``1.24 s``, ``3 min 5 s``, ``2 h 5 min``."""
    magnitude = abs(seconds)
    if magnitude == 0:
        return "0 s"
    if magnitude < 0.0009995:
        return f"{_three(seconds * 1e6)} µs"
    if magnitude < 0.9995:
        return f"{_three(seconds * 1e3)} ms"
    if magnitude < 119.5:
        return f"{_three(seconds)} s"
    whole = round(seconds)
    if whole < 7200:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def short_duration(seconds: float) -> str:
    """A round time span without trailing zeros, for an axis: ``20 ms``, ``500 s``."""
    for unit, length in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= length * 0.9999:
            return f"{seconds / length:.4g} {unit}"
    return f"{seconds * 1e6:.4g} \u00b5s"


def share(part: float) -> str:
    """A part of one in per cent: ``3.4 %``. Only zero reads as 0."""
    percent = 100 * part
    if percent == 0 or percent >= 10:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.05 else "< 0.1 %"


def factor(ratio: float) -> str:
    """How many times: ``1.08x``."""
    return f"{ratio:.2f}x" if ratio < 100 else f"{ratio:,.0f}x"


def count(number: int) -> str:
    """A count with separators between the thousands."""
    return f"{number:,}"


def plural(number: int, one: str, many: str | None = None) -> str:
    """``1 upload``, ``2 uploads``, ``1,000 uploads``; *many* is *one* with an s if not given."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def _three(value: float) -> str:
    """Return *value* with about three digits."""
    magnitude = abs(value)
    if magnitude >= 99.95:
        return f"{value:.0f}"
    return f"{value:.1f}" if magnitude >= 9.995 else f"{value:.2f}"
