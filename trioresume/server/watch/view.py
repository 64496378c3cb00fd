"""What those who watch may see of a running service."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.doorman import Doorman
    from trioresume.server.watch.facts import Facts
    from trioresume.server.watch.requests import Requests
    from trioresume.server.watch.tally import Tally

__all__ = ["Others", "View"]


class Others(Protocol):
    """The other processes of the service."""

    async def reports(self, patience: float) -> list[Any]:
        """Return the reports of :mod:`.merging`, within *patience* seconds."""
        ...

    def metrics(self) -> Iterator[Any]:
        """Yield metrics about these processes themselves."""
        ...


@dataclass(frozen=True, slots=True)
class View:
    """The parts of a running service that are looked at, never changed."""

    config: Config
    tally: Tally
    requests: Requests
    storage: Storage
    doorman: Doorman
    facts: Facts
    others: Others | None = None

    def queues(self) -> dict[str, int]:
        """Return the lengths of the queues, by what they wait for."""
        storage, front = self.storage, self.doorman.front
        return {
            "commit": storage.waiting,
            "upload_threads": storage.workers.waiting,
            "download_threads": storage.senders.waiting,
            "call_threads": storage.callers.waiting,
            "hash_threads": storage.hashers.waiting,
            "start": front.admission.starts.waiting,
            "receive_memory": front.memory.waiting,
        }
