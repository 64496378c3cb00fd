"""Uploads that end within one batch leave the same rows as their mutations one by one."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from trioresume.errors import StorageConflict
from trioresume.protocol.heads import Fields
from trioresume.store.catalog.batch import FileChanges
from trioresume.store.catalog.whole_uploads import BatchLedger
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.port import (
    Content,
    CreateOperation,
    EndOperation,
    EventRecord,
    FileRecord,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    LetCount,
    LimitUsage,
    MoveOperation,
    Mutation,
    OperationId,
    OperationRecord,
    OperationState,
    PublishFile,
    RecordEvent,
    RecordOffset,
    RecordResponse,
    RemoveFile,
    SealChunk,
    SetExpiry,
    SetFileExpiry,
    SetLength,
    SetReserved,
    SetState,
    StoredResponse,
    content_of,
    request_key,
)

CHUNK = 16
Batch = list[list[Mutation]]


class _OneByOne(BatchLedger):
    """Performs each submission by itself."""

    def submit_all(
        self, batch: Sequence[Sequence[Mutation]], file_changes: FileChanges
    ) -> list[StorageConflict | None]:
        return [self.submit(submission, file_changes) for submission in batch]


class Uploads:
    """Makes the submissions of uploads into *store*."""

    def __init__(self, store: DiskStore) -> None:
        self.store = store

    def seals(self, number: int, content: bytes) -> list[SealChunk]:
        writer = self.store.new_writer(request_key(_id(number)))
        seals = [*writer.append(content), *writer.finish()]
        return [seal.run() for seal in seals]

    def ended(
        self,
        number: int,
        content: bytes = b"content",
        *,
        name: str = "",
        forgets: bool = True,
        keeps: bool = False,
    ) -> list[Mutation]:
        """The submission that ends upload *number*."""
        seals = self.seals(number, content)
        whole = content_of(CHUNK, seals)
        file = FileRecord(
            owner=OWNER,
            name=name or f"file-{number}",
            content=whole,
            fields=Fields({"content-type": "text/plain"}),
            modified_at=5.0,
        )
        body = Content(0, b"")
        response = StoredResponse(status=201, fields=Fields({"etag": "x"}), body=body)
        end: Mutation = ForgetOperation(_id(number))
        if not forgets:
            end = RecordResponse(_id(number), response, 9e9 + number, keeps)
        return [
            *seals,
            FreezeContent(request_key(_id(number)), whole),
            PublishFile(file, None),
            end,
        ]


OWNER = "owner"


def _id(number: int) -> OperationId:
    return OperationId(f"{number:022}")


def _record(number: int) -> OperationRecord:
    return OperationRecord(
        id=_id(number),
        method="POST",
        target="/",
        fields=Fields({"host": "x"}),
        created_at=1.0,
        expires_at=8e9,
        principal=OWNER,
        length=7,
        reserved=7,
    )


def _created(number: int) -> list[Mutation]:
    return [CreateOperation(_record(number))]


def _event(number: int, kind: str) -> RecordEvent:
    return RecordEvent(
        EventRecord(
            id=f"{kind} of {number}",
            operation=_id(number),
            kind=kind,
            recorded_at=1.0,
            dated=1.0,
            payload=b"{}",
        )
    )


def _plain(uploads: Uploads) -> list[Batch]:
    return [[_created(1), _created(2), uploads.ended(1), uploads.ended(2, b"other")]]


def _offered(uploads: Uploads) -> list[Batch]:
    return [[_created(1)], [uploads.ended(1, forgets=False)]]


def _offered_in_one_batch(uploads: Uploads) -> list[Batch]:
    return [[_created(1), uploads.ended(1, forgets=False)]]


def _retained(uploads: Uploads) -> list[Batch]:
    return [[_created(1)], [uploads.ended(1, forgets=False, keeps=True)]]


def _many_chunks(uploads: Uploads) -> list[Batch]:
    return [[_created(1), uploads.ended(1, bytes(range(5 * CHUNK + 3)))]]


def _equal_chunks(uploads: Uploads) -> list[Batch]:
    return [[_created(1), uploads.ended(1, bytes(3 * CHUNK))]]


def _equal_contents(uploads: Uploads) -> list[Batch]:
    return [
        [_created(1), uploads.ended(1), _created(2), uploads.ended(2)],
        [_created(3), uploads.ended(3), _created(4)],
        [uploads.ended(4, forgets=False, keeps=True)],
    ]


def _with_events(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1)
    ended.insert(-1, _event(1, "post-finish"))
    return [[[*_created(1), _event(1, "post-create")], ended]]


def _same_name(uploads: Uploads) -> list[Batch]:
    return [
        [_created(1), uploads.ended(1, name="x"), _created(2)],
        [uploads.ended(2, b"other", name="x"), _created(3)],
    ]


def _created_twice(uploads: Uploads) -> list[Batch]:
    return [[_created(1), _created(1), uploads.ended(1)]]


def _created_before(uploads: Uploads) -> list[Batch]:
    return [[_created(1)], [_created(1), uploads.ended(1)]]


def _never_created(uploads: Uploads) -> list[Batch]:
    return [[uploads.ended(1)]]


def _ended_twice(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1)
    return [[_created(1), ended, ended], [ended]]


def _changed_meanwhile(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1)
    return [
        [
            _created(1),
            [SetReserved(_id(1), 9), SetLength(_id(1), 7)],
            [ended[0]],
            ended,
        ]
    ]


def _sealed_before(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1, bytes(range(2 * CHUNK)))
    return [[_created(1), ended[:1]], [ended]]


def _wrong_content(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1)
    seal, freeze, publish = ended[:3]
    assert isinstance(seal, SealChunk)
    assert isinstance(freeze, FreezeContent)
    assert isinstance(publish, PublishFile)
    other = content_of(CHUNK, [replace(seal, length=6)])
    ended[1] = replace(freeze, content=other)
    ended[2] = replace(publish, file=replace(publish.file, content=other))
    return [[_created(1), ended, _created(2)]]


def _not_sealed(uploads: Uploads) -> list[Batch]:
    """The tail of the second chunk was given up after it was sealed."""
    ended = uploads.ended(1, bytes(range(2 * CHUNK)))
    uploads.store._tails.end_sealing(request_key(_id(1)), 1)
    return [[_created(1), ended, _created(2)]]


def _expecting(uploads: Uploads) -> list[Batch]:
    ended = uploads.ended(1)
    publish = ended[2]
    assert isinstance(publish, PublishFile)
    ended[2] = replace(publish, expected=publish.file.content)
    return [[_created(1), ended]]


def _beside_the_end(uploads: Uploads) -> list[Batch]:
    """A submission with a mutation that no upload's end has."""
    return [[_created(1), [*uploads.ended(1), SetLength(_id(2), 1)]]]


CASES: list[Callable[[Uploads], list[Batch]]] = [
    _plain,
    _offered,
    _offered_in_one_batch,
    _retained,
    _many_chunks,
    _equal_chunks,
    _equal_contents,
    _with_events,
    _same_name,
    _created_twice,
    _created_before,
    _never_created,
    _ended_twice,
    _changed_meanwhile,
    _sealed_before,
    _wrong_content,
    _not_sealed,
    _expecting,
    _beside_the_end,
]


def _rows(path: Path) -> dict[str, list[tuple[object, ...]]]:
    with closing(sqlite3.connect(path / "catalog.sqlite3")) as catalog:
        tables = catalog.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        return {
            name: catalog.execute(f"SELECT * FROM {name} ORDER BY 1, 2").fetchall()
            for (name,) in tables.fetchall()
        }


def _files(path: Path) -> dict[str, bytes]:
    return {
        str(file.relative_to(path)): file.read_bytes()
        for part in ("chunks", "tails")
        for file in (path / part).rglob("*")
        if file.is_file()
    }


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__.strip("_"))
def test_rows_and_files_are_those_of_the_mutations_one_by_one(
    case: Callable[[Uploads], list[Batch]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """And so are the conflicts."""
    seen = []
    for name in ("together", "one by one"):
        if name == "one by one":
            monkeypatch.setattr("trioresume.store.disk_store.BatchLedger", _OneByOne)
        store = open_store(tmp_path / name, chunk_size=CHUNK)
        try:
            batches = case(Uploads(store))
            results = [[str(r) for r in store.apply(batch)] for batch in batches]
            left = store.operations_in(list(OperationState), 9, None)
            rows, files = _rows(tmp_path / name), _files(tmp_path / name)
            seen.append((results, left, rows, files))
        finally:
            store.close()
    assert seen[0] == seen[1]


@pytest.mark.parametrize(
    ("case", "most"), [(_plain, 6), (_offered, 4 + 8), (_retained, 4 + 8)]
)
def test_upload_takes_few_statements(
    case: Callable[[Uploads], list[Batch]], most: int, tmp_path: Path
) -> None:
    """Each costs its work, and a switch of threads while the event loop is busy."""
    store = open_store(tmp_path, chunk_size=CHUNK)
    statements: list[str] = []
    batches = case(Uploads(store))
    uploads = sum(isinstance(s[0], SealChunk) for batch in batches for s in batch)
    store._catalog._writer.set_trace_callback(statements.append)
    for batch in batches:
        assert not any(store.apply(batch))
    store._catalog._writer.set_trace_callback(None)
    # SQLite traces each statement of a trigger under the name of its own statement.
    own = [s for n, s in enumerate(statements) if not n or s != statements[n - 1]]
    commits = 2 * len(batches)
    savepoints = sum("SAVEPOINT" in s or "RELEASE" in s for s in own)
    assert len(own) - commits <= most * uploads
    assert savepoints <= 4 * uploads
    store.close()


# Any batches.

_NUMBERS = (1, 2, 3)
_CONTENTS = {1: b"content", 2: b"content", 3: bytes(range(2 * CHUNK + 1))}
"""By the upload's number: two uploads have equal content."""
_Make = Callable[[dict[int, list[Mutation]]], list[Mutation]]


def _making(draw: st.DrawFn) -> _Make:
    """Draw what makes a submission from the seals of the uploads."""
    number = draw(st.sampled_from(_NUMBERS))
    upload, key = _id(number), request_key(_id(number))
    kind = draw(st.sampled_from(["create", "end", "end", "end", "seal", "other"]))
    if kind == "create":
        extra: list[Mutation] = [_event(number, "post-create")]
        limit = LimitUsage(OWNER, draw(st.sampled_from([10, 10**6])), 2, None)
        created = _created(number)
        if draw(st.booleans()):
            created += extra
        if draw(st.integers(0, 3)) == 0:
            created.append(limit)
        return lambda seals: created
    if kind == "seal":
        return lambda seals: seals[number][:1]
    if kind == "other":
        others: list[Mutation] = [
            SetReserved(upload, 9),
            SetExpiry(upload, 7e9),
            ForgetOperation(upload),
            EndOperation(upload, 7e9),
            SetState(upload, OperationState.COMPLETE),
            MoveOperation(upload, "another", "/"),
            RecordOffset(key, 3),
            HoldBack(key, 2),
            LetCount(key),
            RemoveFile(OWNER, "x"),
            RemoveFile(OWNER, "y", "anything"),
            SetFileExpiry(OWNER, "x", 6e9),
        ]
        other = draw(st.sampled_from(others))
        return lambda seals: [other]
    name = draw(st.sampled_from("xy"))
    expected = draw(st.sampled_from([None, "anything"]))
    end: Mutation = ForgetOperation(upload)
    if draw(st.booleans()):
        body = Content(2, b"ok")
        response = StoredResponse(status=201, fields=Fields({"etag": "x"}), body=body)
        end = RecordResponse(upload, response, 9e9 + number, draw(st.booleans()))
    has_event = draw(st.booleans())

    def make(seals: dict[int, list[Mutation]]) -> list[Mutation]:
        *chunks, freeze = seals[number]
        assert isinstance(freeze, FreezeContent)
        file = FileRecord(
            owner=OWNER,
            name=name,
            content=freeze.content,
            fields=Fields({"content-type": "text/plain"}),
            modified_at=5.0,
        )
        events = [_event(number, "post-finish")] if has_event else []
        return [*chunks, freeze, PublishFile(file, expected), *events, end]

    return make


@st.composite
def _batches(draw: st.DrawFn) -> list[list[_Make]]:
    sizes = draw(st.lists(st.integers(1, 6), min_size=1, max_size=3))
    return [[_making(draw) for _ in range(size)] for size in sizes]


def _without_numbers(path: Path) -> dict[str, list[tuple[object, ...]]]:
    """The rows without what tells only the order in which rows were made."""
    rows = _rows(path)
    keys = {row[0]: row[1] for row in rows["contents"]}
    for table in ("contents", "pieces", "parts"):
        rows[table] = [(keys[row[0]], *row[1:]) for row in rows[table]]
        rows[table].sort(key=repr)
    rows["files"] = sorted(row[1:] for row in rows["files"])
    for table in ("events", "dead_events"):
        # Events of one upload are told in order; those of several uploads are not.
        rows[table] = sorted((row[1:] for row in rows[table]), key=repr)
    rows.pop("sqlite_sequence", None)
    return rows


@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_batches())
def test_any_batches_leave_the_rows_files_and_accounts_of_one_by_one(
    tmp_path: Path, batches: list[list[_Make]]
) -> None:
    seen = []
    for ledger in (BatchLedger, _OneByOne):
        folder = Path(mkdtemp(dir=tmp_path))
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("trioresume.store.disk_store.BatchLedger", ledger)
            with closing(
                open_store(folder, chunk_size=CHUNK, durability="process")
            ) as store:
                uploads = Uploads(store)
                made: dict[int, list[Mutation]] = {}
                for number, content in _CONTENTS.items():
                    seals = uploads.seals(number, content)
                    freeze = FreezeContent(
                        request_key(_id(number)), content_of(CHUNK, seals)
                    )
                    made[number] = [*seals, freeze]
                results = [
                    [str(each) for each in store.apply([make(made) for make in batch])]
                    for batch in batches
                ]
                seen.append((results, _without_numbers(folder), _files(folder)))
        shutil.rmtree(folder)
    assert seen[0] == seen[1]
