"""What a probe finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import Enum

__all__ = ["ProbeResult", "Verdict", "probed"]


class Verdict(Enum):
    """How bad a finding is."""

    GOOD = "good"
    WARNING = "warning"
    """It works, but costs something, or will some day."""
    FAULT = "fault"
    """The service cannot keep its promises, or does not work at all."""


@dataclass(frozen=True, slots=True)
class ProbeResult:
    """The result of one probe."""

    subject: str
    """``bucket`` or ``database``."""
    probe: str
    verdict: Verdict
    said: str
    """What was found."""
    advice: str = ""
    """What to do about it; empty if nothing has to be done."""


def probed(
    subject: str,
    probes: list[tuple[str, Callable[[], ProbeResult], str]],
    translate: Callable[[Exception], str | None],
) -> Iterator[ProbeResult]:
    """Run *probes*, each with a name, and what to do if it fails with an error.

    *translate* words an error that a probe may raise; it returns None for a bug, which goes on.
    """
    for name, probe, advice in probes:
        try:
            yield probe()
        except Exception as exc:
            said = translate(exc)
            if said is None:
                raise
            yield ProbeResult(subject, name, Verdict.FAULT, said, advice)
