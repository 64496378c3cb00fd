"""Switch off what only Linux has: ``pytest -p tests.portable …``.

trioresume asks whether a call is there before it uses it. This plugin takes the calls away before
the package is imported, and names another system, so that the tests run what macOS and the BSDs
run. trio and the standard library are imported before, because they need the system that there is.

Not covered: what the kernel itself does otherwise there, ``F_FULLFSYNC`` of macOS, and ``/proc``,
which stays readable.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import multiprocessing
import os
import shutil
import socket
import sqlite3
import ssl
import subprocess
import sys
import tempfile

import h2
import hypothesis
import trio
import trio.testing

__all__ = ["GONE", "PLATFORM", "switch_off"]

PLATFORM = "portable"
"""What ``sys.platform`` says afterwards."""

# Their decisions about the system are made when they are imported.
_FIRST = (asyncio, ctypes, fcntl, multiprocessing, sqlite3, subprocess, tempfile)
_THEN = (h2, hypothesis, trio, trio.testing)

GONE: dict[object, tuple[str, ...]] = {
    os: (
        "O_DIRECT",
        "copy_file_range",
        "fdatasync",
        "memfd_create",
        "pidfd_open",
        "posix_fadvise",
        "posix_fallocate",
        "sendfile",
        "splice",
    ),
    socket: ("TCP_USER_TIMEOUT", "SO_PEERCRED", "TCP_QUICKACK", "SO_INCOMING_CPU"),
    ssl: ("OP_ENABLE_KTLS",),
}
"""The calls and constants of Linux that are taken away, where this Python has them."""


def switch_off() -> None:
    """Take them away. Raises :class:`AssertionError` if the package was imported before."""
    loaded = [name for name in sys.modules if name.partition(".")[0] == "trioresume"]
    assert not loaded, loaded
    for module, names in GONE.items():
        for name in names:
            if hasattr(module, name):
                delattr(module, name)
    # shutil has decided to use sendfile already.
    setattr(shutil, "_USE_CP_SENDFILE", False)  # noqa: B010 - the stubs do not have it
    sys.platform = PLATFORM


switch_off()
