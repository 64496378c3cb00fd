"""Opens the store of a cluster's node: PostgreSQL and an object store put together."""

from __future__ import annotations

import os

from trioresume.errors import StorageError
from trioresume.store.cluster_store import ClusterStore, check_chunk_size
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket
from trioresume.store.objects.scratch import Scratch
from trioresume.store.postgres.catalog import PostgresCatalog

__all__ = ["TAIL_MEMORY", "open_cluster_store"]

TAIL_MEMORY = 256 * 1024 * 1024
"""Bytes of unfinished chunks that a node keeps in memory. The others are in files."""


def open_cluster_store(
    catalog: str,
    objects: str,
    *,
    chunk_size: int,
    scratch: str | os.PathLike[str],
    tail_memory: int = TAIL_MEMORY,
) -> ClusterStore:
    """Join the cluster whose catalog and objects are at these URLs. Blocks.

    *scratch* is a directory of this node alone, made if missing, for unfinished chunks beyond
    *tail_memory* bytes; it is empty after the end of the node. *chunk_size* is in bytes.

    Raises :class:`CallerError` for a malformed URL or size,
    :class:`StorageUnavailable` if the database cannot be reached in time, and
    :class:`FormatVersionUnsupported`.
    """
    check_chunk_size(chunk_size)
    address = parse_address(objects)
    try:
        os.makedirs(scratch, mode=0o700, exist_ok=True)
    except OSError as exc:
        raise StorageError(f"making the directory {scratch}: {exc}") from exc
    bucket = S3Bucket(address)
    node = PostgresCatalog(catalog, chunk_size=chunk_size)
    return ClusterStore(
        node, bucket, Scratch(scratch, memory=tail_memory), chunk_size=chunk_size
    )
