"""Recovery: finding where content under construction ends, so that it can be opened there.

The content is a :class:`~trioresume.store.disk.unfinished.Extent`, a row of parts without a gap.
Before a writer can go on, the parts may have to be *repaired*:

* unsynced bytes from another epoch that are not proven, or from before a sync that failed,
  are cut off;
* sealed chunks past a gap are released; only such a cut leaves them;
* content that was finished but never frozen ends in a short chunk. The chunk is turned
  back into a tail, because all chunks but the last have the same length;
* a partial tail that shares its file with a chunk is replaced by a copy, because the chunk
  may be others' content.
"""

from __future__ import annotations

from threading import Lock

from trioresume.errors import ChunkCorrupt, ContentLost, StorageConflict, StorageError
from trioresume.store.catalog.catalog import Catalog
from trioresume.store.catalog.chunk_lists import NO_EPOCH, release_pieces, unhold
from trioresume.store.disk.chunks import ChunkFiles
from trioresume.store.disk.opening import TRIES, Opening, WaitingChunk
from trioresume.store.disk.tail_files import TailFiles
from trioresume.store.disk.unfinished import Epoch, Extent, Part, Survey
from trioresume.store.file_system.disk_io import Disk, translated
from trioresume.store.port import (
    ContentKey,
    OperationState,
    is_response_key,
    operation_of,
)
from trioresume.store.port.recipes import Digest

__all__ = ["Recovery"]

_MOST_PROOFS = 4096
"""How many tails' proven lengths are remembered."""


class Recovery:
    """Finds how to open tails. *changing* is the store's lock against other changes of its files."""

    def __init__(
        self,
        catalog: Catalog,
        chunks: ChunkFiles,
        tails: TailFiles,
        disk: Disk,
        changing: Lock,
        *,
        chunk_size: int,
        epoch: Epoch,
    ) -> None:
        self._catalog = catalog
        self._chunks = chunks
        self._tails = tails
        self._disk = disk
        self._changing = changing
        self._chunk_size = chunk_size
        self._epoch = epoch
        self._survey = Survey(catalog, tails.length, self._proven, epoch)
        self._proofs: dict[tuple[ContentKey, int], int] = {}

    def _proven(self, key: ContentKey, index: int) -> int:
        """Return :meth:`TailFiles.proven`, and remember it until somebody writes.

        A client may ask for an offset again and again, and must not cause a read each time.
        """
        proven = self._proofs.get((key, index))
        if proven is None:
            if len(self._proofs) >= _MOST_PROOFS:
                self._proofs.clear()
            proven = self._proofs[key, index] = self._tails.proven(key, index)
        return proven

    def _adopt(self, key: ContentKey, extent: Extent) -> None:
        for part in extent.parts:
            self._proofs.pop((key, part.index), None)
        self._epoch.adopt(key)

    def offset(self, key: ContentKey) -> int | None:
        """Return the offset at which a writer of *key* would begin.

        Returns None if the content has no bytes yet or is frozen. Raises
        :class:`ContentLost`.
        """
        extent = self._survey.look(key)
        return None if extent is None else self._checked(key, extent)

    def _checked(self, key: ContentKey, extent: Extent) -> int:
        """Return how many bytes count. Raises :class:`ContentLost`."""
        offset = extent.checked()
        doubts = self._chunks.doubts
        if doubts is not None and (
            doubts.any_reported or (doubts.any_unsynced and not extent.trusted)
        ):
            try:
                for digest in self._catalog.sealed(key):
                    doubts.check(digest, self._chunks.path(digest))
            except (ChunkCorrupt, OSError) as exc:
                raise ContentLost(f"a chunk was lost: {exc}") from exc
        return offset

    def holds_tail(self, key: ContentKey, index: int) -> bool:
        """Return whether tail *index* is a part of *key*'s content, which has no writer.

        It is not a part if it lies past a gap, which a power loss can leave, or if it belongs
        to a response that an earlier run began. A new writer writes such tails again.
        """
        if self._tails.is_being_sealed(key, index):
            return True
        extent = None if is_response_key(key) else self._survey.look(key, proofs=False)
        return extent is not None and any(
            part.index == index and not part.sealed for part in extent.parts
        )

    def distrust(self, key: ContentKey) -> None:
        """Count only the recorded bytes of *key*, because a sync of it failed."""
        self._epoch.suspect([key])
        try:
            with self._changing, self._catalog.transaction() as connection:
                connection.execute(
                    "UPDATE contents SET epoch = ? WHERE key = ?", (NO_EPOCH, key)
                )
                self._epoch.note(connection)
        except StorageError:
            # The disk that failed the sync fails this write, too. While this process
            # lives, the set of suspects is enough. After it, nothing is owed: the unsynced
            # bytes were never announced.
            pass

    def find(self, key: ContentKey) -> Opening:
        """Return how to open the tail of *key*, after repairing what had to be repaired."""
        state = self._catalog.state_of(operation_of(key))
        if state is OperationState.GONE:
            raise StorageConflict("the operation has ended")
        if is_response_key(key):
            if state is OperationState.DONE:
                raise StorageConflict("the response is recorded")
            self._discard(key)
            return Opening(self._chunk_size, epoch=self._epoch.number)
        for _ in range(TRIES):
            epoch = self._epoch.number
            extent = self._survey.look(key)
            if extent is None:
                if self._is_new(key):
                    return Opening(self._chunk_size, epoch=epoch)
                continue
            self._checked(key, extent)
            if self._is_sound(key, extent):
                try:
                    return self._opening(key, extent, epoch)
                except FileNotFoundError:
                    continue  # the content was released since the look
            with self._changing, translated("repairing a tail"):
                self._repair(key)
        raise StorageError(
            "the content was changed again and again while it was opened; try again"
        )

    def _is_new(self, key: ContentKey) -> bool:
        """Return whether *key* has no content yet; False if it just got some: look again."""
        if self._catalog.state_of(operation_of(key)) is not None:
            # The operation may have been created between the two looks.
            if self._survey.look(key) is not None:
                return False
            raise StorageConflict("the content is frozen")
        self._tails.end_sealings(key)
        return True

    def _discard(self, key: ContentKey) -> None:
        """Release the response content that an earlier run left."""
        self._tails.end_sealings(key)
        if self._catalog.content(key) is None:
            return
        with self._changing, self._catalog.transaction() as connection:
            row = connection.execute(
                "SELECT cid FROM contents WHERE key = ?", (key,)
            ).fetchone()
            if row is not None:
                connection.execute("UPDATE contents SET key = NULL WHERE cid = ?", row)
                release_pieces(connection, row[0], 0, 1)

    def _is_sound(self, key: ContentKey, extent: Extent) -> bool:
        return (
            extent.trusted
            and not extent.strays
            and extent.short is None
            and self._tails.short_sealing(key, extent.row.chunk_size) is None
            and self._shared(key, extent) is None
        )

    def _shared(self, key: ContentKey, extent: Extent) -> int | None:
        """Return the index of the partial tail if its file is shared: see tail_files.py."""
        index, rest = divmod(extent.end, extent.row.chunk_size)
        return index if rest and self._tails.is_shared(key, index) else None

    def _opening(self, key: ContentKey, extent: Extent, epoch: int) -> Opening:
        index, rest = divmod(extent.end, extent.row.chunk_size)
        waiting = tuple(
            WaitingChunk(part.index, part.length, self._digest(key, part))
            for part in extent.parts
            if part.length == extent.row.chunk_size
        )
        return Opening(
            extent.row.chunk_size, index, rest, extent.row.durable, waiting, epoch
        )

    def _digest(self, key: ContentKey, part: Part) -> Digest | None:
        if not part.sealed:
            return None
        digest = self._catalog.piece(key, part.index)
        if digest is None:
            raise FileNotFoundError("the content was released")
        return digest

    # Repairing. The caller holds the lock.

    def _repair(self, key: ContentKey) -> None:
        extent = self._survey.look(key)
        if extent is None:
            return
        short = self._tails.short_sealing(key, extent.row.chunk_size)
        if short is not None:
            # The content was finished and is now continued: the short chunk is not the
            # last any more.
            self._tails.end_sealing(key, short)
        if extent.short is not None and extent.kept == extent.end:
            self._unseal(key, extent, extent.short)
        elif extent.provable and extent.kept == extent.end and not extent.strays:
            self._adopt(key, extent)
        elif extent.strays or not extent.trusted:
            self._cut(key, extent)
        elif (index := self._shared(key, extent)) is not None:
            # Both files have the same bytes, so the new one's name needs no sync here. The
            # next flush syncs it.
            self._tails.unshare(key, index, extent.end % extent.row.chunk_size)

    def _cut(self, key: ContentKey, extent: Extent) -> None:
        size = extent.row.chunk_size
        index = extent.kept // size
        self._tails.end_sealings(key, index)
        # Cut the files first: once the content has the present epoch, all their bytes are
        # believed. The cut is synced, because the bytes must not come back after it: they
        # may be proven.
        for part in extent.parts:
            self._proofs.pop((key, part.index), None)
            left = extent.kept - part.index * size
            if left < part.length and not part.sealed:
                self._tails.cut(key, part.index, left)
        self._tails.sync_names()
        with self._catalog.transaction() as connection:
            at = (extent.row.cid, index)
            rows = connection.execute(
                "SELECT digest FROM pieces WHERE cid = ? AND idx >= ?", at
            ).fetchall()
            unhold(connection, [Digest(digest) for (digest,) in rows])
            connection.execute("DELETE FROM pieces WHERE cid = ? AND idx >= ?", at)
            connection.execute(
                "UPDATE contents SET epoch = ? WHERE cid = ?",
                (self._epoch.number, extent.row.cid),
            )
        self._epoch.acquit(key)

    def _unseal(self, key: ContentKey, extent: Extent, index: int) -> None:
        """Turn the short chunk *index* at the content's end back into a tail."""
        row = extent.row
        digest = self._catalog.piece(key, index)
        if digest is None:
            return
        path = self._tails.path(key, index)
        self._disk.unlink(path)
        try:
            self._disk.copy(self._chunks.path(digest), path)
        except FileNotFoundError as exc:
            raise ContentLost(f"chunk {digest.hex()} is missing") from exc
        self._tails.sync_names()
        # The copy is synced. If all bytes before it are synced as well, the bytes that
        # were durable as a chunk must still count as durable.
        all_synced = index < row.prefix or extent.recorded == extent.end
        with self._catalog.transaction() as connection:
            unhold(connection, [digest])
            connection.execute(
                "DELETE FROM pieces WHERE cid = ? AND idx = ?", (row.cid, index)
            )
            connection.execute(
                "UPDATE contents SET prefix = ?, prefix_bytes = ?, durable_offset = ?"
                " WHERE cid = ?",
                (
                    min(row.prefix, index),
                    min(row.prefix_bytes, index * row.chunk_size),
                    extent.end if all_synced else row.durable_offset,
                    row.cid,
                ),
            )
