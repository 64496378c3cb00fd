"""A node of a cluster to try the store on: with a catalog and a bucket in memory, or real ones."""

from __future__ import annotations

from tests.store.helpers import CHUNK
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.scratch import Scratch
from trioresume.testing.memory_catalog import MemoryBucket, MemoryCatalog

__all__ = ["ClusterStand"]


class ClusterStand:
    """A :class:`ClusterStore`. To kill it is to go on with another node."""

    survives_kill = False
    """What was never announced is on the node alone."""

    def __init__(self) -> None:
        self.catalog = MemoryCatalog(chunk_size=CHUNK)
        self.bucket = MemoryBucket()
        self.node = self.catalog.join()
        self.store = self._open(CHUNK)

    def _open(self, chunk_size: int) -> ClusterStore:
        self.catalog._chunk_size = chunk_size
        self.scratch = Scratch(None, memory=1 << 20)
        return ClusterStore(self.node, self.bucket, self.scratch, chunk_size=chunk_size)

    def restart(
        self, *, power_loss: bool = False, chunk_size: int = CHUNK
    ) -> ClusterStore:
        self.node.die()
        self.node = self.catalog.join()
        self.store = self._open(chunk_size)
        return self.store

    def set_space(self, space: int | None) -> None:
        self.scratch.most_bytes = None if space is None else self.scratch.used + space

    def fail_next_sync(self) -> None:
        self.bucket.fail_next_put = True

    def fail_no_sync(self) -> None:
        self.bucket.fail_next_put = False

    def stored_bytes(self) -> int:
        return self.scratch.used + sum(map(len, self.bucket.objects.values()))

    def close(self) -> None:
        self.store.close()
