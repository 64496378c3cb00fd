"""Call the target and record its response, at most once for each operation (R31).

The target's policy decides what is committed before the call and after it:

============== ============================ =====================================
policy          before the call              after it
============== ============================ =====================================
AT_MOST_ONCE    content, state PROCESSING    response
IDEMPOTENT      content, state COMPLETE      response
TRANSACTIONAL   nothing                      content, effects, response: together
============== ============================ =====================================

Before any commit, the content is compared with the digests that the client announced
(C15). A crash before the first commit leaves an incomplete upload that has all its bytes.
The client's next visit completes it.

The numbered statements (R31, C15, G8 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    PeerError,
    ProblemCode,
    StorageConflict,
    StorageError,
    StorageFull,
)
from trioresume.protocol.dialects.seed.preferences import parse_preferences
from trioresume.protocol.digests import ReprDigest, repr_digest
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.heads import RequestHead
from trioresume.protocol.message import end_to_end_fields, has_content
from trioresume.protocol.operation import Event, OperationState
from trioresume.protocol.problem import problem_response
from trioresume.server.api.handler import (
    BLOCK_SIZE,
    CallPolicy,
    Progress,
    RecordedWith,
    Request,
    RequestBody,
    Response,
    closing_iterator,
)
from trioresume.server.async_store.threads import Lane
from trioresume.server.uploads.hashing import WANTED_FOR
from trioresume.server.uploads.incoming import run_seals
from trioresume.server.uploads.locations import operation_fields
from trioresume.store.port import (
    Content,
    ForgetOperation,
    Mutation,
    RecordResponse,
    SetState,
    StoredResponse,
    response_key,
)
from trioresume.store.port.recipes import digest_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Mapping

    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.heads import Fields
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import AnyTarget
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.uploads.hashing import Hashing
    from trioresume.server.uploads.operation import Operation
    from trioresume.store.port import ContentWriter, OperationRecord

__all__ = ["Answering", "content_etag_of", "error_response"]

logger = logging.getLogger("trioresume.operations")

INLINE_LIMIT = 64 * 1024
"""Response content up to this many bytes is stored in the catalog itself."""
MOST_CONFLICTS = 10
LONGEST_RETRY = 60.0


def content_etag_of(content: Content) -> str:
    """Return the strong validator of finished content: its digest, in quotes."""
    digest = (
        content.digest
        if content.digest is not None
        else digest_of(content.inline or b"")
    )
    return f'"{digest.hex()}"'


def error_response(error: PeerError) -> Response:
    """Return the problem document of *error* as a handler's response (RFC 9457)."""
    status, fields, body = problem_response(error)
    return Response(status, fields, body)


class Answering:
    """One call of the target, for one complete operation."""

    def __init__(
        self,
        operation: Operation,
        storage: Storage,
        target: AnyTarget,
        config: Config,
        clock: ServiceClock,
        frozen: list[Mutation],
        hashing: Hashing,
    ) -> None:
        self._operation = operation
        self._storage = storage
        self._target = target
        self._config = config
        self._clock = clock
        self._frozen = frozen
        """The mutations that freeze the content, until they are committed."""
        self._hashing = hashing
        self._told_digests: Mapping[str, bytes] = {}

    async def run(self) -> None:
        """Call the target and record its response. Raises :class:`StorageError`."""
        operation = self._operation
        problem = await self._check_digests()
        if problem is not None:
            await self._record(error_response(problem), ())
        else:
            if self._policy is not CallPolicy.TRANSACTIONAL:
                await self._commit_start()
            if not operation.is_abandoned:
                await self._call_and_record()
        await self._discard_abandoned()

    @property
    def _policy(self) -> CallPolicy:
        # The request for a part of a later upload calls no target, so it has no effects.
        if self._operation.is_partial:
            return CallPolicy.TRANSACTIONAL
        return self._target.policy

    async def _check_digests(self) -> PeerError | None:
        """Compare the content with the announced digests (C15); return the mismatch.

        This happens before any commit, and so before the target has any effect. Nothing is
        hashed unless the client asked for a digest.
        """
        asked = ReprDigest(self._operation.record.fields)
        wished = asked.wanted if self._operation.tells_digest else set()
        algorithms = asked.expected | wished
        if not algorithms:
            return None
        digests = await self._hash_content(algorithms, claimed=bool(asked.expected))
        if digests is None:
            return None
        try:
            told = asked.verify(digests)
        except PeerError as exc:
            return exc
        self._told_digests = {name: told[name] for name in told if name in wished}
        return None

    async def _hash_content(
        self, algorithms: set[str], *, claimed: bool
    ) -> dict[str, bytes] | None:
        """Return the digests of the content, or None if no client wants them any more."""
        operation = self._operation
        content = operation.frozen_content or operation.record.content
        assert content is not None
        store = self._storage.store
        reader = await self._storage.run(
            store.open_prefix, operation.incoming.key, content.length
        )

        def is_wanted() -> bool:
            if operation.is_abandoned:
                return False
            return claimed or operation.is_visited(within=WANTED_FOR)

        try:
            return await self._hashing.digests(
                operation.record.principal, reader, algorithms, is_wanted
            )
        finally:
            reader.close()

    async def record_indeterminate(self) -> None:
        """Record the outcome of a call that a crash cut: it is unknown (R31)."""
        error = PeerError(ProblemCode.INDETERMINATE)
        await self._record(error_response(error), ())
        await self._discard_abandoned()

    async def _discard_abandoned(self) -> None:
        """Discard the result of the call if the client gave the operation up meanwhile."""
        operation = self._operation
        if operation.is_abandoned:
            operation.change(Event.ANSWERED)
            await operation.discard()

    async def _commit_start(self) -> None:
        operation = self._operation
        once = self._policy is CallPolicy.AT_MOST_ONCE
        state = OperationState.PROCESSING if once else OperationState.COMPLETE
        mutations = self._frozen
        # Once the client gave up, a restart must not find any other state (R25).
        if not operation.unoffered and not operation.is_abandoned:
            mutations = [*mutations, SetState(operation.id, state)]
        if mutations:
            await self._storage.commit(*mutations)
        operation.incoming.check_created()
        if self._frozen:
            operation.note_frozen()
            self._frozen = []
        if once and operation.state is OperationState.COMPLETE:
            operation.change(Event.STARTED)

    async def _call_and_record(self) -> None:
        for _ in range(MOST_CONFLICTS):
            answer = await self._call()
            if isinstance(answer, Response):
                answer = RecordedWith(answer, ())
            try:
                await self._record(answer.response, answer.mutations)
                return
            except StorageConflict:
                self._operation.incoming.check_created()
                # Something that the target has read was changed meanwhile: call it again.
                continue
        await self._record(error_response(PeerError(ProblemCode.CONFLICT)), ())

    async def _call(self) -> Response | RecordedWith:
        operation = self._operation
        content = operation.frozen_content or operation.record.content
        assert content is not None
        record = operation.record
        if operation.is_partial:
            return Response(204)
        request = Request(
            head=record_head(record),
            body=RequestBody(content, self._storage),
            principal=record.principal,
            on_progress=self._show_progress,
        )
        try:
            if operation.readmits:
                # C16: the target may have changed its mind since the upload began, and only
                # now is the length of every upload known.
                refusal = await self._target.admit(request.head, record.principal)
                if isinstance(refusal, Response):
                    return refusal
            return await self._target.respond(request)
        except PeerError as exc:
            return error_response(exc)
        except StorageError:
            if self._policy is CallPolicy.TRANSACTIONAL:
                raise
            logger.exception("the handler of %s failed in the store", operation.id)
        except Exception:
            logger.exception("the handler of %s failed", operation.id)
        return error_response(PeerError(ProblemCode.INTERNAL_ERROR))

    def _show_progress(self, progress: Progress) -> None:
        operation = self._operation
        operation.progress = progress.following(operation.progress)
        operation.announce_change()

    async def _record(self, response: Response, effects: tuple[Mutation, ...]) -> None:
        operation = self._operation
        stored, body_mutations = await self._store(response)
        expires_at = self._clock.now() + self._config.response_lifetime
        record: Mutation
        if operation.unoffered and stored.body.digest is None:
            record = ForgetOperation(operation.id)
        else:
            record = RecordResponse(
                operation.id,
                stored,
                expires_at,
                self._config.retain_content or operation.is_partial,
            )
        if not await self._committed(*self._frozen, *body_mutations, *effects, record):
            return
        if self._frozen:
            operation.note_frozen()
            self._frozen = []
        operation.is_forgotten = isinstance(record, ForgetOperation)
        if not operation.is_abandoned:
            operation.note_answer(stored, expires_at)

    async def _committed(self, *mutations: Mutation) -> bool:
        """Commit *mutations*. If the target must not be called again, retry for ever.

        A response that cannot be recorded must not be sent, and the call that gave it must
        not be repeated: so this waits for space (G8). Returns False, and commits nothing,
        as soon as the client has given the operation up: its DELETE may be answered then.
        Raises :class:`StorageError` if the target's policy is TRANSACTIONAL, and
        :class:`StorageConflict` with any policy.
        """
        patience = _Patience(self._operation)
        while True:
            if self._operation.is_abandoned:
                return False
            try:
                await self._storage.commit(*mutations)
                return True
            except StorageConflict:
                raise
            except StorageError as exc:
                if self._policy is CallPolicy.TRANSACTIONAL:
                    raise
                await patience.wait(exc)

    async def _store(self, response: Response) -> tuple[StoredResponse, list[Mutation]]:
        try:
            content, mutations = await self._store_body(response)
        except StorageError:
            raise
        except Exception:
            logger.exception("the response content of %s failed", self._operation.id)
            response = error_response(PeerError(ProblemCode.INTERNAL_ERROR))
            content, mutations = await self._store_body(response)
        fields = self._final_fields(response, content)
        return StoredResponse(
            status=response.status, fields=fields, body=content
        ), mutations

    async def _store_body(self, response: Response) -> tuple[Content, list[Mutation]]:
        body = response.body
        if not has_content(response.status):
            body = b""
        if isinstance(body, bytes) and len(body) <= INLINE_LIMIT:
            return Content(len(body), inline=body), []
        return await _ResponseWriter(self._operation, self._storage).write(body)

    def _final_fields(self, response: Response, content: Content) -> Fields:
        operation = self._operation
        fields = end_to_end_fields(response.fields).without("content-length")
        if "date" not in fields:
            fields = fields.plus({"date": format_http_date(self._clock.date())})
        if has_content(response.status):
            fields = fields.plus({"content-length": str(content.length)})
        if self._told_digests:
            fields = fields.plus({"repr-digest": repr_digest(self._told_digests)})
        if parse_preferences(operation.record.fields).resume is None:
            return fields  # other dialects add theirs when it is sent
        if "etag" not in fields and response.status != 201:
            # R28. The ETag of a 201 is for the created resource (RFC 9110, section 15.3.2).
            fields = fields.plus({"etag": content_etag_of(content)})
        locations = operation_fields(
            self._config, operation.id, operation.record.length != 0
        )
        if "content-location" in fields:
            locations = locations.without("content-location")
        mode = "save" if operation.record.keep_incomplete else "ignore"
        return fields.plus(locations).plus(
            {"preference-applied": f"resume={mode}-incomplete"}
        )


class _Patience:
    """Waits for a store that is full, longer each time."""

    def __init__(self, operation: Operation) -> None:
        self._operation = operation
        self._delay = 1.0

    async def wait(self, exc: StorageError) -> None:
        logger.error(
            "the response of %s cannot be recorded yet: %s", self._operation.id, exc
        )
        await trio.sleep(self._delay)
        self._delay = min(2 * self._delay, LONGEST_RETRY)


class _ResponseWriter:
    """Writes response content that is too large for the catalog into chunks.

    Like request content it goes through a lane: worker threads write, hash and sync it.
    """

    def __init__(self, operation: Operation, storage: Storage) -> None:
        self._operation = operation
        self._key = response_key(operation.id)
        self._storage = storage
        self._lane = Lane(storage.workers)

    async def write(
        self, body: bytes | AsyncIterable[bytes]
    ) -> tuple[Content, list[Mutation]]:
        writer = await self._storage.run(self._storage.store.open_writer, self._key)
        try:
            if isinstance(body, bytes):
                await self._append(writer, body)
            else:
                await self._append_blocks(writer, body)
            seals = await self._lane.call(lambda: run_seals(writer.finish()))
            return await self._storage.finish_content(writer, self._key, [], seals)
        finally:
            writer.close()

    async def _append_blocks(
        self, writer: ContentWriter, blocks: AsyncIterable[bytes]
    ) -> None:
        """Append *blocks*, small ones together: each append is a job for a thread."""
        gathered: list[bytes] = []
        size = 0
        async with closing_iterator(blocks) as iterator:
            async for block in iterator:
                gathered.append(block)
                size += len(block)
                if size >= BLOCK_SIZE:
                    await self._append(writer, b"".join(gathered))
                    gathered, size = [], 0
        await self._append(writer, b"".join(gathered))

    async def _append(self, writer: ContentWriter, block: bytes) -> None:
        """Append *block*, waiting for space (G8): the target's call is not repeated."""
        patience = _Patience(self._operation)
        end = writer.offset + len(block)
        while writer.offset < end:
            rest = memoryview(block)[len(block) - (end - writer.offset) :]
            try:
                seals = await self._lane.call(partial(writer.append, rest))
            except StorageFull as exc:
                await patience.wait(exc)
                continue
            if seals:
                # Not in the same job: after a sync that failed, no patience helps.
                run = partial(run_seals, seals)
                await self._storage.commit(*await self._lane.call(run))


def record_head(record: OperationRecord) -> RequestHead:
    """Return the recorded head of the request that began the operation."""
    return RequestHead(
        method=record.method,
        target=record.target,
        fields=record.fields,
        http_version="1.1",
        length=record.length,
    )
