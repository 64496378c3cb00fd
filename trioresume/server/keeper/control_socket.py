"""The control socket: how the keeper's commands ask the process that serves a directory.

The process that holds the directory's lock has to do what changes the directory. Only this
process knows which contents are being read, which chunks are about to be named and which
uploads are in memory; and only within one process does unlinking a chunk exclude publishing
it. So a command such as ``trioresume gc`` opens the store itself if no process has it open,
and asks the process that has it open otherwise.

``data/control`` is a Unix socket. The directory's mode (0700) says who may use it. A client
sends a line and receives lines. Each line is a JSON object of at most :data:`MAX_LINE`
bytes. ``do`` names the command::

    → {"do": "collect"}
    ← {"chunks": 12, "recipes": 3, "bytes": 50331648, "steps": 30}    per step
    ← {"done": true}                    or {"error": "why it could not go on"}

    → {"do": "retry", "id": "q4Zk…"}
    ← {"status": 201}                   of the response; null if the target cannot take it now
                                        or {"error": "why it makes no sense"}

The other commands are described in the modules that obey them: :mod:`.hold`,
:mod:`.changes` and :mod:`.intake`.

If a client goes away, its command ends after the current step. At most
:data:`MAX_CLIENTS` are served at a time; others wait in the kernel's queue.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import socket
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    CallerError,
    CollectionCut,
    StorageError,
    TrioresumeError,
)
from trioresume.server.keeper.conversation import (
    CLIENT_TIMEOUT,
    MAX_LINE,
    Conversation,
    Message,
)
from trioresume.store.file_system.disk_io import owner_to_follow
from trioresume.store.port import Collected, OperationId

if TYPE_CHECKING:
    from trioresume.server.uploads.expiry import Collector

__all__ = [
    "CLIENT_TIMEOUT",
    "CONTROL",
    "MAX_LINE",
    "Command",
    "ask_to_collect",
    "ask_to_retry",
    "calling",
    "collecting",
    "retrying",
    "serve_control",
]

logger = logging.getLogger("trioresume.control")

Command = Callable[[Conversation, Message], Awaitable[None]]
"""Obeys one command: the conversation, and the line that asked for it. It may raise
:class:`~trioresume.StorageError` and :class:`~trioresume.CallerError`: the client gets the
text as the error."""

CONTROL = "control"
"""The socket's name in the data directory."""
MAX_CLIENTS = 4
BACKLOG = 128
"""Clients that wait. Beyond this, connecting fails at once: Unix sockets do not queue it."""
_MAX_ADDRESS = 100
"""Bytes of a socket's address: sun_path has 104 on some systems, 108 on Linux."""


@contextmanager
def _address(data_dir: str | os.PathLike[str]) -> Iterator[str]:
    """The socket's address, valid within the block, whatever the length of the path."""
    path = os.path.join(os.path.abspath(data_dir), CONTROL)
    if len(os.fsencode(path)) <= _MAX_ADDRESS:
        yield path
        return
    # Linux resolves this like any path, so the directory may be at any depth.
    directory = os.open(data_dir, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{CONTROL}"
    finally:
        os.close(directory)


# The service.


async def serve_control(
    data_dir: str | os.PathLike[str],
    commands: Mapping[str, Command],
    patience: float = CLIENT_TIMEOUT,
) -> None:
    """Obey *commands*, which have the names that clients send, until cancelled.

    A client has *patience* seconds for its command, and for taking each line of an answer.
    The caller holds the directory's lock. If the system has no Unix sockets, or the socket
    cannot be made, this logs a warning and returns; the service works without it.
    """
    try:
        listener = _listen(data_dir)
    except (OSError, AttributeError) as exc:
        logger.warning(
            "gc cannot ask this service, there is no control socket: %s", exc
        )
        return
    places = trio.Semaphore(MAX_CLIENTS)
    with listener:
        try:
            async with trio.open_nursery() as nursery:
                while True:
                    await places.acquire()
                    client, _ = await listener.accept()
                    nursery.start_soon(
                        _serve_client, client, commands, places, patience
                    )
        finally:
            with _address(data_dir) as path:
                _remove(path)


def _listen(data_dir: str | os.PathLike[str]) -> trio.socket.SocketType:
    raw = socket.socket(socket.AF_UNIX)
    try:
        with _address(data_dir) as path:
            _remove(path)  # left by a killed process: this process holds the lock now
            raw.bind(path)
            os.chmod(path, stat.S_IRUSR | stat.S_IWUSR)
            owner = owner_to_follow(data_dir)
            if owner is not None:
                os.chown(path, *owner)
        raw.listen(BACKLOG)
        return trio.socket.from_stdlib_socket(raw)
    except BaseException:
        raw.close()
        raise


def _remove(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass  # it is gone already


async def _serve_client(
    client: trio.socket.SocketType,
    commands: Mapping[str, Command],
    places: trio.Semaphore,
    patience: float,
) -> None:
    try:
        async with Conversation(client, patience) as talk:
            try:
                await _obey(talk, commands, patience)
            except (trio.BrokenResourceError, trio.TooSlowError):
                pass  # the client went away, sends no command, or takes no line
            except Exception:
                logger.exception("a keeper's command failed")
    finally:
        places.release()


async def _obey(
    talk: Conversation, commands: Mapping[str, Command], patience: float
) -> None:
    with trio.fail_after(patience):
        message = await talk.hear()
    if message is None:
        return
    wanted = message.get("do")
    command = commands.get(wanted) if isinstance(wanted, str) else None
    if command is None:
        await talk.say({"error": "what is asked for is not known"})
        return
    try:
        await command(talk, message)
    except (CallerError, StorageError) as exc:
        await talk.say({"error": str(exc)})


def collecting(collector: Collector) -> Command:
    """Return the command ``collect``."""

    async def obey(talk: Conversation, message: Message) -> None:
        async def tell(done: Collected) -> None:
            await talk.say(dataclasses.asdict(done))

        async with _while_present(talk):
            await collector.collect(tell, sweep=True)
            await talk.say({"done": True})

    return obey


def retrying(retry: Callable[[OperationId], Awaitable[int | None]]) -> Command:
    """Return the command ``retry``, which *retry* performs: see :meth:`Retries.retry`."""

    async def obey(talk: Conversation, message: Message) -> None:
        name = message.get("id")
        if not isinstance(name, str):
            raise CallerError("retry needs an id")
        async with _while_present(talk):
            status = await retry(OperationId(name))
            await talk.say({"status": status})

    return obey


@asynccontextmanager
async def _while_present(talk: Conversation) -> AsyncIterator[None]:
    """Cancel the block when the client goes away."""
    errors: list[Exception] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk.until_gone, nursery.cancel_scope)
        try:
            yield
        except (TrioresumeError, trio.BrokenResourceError, trio.TooSlowError) as exc:
            errors.append(exc)  # a nursery would put it into a group
        nursery.cancel_scope.cancel()
    if errors:
        raise errors[0]


# The command's side.


@asynccontextmanager
async def calling(data_dir: str | os.PathLike[str]) -> AsyncIterator[Conversation]:
    """Talk with the process that serves *data_dir* while the block runs.

    Raises :class:`OSError` if no process listens. In the block the methods of the
    conversation raise :class:`trio.BrokenResourceError` if the process goes away.
    """
    with trio.socket.socket(socket.AF_UNIX) as raw:
        with _address(data_dir) as path:
            await raw.connect(path)
        async with Conversation(raw) as talk:
            yield talk


async def ask_to_collect(
    data_dir: str | os.PathLike[str], on_step: Callable[[Collected], None]
) -> None:
    """Ask the process that serves *data_dir* to collect; return when nothing is left.

    If this is cancelled, the service stops after the current step. Raises :class:`OSError`
    if no process listens, :class:`~trioresume.CollectionCut` if the service ended meanwhile,
    and :class:`~trioresume.StorageError` with the error that the service reports.
    """
    async with calling(data_dir) as talk:
        try:
            await talk.say({"do": "collect"})
            while (message := await talk.hear()) is not None:
                if "error" in message:
                    raise StorageError(str(message["error"]))
                if message.get("done"):
                    return
                on_step(Collected(**message))
        except (trio.BrokenResourceError, trio.TooSlowError) as exc:
            raise CollectionCut(_LOST) from exc
    raise CollectionCut(_LOST)


async def ask_to_retry(data_dir: str | os.PathLike[str], id: str) -> int | None:
    """Ask the process that serves *data_dir* to have the request *id* processed again.

    Only a request may be tried again that waits for its target, or of which nobody knows
    whether it took effect; then it may take effect twice. Returns the status of its
    response, or None if the target cannot take it now either.

    Raises :class:`OSError` if no service is running, :class:`~trioresume.StorageError` with
    the reason why it was not tried, or if the service went away meanwhile.
    """
    async with calling(data_dir) as talk:
        try:
            await talk.say({"do": "retry", "id": id})
            message = await talk.hear()
        except (trio.BrokenResourceError, trio.TooSlowError):
            message = None
    if message is None:
        raise StorageError("the service went away meanwhile: ask again for the outcome")
    if "error" in message:
        raise StorageError(str(message["error"]))
    status = message.get("status")
    return status if isinstance(status, int) else None


_LOST = "the service went away while it collected; what it did is done"
