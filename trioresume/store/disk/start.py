"""The start of a store on its directory: refuse a lost catalog, and begin an epoch.

The docstring of disk_store.py says what an epoch is.
"""

from __future__ import annotations

from trioresume.errors import StorageError
from trioresume.store.catalog.catalog import Catalog
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.doubts import Doubts
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Epoch
from trioresume.store.file_system.data_dir import boot_id, mount_id
from trioresume.store.file_system.disk_io import Disk

__all__ = ["begin_epoch", "refuse_lost_catalog"]


def refuse_lost_catalog(catalog: Catalog, chunks: ChunkFiles) -> None:
    """Refuse a catalog that no store has used, if there is content.

    Each start notes ``clean`` before anything is stored, so the catalog was lost, or its
    log before it was ever copied back. With the catalog as it is, a sweep would remove
    all chunks as the remains of a crash. Raises :class:`StorageError`.
    """
    is_used = catalog.store_value("clean") is not None
    if is_used or catalog.knows_chunks() or chunks.are_none():
        return
    raise StorageError(
        "the catalog is missing or empty, but there is stored content. Nothing was"
        ' removed; see "A damaged catalog" in docs/howto/keep.md'
    )


def begin_epoch(
    epoch: Epoch,
    catalog: Catalog,
    chunks: ChunkFiles,
    tails: TailFiles,
    disk: Disk,
    data_dir: str,
) -> bool:
    """Record that the store is in use, and begin an epoch.

    Returns whether the last process may have left files that nothing refers to.
    """
    last = Epoch.kept_in(catalog)
    epoch.begin(last.number + 1, last.provable)
    unsynced = catalog.store_value("durability") == "process"
    was_clean = catalog.store_value("clean") == "yes"
    mount = mount_id(data_dir)
    same = mount is not None and mount == catalog.store_value("mount")
    kept = catalog.store_value("mount_epoch")
    mount_epoch = int(kept) if same and kept is not None else epoch.number
    boot = catalog.store_value("boot")
    if unsynced and boot is not None and boot == (boot_id() or ""):
        _prove_old_tails(last.number, catalog, tails)
    if unsynced:
        # Bytes that the earlier process left in the page cache must not count as
        # durable now, so they are written back first.
        disk.sync_everything(data_dir)
    with catalog.transaction() as connection:
        connection.execute("DELETE FROM store WHERE name = 'boot'")
        if unsynced and disk.durable:
            connection.execute(
                "UPDATE chunks SET unsynced = 0 WHERE unsynced >= ? AND unsynced > 0",
                (mount_epoch,),
            )
    chunks.doubts = Doubts(catalog, disk, mount_epoch, data_dir, chunks.checked)
    values = {
        "mount": mount or "",
        "mount_epoch": str(mount_epoch),
        **epoch.values(),
        "clean": "no",
        "durability": "disk" if disk.durable else "process",
    }
    with catalog.transaction() as connection:
        connection.executemany("REPLACE INTO store VALUES (?, ?)", values.items())
    return not was_clean or unsynced


def _prove_old_tails(epoch: int, catalog: Catalog, tails: TailFiles) -> None:
    """Write proofs for tails of an earlier version, which recorded the boot instead.

    With ``durability="process"`` that version recorded no offsets. It announced the
    lengths of tails, and believed them until the next boot. They are believed for the
    last time here, so an upgrade takes back no offset.
    """
    for _, key, index in tails.tails():
        row = catalog.content(key)
        if row is None or row.epoch != epoch:
            continue
        try:
            tails.prove(key, index)
        except OSError:
            continue  # a tail that cannot be read or written is found when it is opened
