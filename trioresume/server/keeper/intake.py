"""Importing: files from a disk become stored files, or unfinished uploads.

The content goes the way that every upload goes: into tails, chunks and a commit. Equal
content is stored once. If a service runs, it reads the file itself, from a descriptor that the
command hands over; so the service needs no right to open the file::

    → {"do": "import"}
    ← {"ready": true}
    → {"name": "a.pdf", "owner": null, "fields": […], "modified_at": 1.7e9, "length": 5}
      and a descriptor
    ← {"stored": 5}                       at least every second
    ← {"done": "stored"}                  or "present", or {"error": "why it was not done"}

A file that is stored already with this name, owner, length and date is ``present``, and is
not read. While a file is read, it is an unfinished upload of an id that follows from the same
four and a secret. So an import that was killed goes on where it stopped, and one that is never
run again expires.

With ``upload`` instead of ``name``, the content becomes an unfinished upload of this id, which
its client goes on with.
"""

from __future__ import annotations

import base64
import os
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

import trio
from blake3 import blake3

from trioresume.errors import CallerError, StorageError
from trioresume.protocol.clock import ServiceClock
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.server.keeper.changes import check_file_name, open_or_call
from trioresume.server.keeper.collect import PATIENCE
from trioresume.server.keeper.control_socket import Command
from trioresume.store.disk_store import DiskStore
from trioresume.store.port import (
    RECORD_SIZE,
    SERVICE_CLOCK,
    CreateOperation,
    FileRecord,
    ForgetOperation,
    FreezeContent,
    Mutation,
    OperationId,
    OperationRecord,
    PublishFile,
    SetMeta,
    check_key,
    request_key,
)

if TYPE_CHECKING:
    from trioresume.server.keeper.conversation import Conversation, Message
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Store

__all__ = ["FileToImport", "Importer", "UploadToImport", "importing", "open_importer"]

MOST_LINE = 256 * 1024
"""The most bytes of a line that describes a file: its fields are in it."""
SECRET = "import-secret"
LIFETIME = 7 * 86400.0
"""Seconds that an import which was stopped, or an imported upload, is kept at least."""
BLOCK = 1024 * 1024
TELL_EVERY = 1.0

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileToImport:
    """How a file on disk is to be stored. The date is in Unix seconds."""

    name: str
    owner: str | None = None
    fields: Fields = field(default_factory=Fields)
    """``content-type`` and the like, and ``filename``: what the client calls it."""
    modified_at: float | None = None
    """None for the file's own date."""
    replace: bool = False
    """Whether another file of this name and owner is replaced."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadToImport:
    """An unfinished upload of another server, to be gone on with here."""

    id: str
    owner: str | None = None
    method: str = "POST"
    target: str = "/files/"
    fields: Fields = field(default_factory=Fields)
    length: int | None = None


OnProgress = Callable[[int], None]
_Take = Callable[[Mapping[str, Any], int, OnProgress], Awaitable[str]]


class Importer:
    """Stores files in a data directory; see :func:`open_importer`."""

    def __init__(self, take: _Take) -> None:
        self._take = take

    async def add(
        self,
        path: str | os.PathLike[str],
        what: FileToImport | UploadToImport,
        on_progress: OnProgress = lambda stored: None,
    ) -> bool:
        """Store the file *path* as *what*; return False if it was stored already.

        *on_progress* is called with the number of bytes that are stored. Raises
        :class:`OSError` if the file cannot be opened, and
        :class:`~trioresume.StorageError` with the reason if it was not stored.
        """
        descriptor = await trio.to_thread.run_sync(
            os.open, path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
        )
        try:
            wish = _wish(what, os.fstat(descriptor))
            return await self._take(wish, descriptor, on_progress) == "stored"
        finally:
            os.close(descriptor)


def _wish(
    what: FileToImport | UploadToImport, status: os.stat_result
) -> dict[str, object]:
    wish: dict[str, object] = {
        "owner": what.owner,
        "fields": [list(line) for line in what.fields],
    }
    if isinstance(what, UploadToImport):
        return wish | {
            "upload": what.id,
            "method": what.method,
            "target": what.target,
            "length": what.length,
        }
    modified_at = what.modified_at
    if modified_at is None:
        modified_at = round(status.st_mtime_ns / 1000) / 1e6
    return wish | {
        "name": what.name,
        "modified_at": modified_at,
        "length": status.st_size,
        "replace": what.replace,
    }


@asynccontextmanager
async def open_importer(
    data_dir: str | os.PathLike[str], *, patience: float = PATIENCE
) -> AsyncIterator[Importer]:
    """Yield an :class:`Importer` into *data_dir*, whether or not a service is running.

    If none is running, the directory is made if it does not exist, and no service can be
    started meanwhile. Raises :class:`~trioresume.StoreLocked` if a process has the directory
    and cannot be asked for *patience* seconds.
    """
    async with AsyncExitStack() as stack:
        yield Importer(await _open(stack, data_dir, patience))


async def _open(
    stack: AsyncExitStack, data_dir: str | os.PathLike[str], patience: float
) -> _Take:
    found = await open_or_call(stack, data_dir, patience)
    if isinstance(found, DiskStore):
        return _Alone(found).take
    asking = _Asking(found)
    await asking.begin()
    return asking.take


class _Asking:
    """Has a running service read the files."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    async def begin(self) -> None:
        await self._ask({"do": "import"}, None, lambda stored: None)

    async def take(
        self, wish: Mapping[str, Any], descriptor: int, on_progress: OnProgress
    ) -> str:
        return await self._ask(wish, descriptor, on_progress)

    async def _ask(
        self, wish: Mapping[str, Any], descriptor: int | None, on_progress: OnProgress
    ) -> str:
        try:
            await self._talk.say(wish, descriptor)
            while (heard := await self._talk.hear()) is not None:
                if "error" in heard:
                    raise StorageError(str(heard["error"]))
                if "stored" not in heard:
                    return str(heard.get("done"))
                on_progress(int(heard["stored"]))
        except (trio.BrokenResourceError, trio.TooSlowError):
            pass
        raise StorageError("the service went away: run the import again")


class _Alone:
    """Stores files where no service runs."""

    def __init__(self, store: Store) -> None:
        self.store = store
        reading = store.meta(SERVICE_CLOCK)
        now = None if reading is None else float(reading.split()[0])
        self.clock = ServiceClock(time.time, time.monotonic, now)

    async def run(self, function: Callable[..., T], *args: object) -> T:
        return await trio.to_thread.run_sync(partial(function, *args))

    async def commit(self, *mutations: Mutation) -> None:
        [conflict] = await self.run(self.store.apply, [mutations])
        if conflict is not None:
            raise conflict

    async def take(
        self, wish: Mapping[str, Any], descriptor: int, on_progress: OnProgress
    ) -> str:
        async def tell(stored: int) -> None:
            on_progress(stored)

        try:
            return await _Intake(self, self.clock, tell).take(wish, descriptor)
        except CallerError as exc:
            raise StorageError(str(exc)) from exc  # as if a service had said so


# The service.


def importing(operations: Registry) -> Command:
    """Return the command ``import``, which the service obeys."""

    async def obey(talk: Conversation, message: Message) -> None:
        async def tell(stored: int) -> None:
            await talk.say({"stored": stored})

        storage = cast("_Storage", operations.storage)
        intake = _Intake(storage, operations.clock, tell)
        await talk.say({"ready": True})
        while (wish := await talk.hear(MOST_LINE)) is not None:
            descriptor = talk.take_descriptor()
            try:
                if descriptor is None:
                    raise CallerError("no file came with it")
                done = await intake.take(wish, descriptor)
            except (CallerError, StorageError) as exc:
                await talk.say({"error": str(exc)})
            else:
                await talk.say({"done": done})
            finally:
                if descriptor is not None:
                    os.close(descriptor)

    return obey


class _Storage(Protocol):
    """What an intake needs of the store: the service's storage has it, and :class:`_Alone`."""

    store: Store

    async def run(self, function: Callable[..., T], *args: object) -> T: ...

    async def commit(self, *mutations: Mutation) -> None: ...


class _Intake:
    """Stores one file after the other."""

    def __init__(
        self,
        storage: _Storage,
        clock: ServiceClock,
        tell: Callable[[int], Awaitable[None]],
    ) -> None:
        self._storage = storage
        self._store = storage.store
        self._clock = clock
        self._tell = tell

    async def take(self, wish: Mapping[str, Any], descriptor: int) -> str:
        """Store the open file *descriptor*. Raises :class:`CallerError` for nonsense."""
        owner = wish.get("owner")
        if owner is not None and not (isinstance(owner, str) and owner):
            raise CallerError("this is no owner")
        length = wish.get("length")
        if length is not None and (not isinstance(length, int) or length < 0):
            raise CallerError("this is no length")
        if "upload" in wish:
            return await self._take_upload(wish, descriptor, owner, length)
        name, modified_at = wish.get("name"), wish.get("modified_at")
        if not isinstance(name, str) or not isinstance(modified_at, int | float):
            raise CallerError("name or modified_at is missing")
        check_file_name(name)
        if length is None:
            raise CallerError("length is missing")
        return await self._take_file(
            FileToImport(
                name=name,
                owner=owner,
                fields=_fields(wish),
                modified_at=float(modified_at),
                replace=bool(wish.get("replace")),
            ),
            length,
            descriptor,
        )

    async def _take_file(self, what: FileToImport, length: int, descriptor: int) -> str:
        run = self._storage.run
        assert what.modified_at is not None
        there = await run(self._store.file, what.owner, what.name)
        if there is not None:
            # A service's own dates are finer than those of an export.
            later = abs(there.modified_at - what.modified_at)
            if there.content.length == length and later < 2e-6:
                return "present"
            if not what.replace:
                raise CallerError("there is another file of this name already")
        await run(self._store.take_room, RECORD_SIZE)
        operation = await self._id_of(what, length)
        record = OperationRecord(
            id=operation,
            method="PUT",
            target=f"/{what.name}",
            fields=what.fields,
            created_at=self._clock.now(),
            expires_at=self._clock.now() + LIFETIME,
            principal=what.owner,
            length=length,
        )
        found = await run(self._store.operation, operation)
        if found is not None and found.state is not OperationState.RECEIVING:
            await self._storage.commit(ForgetOperation(operation))
            found = None
        if found is None:
            await self._storage.commit(CreateOperation(record))
        key = request_key(operation)
        writer = await run(self._store.open_writer, key)
        with closing(writer):
            if await self._append(writer, descriptor, length) != length:
                await self._storage.commit(ForgetOperation(operation))
                raise CallerError("the file changed while it was read")
            seals = [await run(seal.run) for seal in await run(writer.finish)]
            content = await run(self._store.sealed_content, key, seals)
        file = FileRecord(
            owner=what.owner,
            name=what.name,
            content=content,
            fields=what.fields,
            modified_at=what.modified_at,
        )
        await self._storage.commit(
            *seals,
            FreezeContent(key, content),
            PublishFile(file, None if there is None else there.content),
            ForgetOperation(operation),
        )
        return "stored"

    async def _take_upload(
        self,
        wish: Mapping[str, Any],
        descriptor: int,
        owner: str | None,
        length: int | None,
    ) -> str:
        named, method, target = wish["upload"], wish.get("method"), wish.get("target")
        if not isinstance(named, str) or not isinstance(method, str):
            raise CallerError("upload or method is missing")
        if not isinstance(target, str) or not target.startswith("/"):
            raise CallerError("target is no path")
        operation = OperationId(named)
        key = request_key(operation)
        check_key(key)
        size = os.fstat(descriptor).st_size
        if length is not None and size >= length:
            raise CallerError("it is whole, so it is no unfinished upload")
        run = self._storage.run
        found = await run(self._store.operation, operation)
        if found is None:
            await run(self._store.take_room, RECORD_SIZE)
            now = self._clock.now()
            record = OperationRecord(
                id=operation,
                method=method,
                target=target,
                fields=_fields(wish),
                created_at=now,
                expires_at=now + LIFETIME,
                principal=owner,
                length=length,
                reserved=max(size, length or 0),
            )
            await self._storage.commit(CreateOperation(record))
        elif found.state is not OperationState.RECEIVING:
            return "present"
        elif await run(self._store.offset, key) >= size:
            return "present"  # its client may be going on with it
        writer = await run(self._store.open_writer, key)
        with closing(writer):
            await self._append(writer, descriptor, size)
            flush = await run(writer.flush)
            if flush is not None:
                await self._storage.commit(await run(flush.run))
        return "stored"

    async def _append(self, writer: Any, descriptor: int, stop: int) -> int:
        """Append the file from the writer's offset up to *stop*; return the new offset."""
        run = self._storage.run
        told = trio.current_time()
        while writer.offset < stop:
            size = min(BLOCK, stop - writer.offset)
            try:
                block = await run(_read, descriptor, writer.offset, size)
            except OSError as exc:
                raise CallerError(f"the file cannot be read: {exc.strerror}") from exc
            if not block:
                break
            seals = [await run(seal.run) for seal in await run(writer.append, block)]
            if seals:
                await self._storage.commit(*seals)
            if trio.current_time() - told > TELL_EVERY:
                told = trio.current_time()
                await self._tell(writer.offset)
        if await run(_read, descriptor, stop, 1):
            return stop + 1  # it has grown
        return int(writer.offset)

    async def _id_of(self, what: FileToImport, length: int) -> OperationId:
        """Return the id of the import of this file: nobody can guess it from outside."""
        secret = await self._storage.run(self._store.meta, SECRET)
        if secret is None:
            secret = secrets.token_hex(32)
            await self._storage.commit(SetMeta(SECRET, secret))
        told = repr((what.owner, what.name, length, what.modified_at)).encode()
        raw = blake3(told, key=bytes.fromhex(secret)).digest(length=16)
        return OperationId(base64.urlsafe_b64encode(raw).decode().rstrip("="))


def _read(descriptor: int, at: int, size: int) -> bytes:
    os.lseek(descriptor, at, os.SEEK_SET)
    return os.read(descriptor, size)


def _fields(wish: Mapping[str, Any]) -> Fields:
    lines = wish.get("fields", [])
    if not isinstance(lines, list) or not all(
        isinstance(line, list)
        and len(line) == 2
        and all(isinstance(text, str) and "\n" not in text for text in line)
        for line in lines
    ):
        raise CallerError("these are no fields")
    return Fields((name, value) for name, value in lines)
