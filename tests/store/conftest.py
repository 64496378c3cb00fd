"""One fixture, ``stand``, for every implementation of the store's port."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.store.helpers import DiskStand, MemoryStand, Stand, boot_setter


@pytest.fixture
def disk_stand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DiskStand]:
    stand = DiskStand(tmp_path, boot_setter(monkeypatch.setattr))
    yield stand
    stand.close()


@pytest.fixture(params=["disk", "memory"])
def stand(request: pytest.FixtureRequest) -> Iterator[Stand]:
    if request.param == "disk":
        yield request.getfixturevalue("disk_stand")
    else:
        memory = MemoryStand()
        yield memory
        memory.close()
