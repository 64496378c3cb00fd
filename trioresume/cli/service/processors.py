"""How many processors the command may use."""

from __future__ import annotations

import math
import os
from pathlib import Path

__all__ = ["usable_processors"]

_CGROUPS = Path("/sys/fs/cgroup")


def usable_processors(cgroups: Path = _CGROUPS) -> int:
    """Return how many processors this process may use, at least 1.

    That is the number in its affinity mask, or less if its control group has a quota, as a
    container has with a limit of its CPU: then the number that the quota pays for, rounded up.
    """
    try:
        number = len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        number = os.cpu_count() or 1
    quota = _quota(cgroups)
    if quota is not None:
        number = min(number, math.ceil(quota))
    return max(1, number)


def _quota(cgroups: Path) -> float | None:
    """Return the quota in processors; None without one.

    A container sees its own group at the root of the file system of groups.
    """
    try:
        spent, period = (cgroups / "cpu.max").read_text("ascii").split()
    except (OSError, ValueError):
        try:
            group = cgroups / "cpu"
            spent = (group / "cpu.cfs_quota_us").read_text("ascii")
            period = (group / "cpu.cfs_period_us").read_text("ascii")
        except (OSError, ValueError):
            return None
    try:
        quota = int(spent) / int(period)
    except (ValueError, ZeroDivisionError):
        return None  # "max": no quota
    return quota if quota > 0 else None
