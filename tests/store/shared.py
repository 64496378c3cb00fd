"""Stands on which several processes share a store, for the contract of sharing."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Protocol, TypeVar

from trioresume.errors import StaleWriter
from trioresume.store.port import Mutation, Notice, OperationId, Sharing, Store
from trioresume.testing.shared_memory import SharedMemory, SharedMemoryStore

from .helpers import CHUNK

T = TypeVar("T")

TAKEOVER_TIMEOUT = 0.3
"""Seconds that a claim waits for an owner that does not answer, on every stand."""
PATIENCE = 10.0
"""Seconds after which a notice that has to come is missing."""


class SharedStand(Protocol):
    """A store that several processes share, and the faults of these processes.

    A claim waits :data:`TAKEOVER_TIMEOUT` for an owner. ``stop`` and ``kill`` take a store that
    ``join`` returned.
    """

    def join(self) -> Store:
        """The store of one more process. Its ``sharing`` is not None."""
        ...

    def stop(self, store: Store) -> None:
        """Have its process take no notice any more, as if it was stopped."""
        ...

    def go_on(self, store: Store) -> None:
        """End :meth:`stop`, unless the process was killed because of it."""
        ...

    def kill(self, store: Store) -> None:
        """End its process, as by SIGKILL."""
        ...

    def close(self) -> None: ...


class SharedMemoryStand:
    """The processes are played in memory."""

    def __init__(self) -> None:
        self._memory = SharedMemory(chunk_size=CHUNK, takeover_timeout=TAKEOVER_TIMEOUT)

    def join(self) -> Store:
        return self._memory.join()

    def stop(self, store: Store) -> None:
        assert isinstance(store, SharedMemoryStore)
        store.is_stopped = True

    def go_on(self, store: Store) -> None:
        assert isinstance(store, SharedMemoryStore)
        store.is_stopped = False

    def kill(self, store: Store) -> None:
        assert isinstance(store, SharedMemoryStore)
        store.kill()

    def close(self) -> None:
        self._memory.close()


class Ears:
    """Takes the notices of one process, and lets a test wait for them.

    *answer* is called with each notice, in a thread of its own, as a server would answer.
    """

    def __init__(
        self, store: Store, answer: Callable[[Notice], None] | None = None
    ) -> None:
        self.heard: list[Notice] = []
        self._answer = answer
        self._came = threading.Condition()
        sharing_of(store).listen(self._take)
        # An answer shows that the word of it has arrived, before another process asks.
        store.operation(OperationId("nobody-made-it"))

    def _take(self, notice: Notice) -> None:
        with self._came:
            self.heard.append(notice)
            self._came.notify_all()
        if self._answer is not None:
            threading.Thread(target=self._answer, args=(notice,), daemon=True).start()

    def wait_for(self, notice: Notice, times: int = 1) -> None:
        """Return once *notice* has come so often."""
        with self._came:
            came = self._came.wait_for(
                lambda: self.heard.count(notice) >= times, PATIENCE
            )
        assert came, f"{notice} did not come, only {self.heard}"


class Task:
    """A call in a thread of its own."""

    def __init__(self, function: Callable[[], object]) -> None:
        self._outcome: list[object] = []
        self._function = function
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        try:
            self._outcome.append(self._function())
        except Exception as exc:  # noqa: BLE001 - the test looks at it
            self._outcome.append(exc)

    @property
    def is_running(self) -> bool:
        return self._thread.is_alive()

    def result(self) -> object:
        self._thread.join(PATIENCE)
        assert not self._thread.is_alive(), "the call does not return"
        return self._outcome[0]


def sharing_of(store: Store) -> Sharing:
    """How *store* is shared."""
    sharing = store.sharing
    assert sharing is not None
    return sharing


def is_refused(store: Store, *mutations: Mutation) -> bool:
    """Whether *mutations* as one submission are refused because another process owns it."""
    (error,) = store.apply([mutations])
    assert error is None or isinstance(error, StaleWriter), error
    return error is not None
