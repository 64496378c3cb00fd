"""The store of a cluster's node: a catalog that all nodes share, and content in objects.

Any node continues any upload. What this node keeps for itself is only what was never
announced: see :mod:`trioresume.store.objects.tails`. It is forgotten when another node claims
the operation.

The order in which a chunk becomes known
========================================

1. the catalog notes that this node holds the chunk (:meth:`.ObjectCatalog.hold`);
2. the object is put, unless it is there (:meth:`.Seal.run`);
3. the catalog commits the piece, and drops the hold;
4. this node frees the bytes.

A crash before step 3 leaves an object that nothing names, which collection or the sweep
removes. :mod:`trioresume.store.port.objects` says why collection never takes a chunk that a
node has just found to exist.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

from trioresume.errors import (
    CallerError,
    ChunkCorrupt,
    ContentLost,
    StaleWriter,
    StorageConflict,
    StorageError,
)
from trioresume.store.objects.bucket import Bucket, chunk_name, get_whole, new_tail_name
from trioresume.store.objects.collection import Sweep, collect_objects
from trioresume.store.objects.holds import Holds
from trioresume.store.objects.places import Source
from trioresume.store.objects.prefixes import PrefixReader
from trioresume.store.objects.readers import (
    Ahead,
    FirstBytes,
    InlineReader,
    open_recipe,
)
from trioresume.store.objects.scratch import Scratch
from trioresume.store.objects.tails import Tail, TailRoom, load_part
from trioresume.store.objects.writers import Writers
from trioresume.store.port import (
    Catalog,
    Collected,
    Content,
    ContentKey,
    ContentReader,
    ContentState,
    ContentWriter,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    JoinContents,
    LetCount,
    Mutation,
    Notice,
    ObjectCatalog,
    OperationId,
    OperationState,
    RecordResponse,
    RecordTail,
    SealChunk,
    Sharing,
    TailPart,
    check_key,
    is_response_key,
    operation_of,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import Digest, JoinedRecipe

if TYPE_CHECKING:
    from trioresume.store.objects.plain import PlainObjects

__all__ = ["LEAST_CHUNK_SIZE", "ClusterCatalog", "ClusterStore", "check_chunk_size"]

LEAST_CHUNK_SIZE = 8 * 1024 * 1024
"""S3 copies parts of at least 5 MiB, and charges for each request."""
LARGEST_CHUNK_SIZE = 1024 * 1024 * 1024
"""S3 takes 5 GiB in one request. A chunk has to fit into a node's memory or scratch space."""

_MOST_PARKED = 1024
"""Tails without a writer, all of whose bytes are announced, that this node keeps."""
_LOOKS = 16
"""Tails without a writer that a step of collection looks at."""


def check_chunk_size(size: int) -> None:
    """Raise :class:`CallerError` unless chunks of *size* bytes can be objects."""
    if not LEAST_CHUNK_SIZE <= size <= LARGEST_CHUNK_SIZE:
        raise CallerError(
            f"with an object store, the chunk size is from {LEAST_CHUNK_SIZE} to"
            f" {LARGEST_CHUNK_SIZE} bytes, not {size}"
        )


class ClusterCatalog(ObjectCatalog, Catalog, Protocol):
    """A catalog that knows of objects."""

    on_lost: Callable[[OperationId | None], None] | None
    """Called when another node has taken an operation from this one; None is any of them."""

    def owns(self, id: OperationId) -> bool:
        """Return whether this node owns the operation, as far as it knows."""
        ...

    def take_room(self, size: int) -> None: ...


class ClusterStore:
    """See :class:`trioresume.store.port.Store`."""

    def __init__(
        self,
        catalog: ClusterCatalog,
        bucket: Bucket,
        scratch: Scratch,
        *,
        chunk_size: int,
        read_ahead: int = 64 * 1024 * 1024,
    ) -> None:
        self.chunk_size = chunk_size
        self.blocking = True
        self.durable_at_once = False
        self.bucket = bucket
        self._catalog = catalog
        self._holds = Holds(catalog)
        self._room = TailRoom(bucket, self._holds, scratch)
        self._ahead = Ahead(read_ahead)
        self._writers = Writers()
        self._held_back: set[ContentKey] = set()
        """Content whose last bytes do not count yet: see :class:`HoldBack`."""
        self._plain: PlainObjects | None = None
        self._sweep: Sweep | None = None
        self._looked_at = 0
        sharing = catalog.sharing
        self._sharing = None if sharing is None else _Forgetful(sharing, self._forget)
        catalog.on_lost = self._lose

        # The questions that the catalog answers alone.
        self.check = catalog.check
        self.operation = catalog.operation
        self.operation_owned_by = catalog.operation_owned_by
        self.operations_in = catalog.operations_in
        self.count_operations = catalog.count_operations
        self.expiring = catalog.expiring
        self.expire_file = catalog.expire_file
        self.file = catalog.file
        self.meta = catalog.meta
        self.due_events = catalog.due_events
        self.events = catalog.events
        self.event_count = catalog.event_count
        self.usage = catalog.usage
        self.total_usage = catalog.total_usage
        self.take_room = catalog.take_room
        self.sealed_content = catalog.sealed_content
        self.parts_of = catalog.parts_of

    @property
    def sharing(self) -> Sharing | None:
        return self._sharing

    def close(self) -> None:
        self._writers.close()
        self._catalog.close()
        self.bucket.close()

    def _forget(self, id: OperationId) -> None:
        """Forget what this node has of an operation that it does not own any more."""
        for key in (request_key(id), response_key(id)):
            self._held_back.discard(key)
            self._writers.end(key)

    def _lose(self, id: OperationId | None) -> None:
        """Forget what another node has taken; with None, everything."""
        if id is not None:
            self._forget(id)
        else:
            for key in self._writers.known():
                self._forget(operation_of(key))

    # Changing.

    def apply(self, batch: Sequence[Sequence[Mutation]]) -> list[StorageError | None]:
        results: list[StorageError | None] = [
            self._refusal(submission) for submission in batch
        ]
        sound = [at for at, refusal in enumerate(results) if refusal is None]
        for at, result in zip(
            sound, self._catalog.apply([batch[at] for at in sound]), strict=True
        ):
            results[at] = result
        for submission, result in zip(batch, results, strict=True):
            if result is None:
                self._note_named(submission)
        for submission, result in zip(batch, results, strict=True):
            if result is None:
                self._note_ended(submission)
        return results

    def _refusal(self, submission: Sequence[Mutation]) -> StorageConflict | None:
        """Return the conflict of a submission with a seal that this store did not make."""
        for mutation in submission:
            if isinstance(mutation, SealChunk) and not (
                self._is_made_here(mutation) or self._catalog.knows_seal(mutation)
            ):
                return StorageConflict(
                    f"chunk {mutation.index} was discarded before it was sealed"
                )
        return None

    def _is_made_here(self, seal: SealChunk) -> bool:
        tail = self._writers.tail(seal.key)
        sealing = None if tail is None else tail.sealings.get(seal.index)
        return (
            sealing is not None and not sealing.is_cancelled and sealing.result == seal
        )

    def _note_named(self, submission: Sequence[Mutation]) -> None:
        named = []
        for mutation in submission:
            match mutation:
                case SealChunk(key, index, digest):
                    tail = self._writers.tail(key)
                    sealing = None if tail is None else tail.sealings.get(index)
                    if tail is None or sealing is None or sealing.is_applied:
                        continue
                    tail.applied(index)
                    named.append(digest)
                case RecordTail(key, offset):
                    tail = self._writers.tail(key)
                    if tail is not None:
                        tail.recorded = max(tail.recorded, offset)
                case HoldBack(key):
                    self._held_back.add(key)
                case LetCount(key):
                    self._held_back.discard(key)
        for digest in self._holds.named(named):
            self._writers.break_sealings(digest)
        self._holds.settle()

    def _note_ended(self, submission: Sequence[Mutation]) -> None:
        for mutation in submission:
            match mutation:
                case EndOperation(id) | ForgetOperation(id):
                    self._forget(id)
                case RecordResponse(operation=id, keep_content=keep):
                    self._end(response_key(id))
                    if not keep:
                        self._end(request_key(id))
                case JoinContents(operation=id):
                    self._end(request_key(id))
                case FreezeContent(key):
                    self._end(key)

    def _end(self, key: ContentKey) -> None:
        self._held_back.discard(key)
        self._writers.end(key)

    # Content under construction.

    def new_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        return self._writers.open(key, lambda tail, _: self._new_tail(key, tail))

    def _new_tail(self, key: ContentKey, old: Tail | None) -> Tail:
        if old is not None:
            old.discard()
        return Tail(self._room, key, self.chunk_size, generation=1)

    def open_writer(self, key: ContentKey) -> ContentWriter:
        check_key(key)
        operation = operation_of(key)
        if not (
            self._catalog.owns(operation) or self._catalog.operation(operation) is None
        ):
            # Only the owner's commits would be taken, and these would be refused.
            raise StaleWriter("another process owns the operation, or none does")
        if is_response_key(key):
            return self._writers.open(
                key, lambda tail, _: self._begin_response(key, tail)
            )
        return self._writers.open(
            key, lambda tail, was_open: self._reopen(key, tail, was_open)
        )

    def _begin_response(self, key: ContentKey, old: Tail | None) -> Tail:
        if old is not None:
            old.discard()
        record = self._catalog.operation(operation_of(key))
        if record is not None and record.state is OperationState.GONE:
            raise StorageConflict("the operation has ended")
        if record is not None and record.state is OperationState.DONE:
            raise StorageConflict("the response is recorded")
        self._catalog.discard(key)
        return self._new_tail(key, None)

    def _reopen(self, key: ContentKey, tail: Tail | None, was_open: bool) -> Tail:
        if tail is not None and (tail.broken or key in self._held_back):
            tail.discard()
            tail = None
        if tail is not None and was_open and (not tail.finished or tail.unfinish()):
            tail.record_again()
            return tail
        state = self._catalog.content(key)
        if tail is not None:
            if _continues(tail, state) and (not tail.finished or tail.unfinish()):
                assert state is not None
                tail.hand_out_again(state.prefix)
                tail.record_again()
                return tail
            tail.discard()
        self._held_back.discard(key)
        if state is not None:
            return self._recover(key, state)
        record = self._catalog.operation(operation_of(key))
        if record is None:
            return self._new_tail(key, None)
        if record.state is OperationState.GONE:
            raise StorageConflict("the operation has ended")
        raise StorageConflict("the content is frozen")

    def _recover(self, key: ContentKey, state: ContentState) -> Tail:
        """Return a tail with what the catalog knows, and let go of everything after a gap."""
        prefix, parts = state.prefix, state.parts
        if state.has_short_end:
            prefix, parts = prefix - 1, (self._unseal(key, state),)
        end = _end_of(prefix * state.chunk_size, parts)
        if end < state.durable_offset:
            raise ContentLost(
                f"{state.durable_offset} bytes were durable, {end} are left"
            )
        pieces = _by_chunk(parts, state.chunk_size)
        try:
            loaded = [
                b"".join(load_part(self.bucket, part, key) for part in chunk)
                for chunk in pieces
            ]
        except ChunkCorrupt as exc:
            raise ContentLost(str(exc)) from exc
        if state.has_short_end or state.beyond:
            self._catalog.reopen(key, prefix, parts)
        tail = Tail(
            self._room,
            key,
            state.chunk_size,
            generation=state.generation,
            index=prefix,
            flushed=end,
        )
        try:
            for data, chunk in zip(loaded, pieces, strict=True):
                tail.load(data, chunk)
        except BaseException:
            tail.discard()
            raise
        return tail

    def _unseal(self, key: ContentKey, state: ContentState) -> TailPart:
        """Put the bytes of the short last chunk as a part of the tail again."""
        index = state.prefix - 1
        start = index * state.chunk_size
        length = state.prefix_bytes - start
        chunk = self._catalog.piece(key, index)
        if chunk is None:
            raise StorageConflict("the content changed while it was opened")
        data = get_whole(
            self.bucket, chunk_name(chunk), 0, length, f"chunk {chunk.digest.hex()}"
        )
        part = TailPart(new_tail_name(key, state.generation), start, length)
        self.bucket.put(part.name, data)
        return part

    def offset(self, key: ContentKey) -> int:
        tail = self._writers.tail(key)
        is_usable = tail is not None and not tail.broken
        if tail is not None and is_usable and self._writers.is_open(key):
            return tail.offset
        if is_response_key(key):
            return 0  # a new writer of a response begins at its start
        state = self._catalog.content(key)
        if state is None:
            record = self._catalog.operation(operation_of(key))
            frozen = None if record is None else record.content
            return 0 if frozen is None else frozen.length
        kept = tail if is_usable and key not in self._held_back else None
        if kept is not None and _continues(kept, state):
            return kept.offset
        parts = () if state.has_short_end else state.parts
        end = _end_of(state.prefix_bytes, parts)
        if end < state.durable_offset:
            raise ContentLost(
                f"{state.durable_offset} bytes were durable, {end} are left"
            )
        return end

    # Reading.

    def open_reader(self, content: Content) -> ContentReader:
        if content.digest is None:
            return InlineReader(content.inline or b"")
        return open_recipe(self._catalog, self.bucket, self._ahead, content.digest)

    def open_prefix(self, key: ContentKey, length: int) -> ContentReader:
        record = self._catalog.operation(operation_of(key))
        if (
            record is not None
            and record.content is not None
            and not is_response_key(key)
        ):
            return FirstBytes(self.open_reader(record.content), length)
        tail = self._writers.tail(key)
        state = None if tail is not None else self._catalog.content(key)
        size = self.chunk_size
        if tail is not None:
            size = tail.chunk_size
        elif state is not None:
            size = state.chunk_size
        return PrefixReader(
            key,
            length,
            size,
            tail=self._writers.tail,
            catalog=self._catalog,
            bucket=self.bucket,
            open_reader=self.open_reader,
        )

    # Plain objects.

    @property
    def plain(self) -> PlainObjects | None:
        """What composes finished content into plain objects; None without an object store."""
        address = getattr(self.bucket, "address", None)
        if self._plain is None and address is not None:
            # Only who makes plain objects waits until boto3 is loaded.
            from trioresume.store.objects.plain import PlainObjects

            self._plain = PlainObjects(address)
        return self._plain

    @contextmanager
    def sources(self, key: ContentKey, content: Content) -> Iterator[list[Source]]:
        """Return the objects that *content* consists of; they stay for the block.

        *content* is finished; it may be that of *key*, which is to be frozen. Raises
        :class:`ContentLost`.
        """
        digest = content.digest
        if digest is not None and self._catalog.pin(digest):
            try:
                yield self._sources_of(digest)
            finally:
                self._catalog.unpin(digest)
            return
        # Not frozen yet: the upload is open, and keeps what it has.
        yield self._unfrozen_sources(key, content.length)

    def _sources_of(self, digest: Digest) -> list[Source]:
        recipe = self._catalog.recipe(digest)
        if isinstance(recipe, JoinedRecipe):
            return [each for part in recipe.parts for each in self._sources_of(part)]
        if recipe is None:
            raise ContentLost("the content was released")
        found: list[Source] = []
        for at in range(0, recipe.chunk_count, 1024):
            last = min(at + 1024, recipe.chunk_count)
            digests = [recipe.chunk(index) for index in range(at, last)]
            objects = self._catalog.objects(list(dict.fromkeys(digests)))
            for index, chunk in enumerate(digests, at):
                if chunk not in objects:
                    raise ContentLost(f"chunk {chunk.hex()} is missing")
                rest = recipe.length - index * recipe.chunk_size
                name = self._full_name(chunk_name(objects[chunk]))
                found.append(Source(name, min(recipe.chunk_size, rest)))
        return found

    def _unfrozen_sources(self, key: ContentKey, length: int) -> list[Source]:
        tail = self._writers.tail(key)
        if tail is None:
            raise ContentLost("the content was released")
        found: list[Source] = []
        for index in range(-(-length // tail.chunk_size)):
            sealing = tail.sealings.get(index)
            chunk = None if sealing is None else sealing.object
            chunk = chunk or self._catalog.piece(key, index)
            if chunk is None:
                raise ContentLost(f"chunk {index} is missing")
            rest = length - index * tail.chunk_size
            name = self._full_name(chunk_name(chunk))
            found.append(Source(name, min(tail.chunk_size, rest)))
        return found

    def _full_name(self, name: str) -> str:
        plain = self.plain
        return name if plain is None else plain.address.full_name(name)

    # Collection.

    def collect(self, limit: int) -> Collected:
        self._holds.settle()
        collected = collect_objects(self._catalog, self.bucket, limit)
        self._forget_parked()
        if collected == Collected() and self._sweep is not None:
            collected = self._sweep.advance(limit)
            if collected == Collected():
                self._sweep = None
        return collected

    def _forget_parked(self) -> None:
        """Forget tails that another node has taken over or ended, and very old ones."""
        parked = self._writers.parked()
        start = self._looked_at % len(parked) if parked else 0
        for key in parked[start : start + _LOOKS]:
            tail = self._writers.tail(key)
            record = self._catalog.operation(operation_of(key))
            if tail is not None and record is not None and is_response_key(key):
                continue
            if tail is not None and record is not None:
                state = self._catalog.content(key)
                if state is not None and _continues(tail, state):
                    continue
            if record is None and tail is not None and tail.generation == 1:
                continue  # its operation may be about to be created
            self._writers.forget_parked(key)
        self._looked_at = start + _LOOKS if parked else 0
        for key in parked[: max(0, len(parked) - _MOST_PARKED)]:
            tail = self._writers.tail(key)
            if tail is not None and tail.is_flushed:
                self._writers.forget_parked(key)

    def sweep(self) -> None:
        self._sweep = Sweep(self._catalog, self.bucket)


def _continues(tail: Tail, state: ContentState | None) -> bool:
    """Return whether *tail* has all that the catalog knows, so that nobody else has written."""
    if state is None or state.generation != tail.generation:
        return False
    offset = tail.offset
    if tail.broken:
        # Looked at after the offset: a tail that another thread discards is broken before its
        # bytes go. They are not what counts, and the catalog has what does.
        return False
    if offset < state.durable_offset:
        raise ContentLost(
            f"{state.durable_offset} bytes were durable, {offset} are left"
        )
    return not state.has_short_end or tail.finished


def _end_of(start: int, parts: Sequence[TailPart]) -> int:
    """Return where the bytes end that begin at *start* and go on in *parts* without a gap."""
    end = start
    for part in parts:
        if part.offset > end:
            break
        end = max(end, part.end)
    return end


def _by_chunk(parts: Sequence[TailPart], chunk_size: int) -> list[list[TailPart]]:
    """Return the parts of each chunk."""
    chunks: dict[int, list[TailPart]] = {}
    for part in parts:
        chunks.setdefault(part.offset // chunk_size, []).append(part)
    return [chunks[index] for index in sorted(chunks)]


class _Forgetful:
    """The catalog's sharing; what is owned no longer is forgotten here as well."""

    def __init__(self, sharing: Sharing, forget: Callable[[OperationId], None]) -> None:
        self._sharing = sharing
        self._forget = forget
        self.claim = sharing.claim
        self.refuse = sharing.refuse
        self.want = sharing.want
        self.follow = sharing.follow
        self.unfollow = sharing.unfollow
        self.tell = sharing.tell

    def listen(self, take: Callable[[Notice], None]) -> None:
        self._sharing.listen(take)

    def release(self, id: OperationId) -> None:
        self._forget(id)
        self._sharing.release(id)
