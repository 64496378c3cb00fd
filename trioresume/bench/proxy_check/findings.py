"""What a check of a proxy found, and what to change."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

__all__ = ["Finding", "Verdict"]


class Verdict(Enum):
    """How a check ended."""

    PASSED = "passed"
    LIMITED = "limited"
    """Uploads work, but not in every protocol, or not for every size."""
    FAILED = "failed"
    """Uploads are lost, refused, or begin again after a cut."""
    SKIPPED = "skipped"
    """It could not be tried."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check."""

    name: str
    """The stable name of the check, such as ``streaming``."""
    verdict: Verdict
    seen: str
    """What was seen, in a sentence."""
    cure: str = ""
    """What to change; "" if nothing needs to change."""
