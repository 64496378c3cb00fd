"""The three resources of an operation: its content, its response message, its result.

Every method first looks up the operation and compares its owner with the sender. For any
other sender the operation does not exist: the answer is the same, byte for byte, as for a
token that was never given out (R35).

The numbered statements (R35, C7, D4 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import trio

from trioresume.errors import ContentLost, PeerError, ProblemCode, StorageFull
from trioresume.protocol.byteranges import ACCEPT_PATCH
from trioresume.protocol.conditional import Outcome, content_etag, evaluate
from trioresume.protocol.dialects import (
    AppendRules,
    classify,
    discovery_fields,
)
from trioresume.protocol.dialects.seed.server import (
    Preferences,
    Transaction,
    preference_applied,
)
from trioresume.protocol.dialects.server import PRIVATE
from trioresume.protocol.filenames import (
    content_disposition_attachment,
    parse_content_disposition_filename,
)
from trioresume.protocol.heads import Fields
from trioresume.protocol.message import serialise_response
from trioresume.protocol.operation import OperationState
from trioresume.server.api.config import upload_limits
from trioresume.server.routes.replies import (
    RETRY_AFTER,
    describe,
    send_not_yet,
    send_outcome,
    send_processing,
    send_reply,
)
from trioresume.server.routes.representation import (
    SANDBOX,
    PrefixedReader,
    Served,
    serve_bytes,
)
from trioresume.server.uploads.locations import (
    Resource,
    concealed,
    operation_fields,
)
from trioresume.server.uploads.receive import processing
from trioresume.server.uploads.receive_patch import (
    RefusedContent,
    patch_limits,
    receive_patch,
)
from trioresume.server.uploads.share import Wish
from trioresume.server.uploads.target_call import content_etag_of
from trioresume.store.port.recipes import digest_of

if TYPE_CHECKING:
    from trioresume.protocol.dialects import Append
    from trioresume.server.api.config import Config
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.uploads.operation import Operation
    from trioresume.server.uploads.receive import InterimSender
    from trioresume.server.uploads.registry import Registry
    from trioresume.store.port import Content, OperationId

__all__ = ["Resources"]

logger = logging.getLogger("trioresume.operations")

_S = OperationState

_MISMATCH = ProblemCode.OFFSET_MISMATCH


class Resources:
    """Answers requests for the resources of operations."""

    def __init__(
        self,
        operations: Registry,
        config: Config,
        interim_sender: InterimSender,
    ) -> None:
        self._operations = operations
        self._storage = operations.storage
        self._config = config
        self._interim_sender = interim_sender
        self._rules = _append_rules(config)
        self._methods: dict[
            tuple[Resource, str], Callable[[Exchange, Operation], Awaitable[None]]
        ] = {
            (Resource.CONTENT, "HEAD"): self._head_content,
            (Resource.CONTENT, "GET"): self._get_content,
            (Resource.CONTENT, "PATCH"): self._patch_content,
            (Resource.CONTENT, "DELETE"): self._cancel_content,
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
        located: tuple[OperationId, Resource] | None,
    ) -> None:
        """Answer a request under ``Config.operation_path``."""
        if located is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        operation_id, resource = located
        dialect = exchange.dialect
        if resource is Resource.CONTENT:
            dialect = exchange.dialect = classify(
                exchange.head,
                exchange.dialect,
                on_upload=True,
                any_interop_version=not self._config.check_interop_version,
            )
        named = dialect.method(exchange.head)
        wish = Wish.LOOK
        if named in ("PATCH", "DELETE"):
            wish = Wish.WRITE
        elif resource is Resource.CONTENT and (
            named == "HEAD" or (named == "GET" and dialect.takes_over)
        ):
            wish = Wish.OFFSET
        operation = await self._operations.visit(operation_id, principal, wish)
        if operation is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        if operation.around.config is not self._config:
            exchange.limits = upload_limits(operation.around.config)
        try:
            dialect.check(exchange.head)
            if named in ("HEAD", "PATCH") and operation.is_overdue:
                await operation.end_overdue()
            dialect.check_upload(exchange.head, operation.record.fields)
            if named == "OPTIONS":
                known = discovery_fields(exchange.limits)
                await exchange.respond(200, self._allowed(resource).plus(known))
                return
            method = self._methods.get((resource, named))
            if method is None or (
                method == self._get_content and not self._config.retain_content
            ):
                raise PeerError(
                    ProblemCode.METHOD_NOT_ALLOWED,
                    fields=tuple(self._allowed(resource)),
                )
            try:
                await method(exchange, operation)
            except ContentLost as exc:
                _refuse_gone(operation)  # another request has ended it meanwhile
                if not operation.is_receiving:
                    raise
                # C7: an offset that was announced cannot be taken back.
                logger.error("%s is given up: %s", concealed(operation.id), exc)
                await operation.cancel()
                raise PeerError(ProblemCode.GONE) from exc
        finally:
            self._operations.leave(operation)

    def _allowed(self, resource: Resource) -> Fields:
        methods = [method for of, method in self._methods if of is resource]
        if resource is Resource.CONTENT and not self._config.retain_content:
            methods.remove("GET")
        fields = Fields({"allow": ", ".join(methods)})
        if resource is Resource.CONTENT:
            return fields.plus({"accept-patch": ACCEPT_PATCH})
        return fields

    # The request's content (R12 to R25).

    async def _head_content(self, exchange: Exchange, operation: Operation) -> None:
        """End a running writer, and tell how much has arrived (R12, C6, D4)."""
        await operation.incoming.turns.end_writer()
        operation.readmits = True
        _refuse_gone(operation)
        offset = await _durable_offset(operation)
        if operation.is_whole:
            # Every byte is there, but a crash or a full disk prevented the completion.
            operation.complete()
        if operation.state is _S.COMPLETE and not exchange.dialect.awaits_target:
            # Such a client only waits to be told that all bytes are here.
            offset = await operation.frozen()
        upload = describe(self._config, exchange, operation, offset)
        self._check(exchange, offset)
        await send_reply(exchange, exchange.dialect.offset(upload))

    async def _get_content(self, exchange: Exchange, operation: Operation) -> None:
        """Send exactly the received prefix (R13). Reading alone does not end a writer."""
        if exchange.dialect.takes_over:
            # It asks for the offset, so the next request must be accepted at this offset.
            await operation.incoming.turns.end_writer()
        _refuse_gone(operation)
        offset = await _durable_offset(operation)
        store = self._storage.store
        if operation.record.content is not None:
            reader = await self._storage.run(
                store.open_reader, operation.record.content
            )
        else:
            reader = await self._storage.run(
                store.open_prefix, operation.incoming.key, offset
            )
        said = operation.record.fields
        media_type = said.get("content-type", "application/octet-stream")
        name = parse_content_disposition_filename(said.get("content-disposition") or "")
        upload = describe(self._config, exchange, operation, offset)
        fields = exchange.dialect.content_fields(upload).plus(
            {
                "content-type": media_type or "",
                **SANDBOX,
                "content-disposition": content_disposition_attachment(name),
            }
        )
        served = Served(fields.without("etag"), reader, content_etag(offset))
        await serve_bytes(
            exchange, self._storage, served, max_ranges=self._config.max_ranges
        )

    async def _patch_content(self, exchange: Exchange, operation: Operation) -> None:
        """Append; answer the last PATCH with the target's response (R15 to R21, R24)."""
        place = await operation.incoming.turns.end_writer()
        operation.readmits = True
        if "if-match" in exchange.head.fields and operation.is_receiving:
            self._check(exchange, await _durable_offset(operation))
        _refuse_gone(operation)
        preferences = exchange.preferences
        if operation.is_whole:
            operation.complete()
        config, rules = operation.around.config, self._rules
        if config is not self._config:
            rules = _append_rules(config)
        append = exchange.dialect.append(exchange.head, rules)
        transaction: Transaction | None = None
        if operation.state is _S.RECEIVING:
            try:
                transaction = await receive_patch(
                    exchange,
                    operation,
                    place,
                    append,
                    self._interim_sender,
                    config,
                )
            except BaseException as exc:
                self._operations.start(operation, operation.cut)
                if isinstance(exc, PeerError):
                    await self._after_problem(exchange, operation, exc)
                raise
        else:
            await self._refuse_content(exchange, operation, append)
        applied = preference_applied(Preferences(transaction=transaction))
        told = Fields({"preference-applied": applied} if applied else {})
        if operation.state is _S.RECEIVING:
            offset = await operation.confirm()
            upload = describe(self._config, exchange, operation, offset)
            if preferences.resume is not None:
                told = told.plus(operation_fields(self._config, operation.id))
            await send_reply(exchange, exchange.dialect.appended(upload), told)
        else:
            if exchange.dialect.awaits_target and preferences.processing:
                await send_processing(exchange, operation, self._config)
            await send_outcome(
                exchange, operation, self._interim_sender, told, created=False
            )

    async def _after_problem(
        self, exchange: Exchange, operation: Operation, error: PeerError
    ) -> None:
        """Apply the effects of a refused PATCH to the upload, before the refusal is sent."""
        if error.problem in exchange.dialect.invalidated_by:
            await operation.cancel()
        elif error.problem is _MISMATCH:
            # The refusal tells the offset, which must be durable first (docs/durability.md).
            await operation.confirm()

    async def _refuse_content(
        self, exchange: Exchange, operation: Operation, append: Append
    ) -> None:
        """Refuse content after the end (R24), as soon as the patch shows itself to be wrong."""
        refused = RefusedContent(append.reader, operation.record.length)
        refused.check_head()  # a silent sender need not be waited for
        await exchange.send_continue()
        await exchange.body.receive(refused)
        refused.end()

    def _check(self, exchange: Exchange, offset: int) -> None:
        """Check the preconditions of the request with the prefix's validator (R20)."""
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
            held = {} if waited is None else {"preference-applied": f"wait={waited}"}
            await send_not_yet(exchange, operation, Fields(held))
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
        """Wait as ``Prefer`` asks, within bounds; return the seconds of ``wait``, or None.

        ``processing`` waits for the result, ``wait`` for a time (R27).
        """
        if operation.is_receiving and not operation.incoming.turns.has_writer:
            await _durable_offset(operation)
        if operation.is_whole:
            operation.complete()
        asked = exchange.preferences
        if operation.record.response is not None:
            return None
        told = operation.progress
        if asked.processing:
            await exchange.send_interim(processing(told))
        elif asked.wait is None:
            return None
        most = self._config.max_wait
        seconds = int(most if asked.wait is None else min(asked.wait, most))
        async with self._interim_sender.following(exchange, operation, told):
            with trio.move_on_after(seconds):
                while operation.is_receiving or operation.is_working:
                    await operation.changed.wait()
            # B10: like the sender of the request itself, it waits without a time limit.
            while asked.wait is None and operation.is_working:
                await operation.changed.wait()
        return None if asked.wait is None else seconds

    # The result (R28).

    async def _get_result(self, exchange: Exchange, operation: Operation) -> None:
        _refuse_gone(operation)
        response = operation.record.response
        if response is None:
            raise PeerError(
                ProblemCode.NOT_FOUND,
                "the result does not exist yet",
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

    async def _cancel_content(self, exchange: Exchange, operation: Operation) -> None:
        """Cancel for good, and end a running writer (R25, C14)."""
        _refuse_gone(operation)
        await operation.cancel()
        await send_reply(exchange, exchange.dialect.cancelled())

    async def _end(self, exchange: Exchange, operation: Operation) -> None:
        """Release everything (R29): 204 now, 410 from now on."""
        _refuse_gone(operation)
        await operation.cancel()
        await exchange.respond(204, PRIVATE)


def _append_rules(config: Config) -> AppendRules:
    """Return what a PATCH may do under these settings."""
    return AppendRules(
        patch=patch_limits(config),
        lenient_unit=config.lenient_range_unit,
        limits=upload_limits(config),
    )


async def _durable_offset(operation: Operation) -> int:
    """Return the durable offset, after making all accepted bytes durable where possible.

    On a full disk that may fail, but earlier bytes are still durable, and reading must go on.
    If HEAD failed, clients would begin anew.
    """
    try:
        return await operation.make_durable()
    except StorageFull as exc:
        logger.warning(
            "%s is answered without a sync: %s", concealed(operation.id), exc
        )
        return operation.durable_offset


def _refuse_gone(operation: Operation) -> None:
    if operation.state in (_S.GONE, _S.ABANDONED):
        raise PeerError(ProblemCode.GONE)
