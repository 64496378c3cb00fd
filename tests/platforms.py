"""Which tests can run where, said once.

Each of these leaves a test out where what it tests, or tests with, cannot be: never
because it fails. On the machine that `.ci/run` prepares all of them run but the fuzzer's,
which has a step of its own there.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path

import pytest

__all__ = [
    "has_direct_writes",
    "has_file_size_limits",
    "linux_only",
    "needs",
    "needs_atheris",
    "reads_memory",
    "unreadable_page",
]


def linux_only(uses: str) -> pytest.MarkDecorator:
    """For tests of what is Linux's alone, by its documentation as well, and so cannot
    be there on another system: *uses* says what that is."""
    return pytest.mark.skipif(
        not sys.platform.startswith("linux"),
        reason=f"uses {uses}, which only Linux has",
    )


def needs(program: str) -> pytest.MarkDecorator:
    """For tests with a real client or tool that is no package of Python's."""
    return pytest.mark.skipif(
        shutil.which(program) is None,
        reason=f"runs {program}, which is not installed and pip cannot install",
    )


reads_memory = pytest.mark.skipif(
    not Path("/proc/self/status").exists(),
    reason="another process's memory is read from /proc, which this system has not",
)

unreadable_page = pytest.mark.skipif(
    not Path("/proc/self/mem").exists(),
    reason="reading /proc/self/mem fails with EIO, as a broken disk does; there is none",
)

has_direct_writes = pytest.mark.skipif(
    not hasattr(os, "O_DIRECT"),
    reason="this system has no O_DIRECT; what is done without it is tested everywhere",
)

has_file_size_limits = pytest.mark.skipif(
    importlib.util.find_spec("resource") is None,
    reason="a process sets itself RLIMIT_FSIZE, which this system has not",
)

needs_atheris = pytest.mark.skipif(
    importlib.util.find_spec("atheris") is None,
    reason="atheris has wheels for few interpreters, so that no extra asks for it;"
    " .ci/run installs it for a step of its own, and the corpora run without it",
)
