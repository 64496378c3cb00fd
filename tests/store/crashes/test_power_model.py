"""The disk store against the model, on a disk that loses what it may at each power loss.

As :mod:`tests.store.contract.test_model`; but what a crash leaves is worked out from all that was
done since the start, and Hypothesis chooses what is lost. A failure is shrunk to the
least that has to be lost for it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from contextlib import ExitStack
from pathlib import Path

import pytest
from hypothesis import settings, strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test

from tests.store.contract.test_model import _SETTINGS, Operation, StoreMachine
from tests.store.crashes.power import Pick, Platter, newest
from tests.store.crashes.recording import Call, Recording, SyncDirectory, SyncFile
from tests.store.helpers import CHUNK, DiskStand
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.keeper.inventory import Inventory

MEMORY = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


class PowerStand(DiskStand):
    """A store that goes on with what a crash may have left, as :attr:`pick` chooses."""

    def __init__(self, path: Path) -> None:
        self.pick: Pick = newest
        self._root = path / "world0"
        self._root.mkdir()
        self._watch = ExitStack()
        self._sync_fails = False
        super().__init__(path)

    def open(self, chunk_size: int = CHUNK) -> DiskStore:
        self.data_dir = self._root / "data"
        self._recording = Recording(self._root, self._fails)
        self._platter = Platter(self._root, self._recording.adopt)
        self._watch.enter_context(self._recording.watching())
        return open_store(self.data_dir, chunk_size=chunk_size, disk=self._recording)

    def _fails(self, call: Call) -> bool:
        fails = self._sync_fails and isinstance(call, SyncFile | SyncDirectory)
        if fails:
            self._sync_fails = False
        return fails

    def restart(
        self, *, power_loss: bool = False, chunk_size: int = CHUNK
    ) -> DiskStore:
        for call in self._recording.calls:
            self._platter.play(call)
        left = self._platter.remains(self.pick if power_loss else newest)
        self.close()
        shutil.rmtree(self._root)
        self._starts += 1
        self._root = self._path / f"world{self._starts}"
        self._root.mkdir()
        left.put_into(self._root)
        self.store = self.open(chunk_size)
        return self.store

    def set_space(self, space: int | None) -> None:
        self._recording.space = space

    def fail_next_sync(self) -> None:
        self._sync_fails = True

    def fail_no_sync(self) -> None:
        self._sync_fails = False

    def close(self) -> None:
        self.store.close()
        self._watch.close()


class PowerMachine(StoreMachine):
    """The model's rules, and one more."""

    def __init__(self) -> None:
        super().__init__()
        self._path = Path(tempfile.mkdtemp(prefix="trioresume-power-", dir=MEMORY))
        self._power_stand = PowerStand(self._path)
        self.stand = self._power_stand

    @rule(data=st.data())
    def lose_power(self, data: st.DataObject) -> None:
        self._power_stand.pick = lambda outcomes: data.draw(
            st.integers(0, outcomes - 1)
        )
        self.restart(power_loss=True)
        self._power_stand.pick = newest

    def may_survive(self, operation: Operation, offset: int) -> bool:
        # What is not lost is proven, and the content is compared by the invariant.
        return operation.surviving() <= offset <= len(operation.data)

    def teardown(self) -> None:
        try:
            with Inventory(self._power_stand.data_dir) as inventory:
                assert list(inventory.verify()) == []
            super().teardown()
        finally:
            shutil.rmtree(self._path)


@pytest.mark.usefixtures("watched_sqlite")
def test_store_behaves_like_the_model_whatever_power_losses_take() -> None:
    """Rules 1 to 5 hold in any order of events, and after any legal loss (G9)."""
    examples = int(os.environ.get("TRIORESUME_POWER_EXAMPLES", "30"))
    run_state_machine_as_test(
        PowerMachine, settings=settings(_SETTINGS, max_examples=examples)
    )
