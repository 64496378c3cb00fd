"""Telling one mount of a file system, and one boot of the machine, from another."""

from __future__ import annotations

import ctypes
import os
import struct
import sys
from pathlib import Path

__all__ = ["boot_id", "mount_id"]

_BOOT_ID = "/proc/sys/kernel/random/boot_id"
_AT_FDCWD = -100
_STATX_MNT_ID_UNIQUE = 0x4000
_STATX_SIZE = 256
_MASK_AT, _MOUNT_AT = 0, 0x90
"""Where ``stx_mask`` and ``stx_mnt_id`` are in ``struct statx`` (linux/stat.h)."""


def mount_id(path: str) -> str | None:
    """Return an id of the mount that holds *path*; no other or earlier mount has the same.

    Returns None where the system cannot tell: it takes Linux 6.8. The number of a mount in
    ``/proc/self/mountinfo`` does not serve, because the kernel reuses it.
    """
    if sys.platform != "linux":
        return None
    statx = getattr(ctypes.CDLL(None), "statx", None)
    found = ctypes.create_string_buffer(_STATX_SIZE)
    if statx is None or statx(
        _AT_FDCWD, os.fsencode(path), 0, _STATX_MNT_ID_UNIQUE, found
    ):
        return None
    (mask,) = struct.unpack_from("=I", found, _MASK_AT)
    if not mask & _STATX_MNT_ID_UNIQUE:
        return None
    (number,) = struct.unpack_from("=Q", found, _MOUNT_AT)
    boot = boot_id()
    return None if boot is None else f"{boot} {number}"


def boot_id() -> str | None:
    """Identify this boot of the machine; None where that is unknown."""
    try:
        return Path(_BOOT_ID).read_text(encoding="ascii").strip()
    except OSError:
        return None
