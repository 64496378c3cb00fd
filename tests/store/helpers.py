"""What the store's tests share: stands to try a store on, and short ways to use it."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Protocol

from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog import catalog, chunk_lists, schema
from trioresume.store.disk.tail_files import PROOF
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.disk_io import Descriptor, Disk
from trioresume.store.port import (
    Collected,
    Content,
    ContentKey,
    ContentReader,
    ContentWriter,
    CreateOperation,
    FileRecord,
    FreezeContent,
    Mutation,
    OperationId,
    OperationRecord,
    Seal,
    SetState,
    Store,
    StoredResponse,
    recipes,
    request_key,
)
from trioresume.testing.memory_store import MemoryStore

CHUNK = 8
"""The chunk size of most tests: small, so that little data has many chunks."""


class Stand(Protocol):
    """A store that can be made to fail, killed and started again."""

    @property
    def store(self) -> Store: ...

    @property
    def survives_kill(self) -> bool:
        """Whether bytes that were accepted, but not made durable, survive the process."""
        ...

    def restart(self, *, power_loss: bool = False, chunk_size: int = CHUNK) -> Store:
        """Kill the process, or the machine; start again."""
        ...

    def set_space(self, space: int | None) -> None:
        """How many more bytes of content fit; None for plenty."""
        ...

    def fail_next_sync(self) -> None: ...

    def fail_no_sync(self) -> None:
        """Take that back, if no sync was due."""
        ...

    def stored_bytes(self) -> int:
        """The bytes of all chunks and tails that are there."""
        ...

    def close(self) -> None: ...


class FaultyDisk(Disk):
    """A disk that can be full, and whose syncs can fail."""

    syncs_at_once = 1  # calls come in one order

    def __init__(self, *, durable: bool = True) -> None:
        super().__init__(durable=durable)
        self.synchronous = "OFF"
        self.attaches = False  # proofs in files, which tests can change
        self.space: int | None = None
        self.sync_error: OSError | None = None
        self.write = self._write

    def _write(self, fd: int, data: memoryview) -> int:
        if self.space is None:
            return os.write(fd, data)
        if not self.space:
            raise OSError(28, "No space left on device")
        written = os.write(fd, data[: self.space])
        self.space -= written
        return written

    def sync_data(self, file: Descriptor) -> None:
        error, self.sync_error = self.sync_error, None
        if error is not None:
            raise error
        # The tests' crashes are copies of what the page cache holds: a true sync
        # would cost time and show nothing.

    def sync_file_system(self, path: str) -> None:
        pass  # for the same reason


class DiskStand:
    """A :class:`DiskStore`. To kill it is to go on with a copy of its files."""

    survives_kill = True

    def __init__(self, path: Path) -> None:
        self._path = path
        self._starts = 0
        self.disk = FaultyDisk()
        self.data_dir = path / "data0"
        self.store: DiskStore = self.open()

    def open(self, chunk_size: int = CHUNK) -> DiskStore:
        return open_store(self.data_dir, chunk_size=chunk_size, disk=self.disk)

    def restart(
        self, *, power_loss: bool = False, chunk_size: int = CHUNK
    ) -> DiskStore:
        self._starts += 1
        killed, self.data_dir = self.data_dir, self._path / f"data{self._starts}"
        copy_directory(killed, self.data_dir)
        self.store.close()
        shutil.rmtree(killed)
        if power_loss:
            lose_unrecorded(self.data_dir)
        self.disk = FaultyDisk()
        self.store = self.open(chunk_size)
        return self.store

    def set_space(self, space: int | None) -> None:
        self.disk.space = space

    def fail_next_sync(self) -> None:
        self.disk.sync_error = OSError(5, "Input/output error")

    def fail_no_sync(self) -> None:
        self.disk.sync_error = None

    def files(self, under: str) -> list[str]:
        """The paths of all files under *under* but proofs, relative to it."""
        root = self.data_dir / under
        paths = (path for path in root.rglob("*") if path.is_file())
        return sorted(str(p.relative_to(root)) for p in paths if p.suffix != PROOF)

    def stored_bytes(self) -> int:
        paths = [self.data_dir / "tails" / name for name in self.files("tails")]
        paths += [self.data_dir / "chunks" / name for name in self.files("chunks")]
        return sum(path.stat().st_size for path in paths)

    def close(self) -> None:
        self.store.close()


class MemoryStand:
    survives_kill = True

    def __init__(self) -> None:
        self.store = MemoryStore(chunk_size=CHUNK)

    def restart(
        self, *, power_loss: bool = False, chunk_size: int = CHUNK
    ) -> MemoryStore:
        self.store = self.store.crash(power_loss=power_loss, chunk_size=chunk_size)
        return self.store

    def set_space(self, space: int | None) -> None:
        self.store.full_after = (
            None if space is None else self.store.stored_bytes + space
        )

    def fail_next_sync(self) -> None:
        self.store.fail_next_sync = True

    def fail_no_sync(self) -> None:
        self.store.fail_next_sync = False

    def stored_bytes(self) -> int:
        return self.store.stored_bytes

    def close(self) -> None:
        self.store.close()


def copy_directory(source: Path, target: Path) -> None:
    """Copy *source*, with names of the same file as names of the same copy."""
    copies: dict[int, str] = {}

    def copy(name: str, copy_name: str) -> None:
        inode = os.stat(name).st_ino
        if inode in copies:
            os.link(copies[inode], copy_name)
        else:
            shutil.copy2(name, copy_name)
            copies[inode] = copy_name

    shutil.copytree(source, target, copy_function=copy)


def lose_unrecorded(data_dir: Path) -> None:
    """What a file system may do to the tails in a loss, at its worst.

    The lengths survive, and of the bytes only those that were recorded as synced.
    """
    with closing(sqlite3.connect(data_dir / "catalog.sqlite3")) as catalog:
        rows = catalog.execute(
            "SELECT key, chunk_size, max(durable_offset, prefix_bytes) FROM contents"
        ).fetchall()
    for key, chunk_size, durable in rows:
        for path in (data_dir / "tails").glob(f"{key}.*"):
            index = path.name.rpartition(".")[2]
            if index.isdecimal():
                kept = max(0, durable - int(index) * chunk_size)
                content = path.read_bytes()
                path.write_bytes(content[:kept].ljust(len(content), b"\0"))


def set_part_chunks(
    setattr_: Callable[[object, str, object], None], chunks: int
) -> None:
    """Fold as few as *chunks* chunks into a part, by monkeypatch's *setattr_*."""
    for module in (recipes, chunk_lists, catalog):
        setattr_(module, "PART_CHUNKS", chunks)


OP = OperationId("operation-1")
KEY = request_key(OP)


def downgrade(data_dir: Path, version: int) -> None:
    """Give a closed store's catalog the form of an earlier *version*, with the same rows."""
    path = data_dir / "catalog.sqlite3"
    script = "".join(schema._MIGRATIONS[:version])
    script += f"PRAGMA user_version = {version};"
    with (
        closing(sqlite3.connect(path)) as new,
        closing(sqlite3.connect(path.with_suffix(".old"))) as old,
    ):
        old.executescript(script)
        # The rows are there with what triggers would have made of them.
        triggers = old.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
        ).fetchall()
        for name, _ in triggers:
            old.execute(f"DROP TRIGGER {name}")
        tables = old.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        for (table,) in tables.fetchall():
            old.execute(f"DELETE FROM {table}")
            known = old.execute(f"PRAGMA table_info({table})").fetchall()
            columns = ", ".join(name for _, name, *_ in known)
            old.executemany(
                f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' * len(known))})",
                new.execute(f"SELECT {columns} FROM {table}").fetchall(),
            )
        for _, sql in triggers:
            old.execute(sql)
        old.commit()
    path.with_suffix(".old").replace(path)


def record(
    id: str = OP,
    *,
    expires_at: float = 1000.0,
    state: OperationState = OperationState.RECEIVING,
    principal: str | None = None,
    length: int | None = None,
    content: Content | None = None,
) -> OperationRecord:
    return OperationRecord(
        id=OperationId(id),
        method="POST",
        target="/files/?a=%20b",
        fields=Fields([("Content-Type", "text/plain"), ("x-a", "\xe9")]),
        created_at=1.5,
        expires_at=expires_at,
        state=state,
        principal=principal,
        length=length,
        content=content,
    )


def do(store: Store, *mutations: Mutation) -> None:
    """Apply *mutations* as one submission, which must not conflict."""
    assert store.apply([mutations]) == [None]


def conflicts(store: Store, *mutations: Mutation) -> bool:
    """Whether *mutations* as one submission conflict."""
    return store.apply([mutations]) != [None]


def begin(store: Store, id: str = OP) -> ContentWriter:
    """Create an operation and open its writer."""
    do(store, CreateOperation(record(id)))
    return store.open_writer(request_key(OperationId(id)))


def seal_all(store: Store, seals: Sequence[Seal]) -> None:
    do(store, *[seal.run() for seal in seals])


def put(store: Store, writer: ContentWriter, data: bytes) -> None:
    """Append *data*, and seal what became full."""
    seal_all(store, writer.append(data))


def make_durable(store: Store, writer: ContentWriter) -> None:
    flush = writer.flush()
    if flush is not None:
        do(store, flush.run())


def freeze(store: Store, key: ContentKey, writer: ContentWriter) -> FreezeContent:
    """Seal the rest, and the mutation that freezes the content."""
    seal_all(store, writer.finish())
    writer.close()
    return FreezeContent(key, store.sealed_content(key))


def store_content(store: Store, data: bytes, id: str = OP) -> Content:
    """An operation's whole life until its content is frozen."""
    writer = begin(store, id)
    put(store, writer, data)
    operation = OperationId(id)
    frozen = freeze(store, request_key(operation), writer)
    do(store, frozen, SetState(operation, OperationState.COMPLETE))
    assert frozen.content.length == len(data)
    return frozen.content


def read_from(reader: ContentReader, offset: int = 0) -> bytes:
    """All that *reader* has from *offset* on, in many pieces."""
    parts = []
    size = max(5, reader.length // 1000)
    try:
        while offset < reader.length:
            part = reader.read(offset, size)
            assert part
            parts.append(part)
            offset += len(part)
        assert reader.read(offset, size) == b""
    finally:
        reader.close()
    return b"".join(parts)


def read_content(store: Store, content: Content) -> bytes:
    return read_from(store.open_reader(content))


def read_prefix(store: Store, key: ContentKey = KEY) -> bytes:
    return read_from(store.open_prefix(key, store.offset(key)))


def collect_all(store: Store, limit: int = 1000) -> Collected:
    """Collect until nothing is left; what that came to."""
    recipes = chunks = size = 0
    while (done := store.collect(limit)) != Collected():
        recipes += done.recipes
        chunks += done.chunks
        size += done.bytes
    return Collected(recipes, chunks, size)


def response(body: bytes | Content = b"done\n") -> StoredResponse:
    content = Content(len(body), inline=body) if isinstance(body, bytes) else body
    return StoredResponse(
        status=201,
        fields=Fields([("Location", "/x"), ("Set-Cookie", "a")]),
        body=content,
    )


def file_record(
    name: str = "a.txt",
    content: Content | None = None,
    *,
    owner: str | None = None,
    expires_at: float | None = None,
) -> FileRecord:
    return FileRecord(
        owner=owner,
        name=name,
        content=content or Content(3, inline=b"abc"),
        fields=Fields([("content-type", "text/plain")]),
        modified_at=5.25,
        expires_at=expires_at,
    )
