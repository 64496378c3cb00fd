"""The three resources of an operation: its content, its response message, its result.

Every method starts in the same way: the operation is looked up, and who asks must be
who started it. For anyone else it does not exist, and the answer is the same, byte
for byte, as for a token that was never given out (R35).
"""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode, StorageFull
from trioresume.protocol.appending import content_etag
from trioresume.protocol.byteranges import ACCEPT_PATCH, patch_reader
from trioresume.protocol.conditional import Outcome, evaluate
from trioresume.protocol.heads import Fields
from trioresume.protocol.message import serialise_response
from trioresume.protocol.operation import OperationState
from trioresume.protocol.parts import PartData, PartStart
from trioresume.protocol.preferences import parse_preferences
from trioresume.server.answers import content_etag_of
from trioresume.server.locations import Resource, operation_fields
from trioresume.server.messages import BLOCK_SIZE
from trioresume.server.representation import (
    SANDBOX,
    PrefixedReader,
    Served,
    serve_bytes,
)
from trioresume.server.uploads import patch_limits, receive_patch
from trioresume.store.recipe import digest_of

if TYPE_CHECKING:
    from trioresume.protocol.parts import PatchEvent, PatchReader
    from trioresume.server.config import Config
    from trioresume.server.exchange import Exchange
    from trioresume.server.operation import Operation
    from trioresume.server.operations import Operations
    from trioresume.server.storage import Storage
    from trioresume.server.uploads import Acknowledger
    from trioresume.store.port import Content, OperationId, StoredResponse

__all__ = ["Resources", "send_recorded"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

# Stored content and responses are their owner's alone (R36).
PRIVATE = Fields({"cache-control": "no-store", "vary": "Authorization"})
_MISMATCH = ProblemCode.OFFSET_MISMATCH
RETRY_AFTER = 1
"""Seconds after which a client may ask again for a response that is not there yet."""


async def send_recorded(
    exchange: Exchange, storage: Storage, response: StoredResponse
) -> None:
    """Send a recorded response on the connection of the request itself."""
    body = response.body
    if body.inline is not None:
        await exchange.respond(response.status, response.fields, body.inline)
        return
    reader = await storage.run(storage.store.open_reader, body)
    try:

        async def blocks() -> AsyncIterator[bytes]:
            offset = 0
            while offset < reader.length:
                block = await storage.run(reader.read, offset, BLOCK_SIZE)
                offset += len(block)
                yield block

        await exchange.respond(response.status, response.fields, blocks())
    finally:
        reader.close()


class Resources:
    """Answers requests on operations' resources."""

    def __init__(
        self, operations: Operations, config: Config, acknowledger: Acknowledger
    ) -> None:
        self._operations = operations
        self._storage = operations.storage
        self._config = config
        self._acknowledger = acknowledger
        self._methods: dict[
            tuple[Resource, str], Callable[[Exchange, Operation], Awaitable[None]]
        ] = {
            (Resource.CONTENT, "HEAD"): self._head_content,
            (Resource.CONTENT, "GET"): self._get_content,
            (Resource.CONTENT, "PATCH"): self._patch_content,
            (Resource.CONTENT, "DELETE"): self._end,
            (Resource.MESSAGE, "HEAD"): self._get_message,
            (Resource.MESSAGE, "GET"): self._get_message,
            (Resource.MESSAGE, "DELETE"): self._end,
            (Resource.RESULT, "HEAD"): self._get_result,
            (Resource.RESULT, "GET"): self._get_result,
        }

    async def handle(
        self,
        exchange: Exchange,
        principal: str | None,
        place: tuple[OperationId, Resource] | None,
    ) -> None:
        """Answer a request under ``Config.operation_path``."""
        if place is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        operation_id, resource = place
        async with self._operations.use(operation_id) as operation:
            if operation is None or operation.record.principal != principal:
                raise PeerError(ProblemCode.NOT_FOUND)
            if exchange.head.method == "OPTIONS":
                await exchange.respond(204, self._allowed(resource))
                return
            method = self._methods.get((resource, exchange.head.method))
            if method is None or (
                method == self._get_content and not self._config.retain_content
            ):
                raise PeerError(
                    ProblemCode.METHOD_NOT_ALLOWED,
                    fields=tuple(self._allowed(resource)),
                )
            await method(exchange, operation)

    def _allowed(self, resource: Resource) -> Fields:
        methods = [method for of, method in self._methods if of is resource]
        if resource is Resource.CONTENT and not self._config.retain_content:
            methods.remove("GET")
        fields = Fields({"allow": ", ".join(methods)})
        if resource is Resource.CONTENT:
            return fields.plus({"accept-patch": ACCEPT_PATCH})
        return fields

    # The request's content (R12 to R25).

    async def _visit(self, operation: Operation) -> int:
        """End a running writer; the durable offset. Completes what only lacks that."""
        await operation.incoming.end_writer()
        _refuse_gone(operation)
        try:
            offset = await operation.make_durable()
        except StorageFull as exc:
            # What was durable before still is; a HEAD that fails makes clients begin anew.
            logger.warning("%s is answered without a sync: %s", operation.id, exc)
            return operation.durable_offset
        if operation.is_whole:
            # Every byte is there, but a crash or a full disk kept it from completing.
            operation.complete()
        return offset

    def _content_fields(self, operation: Operation, offset: int) -> Fields:
        fields = {
            "etag": content_etag(offset),
            "upload-offset": str(offset),
            "upload-complete": "?0" if operation.state is _S.RECEIVING else "?1",
            "accept-patch": ACCEPT_PATCH,
        }
        if operation.record.length is not None:
            fields["upload-length"] = str(operation.record.length)
        return PRIVATE.plus(fields)

    async def _head_content(self, exchange: Exchange, operation: Operation) -> None:
        """R12: how much arrived, as ``Content-Length`` and as ``Upload-Offset``."""
        offset = await self._visit(operation)
        fields = self._content_fields(operation, offset)
        self._check(exchange, offset)
        await exchange.respond(200, fields.plus({"content-length": str(offset)}))

    async def _get_content(self, exchange: Exchange, operation: Operation) -> None:
        """R13: exactly the received prefix. Reading does not end a writer (as HEAD does)."""
        _refuse_gone(operation)
        offset = await operation.make_durable()
        store = self._storage.store
        if operation.record.content is not None:
            reader = await self._storage.run(
                store.open_reader, operation.record.content
            )
        else:
            reader = await self._storage.run(
                store.open_prefix, operation.incoming.key, offset
            )
        media_type = operation.record.fields.get(
            "content-type", "application/octet-stream"
        )
        fields = self._content_fields(operation, offset).plus(
            {
                "content-type": media_type or "",
                **SANDBOX,
                "content-disposition": "attachment",
            }
        )
        served = Served(fields.without("etag"), reader, content_etag(offset))
        await serve_bytes(
            exchange, self._storage, served, max_ranges=self._config.max_ranges
        )

    async def _patch_content(self, exchange: Exchange, operation: Operation) -> None:
        """R15 to R21, R24: append; at the end answer with the target's response."""
        place = await operation.incoming.end_writer()
        if "if-match" in exchange.head.fields and operation.is_receiving:
            self._check(exchange, await operation.make_durable())
        _refuse_gone(operation)
        preferences = parse_preferences(exchange.head.fields)
        if operation.is_whole:
            operation.complete()
        if operation.state is _S.RECEIVING:
            try:
                await receive_patch(
                    exchange,
                    operation,
                    place,
                    preferences,
                    self._acknowledger,
                    self._config,
                )
            except BaseException as exc:
                self._operations.start(operation, operation.cut)
                if isinstance(exc, PeerError) and exc.problem is _MISMATCH:
                    # It tells the offset, which must be durable before (promise 1).
                    await operation.make_durable()
                raise
        else:
            await self._refuse_content(exchange, operation)
        if operation.state is _S.RECEIVING:
            offset = await operation.make_durable()
            fields = self._content_fields(operation, offset)
            if preferences.resume is not None:
                fields = fields.plus(operation_fields(self._config, operation.id))
            await exchange.respond(204, fields)
        else:
            await send_recorded(exchange, self._storage, await operation.outcome())

    async def _refuse_content(self, exchange: Exchange, operation: Operation) -> None:
        """R24: after the end, only a patch without content at the end is not an error."""
        head = exchange.head
        length = operation.record.length
        reader = patch_reader(
            head.fields.get("content-type"),
            head.fields,
            content_length=head.length,
            limits=patch_limits(self._config),
            lenient_unit=self._config.lenient_range_unit,
        )
        await exchange.send_continue()
        refused = _RefusedContent(reader, length)
        await exchange.body.receive(refused)
        refused.end()

    def _check(self, exchange: Exchange, offset: int) -> None:
        """R20: the preconditions of the request against the prefix's validator."""
        head = exchange.head
        outcome = evaluate(head.method, head.fields, etag=content_etag(offset))
        if outcome is Outcome.FAILED:
            raise PeerError(
                ProblemCode.PRECONDITION_FAILED,
                fields=(("upload-offset", str(offset)),),
            )

    # The response message (R26, R27, R29).

    async def _get_message(self, exchange: Exchange, operation: Operation) -> None:
        waited = await self._wait_for_response(exchange, operation)
        _refuse_gone(operation)
        response = operation.record.response
        if response is None:
            await self._not_yet(exchange, operation, waited)
            return
        head = serialise_response(
            response.status, response.fields, response.body.length
        )
        reader = await self._storage.run(self._storage.store.open_reader, response.body)
        etag = digest_of(head + content_etag_of(response.body).encode()).hex()
        served = Served(
            PRIVATE.plus({"content-type": "message/http"}),
            PrefixedReader(head, reader),
            f'"{etag}"',
        )
        await serve_bytes(
            exchange, self._storage, served, max_ranges=self._config.max_ranges
        )

    async def _wait_for_response(
        self, exchange: Exchange, operation: Operation
    ) -> int | None:
        """Hold the answer as ``Prefer: wait`` asks, within bounds; the seconds applied."""
        if operation.is_receiving and not operation.incoming.has_writer:
            await operation.make_durable()
        if operation.is_whole:
            operation.complete()
        wait = parse_preferences(exchange.head.fields).wait
        if wait is None or operation.record.response is not None:
            return None
        seconds = min(wait, int(self._config.max_wait))
        with trio.move_on_after(seconds):
            while operation.state in (_S.RECEIVING, _S.COMPLETE, _S.PROCESSING):
                await operation.wait_change()
        return seconds

    async def _not_yet(
        self, exchange: Exchange, operation: Operation, waited: int | None
    ) -> None:
        """R27: the state, and when to ask again."""
        receiving = operation.state is _S.RECEIVING
        state: dict[str, object] = {
            "state": "receiving" if receiving else "processing",
            "offset": operation.durable_offset,
            "length": operation.record.length,
        }
        if operation.progress is not None:
            progress = operation.progress
            state["progress"] = {
                "done": progress.done,
                "total": progress.total,
                "remark": progress.remark,
            }
        fields = PRIVATE.plus(
            {"content-type": "application/json", "retry-after": str(RETRY_AFTER)}
        )
        if waited is not None:
            fields = fields.plus({"preference-applied": f"wait={waited}"})
        body = json.dumps(state).encode() + b"\n"
        await exchange.respond(202, fields, body)

    # The result (R28).

    async def _get_result(self, exchange: Exchange, operation: Operation) -> None:
        _refuse_gone(operation)
        response = operation.record.response
        if response is None:
            raise PeerError(
                ProblemCode.NOT_FOUND,
                "there is no result yet",
                fields=(("retry-after", str(RETRY_AFTER)), *PRIVATE),
            )
        media = [(n, v) for n, v in response.fields if n.startswith("content-")]
        fields = Fields(media).without(
            "content-length", "content-location", "content-range"
        )
        content: Content = response.body
        reader = await self._storage.run(self._storage.store.open_reader, content)
        served = Served(PRIVATE.plus(fields), reader, content_etag_of(content))
        await serve_bytes(
            exchange, self._storage, served, max_ranges=self._config.max_ranges
        )

    async def _end(self, exchange: Exchange, operation: Operation) -> None:
        """R25, R29: cancel or release; 204, and 410 from now on."""
        _refuse_gone(operation)
        await operation.cancel()
        await exchange.respond(204, PRIVATE)


def _refuse_gone(operation: Operation) -> None:
    if operation.state in (_S.GONE, _S.ABANDONED):
        raise PeerError(ProblemCode.GONE)


class _RefusedContent:
    """A sink for a patch of complete content: any byte is one too many."""

    has_room = True

    def __init__(self, reader: PatchReader, length: int | None) -> None:
        self._reader = reader
        self._length = length

    def append(self, data: memoryview) -> None:
        self._judge(self._reader.feed(data))

    def end(self) -> None:
        self._judge(self._reader.end())

    def _judge(self, events: Iterable[PatchEvent]) -> None:
        for event in events:
            if isinstance(event, PartData):
                raise self._complete()
            if isinstance(event, PartStart):
                range_ = event.range
                start = range_.total if range_.first is None else range_.first
                if start != self._length or event.length not in (0, None):
                    raise self._complete()

    def _complete(self) -> PeerError:
        return PeerError(
            ProblemCode.UPLOAD_COMPLETE,
            f"all {self._length} bytes were received already",
            fields=(("upload-offset", str(self._length)), ("upload-complete", "?1")),
            close=True,
        )

    async def room(self) -> None:
        return
