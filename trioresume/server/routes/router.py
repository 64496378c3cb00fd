"""Route each request: authenticate it, then pass it to an operation or to the target.

The numbered statements (R10, C17, D7 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import trio

from trioresume.errors import (
    ContentLost,
    PeerError,
    ProblemCode,
    StorageConflict,
    StorageError,
)
from trioresume.protocol.dialects import classify, discovery_fields
from trioresume.protocol.dialects.seed.server import Preferences, ResumeMode
from trioresume.protocol.dialects.tus.server import is_partial
from trioresume.protocol.digests import ReprDigest
from trioresume.protocol.heads import Fields, end_to_end_fields
from trioresume.protocol.signed_address import without_signature
from trioresume.server.api.authentication import authenticate
from trioresume.server.api.config import (
    Grant,
    Principal,
    problem_path_of,
    upload_limits,
)
from trioresume.server.api.handler import (
    PartTarget,
    Progress,
    RecordedWith,
    RecordingTarget,
    Representation,
    Request,
    RequestBody,
    Response,
)
from trioresume.server.routes.concatenation import find_parts
from trioresume.server.routes.operation_resources import Resources
from trioresume.server.routes.passing import PassingTarget
from trioresume.server.routes.problem_page import send_problem_page
from trioresume.server.routes.replies import (
    describe,
    send_outcome,
    send_processing,
    send_reply,
)
from trioresume.server.routes.representation import Served, serve_bytes
from trioresume.server.uploads.locations import OPEN, locate, operation_fields
from trioresume.server.uploads.receive import InterimSender, receive_content
from trioresume.store.port import Content

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioresume.protocol.dialects import Creation
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.routes.upload_page import UploadPage
    from trioresume.server.uploads.operation import Operation
    from trioresume.server.uploads.registry import Registry

__all__ = ["Service"]

MOST_TRIES = 10
"""How often the target is asked again because its content is gone before it is read."""

# Safe methods (RFC 9110, section 9.2.1) change nothing, so nothing of them must survive.
_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})

# The answer of a handler that does not handle OPTIONS.
_KNOWS_NO_OPTIONS = frozenset({405, 501})

# Refusals of an unknown sender, or of one that may not use the service.
_NOT_KNOWN = frozenset({ProblemCode.UNAUTHORIZED, ProblemCode.FORBIDDEN})

# Problems of the first request's content that make it useless to go on: the received content
# is too large already, or it is not what its sender meant.
_SPOILS = frozenset(
    {
        ProblemCode.CHECKSUM_MISMATCH,
        ProblemCode.CONTENT_TOO_LARGE,
        ProblemCode.DIGEST_MISMATCH,
    }
)


class Service:
    """Answers every request of the server."""

    def __init__(
        self,
        operations: Registry,
        config: Config,
        background: trio.Nursery,
        page: UploadPage | None = None,
    ) -> None:
        self._page = page
        self._operations = operations
        self._storage = operations.storage
        self._rulebook = operations.rulebook
        target = self._target = operations.target
        # What the target can do besides is asked once: the check of a Protocol is slow.
        self._part_target = target if isinstance(target, PartTarget) else None
        self._passing = target if isinstance(target, PassingTarget) else None
        self._recording = target if isinstance(target, RecordingTarget) else None
        self._config = config
        self._problem_path = problem_path_of(config)
        self._limits = upload_limits(config)
        self._interim_sender = InterimSender(background, config.acknowledge_interval)
        self._resources = Resources(operations, config, self._interim_sender)

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request.

        Raises :class:`PeerError` and other errors; the exchange turns them into a problem
        response.
        """
        if self._page is not None and self._page.has(exchange.head.path):
            await self._page.handle(exchange)
            return
        if exchange.head.path == self._problem_path:
            await send_problem_page(exchange)
            return
        self._storage.store.check()
        principal: str | None = None
        try:
            # Before anything else is done for a request (R10, R35).
            if self._config.authenticate is not None:
                exchange.sender = await self._identify(exchange.head)
                principal = exchange.sender.name
                if exchange.sender.grant is not None:
                    # From here on nothing sees the credential in the address.
                    target = exchange.sender.grant.target
                    exchange.head = replace(exchange.head, target=target)
        except PeerError as exc:
            if exchange.head.method == "OPTIONS" and exc.problem in _NOT_KNOWN:
                # C17: the server's protocols are no secret. The answer tells of no target,
                # and that credentials are needed (RFC 9110, section 11.6.1).
                asks = (f for f in exc.fields if f[0].lower() == "www-authenticate")
                await self._discover(exchange, Fields(asks))
                return
            raise
        path = exchange.head.path
        if path.startswith(self._config.operation_path):
            located = locate(self._config, path)
            await self._resources.handle(exchange, principal, located)
            return
        # Not one within the other: all that waits for content is kept in memory.
        creation = await self._handle_target(exchange, principal)
        if creation is not None:
            await self._handle_operation(exchange, principal, creation)

    async def _identify(self, head: RequestHead) -> Principal:
        """Return the sender of a request. Raises :class:`PeerError` with the refusal.

        The locations of an open operation need no other credential.
        """
        path = head.path
        if path.startswith(self._config.operation_path):
            located = locate(self._config, path)
            if located is not None and located[0][-1] in OPEN:
                # Some clients repeat the query of the address that began the upload.
                grant = Grant(without_signature(head.target))
                return Principal("", is_asked_again=False, grant=grant)
        return await authenticate(self._config, head)

    async def _handle_target(
        self, exchange: Exchange, principal: str | None
    ) -> Creation | None:
        """Answer a request for the target and return None.

        If it begins an upload whose content is still to come, return that instead.
        """
        head = exchange.head
        exchange.dialect = classify(
            head,
            exchange.dialect,
            on_upload=False,
            any_interop_version=not self._config.check_interop_version,
            strict_metadata=self._config.strict_metadata,
        )
        exchange.dialect.check(head)
        if head.target == "*":
            # RFC 9110, section 9.3.7: it is about the server, not about a target.
            await self._discover(exchange, Fields())
            return None
        if self._rulebook is not None:
            terms = self._rulebook.terms(head.method, head.path, principal)
            terms.check_method(head.method)
            exchange.limits = terms.limits
        if exchange.dialect.needs_upload(head):
            # The target refuses it with its own answer, or there is no upload of that name.
            meant = replace(head, method=exchange.dialect.method(head))
            if self._rulebook is not None:
                self._rulebook.check(meant, principal)
            await self._target.admit(meant, principal)
            raise PeerError(ProblemCode.NOT_FOUND, "there is no upload here")
        creation = exchange.dialect.creation(head, exchange.limits)
        parts: Sequence[Content] = ()
        if creation.joins is not None:
            parts = await find_parts(self._operations, creation.joins, principal)
            creation = replace(creation, length=sum(part.length for part in parts))
        self._check_size(creation, exchange.limits.max_size)
        if self._config.authenticate is not None and exchange.sender.grant is not None:
            _check_grant(exchange.sender.grant, head, creation)
        early = await self._admit(head, principal, creation)
        resumes = exchange.preferences.resume is not None
        if isinstance(early, Representation):
            await self._send_stored(exchange, early, principal)
        elif early is not None:
            await self._send(exchange, early)
        elif self._passing is not None and self._passes(
            self._passing, exchange, creation
        ):
            await self._passing.pass_through(exchange)
        elif head.method == "OPTIONS" or (
            head.method in _SAFE and not resumes and not head.has_content
        ):
            await self._handle_safe(exchange, principal)
        else:
            if self._recording is not None:
                fields = head.fields if creation.fields is None else creation.fields
                recorded = self._recording.fields_to_record(
                    replace(head, fields=fields)
                )
                creation = replace(creation, fields=recorded)
            if creation.joins is None:
                return creation
            await self._handle_join(exchange, principal, creation, parts)
        return None

    def _passes(
        self, target: PassingTarget, exchange: Exchange, creation: Creation
    ) -> bool:
        """Whether the request streams through to the target, and nothing of it is recorded.

        A client that wants to come back for the response says so, in some dialect.
        """
        asked = exchange.preferences
        if exchange.head.method == "OPTIONS":
            return False
        if creation.offers or creation.joins is not None or creation.check is not None:
            return False
        wanted = asked.resume is not None or asked.processing or asked.respond_async
        return not wanted and target.passes(exchange.head)

    async def _admit(
        self, head: RequestHead, principal: str | None, creation: Creation
    ) -> Response | Representation | None:
        """Ask the target about the upload that *head* begins.

        The target sees the head of the whole upload, as :meth:`AnyTarget.respond` will. If a
        dialect gives the length, type or name in fields of its own, these are translated. The
        target is not asked about a part of a later upload (D7), because it never gets the
        part: the part's name and length say nothing about the whole. It is asked about the
        whole when the parts are joined.
        Only the place where a part begins is judged before.
        """
        fields = head.fields if creation.fields is None else creation.fields
        begun = replace(head, fields=fields, length=creation.length)
        if self._rulebook is not None:
            self._rulebook.check(begun, principal, is_partial=is_partial(fields))
        if is_partial(fields):
            if self._part_target is not None:
                self._part_target.check_part(head)
            return None
        return await self._target.admit(begun, principal)

    def _check_size(self, creation: Creation, limit: int | None) -> None:
        if (
            limit is not None
            and creation.length is not None
            and creation.length > limit
        ):
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE, f"at most {limit} bytes are accepted"
            )

    async def _handle_safe(self, exchange: Exchange, principal: str | None) -> None:
        """Answer a safe request without content: nothing is stored or recorded.

        OPTIONS is always such a request, because its content has no use (RFC 9110, section
        9.3.7).
        """
        request = Request(
            head=exchange.head,
            body=RequestBody(Content(0, inline=b""), self._storage),
            principal=principal,
            on_progress=_ignore_progress,
        )
        answer = await self._target.respond(request)
        if isinstance(answer, RecordedWith):
            await self._storage.commit(*answer.mutations)
            answer = answer.response
        await self._send(exchange, answer)

    async def _discover(self, exchange: Exchange, challenge: Fields) -> None:
        """Answer OPTIONS for the server, not for a particular resource."""
        await exchange.respond(200, discovery_fields(self._limits).plus(challenge))

    async def _send_options(self, exchange: Exchange, answer: Response) -> None:
        """Answer OPTIONS with a 200 where possible: Apple's background upload wants it (C17).

        A target that does not handle OPTIONS still takes resumable uploads. A 204 means the
        same as a 200 without content. Any other answer stands.
        """
        status, fields, body = (
            answer.status,
            end_to_end_fields(answer.fields),
            answer.body,
        )
        if status in _KNOWS_NO_OPTIONS:
            await _drop(body)
            status, body = 200, b""
            fields = Fields((n, v) for n, v in fields if n == "allow")
        elif status == 204:
            status = 200
        if status < 300:
            fields = fields.plus(discovery_fields(exchange.limits))
        await exchange.respond(status, fields, body)

    async def _send(self, exchange: Exchange, answer: Response) -> None:
        if exchange.head.method == "OPTIONS":
            await self._send_options(exchange, answer)
            return
        fields = end_to_end_fields(answer.fields)
        await exchange.respond(answer.status, fields, answer.body)

    async def _send_stored(
        self, exchange: Exchange, answer: Representation, principal: str | None
    ) -> None:
        """Serve stored content.

        Between the target's answer and the opening, another request may replace or remove
        the content. Then the target is asked again, and knows the newer state.
        """
        for tries_left in reversed(range(MOST_TRIES)):
            try:
                reader = await self._storage.run(
                    self._storage.store.open_reader, answer.content
                )
            except ContentLost:
                if not tries_left:
                    raise
                newer = await self._target.admit(exchange.head, principal)
                if not isinstance(newer, Representation):
                    assert newer is not None
                    await self._send(exchange, newer)
                    return
                answer = newer
                continue
            served = Served(answer.fields, reader, answer.etag, answer.last_modified)
            await serve_bytes(
                exchange, self._storage, served, max_ranges=self._config.max_ranges
            )
            return

    async def _handle_operation(
        self, exchange: Exchange, principal: str | None, creation: Creation
    ) -> None:
        head, preferences = exchange.head, exchange.preferences
        resume = preferences.resume
        followed = preferences.processing or preferences.respond_async
        operation = await self._operations.create(
            head,
            principal,
            creation,
            offered=creation.offers or resume is not None or followed,
            keep_incomplete=creation.offers or resume is ResumeMode.SAVE_INCOMPLETE,
            must_be_offered=creation.offers,
            grant=None if self._config.authenticate is None else exchange.sender.grant,
        )
        try:
            if operation.unoffered and (resume is not None or followed):
                # At a limit: the request is admitted, and its preferences are ignored.
                exchange.preferences, resume = Preferences(), None
                operation.forget_preferences()
            if resume is None:
                await exchange.send_continue()
            else:
                # Not kept for the response: thousands of requests wait for content here.
                await exchange.send_continue(
                    operation_fields(self._config, operation.id, head.has_content),
                    always=True,
                )
            if creation.offers:
                await self._announce(exchange, operation)
            if exchange.dialect.awaits_target and exchange.preferences.processing:
                await send_processing(exchange, operation, self._config)
            try:
                await receive_content(
                    exchange,
                    operation,
                    creation,
                    self._interim_sender,
                    operation.around.config,
                )
            except BaseException as exc:
                self._give_up(exchange, operation, creation, exc)
                raise
            if operation.is_receiving:
                offset = await operation.confirm()
                upload = describe(self._config, exchange, operation, offset)
                told = Fields()
                if resume is not None:
                    told = operation_fields(
                        self._config, operation.id, head.has_content
                    )
                await send_reply(exchange, exchange.dialect.created(upload), told)
            else:
                await send_outcome(
                    exchange, operation, self._interim_sender, created=True
                )
        finally:
            self._operations.leave(operation)

    async def _handle_join(
        self,
        exchange: Exchange,
        principal: str | None,
        creation: Creation,
        parts: Sequence[Content],
    ) -> None:
        """Create an upload from others (D7): nothing is received or copied."""
        tells_digest = self._check_hashing(exchange.head, principal, parts)
        # Its bytes are stored already, and were admitted with the parts: no space is
        # reserved for them. Once joined, they count like any content (G7).
        creation = replace(creation, length=0)
        operation = await self._operations.create(
            exchange.head,
            principal,
            creation,
            offered=True,
            keep_incomplete=True,
            grant=None if self._config.authenticate is None else exchange.sender.grant,
        )
        try:
            operation.tells_digest = tells_digest
            try:
                await operation.join(tuple(parts))
            except StorageError as exc:
                await operation.cancel()
                if not isinstance(exc, StorageConflict):
                    raise
                raise PeerError(
                    ProblemCode.CONFLICT, "a partial upload has ended in the meantime"
                ) from exc
            await send_outcome(exchange, operation, self._interim_sender, created=True)
        finally:
            self._operations.leave(operation)

    def _check_hashing(
        self, head: RequestHead, principal: str | None, parts: Sequence[Content]
    ) -> bool:
        """Whether the digest of the joined content is told, if the client wants it.

        Raises :class:`PeerError` if the client claims a digest, and checking it would exceed
        the budget for hashing bytes that no client has sent.
        """
        asked = ReprDigest(head.fields)
        if not asked.expected and not asked.wanted:
            return True
        size = sum(part.length for part in parts)
        hashing = self._operations.hashing
        if hashing.spend(principal, size):
            return True
        if asked.expected:
            raise hashing.refusal(principal, size)
        return False

    async def _announce(self, exchange: Exchange, operation: Operation) -> None:
        """Tell the upload's location before any of its content is read (C2)."""
        upload = describe(self._config, exchange, operation, 0)
        interim = exchange.dialect.announcement(upload)
        if interim is not None:
            await exchange.send_interim(interim)

    def _give_up(
        self,
        exchange: Exchange,
        operation: Operation,
        creation: Creation,
        exc: BaseException,
    ) -> None:
        """Clean up in the background after receiving has ended with *exc*.

        This also happens when the request is cancelled.
        """
        spoilt = isinstance(exc, PeerError) and (
            exc.problem in _SPOILS or exc.problem in exchange.dialect.invalidated_by
        )
        if creation.check is not None and not creation.check.keeps_prefix:
            spoilt = True
        ending = operation.cancel if spoilt else operation.cut
        self._operations.start(operation, ending)


def _check_grant(grant: Grant, head: RequestHead, creation: Creation) -> None:
    """Refuse content that is not what the signer of the address wanted: 413, 415."""
    most = grant.max_size
    if most is not None and creation.length is not None and creation.length > most:
        raise PeerError(
            ProblemCode.CONTENT_TOO_LARGE, f"at most {most} bytes are accepted here"
        )
    fields = head.fields if creation.fields is None else creation.fields
    if head.method in _SAFE or is_partial(fields):
        return  # no content, or a part, whose type says nothing about the whole
    if not grant.allows_type(replace(head, fields=fields).media_type):
        raise PeerError(
            ProblemCode.UNSUPPORTED_MEDIA_TYPE,
            f"the content must be {grant.media_type}",
        )


async def _drop(body: object) -> None:
    """Close the content of a response that is not sent."""
    aclose = getattr(body, "aclose", None)
    if aclose is not None:
        await aclose()


def _ignore_progress(progress: Progress) -> None:
    """Ignore progress: a request without resources cannot be asked for it."""
