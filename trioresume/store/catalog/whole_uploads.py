"""Uploads that end within one batch: their rows are written as the last mutation leaves them.

Most content is small. A single submission then seals all of it, freezes it, publishes the
file, and records the response or forgets the operation. Performed one by one, these mutations
write rows that the next one changes or deletes. Often the submission that creates the
operation is in the same batch, and nobody will ask for the operation again. Then its rows
need not be written at all.

:class:`Plan` finds such submissions, and only looks at values. :class:`BatchLedger` then looks at
the catalog, and performs the mutations one by one if anything there is unusual.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from trioresume.errors import StorageConflict
from trioresume.store.catalog.batch import Dropped, FileChanges, Ledger
from trioresume.store.catalog.catalog import (
    content_columns,
    namespace_of,
    response_columns,
)
from trioresume.store.catalog.chunk_lists import (
    ContentRow,
    is_whole,
    keep_whole,
    whole_recipe,
)
from trioresume.store.port import (
    Content,
    ContentKey,
    CreateOperation,
    FileRecord,
    ForgetOperation,
    FreezeContent,
    Mutation,
    OperationId,
    OperationRecord,
    OperationState,
    PublishFile,
    RecordEvent,
    RecordResponse,
    SealChunk,
    check_key,
    is_response_key,
    operation_of,
    response_key,
)
from trioresume.store.port.recipes import Recipe

__all__ = ["BatchLedger", "Ending", "Plan"]

_HAS_FILE = "EXISTS (SELECT 1 FROM files WHERE namespace = :namespace AND name = :name)"
_IS_UNKNOWN = (
    "SELECT EXISTS (SELECT 1 FROM operations WHERE id = :id),"
    f" EXISTS (SELECT 1 FROM contents WHERE key IN (:request, :response)), {_HAS_FILE}"
)
"""Three zeros: neither the operation nor its contents are there, and no file of the name."""
_IS_UNUSUAL = (
    "SELECT o.state = 'gone' OR o.content_length IS NOT NULL"
    " OR o.response_length IS NOT NULL"
    " OR EXISTS (SELECT 1 FROM pieces WHERE pieces.cid = c.cid)"
    " OR EXISTS (SELECT 1 FROM contents WHERE key = :response)"
    f" OR {_HAS_FILE}, {ContentRow.COLUMNS.replace('cid', 'c.cid')}"
    " FROM contents c JOIN operations o ON o.id = :id WHERE c.key = :request"
)
"""Whether the operation has more than this content under construction, and its row."""
_ENDED_COLUMNS = (
    "state = ?, expires_at = ?, response_head = ?, response_length = ?,"
    " response_inline = ?, response_digest = ?, content_length = ?, content_inline = ?,"
    " content_digest = ?"
)


@dataclass(frozen=True, slots=True)
class Ending:
    """A submission that ends an upload whose content it seals from the first byte."""

    operation: OperationId
    key: ContentKey
    chunks: Sequence[SealChunk]
    content: Content
    file: FileRecord
    end: RecordResponse | ForgetOperation
    events: Sequence[RecordEvent]

    @property
    def keeps_content(self) -> bool:
        """Whether the operation holds its content after the end."""
        return isinstance(self.end, RecordResponse) and self.end.keep_content

    @classmethod
    def find(cls, submission: Sequence[Mutation]) -> Ending | None:
        """Return the ending that *submission* is, or None."""
        chunks: list[SealChunk] = []
        frozen: Mutation | None = None
        published: PublishFile | None = None
        end: RecordResponse | ForgetOperation | None = None
        events: list[RecordEvent] = []
        for mutation in submission:
            if frozen is None:
                if isinstance(mutation, SealChunk):
                    chunks.append(mutation)
                else:
                    frozen = mutation
            elif isinstance(mutation, PublishFile) and not (published or end):
                published = mutation
            elif isinstance(mutation, RecordResponse | ForgetOperation) and end is None:
                end = mutation
            elif isinstance(mutation, RecordEvent):
                events.append(mutation)
            else:
                return None
        if (
            not chunks
            or chunks[0].index
            or not isinstance(frozen, FreezeContent)
            or is_response_key(frozen.key)
            or published is None
            or published.file.content != frozen.content
            or published.expected not in (None, "anything")
            or end is None
        ):
            return None
        if end.operation != operation_of(frozen.key):
            return None
        if isinstance(end, RecordResponse) and end.response.body.digest is not None:
            return None
        return cls(
            end.operation,
            frozen.key,
            chunks,
            frozen.content,
            published.file,
            end,
            events,
        )


class Plan:
    """How a batch is performed. *endings* has the submissions that end an upload, by index."""

    def __init__(self, batch: Sequence[Sequence[Mutation]]) -> None:
        self.endings: dict[int, Ending] = {}
        self.begun: dict[OperationId, int] = {}
        """Operations that begin and are forgotten within the batch: the first's index."""
        created: dict[OperationId, int] = {}
        for index, submission in enumerate(batch):
            record = _begun(submission)
            if record is not None:
                created[record.id] = index
            elif len(submission) > 2:
                ending = Ending.find(submission)
                if ending is not None:
                    self.endings[index] = ending
                    if isinstance(ending.end, ForgetOperation):
                        first = created.get(ending.operation)
                        if first is not None:
                            self.begun[ending.operation] = first
        if self.begun:
            self._look_for_others(batch)
        self.postponed = set(self.begun.values())
        """The submissions that create these operations. They may not be needed."""

    def _look_for_others(self, batch: Sequence[Sequence[Mutation]]) -> None:
        """Take out the operations that another submission of the batch changes."""
        creations = set(self.begun.values())
        seen: set[OperationId] = set()
        for index, submission in enumerate(batch):
            if index in creations:
                continue
            ending = self.endings.get(index)
            if ending is not None:
                operations = {ending.operation}
                if ending.operation not in seen:
                    seen |= operations
                    continue
            else:
                operations = {_operation_of(mutation) for mutation in submission}
            for operation in operations:
                self.begun.pop(operation, None)


def _begun(submission: Sequence[Mutation]) -> OperationRecord | None:
    """Return the record that *submission* creates, if it begins an upload and no more."""
    if not submission or not isinstance(submission[0], CreateOperation):
        return None
    record = submission[0].record
    if record.state is not OperationState.RECEIVING or record.content is not None:
        return None
    events = submission[1:]
    return record if all(isinstance(each, RecordEvent) for each in events) else None


def _operation_of(mutation: Mutation) -> OperationId:
    """Return the operation that *mutation* changes, or an empty id."""
    if isinstance(mutation, CreateOperation):
        return mutation.record.id
    key = getattr(mutation, "key", None)
    if key is not None:
        return operation_of(key)
    return OperationId(getattr(mutation, "operation", ""))


class BatchLedger(Ledger):
    """Performs all submissions of a batch; see the module docstring."""

    def submit_all(
        self, batch: Sequence[Sequence[Mutation]], file_changes: FileChanges
    ) -> list[StorageConflict | None]:
        """Perform the submissions of *batch*, each as :meth:`submit` does.

        The result is the same, with fewer statements: see :mod:`.whole_uploads`.
        """
        if all(len(submission) <= 2 for submission in batch):
            return [self.submit(each, file_changes) for each in batch]  # none ends
        plan = Plan(batch)
        results: list[StorageConflict | None] = [None] * len(batch)
        for index, submission in enumerate(batch):
            if index in plan.postponed:
                continue
            ending = plan.endings.get(index)
            if ending is not None:
                first = plan.begun.get(ending.operation)
                begun = None if first is None else batch[first]
                if self._end_upload(ending, begun, file_changes):
                    continue
                if first is not None:
                    results[first] = self.submit(batch[first], file_changes)
            results[index] = self.submit(submission, file_changes)
        return results

    def _end_upload(
        self,
        ending: Ending,
        begun: Sequence[Mutation] | None,
        file_changes: FileChanges,
    ) -> bool:
        """Perform *ending* if the catalog has nothing unusual; return whether this was done.

        *begun* is the submission of this batch with which the operation begins, and which was
        not performed. It is None if the operation began in an earlier batch.
        """
        is_new = begun is not None
        content = self._look_at_end(ending, is_new=is_new)
        if content is None or not is_whole(ending.key, content, ending.chunks):
            return False
        recipe, found = whole_recipe(content, ending.chunks)
        if found != ending.content:
            return False
        self._file_changes = FileChanges()
        self._execute("SAVEPOINT submission")
        try:
            for event in (begun or ())[1:]:
                self._perform(event)
            self._write_end(ending, content, recipe, is_new=is_new)
        except StorageConflict:
            self._execute("ROLLBACK TO submission")
            self._execute("RELEASE submission")
            return False
        self._execute("RELEASE submission")
        self._add_to(file_changes)
        return True

    def _look_at_end(self, ending: Ending, *, is_new: bool) -> ContentRow | None:
        """Return the content to end; None if its rows or the file's must be looked at."""
        of = {
            "id": ending.operation,
            "request": ending.key,
            "response": response_key(ending.operation),
            "namespace": namespace_of(ending.file.owner),
            "name": ending.file.name,
        }
        if is_new:
            check_key(ending.key)
            row = self._execute(_IS_UNKNOWN, of).fetchone()
            return ContentRow.new(self._chunk_size) if row == (0, 0, 0) else None
        row = self._execute(_IS_UNUSUAL, of).fetchone()
        if row is None or row[0]:
            return None
        return ContentRow(*row[1:])

    def _write_end(
        self, ending: Ending, content: ContentRow, recipe: Recipe, *, is_new: bool
    ) -> None:
        for seal in ending.chunks:
            self._file_changes.sealed.append(seal)
            self._take(seal)
        keep_whole(
            self._connection, recipe, ending.chunks, holds=1 + ending.keeps_content
        )
        if not is_new:
            self._execute("DELETE FROM contents WHERE cid = ?", (content.cid,))
        self._write_file(ending.file)
        end = ending.end
        if isinstance(end, RecordResponse):
            self._execute(
                f"UPDATE operations SET {_ENDED_COLUMNS} WHERE id = ?",
                (
                    OperationState.DONE,
                    end.expires_at,
                    *response_columns(end.response),
                    *content_columns(ending.content if end.keep_content else None),
                    end.operation,
                ),
            )
        elif not is_new:
            self._execute("DELETE FROM operations WHERE id = ?", (end.operation,))
        self._file_changes.frozen.append(ending.key)
        dropped = [Dropped(response_key(ending.operation))]
        if not ending.keeps_content:
            dropped.append(Dropped(ending.key))
        self._file_changes.dropped += dropped
        for event in ending.events:
            self._perform(event)
