"""One call of :meth:`Client.request`: performs the transfer's actions.

Statement numbers such as R5 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import hashlib
import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.client.content.file_source import FileSource, SourceChanged
from trioresume.client.decisions.actions import (
    Action,
    Append,
    Contrast,
    Create,
    Discover,
    Finish,
    Gather,
    Next,
    Outcome,
    Send,
    Sent,
    WireAction,
)
from trioresume.client.decisions.portals import may_be_foreign
from trioresume.client.decisions.transfer import Transfer
from trioresume.client.http.response_sinks import IgnoringSink, Reading, sink_for
from trioresume.client.http.round_trip import (
    BARE_CONTINUE_SECONDS,
    Observer,
    RateLimiter,
    ResponseSink,
    RoundTrip,
)
from trioresume.client.http.tls import HopelessConnection, explain
from trioresume.client.progress import Progress, trouble_of
from trioresume.client.response import ClientResponse
from trioresume.errors import TransferFailed, UploadForgotten
from trioresume.protocol.dialects.client import Answer, Locations
from trioresume.protocol.dialects.marks import has_mark
from trioresume.protocol.heads import Fields
from trioresume.protocol.progress import ProcessingProgress, parse_progress
from trioresume.protocol.structured import byte_sequences
from trioresume.protocol.urls import Url

if TYPE_CHECKING:
    from pathlib import Path

    from trioresume.client.content.file_source import Proof
    from trioresume.client.content.response_content import ResponseContent
    from trioresume.client.content.sources import Source
    from trioresume.client.http.pool import Pool
    from trioresume.client.http.requests import RequestBuilder, WireRequest
    from trioresume.protocol.dialects.client import ClientDialect

__all__ = ["Memory", "Timeouts", "TransferRunner"]

logger = logging.getLogger("trioresume.client")

PROGRESS_INTERVAL_SECONDS = 0.1
DISCOVERY_SECONDS = 5.0
"""How long content waits for the server's answer to OPTIONS."""
_DISCOVERY_PAUSES = (0.1, 0.4)
"""Seconds between attempts to ask, for links that are cut."""
RELEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Timeouts in seconds."""

    idle: float
    """For how long nothing may move in either direction."""
    expect: float
    """How long to wait for a 100 from a server that may not know ``Expect``."""


class Memory(Protocol):
    """What remembers one upload: the journal's entry, or a part of it.

    The methods block, and raise :class:`OSError`.
    """

    @property
    def locations(self) -> Locations | None:
        """What is remembered."""
        ...

    @property
    def directory(self) -> Path:
        """Where it is remembered, for a warning."""
        ...

    @property
    def source(self) -> str:
        """The path of the file that is sent, for a warning."""
        ...

    def save(
        self,
        locations: Locations,
        *,
        all_sent: bool,
        dialect: ClientDialect,
        proof: Proof | None,
        moved: Url | None,
    ) -> None:
        """Remember that the upload is at *locations*, and how far it is."""
        ...

    def end(self, status: int) -> None:
        """Note that the server answered with *status*, as the last of the upload."""
        ...

    def forget(self) -> None:
        """Forget an upload that cannot be resumed."""
        ...


class _NotConnected(Exception):
    """There is no connection for a request, for *reason*."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


class TransferRunner(Observer):
    """The asynchronous side of one transfer. It observes the exchanges that it performs."""

    def __init__(
        self,
        transfer: Transfer,
        builder: RequestBuilder,
        source: Source,
        content: ResponseContent,
        pool: Pool,
        *,
        entry: Memory | None,
        timeouts: Timeouts,
        limiter: RateLimiter,
        release: bool,
        on_progress: Callable[[Progress], object] | None,
        checksum: bool = False,
        whole: Source | None = None,
    ) -> None:
        self._transfer = transfer
        self._builder = builder
        self._source = source
        self._whole = whole or source
        """The content that the answer is about. The parts of *whole* were sent before."""
        self._content = content
        self._pool = pool
        self._entry = entry
        self._timeouts = timeouts
        self._limiter = limiter
        self._release = release
        self._on_progress = on_progress
        self._checksum = checksum
        """Whether the caller wants to know the digest, and that the server has the same."""
        self._is_confirmed = False
        self._action: Action = Send()
        self._attempts = 0
        self._interrupted = True
        """Whether sending content now begins a new attempt."""
        self._vouched = False
        """Whether an interim response of the current exchange had a protocol's mark."""
        self._position = 0
        self._bytes_sent = 0
        self._reported_at = float("-inf")
        self._trouble: str | None = None
        """Why nothing gets through now; None if something did."""
        self._processing: ProcessingProgress | None = None
        """The latest that the server told about processing the request."""
        self._journal_warned = False

    async def run(self) -> ClientResponse:
        """Perform actions until the final response is complete, and return it."""
        try:
            self._action = self._transfer.begin()
            while not isinstance(self._action, Finish):
                outcome = await self._outcome_of(self._action)
                if outcome.answer is not None and outcome.answer.ok:
                    self._trouble = None
                following = self._transfer.after(outcome)
                await self._note_decision(following)
                if following.delay:
                    self._trouble = trouble_of(outcome)
                    self._report(force=True, retry_in=following.delay)
                    await trio.sleep(following.delay)
                self._action = following.action
            return await self._finish(self._action)
        except UploadForgotten:
            await self._journal_forget()
            raise
        except SourceChanged as exc:
            if exc.useless:
                await self._cancel_upload()
            else:
                await self._journal_save_proof()
            raise
        except BaseException:
            await self._journal_save_proof()
            raise

    async def cancel_stale(
        self, locations: Locations | None, dialect: ClientDialect | None
    ) -> None:
        """Ask the server to drop an earlier run's upload of another version of the file."""
        if locations is not None and locations.content is not None:
            await self._ask_once(self._builder.cancel(locations.content, dialect))

    # One action.

    @property
    def _url(self) -> Url:
        return self._transfer.redirects.url

    async def _outcome_of(self, action: WireAction | Gather) -> Outcome:
        if isinstance(action, Gather):
            await self._source.gather(action.offset, action.size)
            return self._outcome(Reading(None, True, None), Sent.NOTHING)
        if isinstance(action, Discover):
            answer = await self.discover()
            return self._outcome(Reading(answer, True, None), Sent.NOTHING)
        if isinstance(action, Contrast):
            # It only confirms: a server that does not answer it costs a moment.
            with trio.move_on_after(DISCOVERY_SECONDS):
                return await self._perform(action)
            return self._outcome(Reading(None, False, TimeoutError()), Sent.NOTHING)
        return await self._perform(action)

    async def _perform(self, action: WireAction) -> Outcome:
        self._prepare(action)
        self._vouched = False
        request = self._builder.build(action)
        if isinstance(action, Send) and action.expect and request.outgoing is not None:
            request.outgoing.wait_for_continue = self._patience
        sink = sink_for(action, self._content)
        try:
            exchange = await self._round_trip(request, sink, self)
        except _NotConnected as exc:
            self._refuse_hopeless(exc.reason)
            self._interrupted = self._interrupted or isinstance(action, Send | Append)
            return self._outcome(Reading(None, False, exc.reason), Sent.NOTHING)
        if exchange.answer is None and exchange.cause is not None:
            # In TLS 1.3 a server refuses a client's certificate after the handshake.
            hopeless = explain(exchange.cause, request.url.origin)
            if hopeless is not None:
                self._refuse_hopeless(hopeless)
        if isinstance(action, Send | Create) and exchange.answer is not None:
            self._note_late_offer(action, exchange.answer)
        return self._outcome(sink.reading(exchange), self._carried(action, exchange))

    @property
    def _patience(self) -> float:
        """For how many seconds to wait for an offer."""
        if self._transfer.choice.known_to_resume:
            return self._timeouts.idle  # a server that offers always does (R5)
        if self._transfer.choice.searching:
            return min(self._timeouts.expect, BARE_CONTINUE_SECONDS)
        return self._timeouts.expect

    def _prepare(self, action: WireAction) -> None:
        if isinstance(action, Send | Create):
            self._transfer.declared_length = self._source.length is not None
        if isinstance(action, Send | Append):
            self._processing = None
            self._attempts += self._interrupted
            self._interrupted = False
            self._position = action.range.start if isinstance(action, Append) else 0
            self._report(force=True)

    def _carried(self, action: WireAction, exchange: RoundTrip) -> Sent:
        """Return how much of the content went with *exchange*."""
        if isinstance(action, Create):
            # With empty content, a creation is the whole request. Otherwise it carries none.
            return exchange.sent if self._source.length == 0 else Sent.NOTHING
        if not isinstance(action, Send | Append):
            return Sent.NOTHING
        answer = exchange.answer
        if answer is None:
            self._interrupted = not self._transfer.turned
        else:
            refused = exchange.sent is Sent.NOTHING and answer.status < 500
            self._interrupted = not answer.ok and not refused
        return exchange.sent

    def _refuse_hopeless(self, exc: OSError) -> None:
        """Give up if the host's name does not exist, or if its TLS cannot be used.

        If the upload has begun, the host was reached before. So the network has changed,
        and may change back.
        """
        if self._attempts > 1 or self._transfer.locations is not None:
            return
        if isinstance(exc, HopelessConnection):
            raise TransferFailed(str(exc)) from exc
        if isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_NONAME:
            raise TransferFailed(
                f"{self._url.origin.host}: {exc.strerror}", resumable=True
            ) from exc

    def _outcome(self, reading: Reading, sent: Sent) -> Outcome:
        if reading.cause is not None:
            logger.debug(
                "%s of %s %s: %s",
                type(self._action).__name__,
                self._transfer.method,
                self._url,
                reading.cause,
            )
        return Outcome(
            answer=reading.answer,
            whole=reading.whole,
            sent=sent,
            received=self._content.received,
            state=reading.state,
            vouched=self._vouched,
            cause=reading.cause,
            now=trio.current_time(),
            wall_time=time.time(),
        )

    async def _round_trip(
        self, request: WireRequest, sink: ResponseSink, observer: Observer
    ) -> RoundTrip:
        """Perform *request*.

        Raises :class:`_NotConnected` if there is no connection for it. An
        :class:`OSError` is of the content: a disk that cannot be read or written.
        """
        connected = False
        try:
            async with self._pool.connection(
                request.url.origin,
                own=self._transfer.redirects.is_own(request.url.origin),
            ) as connection:
                connected = True
                exchange = RoundTrip(
                    connection,
                    request.head,
                    request.outgoing,
                    sink,
                    idle_timeout=self._timeouts.idle,
                    limiter=self._limiter,
                    observer=observer,
                )
                await exchange.run()
                return exchange
        except OSError as exc:
            if connected:
                raise
            raise _NotConnected(exc) from exc

    # What the client learns during an exchange.

    async def on_interim(self, status: int, fields: Fields) -> bool:
        """Take an offer (R1, C2), an acknowledgement (R30, C12), or neither."""
        dialect = self._transfer.dialect
        self._trouble = None
        self._vouched = self._vouched or has_mark(fields)
        self._transfer.note_fields(fields)
        offset = dialect.acknowledged(status, fields)
        if offset is not None:
            self._transfer.note_offset(offset)
            self._source.release(offset, acknowledged=True)
            self._report()
        told = parse_progress(fields.get("progress")) if status == 102 else None
        if told is not None and self._transfer.all_sent:
            self._processing = told
            self._report(force=True)
        if isinstance(self._action, Send) and self._transfer.locations is None:
            locations = dialect.offer(self._url, status, fields)
            if locations is not None:
                self._transfer.note_offer(locations)
                # Save it before the first byte of content: a killed run must not lose the offer.
                await self._journal_save()
        return self._transfer.locations is not None

    async def on_ready(self) -> bool:
        """Ask for other protocols if content would go without an offer."""
        if not isinstance(self._action, Send):
            return True
        if self._transfer.wants_discovery:
            self._transfer.note_discovery(await self.discover())
        return self._transfer.note_ready()

    async def discover(self) -> Answer | None:
        """Return the server's answer to OPTIONS; None if there is none."""
        request = self._builder.build(Discover())
        with trio.move_on_after(DISCOVERY_SECONDS):
            for pause in (*_DISCOVERY_PAUSES, None):
                try:
                    exchange = await self._round_trip(
                        request, IgnoringSink(), Observer()
                    )
                    if exchange.answer is not None:
                        return exchange.answer
                except _NotConnected as exc:
                    logger.debug("%s was not asked: %s", request.url.shown, exc.reason)
                if pause is not None:
                    await trio.sleep(pause)
        return None

    def _note_late_offer(self, action: Send | Create, answer: Answer) -> None:
        """Note the location of the upload, or of the response, in a final response."""
        if self._transfer.locations is None:
            whole = isinstance(action, Send)
            created = self._transfer.dialect.created(self._url, answer, whole=whole)
            if created is not None:
                self._transfer.note_offer(created)

    def on_sent(self, size: int) -> None:
        self._position += size
        self._bytes_sent += size
        self._trouble = None
        self._report()

    async def on_all_sent(self) -> None:
        action = self._action
        completes = isinstance(action, Append) and action.completes
        if not (completes or isinstance(action, Send)) or self._transfer.all_sent:
            return
        self._transfer.all_sent = True
        await self._journal_save()
        self._report(force=True)

    async def _note_decision(self, following: Next) -> None:
        """After each decision, release acknowledged bytes and save a new upload."""
        # An upload that is gone stays in the journal until there is a new upload or an
        # answer of the server: a network can say "gone" too.
        locations = self._transfer.locations
        if locations is not None:
            self._source.release(self._transfer.acknowledged, acknowledged=False)
            known = self._entry is None or self._entry.locations == locations
            if not known and not isinstance(following.action, Finish):
                # A request of its own made the upload. Its content follows.
                await self._journal_save()
        self._report(force=True)

    def _report(self, *, force: bool = False, retry_in: float | None = None) -> None:
        if self._on_progress is None:
            return
        now = trio.current_time()
        if force or now - self._reported_at >= PROGRESS_INTERVAL_SECONDS:
            self._reported_at = now
            self._on_progress(
                Progress(
                    self._position,
                    self._transfer.acknowledged,
                    self._source.length,
                    max(1, self._attempts),
                    transferred=self._bytes_sent,
                    trouble=self._trouble,
                    retry_in=retry_in,
                    processing=self._processing,
                )
            )

    # The journal. A write is one bounded disk call, so it is shielded. After a
    # cancellation the journal is up to date.

    async def _journal_save(self) -> None:
        if self._entry is None or self._transfer.locations is None:
            return
        save = partial(
            self._entry.save,
            self._transfer.locations,
            all_sent=self._transfer.all_sent,
            dialect=self._transfer.dialect,
            proof=self._source.proof()
            if isinstance(self._source, FileSource)
            else None,
            moved=self._transfer.redirects.moved,
        )
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(save)
            except OSError as exc:
                self._warn_of_journal(exc)

    def _warn_of_journal(self, exc: OSError) -> None:
        """Say once that the journal cannot be written: an upload saves its state often."""
        assert self._entry is not None
        if not self._journal_warned:
            self._journal_warned = True
            logger.warning(
                "a later run cannot resume the upload of %r: nothing can be written in"
                " %s: %s",
                self._entry.source,
                self._entry.directory,
                exc.strerror or exc,
            )

    async def _journal_save_proof(self) -> None:
        """Save the proof of what was sent, for a next run that finds another date on the file."""
        if isinstance(self._source, FileSource) and self._source.proof().size:
            await self._journal_save()

    async def _journal_forget(self) -> None:
        if self._entry is not None and self._entry.locations is not None:
            await self._journal_change(self._entry.forget)

    async def _journal_end(self, status: int) -> None:
        if self._entry is not None:
            await self._journal_change(partial(self._entry.end, status))

    async def _journal_change(self, change: Callable[[], None]) -> None:
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(change)
            except OSError as exc:
                self._warn_of_journal(exc)

    # The end.

    async def _finish(self, action: Finish) -> ClientResponse:
        if action.bare:
            await self._content.begin(action.answer.status)
        await self._compare_digest(action.answer)
        sha256 = await self._wanted_digest(action.answer)
        body, saved_to = await self._content.finish()
        if not may_be_foreign(action.answer):
            await self._journal_end(action.answer.status)
        locations = self._transfer.locations
        if self._release and locations is not None and locations.message is not None:
            await self._release_message(locations.message)
        length = self._source.length or 0
        return ClientResponse(
            status=action.answer.status,
            headers=action.answer.fields,
            body=body,
            saved_to=saved_to,
            url=str(self._url),
            attempts=max(1, self._attempts),
            bytes_resent=max(0, self._bytes_sent - length),
            protocol=self._transfer.protocol,
            sha256=sha256,
            is_confirmed=self._is_confirmed,
        )

    async def _wanted_digest(self, answer: Answer) -> str | None:
        """Return the SHA-256 of what was sent, if the caller wants it.

        If the answer did not have it, ask for the digest of what is stored. Raises
        :class:`TransferFailed` if it is another one.
        """
        digest = await self._whole.digest() if self._checksum and answer.ok else None
        if digest is None:
            return None
        location = answer.fields.get("location")
        if location is None and self._transfer.method == "PUT":
            location = ""
        stored = None if location is None else self._url.join(location)
        if (
            not self._is_confirmed
            and stored is not None
            and self._transfer.redirects.may_go_to(stored.origin)
        ):
            found = await self._ask_once(self._builder.look(stored))
            if found is not None and found.ok:
                told = byte_sequences(found.fields, "repr-digest").get("sha-256")
                if told is not None:
                    await self._confirm(told, digest)
        return digest.hex()

    async def _compare_digest(self, answer: Answer) -> None:
        """Compare the digest of the stored content with what was sent.

        Raises :class:`TransferFailed` if they differ.
        """
        source = self._whole
        told = byte_sequences(answer.fields, "repr-digest").get("sha-256")
        if not answer.ok or source.length == 0:
            return
        if told is None:
            if isinstance(source, FileSource) and source.snapshot:
                await source.digest()  # the file may have changed meanwhile
            return
        sent = await source.digest()
        if sent is None or (sent != told and self._is_of_response(told)):
            return
        await self._confirm(told, sent)

    async def _confirm(self, told: bytes, sent: bytes) -> None:
        """Note that the server has what was sent. Raises :class:`TransferFailed` if not."""
        self._is_confirmed = told == sent
        if not self._is_confirmed:
            await self._journal_forget()
            raise TransferFailed(
                "the server stored something else than was sent: the SHA-256 of what it"
                f" has is {told.hex()}",
                resumable=True,
            )

    def _is_of_response(self, told: bytes) -> bool:
        """Whether the digest is of the answer's own content (RFC 9530, section 3)."""
        return hashlib.sha256(self._content.in_memory).digest() == told

    async def _cancel_upload(self) -> None:
        """Ask the server to drop an upload that nobody can finish. This is optional."""
        locations = self._transfer.locations
        await self._journal_forget()
        if locations is not None and locations.content is not None:
            await self._ask_once(self._builder.cancel(locations.content))

    async def _release_message(self, url: Url) -> None:
        """Delete the response message (R29). This is optional, because it would expire."""
        await self._ask_once(self._builder.release(url))

    async def drop(self, url: Url) -> None:
        """Ask the server to drop the upload at *url*, which is not needed. This is optional."""
        await self._ask_once(self._builder.cancel(url))

    async def _ask_once(self, request: WireRequest) -> Answer | None:
        """Perform *request*. Return the answer, or None if there is none in time."""
        with trio.move_on_after(RELEASE_SECONDS):
            try:
                exchange = await self._round_trip(request, IgnoringSink(), Observer())
                return exchange.answer
            except _NotConnected as exc:
                logger.debug("%s was not asked: %s", request.url.shown, exc.reason)
        return None
