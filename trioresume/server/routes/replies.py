"""Describe an operation to its client, and send the dialect's answer about it.

A client that waits for the target is told its progress in ``102 Processing`` (B10).

The numbered statements (B10, B11, C19, R27) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import trio

from trioresume.errors import ContentLost, PeerError, ProblemCode
from trioresume.protocol.dialects import Reply, Upload
from trioresume.protocol.dialects.seed.server import (
    Preferences,
    preference_applied,
)
from trioresume.protocol.dialects.server import PRIVATE
from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.server.http.stored_body import StoredBody, StoredPart
from trioresume.server.uploads.locations import (
    Resource,
    location,
    operation_fields,
    origin_of,
)
from trioresume.server.uploads.receive import InterimSender, processing

if TYPE_CHECKING:
    from trioresume.server.api.config import Config
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.operation import Operation
    from trioresume.store.port import StoredResponse

__all__ = [
    "RETRY_AFTER",
    "describe",
    "send_not_yet",
    "send_outcome",
    "send_processing",
    "send_reply",
]

NO_FIELDS = Fields()
RETRY_AFTER = 1
"""Seconds after which a client may ask again for a response that is not there yet."""


def describe(
    config: Config, exchange: Exchange, operation: Operation, offset: int
) -> Upload:
    """Return what the sender may know of *operation*; *offset* is durable."""
    content = location(config, operation.id, Resource.CONTENT)
    lifetime, expires_at = operation.guaranteed()
    return Upload(
        content=content,
        absolute_content=origin_of(config, exchange.head) + content,
        message=location(config, operation.id, Resource.MESSAGE),
        offset=offset,
        length=operation.record.length,
        is_complete=operation.state is not OperationState.RECEIVING,
        lifetime=lifetime,
        expires_at=expires_at,
        limits=exchange.limits,
        fields=operation.record.fields,
    )


async def send_reply(
    exchange: Exchange, reply: Reply, further: Fields = NO_FIELDS
) -> None:
    """Send a dialect's own answer, with *further* fields."""
    await exchange.respond(reply.status, reply.fields.plus(further), reply.body)


async def send_outcome(
    exchange: Exchange,
    operation: Operation,
    interim_sender: InterimSender,
    told: Fields = NO_FIELDS,
    *,
    created: bool,
) -> None:
    """Wait for the target's response and send it, in the form of the dialect.

    If the dialect does not wait for the target, the answer comes as soon as the content is
    frozen. If the client does not want to wait any longer, it gets a 202 (B11).

    *told* are fields of this exchange only. They are added to those of the recorded response,
    even if those have fields of the same names. *created* is true for the request that began
    the upload, and false for one that continued it. Raises as :meth:`Operation.outcome` does.
    """
    config = operation.around.config
    if not exchange.dialect.awaits_target:
        if operation.waits_for_target:
            await operation.outcome()
        upload = describe(config, exchange, operation, await operation.frozen())
        reply = exchange.dialect.completed(upload, NO_FIELDS, created=created)
        assert isinstance(reply, Reply)
        await send_reply(exchange, operation.as_answered(reply), told)
        return
    asked = exchange.preferences
    response: StoredResponse | None = None
    async with interim_sender.following(exchange, operation):
        if asked.respond_async:
            # The time starts here, because the wait for the target starts (RFC 7240, 4.3).
            with trio.move_on_after(asked.wait or 0):
                response = await operation.outcome()
        else:
            response = await operation.outcome()
    if response is None:
        await _send_accepted(exchange, operation, config, asked, told, created=created)
        return
    answer: Fields | Reply = NO_FIELDS
    if exchange.dialect.adds_to_outcome:
        upload = describe(config, exchange, operation, operation.durable_offset)
        answer = exchange.dialect.completed(upload, response.fields, created=created)
    if isinstance(answer, Reply):
        await send_reply(exchange, answer, told)
    else:
        try:
            storage = operation.around.storage
            await _send_recorded(exchange, storage, response, answer, told)
        except ContentLost as exc:
            if operation.record.response is not None:
                raise
            # A DELETE of the response came between its recording and its sending.
            raise PeerError(ProblemCode.GONE) from exc


async def send_processing(
    exchange: Exchange, operation: Operation, config: Config
) -> None:
    """Tell a client that asked for it that the target gets the request (B10).

    It learns where to ask for the outcome.
    """
    status = location(config, operation.id, Resource.MESSAGE)
    await exchange.send_interim(processing(operation.progress, status))


async def _send_accepted(
    exchange: Exchange,
    operation: Operation,
    config: Config,
    asked: Preferences,
    told: Fields,
    *,
    created: bool,
) -> None:
    """Send a 202 with the message's location: the operation goes on (B11)."""
    resume = asked.resume if created else None
    applied = Preferences(resume=resume, wait=asked.wait, respond_async=True)
    message = location(config, operation.id, Resource.MESSAGE)
    fields = Fields(
        {
            "location": message,
            "preference-applied": preference_applied(applied) or "",
        }
    )
    if resume is not None:
        fields = fields.plus(operation_fields(config, operation.id))
    else:
        # Location may have to be the one that a 104 gave (C19).
        fields = fields.plus({"response-message-location": message})
    if exchange.dialect.adds_to_outcome:
        upload = describe(config, exchange, operation, operation.durable_offset)
        further = exchange.dialect.completed(upload, fields, created=created)
        assert isinstance(further, Fields)
        fields = fields.plus(further)
    await send_not_yet(exchange, operation, fields.plus(told))


async def send_not_yet(
    exchange: Exchange, operation: Operation, further: Fields
) -> None:
    """Send the state of the operation, and when to ask again (R27)."""
    shown = {
        OperationState.RECEIVING: "receiving",
        OperationState.WAITING: "waiting",
    }
    state: dict[str, object] = {
        "state": shown.get(operation.state, "processing"),
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
    body = json.dumps(state).encode() + b"\n"
    await exchange.respond(202, fields.plus(further), body)


async def _send_recorded(
    exchange: Exchange,
    storage: Storage,
    response: StoredResponse,
    further: Fields,
    told: Fields,
) -> None:
    fields = response.fields.without(*(name for name, _ in further)).plus(further)
    fields = fields.plus(told)
    body = response.body
    if body.inline is not None:
        await exchange.respond(response.status, fields, body.inline)
        return
    reader = await storage.run(storage.store.open_reader, body)
    try:
        stored = StoredBody(storage, StoredPart(reader, 0, reader.length))
        await exchange.respond(response.status, fields, stored)
    finally:
        reader.close()
