"""What a store does in its life, with what it owes to the world at each moment.

A scenario uses a store on a disk that records its calls. What a crash may leave at any
moment is then opened by another store, and :func:`check` sees whether it keeps all that
was promised by then, can go on, and leaves nothing behind.
"""

from __future__ import annotations

import copy
import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.store.crashes.power import Platter
from tests.store.crashes.recording import Call, Recording
from tests.store.helpers import (
    CHUNK,
    FaultyDisk,
    collect_all,
    do,
    file_record,
    read_content,
    read_from,
    record,
    response,
)
from trioresume.errors import (
    ChunkCorrupt,
    ContentLost,
    StorageConflict,
    StorageError,
)
from trioresume.protocol.operation import OperationState
from trioresume.store.disk.tail_files import PROOF
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.keeper.inventory import Inventory
from trioresume.store.port import (
    RECORD_SIZE,
    Content,
    CreateOperation,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    JoinContents,
    LetCount,
    OperationId,
    PublishFile,
    RecordResponse,
    RemoveFile,
    SealChunk,
    SetReserved,
    SetState,
    Usage,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import digest_of

__all__ = [
    "DATA",
    "SCENARIOS",
    "Announced",
    "Scenario",
    "World",
    "check",
    "check_nothing_wrong",
    "go_on",
    "live",
    "start",
]

# Chunks 0 and 3 are equal, and so are the first chunks of both uploads.
ONE = b"equal 8 " + b"chunk 1 " + b"chunk 2 " + b"equal 8 " + b"end"
TWO = ONE[:24] + b"otherwise"
DATA = {"one": ONE, "two": TWO, "part": TWO[:13], "both": ONE + TWO + ONE}
BODY = b"a response of more than one chunk"


@dataclass
class Announced:
    """What the outside world was told, or sees, at one moment."""

    accepted: dict[str, int] = field(default_factory=dict)
    """Bytes that append has returned for: they survive a kill."""
    durable: dict[str, int] = field(default_factory=dict)
    """Bytes that were announced: they survive everything."""
    frozen: set[str] = field(default_factory=set)
    answered: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    """What may be gone: its end was asked for, or is over."""
    files: dict[str, str] = field(default_factory=dict)
    whole: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Where what is there as a whole or not at all begins and ends."""


class World:
    """A store on a recording disk, and what it has announced."""

    def __init__(
        self,
        root: Path,
        announced: Announced | None = None,
        fails: Callable[[Call], bool] = lambda call: False,
        omits: Callable[[Call], bool] = lambda call: False,
        *,
        durable: bool = True,
    ) -> None:
        self.announced = Announced() if announced is None else announced
        self.recording = Recording(root, fails, omits, durable=durable)
        self.platter = Platter(root, self.recording.adopt)
        self.note()
        self._data_dir = root / "data"
        self.store: DiskStore

    def open(self) -> None:
        self.store = open_store(self._data_dir, chunk_size=CHUNK, disk=self.recording)

    def note(self, *, relaxes: bool = False) -> None:
        """What was announced has changed; *relaxes* says that less is owed now."""
        self.recording.note(copy.deepcopy(self.announced), relaxes=relaxes)

    # Steps that scenarios are made of.

    def create(self, name: str) -> None:
        do(self.store, CreateOperation(record(name, principal=name)))
        self.announced.durable[name] = 0
        self.note()

    def upload(self, name: str, sizes: list[int]) -> None:
        """Receive *name* in pieces, with seals applied late and flushes between."""
        store, announced, operation = self.store, self.announced, OperationId(name)
        if store.operation(operation) is None:
            self.create(name)
        with closing(store.open_writer(request_key(operation))) as writer:
            late: list[SealChunk] = []
            for size in sizes:
                at = writer.offset
                seals = writer.append(DATA[name][at : at + size])
                announced.accepted[name] = writer.offset
                self.note()
                late += [seal.run() for seal in seals]
                if len(late) > 1:  # the newest first, the oldest with the flush
                    do(store, late.pop())
                flush = writer.flush()
                if flush is not None:
                    recorded = flush.run()
                    do(store, *late, recorded, SetReserved(operation, recorded.offset))
                    late = []
                    announced.durable[name] = recorded.offset
                    self.note()
            do(store, *late)

    def complete(self, name: str) -> None:
        store, operation = self.store, OperationId(name)
        key = request_key(operation)
        with closing(store.open_writer(key)) as writer:
            seals = writer.append(DATA[name][writer.offset :])
            do(store, *[seal.run() for seal in seals])
            self.announced.accepted[name] = writer.offset
            last = [seal.run() for seal in writer.finish()]
            content = store.sealed_content(key, last)
            state = SetState(operation, OperationState.COMPLETE)
            do(store, *last, FreezeContent(key, content), state)
        self.announced.frozen.add(name)
        self.note()

    def content(self, name: str) -> Content:
        found = self.store.operation(OperationId(name))
        assert found is not None
        assert found.content is not None
        return found.content

    def publish(self, name: str) -> None:
        """A file and the response that says so, in one commit."""
        file = file_record(name, self.content(name), expires_at=5.0)
        answer = RecordResponse(OperationId(name), response(), 9.0, keep_content=False)
        do(self.store, PublishFile(file), answer)
        self.announced.files[name] = name
        self.announced.answered.add(name)
        self.note()

    def answer(self, name: str) -> None:
        """A response whose content is too large for the catalog."""
        operation = OperationId(name)
        key = response_key(operation)
        with closing(self.store.open_writer(key)) as writer:
            do(self.store, *[seal.run() for seal in writer.append(BODY)])
            last = [seal.run() for seal in writer.finish()]
            body = self.store.sealed_content(key, last)
            recorded = RecordResponse(operation, response(body), 9.0)
            do(self.store, *last, FreezeContent(key, body), recorded)
        self.announced.answered.add(name)
        self.note()

    def end(self, name: str) -> None:
        self.announced.ended.add(name)
        self.note(relaxes=True)
        do(self.store, EndOperation(OperationId(name), 9.0))

    def collect(self, limit: int) -> None:
        collect_all(self.store, limit)


def receive(world: World) -> None:
    """Two uploads that share chunks, interleaved."""
    world.upload("one", [3, 9, 10])
    world.upload("two", [20])
    world.upload("one", [4])
    world.upload("two", [9])


def finish_both(world: World) -> None:
    """Completion, a file, and a takeover."""
    world.upload("one", [26])
    world.upload("two", [18])
    world.store.open_writer(request_key(OperationId("one"))).append(ONE[26:30])
    world.complete("one")
    world.publish("one")
    world.complete("two")


def take_over(world: World) -> None:
    """Content that was finished but not frozen goes on, by one writer after the other.

    Another upload ends where it was finished: they have the same last, short chunk.
    """
    world.upload("part", [13])
    world.complete("part")
    world.upload("two", [11])
    key = request_key(OperationId("two"))
    first = world.store.open_writer(key)
    first.append(TWO[first.offset : 13])
    do(world.store, *[seal.run() for seal in first.finish()])
    world.announced.accepted["two"] = world.announced.durable["two"] = 13
    world.note()
    second = world.store.open_writer(key)
    second.append(TWO[13:15])
    third = world.store.open_writer(key)
    do(world.store, *[seal.run() for seal in third.append(TWO[15:20])])
    world.announced.accepted["two"] = 20
    world.note()
    world.complete("two")


def patch(world: World) -> None:
    """Bytes that count as a whole. Another upload has some of these chunks already."""
    world.upload("one", [26])
    world.complete("one")
    world.upload("two", [6])
    key = request_key(OperationId("two"))
    with closing(world.store.open_writer(key)) as writer:
        do(world.store, HoldBack(key, 6))
        world.announced.whole["two"] = (6, 27)
        world.note()
        sealed = [seal.run() for seal in writer.append(TWO[6:20])]
        sealed += [seal.run() for seal in writer.append(TWO[20:27])]
        flush = writer.flush()
        assert flush is not None
        do(world.store, *sealed, flush.run(), LetCount(key))
        world.announced.durable["two"] = world.announced.accepted["two"] = 27
        world.note()
    world.complete("two")


def clear_away(world: World) -> None:
    """Endings, also of what is unfinished, and collection in small steps."""
    world.upload("one", [20, 6])
    world.complete("one")
    world.upload("two", [13, 4])
    world.end("one")
    world.collect(3)
    world.complete("two")
    world.end("two")
    world.collect(3)


def join_both(world: World) -> None:
    """What is made of two uploads outlives them, and is cleared away in its turn."""
    world.upload("one", [27])
    world.complete("one")
    world.upload("two", [33])
    world.complete("two")
    world.create("both")
    first, second = (world.store.parts_of(world.content(n)) for n in ("one", "two"))
    both = OperationId("both")
    join = JoinContents(both, (*first, *second, *first))
    do(world.store, join, SetState(both, OperationState.COMPLETE))
    world.announced.frozen.add(both)
    world.note()
    for name in ("one", "two", "both"):
        world.end(name)
        world.collect(2)


def respond(world: World) -> None:
    """A large response, which an earlier run of the target had begun."""
    world.upload("two", [33])
    world.complete("two")
    cut = world.store.open_writer(response_key(OperationId("two")))
    do(world.store, *[seal.run() for seal in cut.append(b"another response, cut")])
    world.answer("two")


def expire(world: World) -> None:
    """A file and an operation whose time is over; then the tombstone's is, too."""
    world.upload("one", [30])
    world.complete("one")
    world.publish("one")
    world.upload("two", [9])
    del world.announced.files["one"]
    world.note(relaxes=True)
    ((expires_at, token),) = [
        entry for entry in world.store.expiring(9) if entry[1].startswith("f:")
    ]
    do(world.store, *world.store.expire_file(token, expires_at))
    world.end("two")
    del world.announced.durable["two"]
    world.note(relaxes=True)
    do(world.store, ForgetOperation(OperationId("two")))
    world.collect(2)


def discard(world: World) -> None:
    """Submissions that are undone after their chunks were published, and put right.

    The last chunk of the second upload is one that another upload has, too.
    """
    world.upload("part", [13])
    world.complete("part")
    for name, size in (("one", 5), ("two", 13)):
        world.upload(name, [size])
        key = request_key(OperationId(name))
        writer = world.store.open_writer(key)
        seals = [seal.run() for seal in writer.finish()]
        wrong = FreezeContent(key, Content(size, digest=digest_of(b"wrong")))
        assert world.store.apply([[*seals, wrong]]) != [None]
        writer.close()
        world.upload(name, [20])
    world.collect(100)
    world.complete("one")


def insist(act: Callable[..., None], *args: object) -> None:
    """Do *act*, again and again if the disk fails, as a client and a server do."""
    for _ in range(4):
        try:
            act(*args)
        except StorageConflict:
            raise
        except StorageError:
            continue
        return
    raise AssertionError("one error must not fail four attempts")


def live(world: World) -> None:
    """All of an upload's life, twice, whatever fails in between."""
    for name in ("one", "two"):
        if world.store.operation(OperationId(name)) is None:
            insist(world.create, name)
        insist(world.upload, name, [11, 9])
    insist(take_over_finished, world)
    for name in ("one", "two"):
        insist(world.complete, name)
    insist(world.publish, "one")
    insist(world.answer, "two")
    insist(world.end, "two")
    insist(world.collect, 3)


def take_over_finished(world: World) -> None:
    """The last chunk is sealed, and is to become a tail again."""
    key = request_key(OperationId("one"))
    with closing(world.store.open_writer(key)) as writer:
        seals = writer.append(ONE[writer.offset : 21]) + writer.finish()
        do(world.store, *[seal.run() for seal in seals])
    with closing(world.store.open_writer(key)) as writer:
        assert writer.offset >= 20


def go_on(world: World) -> None:
    """What recovery does after a crash, to be interrupted in its turn."""
    for name in list(world.announced.durable):
        found = world.store.operation(OperationId(name))
        if found is not None and found.state is OperationState.RECEIVING:
            if world.announced.whole.pop(name, None):
                world.note(relaxes=True)  # it goes on as a plain upload
            world.upload(name, [2])
            world.complete(name)
    world.collect(100)


Scenario = Callable[[World], None]

SCENARIOS: tuple[Scenario, ...] = (
    receive,
    finish_both,
    take_over,
    patch,
    clear_away,
    join_both,
    respond,
    expire,
    discard,
)


def start(root: Path) -> None:
    """An empty store's directory in *root*."""
    open_store(root / "data", chunk_size=CHUNK, disk=FaultyDisk()).close()


# After the crash.


def check(data_dir: Path, announced: Announced, *, killed: bool) -> None:
    """Every promise is kept, the work can go on, and in the end nothing is left."""
    store = open_store(data_dir, chunk_size=CHUNK, disk=FaultyDisk(durable=False))
    try:
        with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as catalog:
            _Check(store, data_dir, catalog).run(announced, killed=killed)
    finally:
        store.close()


def check_nothing_wrong(data_dir: Path) -> None:
    """What is left may be anything, but no byte that is read is wrong."""
    disk = FaultyDisk(durable=False)
    try:
        with closing(open_store(data_dir, chunk_size=CHUNK, disk=disk)) as store:
            for name, data in DATA.items():
                found = store.operation(OperationId(name))
                if found is not None and found.state is OperationState.RECEIVING:
                    _check_upload(store, found.id, data)
                elif found is not None and found.content is not None:
                    assert _read_or_lost(store, found.content) in (data, None)
                file = store.file(None, name)
                if file is not None:
                    assert _read_or_lost(store, file.content) in (data, None)
    except StorageError:
        pass  # the catalog was not synced either: what is lost is not called right


def _check_upload(store: DiskStore, id: OperationId, data: bytes) -> None:
    key = request_key(id)
    try:
        offset = store.offset(key)
        with closing(store.open_writer(key)) as writer:
            assert writer.offset == offset
            assert read_from(store.open_prefix(key, offset)) == data[:offset]
            seals = writer.append(data[offset:]) + writer.finish()
            do(store, *[seal.run() for seal in seals])
    except ContentLost:
        return
    content = store.sealed_content(key)
    do(store, FreezeContent(key, content))
    assert read_content(store, content) == data


def _read_or_lost(store: DiskStore, content: Content) -> bytes | None:
    try:
        return read_content(store, content)
    except (ChunkCorrupt, ContentLost):
        return None


class _Check:
    """A store on what was left; *catalog* looks at its tables."""

    def __init__(
        self, store: DiskStore, data_dir: Path, catalog: sqlite3.Connection
    ) -> None:
        self._store = store
        self._data_dir = data_dir
        self._catalog = catalog

    def run(self, announced: Announced, *, killed: bool) -> None:
        store = self._store
        for name in announced.durable:
            self._check_operation(name, announced, killed=killed)
        for name in announced.files:
            file = store.file(None, name)
            assert file is not None
            assert read_content(store, file.content) == DATA[name]
        self._check_books()
        collect_all(store)
        self._check_files()
        for name in DATA:
            self._go_on(name)
            do(store, RemoveFile(None, name))
        collect_all(store)
        self._check_books()
        self._check_files()
        do(store, *[ForgetOperation(OperationId(name)) for name in DATA])
        collect_all(store)
        self._check_nothing_left()

    def _check_operation(
        self, name: str, announced: Announced, *, killed: bool
    ) -> None:
        found = self._store.operation(OperationId(name))
        assert found is not None
        if found.state is OperationState.GONE:
            assert name in announced.ended
        elif found.state is OperationState.RECEIVING:
            assert name not in announced.frozen
            offset = self._store.offset(request_key(found.id))
            assert offset >= announced.durable[name]
            begins, ends = announced.whole.get(name, (0, 0))
            assert not begins < offset < ends
            assert found.durable_offset >= announced.durable[name]
            if killed:
                assert offset >= announced.accepted.get(name, 0)
            prefix = self._store.open_prefix(request_key(found.id), offset)
            assert read_from(prefix) == DATA[name][:offset]
        elif found.state is OperationState.COMPLETE:
            assert name not in announced.answered
            assert found.content is not None
            assert read_content(self._store, found.content) == DATA[name]
        else:
            answer = found.response
            assert answer is not None
            if answer.body.digest is not None:
                assert read_content(self._store, answer.body) == BODY
            else:
                assert answer == response()

    def _go_on(self, name: str) -> None:
        """Whatever became of *name*, it is received to its end, if that is still due."""
        operation = OperationId(name)
        key, data = request_key(operation), DATA[name]
        store, found = self._store, self._store.operation(operation)
        if found is None or found.state is not OperationState.RECEIVING:
            return
        offset = store.offset(key)
        writer = store.open_writer(key)
        assert writer.offset == offset
        seals = writer.append(data[offset:]) + writer.finish()
        do(store, *[seal.run() for seal in seals])
        content = store.sealed_content(key)
        complete = SetState(operation, OperationState.COMPLETE)
        do(store, FreezeContent(key, content), complete)
        writer.close()
        assert read_content(store, content) == data

    def _check_books(self) -> None:
        """Nothing is damaged, and what principals are charged is what they have (G7)."""
        with Inventory(self._data_dir) as inventory:
            damages = list(inventory.verify())
        assert damages == []
        rows = self._rows(
            "SELECT '=' || principal, content_digest, content_length,"
            f" (state != 'gone') * {RECORD_SIZE} + (state = 'receiving') * reserved,"
            " state IN ('receiving', 'waiting') FROM operations"
            " UNION ALL SELECT '=' || principal, response_digest, response_length, 0, 0"
            " FROM operations UNION ALL SELECT namespace, content_digest,"
            f" content_length, {RECORD_SIZE}, 0 FROM files"
        )
        size = uploads = 0
        for owner in {row[0] for row in rows}:
            own = [row for row in rows if row[0] == owner]
            kept = {row[1]: row[2] for row in own if row[1] is not None}
            usage = self._store.usage(owner.removeprefix("=") or None)
            assert usage.bytes == sum(row[3] for row in own) + sum(kept.values())
            assert usage.open_uploads == sum(row[4] for row in own)
            size, uploads = size + usage.bytes, uploads + usage.open_uploads
        assert self._store.total_usage() == Usage(size, uploads)

    def _check_files(self) -> None:
        """The directory holds what is referred to, and nothing else."""
        rows = self._rows("SELECT lower(hex(digest)) FROM chunks WHERE refs > 0")
        chunks = self._data_dir / "chunks"
        names = {path.name for path in chunks.rglob("*") if path.is_file()}
        assert names == {name for (name,) in rows}
        for tail in (self._data_dir / "tails").iterdir():
            key, _, index = tail.name.removesuffix(PROOF).rpartition(".")
            found = self._store.operation(OperationId(key))
            assert found is not None
            assert found.state is OperationState.RECEIVING
            sealed = self._rows(
                "SELECT 1 FROM contents c LEFT JOIN pieces p"
                " ON p.cid = c.cid AND p.idx = :idx"
                " WHERE c.key = :key AND (c.prefix > :idx OR p.idx IS NOT NULL)",
                key=key,
                idx=int(index),
            )
            assert not sealed

    def _check_nothing_left(self) -> None:
        for under in ("chunks", "tails"):
            paths = (self._data_dir / under).rglob("*")
            assert [path for path in paths if path.is_file()] == []
        assert self._store.total_usage() == Usage()
        tables = ("operations", "contents", "pieces", "parts", "chunks", "recipes")
        for table in (*tables, "kept"):
            assert self._rows(f"SELECT count(*) FROM {table}") == [(0,)]

    def _rows(self, sql: str, **values: object) -> list[tuple[Any, ...]]:
        return self._catalog.execute(sql, values).fetchall()
