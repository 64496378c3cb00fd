"""The control socket: how ``trioresume gc`` and ``retry`` ask the process that serves a directory.

The process that holds the directory's lock has to do the collection. Only this process knows
which contents are being read and which chunks are about to be named, and only within one
process does unlinking a chunk exclude publishing it. So ``trioresume gc`` opens the store
itself if no process has it open, and asks the process that has it open otherwise.

``data/control`` is a Unix socket. The directory's mode (0700) says who may use it. A client
sends one line and receives lines. Each line is a JSON object of at most :data:`MAX_LINE`
bytes::

    → {"do": "collect"}
    ← {"chunks": 12, "recipes": 3, "bytes": 50331648, "steps": 30}    per step
    ← {"done": true}                    or {"error": "why it could not go on"}

    → {"do": "retry", "id": "q4Zk…"}
    ← {"status": 201}                   of the response; null if the target cannot take it now
                                        or {"error": "why it makes no sense"}

If a client goes away, its collection ends after the current step. At most
:data:`MAX_CLIENTS` are served at a time; others wait in the kernel's queue.
"""

from __future__ import annotations

import dataclasses
import json
import logging
import os
import socket
import stat
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing, contextmanager
from typing import TYPE_CHECKING, Any

import trio

from trioresume.errors import CallerError, CollectionCut, StorageError
from trioresume.store.port import Collected, OperationId

if TYPE_CHECKING:
    from trioresume.server.keeper.retries import Retries
    from trioresume.server.uploads.expiry import Collector

__all__ = ["CONTROL", "ask_to_collect", "ask_to_retry", "serve_control"]

logger = logging.getLogger("trioresume.control")

CONTROL = "control"
"""The socket's name in the data directory."""
MAX_LINE = 4096
MAX_CLIENTS = 4
BACKLOG = 128
"""Clients that wait. Beyond this, connecting fails at once: Unix sockets do not queue it."""
CLIENT_TIMEOUT = 10.0
"""Seconds for a client to send its line, or to take a line."""
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
    collector: Collector,
    retries: Retries,
    patience: float = CLIENT_TIMEOUT,
) -> None:
    """Answer the commands of ``trioresume gc`` and ``retry`` until cancelled.

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
                        _serve_client, client, collector, retries, places, patience
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
    collector: Collector,
    retries: Retries,
    places: trio.Semaphore,
    patience: float,
) -> None:
    try:
        async with trio.SocketStream(client) as stream:
            try:
                await _obey(stream, collector, retries, patience)
            except (trio.BrokenResourceError, trio.TooSlowError):
                pass  # the client went away, or sends no command
            except Exception:
                logger.exception("a keeper's command failed")
    finally:
        places.release()


async def _obey(
    stream: trio.SocketStream,
    collector: Collector,
    retries: Retries,
    patience: float,
) -> None:
    with trio.fail_after(patience):
        line = b""
        while not line.endswith(b"\n") and len(line) < MAX_LINE:
            received = await stream.receive_some(MAX_LINE)
            if not received:
                return
            line += received
    try:
        command = json.loads(line)
        wanted, name = command["do"], command.get("id")
    except (ValueError, KeyError, TypeError, AttributeError):
        wanted = name = None
    if wanted != "collect" and not (wanted == "retry" and isinstance(name, str)):
        await _say(stream, {"error": "what is asked for is not known"}, patience)
        return
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_watch, stream, nursery.cancel_scope)
        if wanted == "collect":
            await _collect(stream, collector, patience)
        else:
            await _retry(stream, retries, name, patience)
        nursery.cancel_scope.cancel()


async def _collect(
    stream: trio.SocketStream, collector: Collector, patience: float
) -> None:
    async def tell(done: Collected) -> None:
        await _say(stream, dataclasses.asdict(done), patience)

    try:
        try:
            await collector.collect(tell, sweep=True)
        except StorageError as exc:
            await _say(stream, {"error": str(exc)}, patience)
        else:
            await _say(stream, {"done": True}, patience)
    except (trio.BrokenResourceError, trio.TooSlowError):
        pass  # the client went away, or takes no line


async def _retry(
    stream: trio.SocketStream, retries: Retries, name: str, patience: float
) -> None:
    try:
        try:
            status = await retries.retry(OperationId(name))
        except (CallerError, StorageError) as exc:
            await _say(stream, {"error": str(exc)}, patience)
        else:
            await _say(stream, {"status": status}, patience)
    except (trio.BrokenResourceError, trio.TooSlowError):
        pass  # the client went away, or takes no line


async def _watch(stream: trio.SocketStream, scope: trio.CancelScope) -> None:
    """Cancel *scope* when the client goes away; ignore whatever else it sends."""
    try:
        while await stream.receive_some(MAX_LINE):
            pass
    except trio.BrokenResourceError:
        pass  # the client is gone, too
    scope.cancel()


async def _say(
    stream: trio.SocketStream,
    message: dict[str, object],
    patience: float = CLIENT_TIMEOUT,
) -> None:
    with trio.fail_after(patience):
        await stream.send_all(json.dumps(message).encode() + b"\n")


# The command's side.


async def ask_to_collect(
    data_dir: str | os.PathLike[str], on_step: Callable[[Collected], None]
) -> None:
    """Ask the process that serves *data_dir* to collect; return when nothing is left.

    If this is cancelled, the service stops after the current step. Raises :class:`OSError`
    if no process listens, :class:`~trioresume.CollectionCut` if the service ended meanwhile,
    and :class:`~trioresume.StorageError` with the error that the service reports.
    """
    with trio.socket.socket(socket.AF_UNIX) as raw:
        with _address(data_dir) as path:
            await raw.connect(path)
        async with trio.SocketStream(raw) as stream:
            try:
                await _say(stream, {"do": "collect"})
                async with aclosing(_messages(stream)) as messages:
                    async for message in messages:
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
    with trio.socket.socket(socket.AF_UNIX) as raw:
        with _address(data_dir) as path:
            await raw.connect(path)
        async with trio.SocketStream(raw) as stream:
            try:
                await _say(stream, {"do": "retry", "id": id})
                async with aclosing(_messages(stream)) as messages:
                    async for message in messages:
                        if "error" in message:
                            raise StorageError(str(message["error"]))
                        status = message.get("status")
                        return status if isinstance(status, int) else None
            except (trio.BrokenResourceError, trio.TooSlowError):
                pass
    raise StorageError("the service went away meanwhile: ask again for the outcome")


_LOST = "the service went away while it collected; what it did is done"


async def _messages(stream: trio.SocketStream) -> AsyncGenerator[dict[str, Any], None]:
    buffer = b""
    while received := await stream.receive_some(MAX_LINE):
        *lines, buffer = (buffer + received).split(b"\n")
        for line in lines:
            yield json.loads(line)
