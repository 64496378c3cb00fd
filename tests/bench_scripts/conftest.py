"""What tests of the benchmark share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from bench.workspace import Workspace


class Unprepared(Workspace):
    """Does not wait for the whole machine's disks."""

    def prepare(self, size: int) -> int:
        return 0


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Workspace]:
    with closing(Unprepared(tmp_path)) as made:
        yield made
