"""``python -m tests.e2e.wrong_clock``: the real command, with a wall clock that is wrong.

``WRONG_CLOCK`` says by how many seconds. The monotonic clock is left alone.
"""

from __future__ import annotations

import os
import runpy
import time

_right = time.time
_wrong_by = float(os.environ["WRONG_CLOCK"])


def _wrong() -> float:
    return _right() + _wrong_by


if __name__ == "__main__":
    time.time = _wrong
    runpy.run_module("trioresume", run_name="__main__")
