"""A node of a cluster to try the store on: with a catalog and a bucket in memory, or real ones."""

from __future__ import annotations

from collections.abc import Sequence

from tests.store.helpers import CHUNK
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.s3 import S3Bucket
from trioresume.store.objects.scratch import Scratch
from trioresume.testing.memory_catalog import MemoryBucket, MemoryCatalog

__all__ = ["ClusterStand", "S3Stand"]


class ClusterStand:
    """A :class:`ClusterStore`. To kill it is to go on with another node."""

    survives_kill = False
    """What was never announced is on the node alone."""

    def __init__(self) -> None:
        self.catalog = MemoryCatalog(chunk_size=CHUNK)
        self.bucket = self._new_bucket()
        self.node = self.catalog.join()
        self.store = self._open(CHUNK)

    def _new_bucket(self) -> MemoryBucket:
        return MemoryBucket()

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


class S3Stand(ClusterStand):
    """The same with its objects in a real server."""

    def __init__(self, bucket: S3Bucket) -> None:
        self._real = bucket
        super().__init__()

    def _new_bucket(self) -> MemoryBucket:
        return _Behind(self._real)


class _Behind(MemoryBucket):
    """A real bucket whose next put can fail."""

    def __init__(self, real: S3Bucket) -> None:
        super().__init__()
        self._real = real
        self.get = real.get  # type: ignore[method-assign]
        self.list = real.list  # type: ignore[method-assign]

    def put_absent(self, name: str, data: memoryview | bytes) -> bool:
        self._check()
        self.objects[name] = bytes(data)
        return self._real.put_absent(name, data)

    def put(self, name: str, data: memoryview | bytes) -> None:
        self._check()
        self.objects[name] = bytes(data)
        self._real.put(name, data)

    def delete(self, names: Sequence[str]) -> None:
        super().delete(names)
        self._real.delete(names)

    def close(self) -> None:
        """Check that the server has what the tests have looked at."""
        found: list[str] = []
        for prefix in ("chunks/", "tails/"):
            after = ""
            while page := self._real.list(prefix, after, 1000):
                found += [each.name for each in page]
                after = page[-1].name
        assert found == sorted(self.objects)
