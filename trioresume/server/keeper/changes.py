"""Changing what is stored: the keeper removes, renames and gives away files and uploads.

If a service runs, it makes the changes itself, asked by the control socket, so that its
uploads in memory, its quotas and its schedule agree with the catalog::

    → {"do": "change"}
    ← {"ready": true}
    → {"act": "rm", "file": "report.pdf", "owner": null}
    ← {"done": true}                                      or {"error": "why it was not done"}
    → {"act": "mv", "file": "a", "owner": "alice", "name": "b", "force": false}
    → {"act": "chown", "file": "a", "owner": null, "to": "alice", "force": false}
    → {"act": "rm", "upload": "q4Zk…"}
    → {"act": "mv", "upload": "q4Zk…", "name": "b"}
    → {"act": "chown", "upload": "q4Zk…", "to": "alice"}

If none runs, the directory is opened and locked. A file is removed or moved in one commit, so
a crash leaves it as it was or as it is to be.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import trio

from trioresume.errors import CallerError, StorageConflict, StorageError, StoreLocked
from trioresume.protocol.clock import ServiceClock
from trioresume.protocol.filenames import name_fault
from trioresume.protocol.operation import OperationState
from trioresume.server.keeper.collect import PATIENCE, RETRY_DELAY
from trioresume.server.keeper.control_socket import Command, calling
from trioresume.server.keeper.conversation import Conversation
from trioresume.store.disk_store import DiskStore, open_store
from trioresume.store.file_system.free_space import RESERVE_SIZE
from trioresume.store.keeper.inventory import StoredFile, StoredUpload
from trioresume.store.port import (
    SERVICE_CLOCK,
    EndOperation,
    FileRecord,
    MoveOperation,
    Mutation,
    OperationId,
    OperationRecord,
    PublishFile,
    RemoveFile,
)

if TYPE_CHECKING:
    from trioresume.server.keeper.conversation import Conversation, Message
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Store

__all__ = [
    "Keeper",
    "change_served",
    "changing",
    "check_file_name",
    "open_keeper",
    "open_or_call",
]

TOMBSTONE = 24 * 3600.0
"""Seconds for which an upload that was removed while no service runs answers that it is gone."""

_MOVABLE = (OperationState.RECEIVING, OperationState.WAITING)


_Change = Callable[[Mapping[str, Any]], Awaitable[None]]


class Keeper:
    """Changes the files and uploads of a data directory; see :func:`open_keeper`.

    Each method returns when its change is durable. It raises
    :class:`~trioresume.StorageError` with the reason if it was not made.
    """

    def __init__(self, change: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        self._change = change

    async def remove(self, what: StoredFile | StoredUpload) -> None:
        """Remove a file, or end an upload: its content goes, and it answers 410."""
        await self._change({"act": "rm", **_named(what)})

    async def rename(
        self, what: StoredFile | StoredUpload, name: str, *, force: bool = False
    ) -> None:
        """Give a file, or the file that an unfinished PUT will become, another name.

        With *force* a file that has this name is replaced.
        """
        wish = {"act": "mv", **_named(what), "name": name, "force": force}
        await self._change(wish)

    async def give(
        self,
        what: StoredFile | StoredUpload,
        owner: str | None,
        *,
        force: bool = False,
    ) -> None:
        """Make *owner* the owner; None is for requests without a token.

        With *force* a file of the same name that *owner* has is replaced.
        """
        wish = {"act": "chown", **_named(what), "to": owner, "force": force}
        await self._change(wish)


def _named(what: StoredFile | StoredUpload) -> dict[str, object]:
    if isinstance(what, StoredFile):
        return {"file": what.name, "owner": what.owner}
    return {"upload": what.id}


@asynccontextmanager
async def open_keeper(
    data_dir: str | os.PathLike[str], *, patience: float = PATIENCE
) -> AsyncIterator[Keeper]:
    """Yield a :class:`Keeper` of *data_dir*, whether or not a service is running.

    If none is running, no service can be started meanwhile. Raises
    :class:`~trioresume.StoreLocked` if a process has the directory and cannot be asked for
    *patience* seconds, and :class:`~trioresume.StorageError` if there is no data directory.
    """
    if not (Path(data_dir) / "format").exists():
        raise StorageError(f"{os.fspath(data_dir)} is no data directory of trioresume")
    async with AsyncExitStack() as stack:
        yield Keeper(await _open(stack, data_dir, patience))


async def open_or_call(
    stack: AsyncExitStack, data_dir: str | os.PathLike[str], patience: float
) -> DiskStore | Conversation:
    """Open the store in *data_dir*, or talk with the service that has it, while *stack* lives.

    Raises :class:`~trioresume.StoreLocked` if a process has the directory and cannot be asked
    for *patience* seconds.
    """
    opened = partial(open_store, data_dir, reserve=RESERVE_SIZE)
    deadline = trio.current_time() + patience
    while True:
        try:
            store = await trio.to_thread.run_sync(opened)
        except StoreLocked as locked:
            try:
                return await stack.enter_async_context(calling(data_dir))
            except OSError as exc:
                if trio.current_time() > deadline:
                    raise locked from exc
                await trio.sleep(RETRY_DELAY)
        else:
            stack.callback(store.close)
            return store


async def _open(
    stack: AsyncExitStack, data_dir: str | os.PathLike[str], patience: float
) -> _Change:
    found = await open_or_call(stack, data_dir, patience)
    if isinstance(found, DiskStore):
        return _Alone(found).change
    return (await _Asking.begin(found)).change


class _Asking:
    """Asks a running service."""

    def __init__(self, talk: Conversation) -> None:
        self._talk = talk

    @classmethod
    async def begin(cls, talk: Conversation) -> _Asking:
        asking = cls(talk)
        await asking._ask({"do": "change"})
        return asking

    async def change(self, wish: Mapping[str, Any]) -> None:
        await self._ask(wish)

    async def _ask(self, wish: Mapping[str, Any]) -> None:
        try:
            await self._talk.say(wish)
            heard = await self._talk.hear()
        except (trio.BrokenResourceError, trio.TooSlowError):
            heard = None
        if heard is None:
            raise StorageError("the service went away: look whether it was done")
        if "error" in heard:
            raise StorageError(str(heard["error"]))


class _Alone:
    """Changes a store that no service has."""

    def __init__(self, store: Store) -> None:
        self._store = store
        reading = store.meta(SERVICE_CLOCK)
        now = None if reading is None else float(reading.split()[0])
        self._clock = ServiceClock(time.time, time.monotonic, now)

    async def change(self, wish: Mapping[str, Any]) -> None:
        try:
            await trio.to_thread.run_sync(self._change, wish)
        except CallerError as exc:
            raise StorageError(str(exc)) from exc  # as if a service had said so

    def _change(self, wish: Mapping[str, Any]) -> None:
        if "file" in wish:
            mutations = _file_mutations(self._store, wish)
        else:
            record = self._store.operation(OperationId(_text(wish, "upload")))
            mutations = [self._upload_mutation(record, wish)]
        [conflict] = self._store.apply([mutations])
        if conflict is not None:
            raise conflict

    def _upload_mutation(
        self, record: OperationRecord | None, wish: Mapping[str, Any]
    ) -> Mutation:
        if record is None or record.state is OperationState.GONE:
            raise CallerError("there is no such upload")
        if wish["act"] == "rm":
            return EndOperation(record.id, self._clock.now() + TOMBSTONE)
        return _moved(record, wish)


# The service.


def changing(operations: Registry) -> Command:
    """Return the command ``change``, which the service obeys."""

    async def obey(talk: Conversation, message: Message) -> None:
        await talk.say({"ready": True})
        while (wish := await talk.hear()) is not None:
            try:
                await change_served(operations, wish)
            except (CallerError, StorageError) as exc:
                await talk.say({"error": str(exc)})
            else:
                await talk.say({"done": True})

    return obey


async def change_served(operations: Registry, wish: Message) -> None:
    """Make the change *wish*, a message as above, in the service that has *operations*.

    Raises :class:`CallerError` and :class:`~trioresume.StorageError` with the reason if it
    was not made.
    """
    storage = operations.storage
    if wish.get("act") not in ("rm", "mv", "chown"):
        raise CallerError("what is asked for is not known")
    if "file" in wish:
        mutations = await storage.run(_file_mutations, storage.store, wish)
        await storage.commit(*mutations)
        return
    async with operations.use(OperationId(_text(wish, "upload"))) as operation:
        if operation is None or operation.state is OperationState.GONE:
            raise CallerError("there is no such upload")
        if wish["act"] == "rm":
            await operation.cancel()
            return
        # A client that is sending it comes back as the owner that it is.
        await operation.incoming.turns.end_writer()
        moved = _moved(operation.record, wish)
        before = operation.record
        operation.record = replace(
            before, principal=moved.principal, target=moved.target
        )
        try:
            await storage.commit(moved)
        except StorageError:
            operation.record = replace(
                operation.record, principal=before.principal, target=before.target
            )
            raise


# What is to be done, as mutations.


def _text(wish: Mapping[str, Any], key: str) -> str:
    value = wish.get(key)
    if not isinstance(value, str):
        raise CallerError(f"{key} is missing")
    _check_characters(value)
    return value


def _check_characters(value: str) -> None:
    """Raise :class:`CallerError` for half of a character, which JSON may have and SQLite not."""
    try:
        value.encode()
    except UnicodeEncodeError as exc:
        raise CallerError(f"{value!r} is no text") from exc


def _owner(wish: Mapping[str, Any], key: str) -> str | None:
    value = wish.get(key)
    if value is not None and (not isinstance(value, str) or not value):
        raise CallerError(f"{key} is no owner")
    if value is not None:
        _check_characters(value)
    return value


def _moved(record: OperationRecord, wish: Mapping[str, Any]) -> MoveOperation:
    """Return the change of an upload's owner, or of the name that its file will have."""
    if wish["act"] == "chown":
        if record.state in (
            OperationState.COMPLETE,
            OperationState.PROCESSING,
            OperationState.ABANDONED,
        ):
            raise CallerError("it is being processed")
        return MoveOperation(record.id, _owner(wish, "to"), record.target)
    name = _text(wish, "name")
    check_file_name(name)
    if record.method != "PUT" or record.state not in _MOVABLE:
        raise CallerError("only an unfinished PUT has a name to be changed")
    folder = record.target.partition("?")[0].rpartition("/")[0]
    return MoveOperation(
        record.id, record.principal, f"{folder}/{quote(name, safe='')}"
    )


def _file_mutations(store: Store, wish: Mapping[str, Any]) -> Sequence[Mutation]:
    """Return the mutations that remove or move a file, in a thread.

    Raises :class:`CallerError` and :class:`StorageConflict`.
    """
    owner, name = _owner(wish, "owner"), _text(wish, "file")
    file = store.file(owner, name)
    if file is None:
        raise CallerError("there is no such file")
    remove = RemoveFile(owner, name, file.content)
    if wish["act"] == "rm":
        return [remove]
    if wish["act"] == "mv":
        moved = replace(file, name=_text(wish, "name"))
        check_file_name(moved.name)
        if file.fields.get("filename") == name:
            # Downloads get the new name, too; a name of the client's stays.
            moved = replace(moved, fields=file.fields.without("filename"))
    else:
        moved = replace(file, owner=_owner(wish, "to"))
    if (moved.owner, moved.name) == (owner, name):
        return []
    return [_publish(store, moved, bool(wish.get("force"))), remove]


def _publish(store: Store, moved: FileRecord, force: bool) -> PublishFile:
    there = store.file(moved.owner, moved.name)
    if there is not None and not force:
        raise StorageConflict("there is a file of this name already")
    return PublishFile(moved, None if there is None else there.content)


def check_file_name(name: str) -> None:
    """Raise :class:`CallerError` unless *name* can be the name of a stored file."""
    fault = name_fault(name)
    if not name or name in (".", "..") or "/" in name or "\\" in name:
        fault = "the name is not one segment of a path"
    if fault is not None:
        raise CallerError(f"{name!r} cannot be a file's name: {fault}")
