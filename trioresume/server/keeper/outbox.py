"""The outbox for its administrator: send events again, or drop them.

If a service has the directory open, it makes the change, because only one process may. The
control socket has this command::

    → {"do": "events", "action": "retry", "seqs": [17, 18]}      or "drop"
    ← {"done": true}

If none has, the store is opened for a moment, and no service can start meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import trio

from trioresume.errors import CallerError, StorageError, StoreLocked
from trioresume.server.keeper.collect import PATIENCE, RETRY_DELAY
from trioresume.server.keeper.control_socket import Command, calling
from trioresume.store.disk_store import open_store
from trioresume.store.file_system.free_space import RESERVE_SIZE
from trioresume.store.port import SERVICE_CLOCK, DropEvents, Mutation, ReviveEvents

if TYPE_CHECKING:
    from trioresume.server.keeper.conversation import Conversation, Message
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Store

__all__ = ["AT_ONCE", "change_events", "changing_events", "event_changes"]

Action = Literal["retry", "drop"]

AT_ONCE = 200
"""Events in one line of the control socket, and in one commit."""


def changing_events(operations: Registry) -> Command:
    """Return the command ``events``, which the service obeys."""

    async def obey(talk: Conversation, message: Message) -> None:
        seqs, action = message.get("seqs"), message.get("action")
        if not isinstance(seqs, list) or not all(type(seq) is int for seq in seqs):
            raise CallerError("events needs a list of numbers")
        if action not in ("retry", "drop"):
            raise CallerError("events can be sent again or dropped")
        now = operations.clock.now()
        await operations.storage.commit(*event_changes(action, seqs, now))
        await talk.say({"done": True})

    return obey


def event_changes(action: str, seqs: Sequence[int], now: float) -> list[Mutation]:
    """Return what sends the events *seqs* again at *now* (``retry``), or drops them."""
    some = tuple(seqs)
    if action == "retry":
        return [ReviveEvents(some, now)]
    return [DropEvents(some), DropEvents(some, dead=True)]


async def change_events(
    data_dir: str | os.PathLike[str], action: Action, seqs: Sequence[int]
) -> None:
    """Send the events with the numbers *seqs* again (``retry``), or forget them (``drop``).

    A dead event that is sent again comes after all events that wait. Numbers without an event
    are ignored: it may have been delivered meanwhile. Works beside a running service, and on a
    directory that none has open.

    Raises :class:`~trioresume.StorageError` if there is no data directory, the process that
    has it open cannot be asked, or the disk failed.
    """
    if not (Path(data_dir) / "format").exists():
        raise StorageError(f"{os.fspath(data_dir)} is no data directory of trioresume")
    opened = partial(open_store, data_dir, reserve=RESERVE_SIZE)
    deadline = trio.current_time() + PATIENCE
    while True:
        try:
            store = await trio.to_thread.run_sync(opened)
        except StoreLocked as locked:
            try:
                await _ask(data_dir, action, seqs)
            except OSError as exc:
                if trio.current_time() > deadline:
                    raise locked from exc
            else:
                return
        else:
            try:
                await trio.to_thread.run_sync(_change, store, action, seqs)
            finally:
                store.close()
            return
        await trio.sleep(RETRY_DELAY)


def _change(store: Store, action: Action, seqs: Sequence[int]) -> None:
    reading = store.meta(SERVICE_CLOCK)
    now = 0.0 if reading is None else float(reading.split()[0])
    for first in range(0, len(seqs), AT_ONCE):
        store.apply([event_changes(action, seqs[first : first + AT_ONCE], now)])


async def _ask(
    data_dir: str | os.PathLike[str], action: Action, seqs: Sequence[int]
) -> None:
    try:
        for first in range(0, len(seqs), AT_ONCE):
            some = list(seqs[first : first + AT_ONCE])
            async with calling(data_dir) as talk:
                await talk.say({"do": "events", "action": action, "seqs": some})
                answer = await talk.hear()
            if answer is None:
                raise trio.BrokenResourceError
            if "error" in answer:
                raise StorageError(str(answer["error"]))
    except (trio.BrokenResourceError, trio.TooSlowError) as exc:
        raise StorageError("the service went away meanwhile: ask again") from exc
