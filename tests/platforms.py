"""Which tests can run where, said once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

__all__ = ["linux_only", "reads_memory"]


def linux_only(uses: str) -> pytest.MarkDecorator:
    """For tests of what is Linux's alone, by its documentation as well, and so cannot
    be there on another system: *uses* says what that is."""
    return pytest.mark.skipif(
        not sys.platform.startswith("linux"),
        reason=f"uses {uses}, which only Linux has",
    )


reads_memory = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="another process's memory is read from /proc, which this system has not",
)
