"""Several services over one store in memory, and the states in which an upload can be there."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

import trio

from tests.server.harness import (
    BYTERANGE,
    Client,
    Handler,
    MemoryService,
    Recorder,
    Reply,
    head,
    memory_service,
)
from tests.server.seed import BODY
from trioresume import Config
from trioresume.server.api.handler import AnyTarget
from trioresume.server.serving import UNTUNED, Tuning
from trioresume.server.uploads.operation import Operation
from trioresume.store.port import OperationId, Store
from trioresume.testing.shared_memory import SharedMemory, SharedMemoryStore

PATIENCE = 10.0
"""Seconds after which something that has to happen has not happened."""


async def until(holds: Callable[[], object]) -> None:
    """Wait for a fact."""
    with trio.fail_after(PATIENCE):
        while not holds():  # noqa: ASYNC110 - nothing tells of it
            await trio.sleep(0.001)


@dataclass
class Shared:
    """Services that share a store, each with the store of its process."""

    memory: SharedMemory
    services: Sequence[MemoryService]
    stores: Sequence[SharedMemoryStore]
    scopes: Sequence[trio.CancelScope]
    """Those in which the services run."""

    def kill(self, at: int) -> None:
        """End a process, as by SIGKILL: its store takes nothing any more, its sockets are closed."""
        self.stores[at].kill()
        self.scopes[at].cancel()

    def connect(self, at: int) -> Client:
        return self.services[at].connect()

    def loaded(self, at: int, location: str) -> Operation | None:
        """The operation in the memory of one process."""
        operation = self.services[at].operations.loaded.get(id_of(location))
        return operation if operation is not None and operation.is_loaded else None

    def owner(self, location: str) -> int | None:
        """The process that owns the operation."""
        owner = self.memory.owner(id_of(location))
        return None if owner is None else self.stores.index(owner)

    async def begin(self, at: int, sent: int, *, prefer: str = "resume") -> Writer:
        """Begin an upload of ``BODY`` there; on return *sent* bytes of it have arrived."""
        client = self.connect(at)
        interim = await client.start(len(BODY), BODY[:sent], prefer=prefer)
        location = interim.fields.get("request-content-location")
        message = interim.fields.get("response-message-location")
        assert location is not None
        assert message is not None

        def arrived() -> bool:
            operation = self.loaded(at, location)
            return operation is not None and operation.incoming.offset == sent

        await until(arrived)
        return Writer(client, location, message)

    async def rest(self, location: str) -> None:
        """Wait until nobody owns the upload."""
        await until(lambda: self.owner(location) is None)

    async def cut(self, at: int, sent: int, *, prefer: str = "resume") -> Writer:
        """An upload that was begun there and cut, so that nobody owns it."""
        writer = await self.begin(at, sent, prefer=prefer)
        await writer.client.aclose()
        await self.rest(writer.location)
        return writer

    async def processed(self, at: int, handler: Recorder) -> Writer:
        """An upload whose target is being called there; *handler* has a gate."""
        client = self.connect(at)
        interim = await client.start(len(BODY), BODY)
        location = interim.fields.get("request-content-location")
        message = interim.fields.get("response-message-location")
        assert location is not None
        assert message is not None
        with trio.fail_after(PATIENCE):
            await handler.begun.wait()
        return Writer(client, location, message)


@dataclass
class Writer:
    """The client that has begun an upload."""

    client: Client
    location: str
    message: str


def id_of(location: str) -> OperationId:
    return OperationId(location.split("/")[2])


async def offset_of(client: Client, location: str) -> int:
    """Ask for the offset."""
    reply = await client.request("HEAD", location)
    assert reply.status in (200, 204), reply
    return int(reply["upload-offset"])


@asynccontextmanager
async def shared_services(
    handler: Handler | AnyTarget | Sequence[Handler | AnyTarget],
    config: Config | None = None,
    *,
    processes: int = 2,
    takeover_timeout: float = 5.0,
    chunk_size: int = 64,
    tuning: Tuning = UNTUNED,
) -> AsyncIterator[Shared]:
    """Services of several processes, with the same handler or one for each."""
    memory = SharedMemory(chunk_size=chunk_size, takeover_timeout=takeover_timeout)
    handlers = handler if isinstance(handler, Sequence) else [handler] * processes
    stores = [memory.join() for _ in handlers]
    try:
        async with running_services(handlers, stores, config, tuning) as (
            services,
            scopes,
        ):
            yield Shared(memory, services, stores, scopes)
    finally:
        memory.close()


@asynccontextmanager
async def running_services(
    handlers: Sequence[Handler | AnyTarget],
    stores: Sequence[Store],
    config: Config | None = None,
    tuning: Tuning = UNTUNED,
) -> AsyncIterator[tuple[Sequence[MemoryService], Sequence[trio.CancelScope]]]:
    """A service for each of *stores*, and the scope in which it runs."""
    scopes = [trio.CancelScope() for _ in stores]
    services: list[MemoryService] = []

    async def run(
        at: int, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        # Each in a task of its own, which can be cancelled without the test.
        with scopes[at]:
            async with memory_service(
                handlers[at],
                config,
                store=stores[at],  # type: ignore[arg-type]
                tuning=tuning,
            ) as service:
                services.append(service)
                task_status.started()
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for at in range(len(stores)):
            await nursery.start(run, at)
        yield services, scopes
        nursery.cancel_scope.cancel()


async def half_patch(client: Client, location: str, first: int, sent: int) -> None:
    """Begin to PATCH the rest of ``BODY`` from *first* on, and send *sent* bytes of that."""
    rest = BODY[first:]
    start = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (first, len(BODY) - 1, len(BODY))
    fields = {"Content-Type": "message/byterange"}
    length = len(start) + len(rest)
    await client.send(head("PATCH", location, fields, length=length))
    await client.send(start + rest[:sent])


async def empty_patch(client: Client, location: str) -> Reply:
    """PATCH nothing at the end of ``BODY``: ask for the response once more."""
    empty = b"Content-Range: bytes */%d\r\n\r\n" % len(BODY)
    return await client.request("PATCH", location, BYTERANGE, empty)
