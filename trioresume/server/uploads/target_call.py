"""One call of the target for a complete request, and the response that comes of it.

This module calls and stores; when, and in which order, is up to the table of
:mod:`trioresume.protocol.operation`, which
:class:`~trioresume.server.uploads.operation.Operation` performs.

The numbered statements (C15, C16, D7, G8, R28) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    PeerError,
    ProblemCode,
    StorageError,
    StorageFull,
    TargetUnavailable,
)
from trioresume.protocol.dialects.seed.server import parse_preferences
from trioresume.protocol.dialects.tus.server import is_partial
from trioresume.protocol.digests import ReprDigest, repr_digest
from trioresume.protocol.fields import format_http_date
from trioresume.protocol.heads import end_to_end_fields, has_content
from trioresume.protocol.operation import CallPolicy
from trioresume.protocol.problem import problem_response
from trioresume.server.api.config import problem_page_of
from trioresume.server.api.handler import (
    BLOCK_SIZE,
    RecordedWith,
    Request,
    RequestBody,
    Response,
    closing_iterator,
)
from trioresume.server.async_store.threads import Lane
from trioresume.server.uploads.incoming_content import run_seals
from trioresume.server.uploads.loaded_operation import record_head
from trioresume.server.uploads.locations import concealed, operation_fields
from trioresume.store.port import (
    Content,
    Mutation,
    StoredResponse,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import digest_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterable, Callable, Mapping

    from trioresume.protocol.heads import Fields
    from trioresume.server.api.handler import Progress
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.uploads.loaded_operation import Surroundings
    from trioresume.store.port import ContentWriter, OperationId, OperationRecord

__all__ = [
    "OUTCOME_UNKNOWN",
    "Patience",
    "ResponseWriter",
    "TargetCall",
    "content_etag_of",
]

INLINE_LIMIT = 64 * 1024
"""Response content up to this many bytes is stored in the catalog itself."""

MOST_CALLS = 3
"""How often a target that may run twice is called because its responses were cut."""

OUTCOME_UNKNOWN = frozenset(
    {
        ProblemCode.GATEWAY_TIMEOUT,
        ProblemCode.INDETERMINATE,
        ProblemCode.OUTCOME_UNKNOWN,
    }
)
"""Answers that do not tell whether the request took effect."""

logger = logging.getLogger("trioresume.operations")


def content_etag_of(content: Content) -> str:
    """Return the strong validator of finished content: its digest, in quotes."""
    digest = (
        content.digest
        if content.digest is not None
        else digest_of(content.inline or b"")
    )
    return f'"{digest.hex()}"'


class TargetCall:
    """The call of the target for one request, whose *content* is complete.

    *frozen* are the mutations that freeze the content, if that is still to be done.
    """

    def __init__(
        self,
        around: Surroundings,
        record: OperationRecord,
        content: Content,
        frozen: list[Mutation],
    ) -> None:
        self.content = content
        self.frozen = frozen
        self.policy = around.target.policy
        if around.repeating is not None:
            self.policy = around.repeating.policy_for(record_head(record))
        self.is_partial = is_partial(record.fields)
        if self.is_partial:
            # The request for a part of a later upload calls no target: it has no effects.
            self.policy = CallPolicy.TRANSACTIONAL
        self.is_unknown = False
        """Whether the answer says that nobody knows whether the request took effect."""
        self.has_answered = False
        """Whether the target has answered: its effects may conflict with others'."""
        self.conflicts = 0
        """How often the target's effects could not be committed."""
        self._answer = RecordedWith(Response(204), ())
        self._around = around
        self._record = record
        self._digests: Mapping[str, bytes] = {}
        """Those of the content that were computed, by the names of RFC 9530."""
        self._told_digests: Mapping[str, bytes] = {}
        self._request: Request | None = None

    @property
    def answer(self) -> RecordedWith:
        """The answer, and its effects."""
        return self._answer

    def amend(self, answer: RecordedWith) -> None:
        """Take *answer*, which was made from the present one."""
        self._answer = answer

    def refuse(self, error: PeerError) -> None:
        """Take the problem document of *error* (RFC 9457) for the answer."""
        page = problem_page_of(self._around.config)
        status, fields, body = problem_response(error, page)
        self._take(Response(status, fields, body))
        self.is_unknown = error.problem in OUTCOME_UNKNOWN

    def _take(self, answer: Response | RecordedWith) -> None:
        """Take *answer* for the answer. One that was taken before has no effects then."""
        if isinstance(answer, Response):
            answer = RecordedWith(answer, ())
        self._answer = answer

    async def check(
        self, *, tells_digest: bool, is_wanted: Callable[[bool], bool]
    ) -> bool:
        """Compare the content with the announced digests (C15).

        Returns False after a mismatch, which is the answer then. Nothing is hashed unless the
        client asked for a digest. *is_wanted* says whether a digest is still needed; its
        argument is true if the client has announced one.
        """
        asked = ReprDigest(self._record.fields)
        wished = asked.wanted if tells_digest else set()
        algorithms = asked.expected | wished
        if not algorithms:
            return True
        claimed = bool(asked.expected)
        storage, record = self._around.storage, self._record
        key = request_key(record.id)
        reader = await storage.run(storage.store.open_prefix, key, self.content.length)
        try:
            digests = await self._around.hashing.digests(
                record.principal, reader, algorithms, lambda: is_wanted(claimed)
            )
        finally:
            reader.close()
        if digests is None:
            return True
        try:
            told = asked.verify(digests)
        except PeerError as exc:
            self.refuse(exc)
            return False
        self._digests = digests
        self._told_digests = {name: told[name] for name in told if name in wished}
        return True

    async def run(
        self,
        *,
        readmits: bool,
        on_progress: Callable[[Progress], None],
        on_interim: Callable[[int, Fields], None],
    ) -> TargetUnavailable | None:
        """Call the target, and keep its answer; return the reason if it cannot take it now.

        With *readmits* the target is first asked whether it still admits the request (C16):
        it may have changed its mind since the upload began, and only now is the length of
        every upload known. Raises :class:`StorageError` if the policy is TRANSACTIONAL.
        """
        record, target = self._record, self._around.target
        if self.is_partial:
            return None
        self._request = request = Request(
            head=record_head(record),
            body=RequestBody(self.content, self._around.storage),
            principal=record.principal,
            on_progress=on_progress,
            operation_id=record.id,
            earlier_conflicts=self.conflicts,
            on_interim=on_interim,
            digests=self._digests,
        )
        try:
            refusal: object = None
            if self._around.rulebook is not None:
                # The length is known now, and the rules may have changed meanwhile.
                self._around.rulebook.check(request.head, record.principal)
            if readmits:
                refusal = await target.admit(request.head, record.principal)
            if isinstance(refusal, Response):
                self._take(refusal)
            else:
                self._take(await target.respond(request))
            self.has_answered = True
        except TargetUnavailable as exc:
            return exc
        except PeerError as exc:
            self.refuse(exc)
        except StorageError:
            if self.policy is CallPolicy.TRANSACTIONAL:
                raise
            logger.exception(
                "the handler of %s failed in the store", concealed(record.id)
            )
            self.refuse(PeerError(ProblemCode.INTERNAL_ERROR))
        except Exception:
            logger.exception("the handler of %s failed", concealed(record.id))
            self.refuse(PeerError(ProblemCode.INTERNAL_ERROR))
        return None

    async def store(self) -> tuple[StoredResponse, list[Mutation]]:
        """Store the answer; return the response, and the mutations that belong to it.

        The mutations keep its content and are the target's effects. Raises
        :class:`StorageError`.
        """
        content, mutations = await self._write_whole_body()
        response = self._answer.response
        fields = self._final_fields(response, content)
        stored = StoredResponse(status=response.status, fields=fields, body=content)
        return stored, [*mutations, *self._answer.mutations]

    async def _write_whole_body(self) -> tuple[Content, list[Mutation]]:
        """Store the answer's content. If that fails, another answer takes its place."""
        for calls_left in reversed(range(MOST_CALLS)):
            try:
                return await self._write_body()
            except StorageError:
                raise
            except PeerError as exc:
                # The target was lost in the middle of its response.
                if calls_left and self.policy is CallPolicy.IDEMPOTENT:
                    await self._call_again(exc)
                else:
                    self.refuse(exc)
            except Exception:
                logger.exception(
                    "the response content of %s failed", concealed(self._record.id)
                )
                self.refuse(PeerError(ProblemCode.INTERNAL_ERROR))
        return await self._write_body()

    async def _call_again(self, exc: PeerError) -> None:
        logger.warning("%s is processed again: %s", concealed(self._record.id), exc)
        assert self._request is not None
        try:
            self._take(await self._around.target.respond(self._request))
        except PeerError as newer:
            self.refuse(newer)

    async def _write_body(self) -> tuple[Content, list[Mutation]]:
        response = self._answer.response
        body = response.body if has_content(response.status) else b""
        if isinstance(body, bytes) and len(body) <= INLINE_LIMIT:
            return Content(len(body), inline=body), []
        writer = ResponseWriter(self._record.id, self._around.storage)
        return await writer.write(body)

    def _final_fields(self, response: Response, content: Content) -> Fields:
        record = self._record
        fields = end_to_end_fields(response.fields).without("content-length")
        if "date" not in fields:
            now = int(self._around.clock.date())
            fields = fields.plus({"date": format_http_date(now)})
        if has_content(response.status):
            fields = fields.plus({"content-length": str(content.length)})
        if self._told_digests:
            fields = fields.plus({"repr-digest": repr_digest(self._told_digests)})
        if parse_preferences(record.fields).resume is None:
            return fields  # other dialects add theirs when it is sent
        if "etag" not in fields and response.status != 201:
            # R28. The ETag of a 201 is for the created resource (RFC 9110, section 15.3.2).
            fields = fields.plus({"etag": content_etag_of(content)})
        locations = operation_fields(self._around.config, record.id, record.length != 0)
        if "content-location" in fields:
            locations = locations.without("content-location")
        mode = "save" if record.keep_incomplete else "ignore"
        return fields.plus(locations).plus(
            {"preference-applied": f"resume={mode}-incomplete"}
        )


# Content that is too large for the catalog.

LONGEST_RETRY = 60.0


class Patience:
    """Waits for a store that is full, longer each time (G8)."""

    def __init__(self, id: OperationId) -> None:
        self._id = id
        self._delay = 1.0

    async def wait(self, exc: StorageError) -> None:
        logger.error("the response of %s cannot be recorded yet: %s", self._id, exc)
        await trio.sleep(self._delay)
        self._delay = min(2 * self._delay, LONGEST_RETRY)


class ResponseWriter:
    """Writes the content of an operation's response into chunks.

    Like request content it goes through a lane: worker threads write, hash and sync it.
    """

    def __init__(self, id: OperationId, storage: Storage) -> None:
        self._id = id
        self._key = response_key(id)
        self._storage = storage
        self._lane = Lane(storage.workers)

    async def write(
        self, body: bytes | AsyncIterable[bytes]
    ) -> tuple[Content, list[Mutation]]:
        """Store *body*; return its content, and the mutations that keep it.

        Waits while the disk is full. Raises :class:`StorageError`, and what *body* raises.
        """
        writer = await self._storage.run(self._storage.store.open_writer, self._key)
        try:
            if isinstance(body, bytes):
                await self._append(writer, body)
            else:
                await self._append_blocks(writer, body)
            seals = await self._lane.call(lambda: run_seals(writer.finish()))
            return await self._storage.finish_content(writer, self._key, [], seals)
        finally:
            # A shield: one job at most is still at work with the writer's files.
            with trio.CancelScope(shield=True):
                await self._lane.until(0)
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
        """Append *block*, waiting for space: the target's call is not repeated."""
        patience = Patience(self._id)
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
