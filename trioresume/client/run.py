"""One call of :meth:`Client.request`: performs the actions that a transfer decides on."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import trio

from trioresume.client.exchange import Exchange, RateLimiter, ResponseSink
from trioresume.client.locations import Locations, Origin, Url
from trioresume.client.messages import ClientResponse, Progress
from trioresume.client.sinks import IgnoringSink, Reading, sink_for
from trioresume.client.steps import (
    Action,
    Append,
    Finish,
    Outcome,
    Send,
    Sent,
    WireAction,
)
from trioresume.client.transfer import Transfer
from trioresume.errors import PeerError, TransferFailed, UploadForgotten
from trioresume.protocol.fields import parse_integer
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.client.bodies import (
        Source,
    )
    from trioresume.client.content import ResponseContent
    from trioresume.client.journal import JournalEntry
    from trioresume.client.pool import Pool
    from trioresume.client.requests import RequestBuilder, WireRequest

__all__ = ["Run", "Timeouts"]

logger = logging.getLogger("trioresume.client")

PROGRESS_INTERVAL_SECONDS = 0.1
RELEASE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Timeouts:
    """In seconds."""

    idle: float
    """How long nothing may move in either direction."""
    expect: float
    """How long to wait for a 100 from a server that may not know of it."""


class Run:
    """The asynchronous side of one transfer."""

    def __init__(
        self,
        url: Url,
        transfer: Transfer,
        builder: RequestBuilder,
        source: Source,
        content: ResponseContent,
        pool: Pool,
        *,
        entry: JournalEntry | None,
        timeouts: Timeouts,
        limiter: RateLimiter,
        release: bool,
        on_progress: Callable[[Progress], object] | None,
        on_offer: Callable[[Origin], None],
    ) -> None:
        self._url = url
        self._transfer = transfer
        self._builder = builder
        self._source = source
        self._content = content
        self._pool = pool
        self._entry = entry
        self._timeouts = timeouts
        self._limiter = limiter
        self._release = release
        self._on_progress = on_progress
        self._on_offer = on_offer
        self._action: Action = Send()
        self._attempts = 0
        self._position = 0
        self._bytes_sent = 0
        self._reported_at = float("-inf")

    async def run(self) -> ClientResponse:
        """Perform actions until the final response is whole."""
        try:
            self._action = self._transfer.begin()
            while not isinstance(self._action, Finish):
                following = self._transfer.after(await self._perform(self._action))
                await self._note_decision()
                if following.delay:
                    await trio.sleep(following.delay)
                self._action = following.action
            return await self._finish(self._action)
        except UploadForgotten:
            await self._journal_forget()
            raise

    # One action.

    async def _perform(self, action: WireAction) -> Outcome:
        if isinstance(action, Send | Append):
            self._begin_attempt(action)
        request = self._builder.build(action)
        if isinstance(action, Send) and action.expect and request.outgoing is not None:
            known = self._transfer.known_to_resume
            # A server that offers to resume always sends the 100 (R5); no need to guess.
            patience = self._timeouts.idle if known else self._timeouts.expect
            request.outgoing.wait_for_continue = patience
        sink = sink_for(action, self._content)
        try:
            exchange = await self._exchange(request, sink)
        except OSError as exc:
            self._refuse_unknown_name(exc)
            return self._outcome(Reading(None, False, exc), Sent.NOTHING)
        if isinstance(action, Send) and exchange.answer is not None:
            self._note_late_offer(exchange.answer.fields)
        carried = exchange.sent if isinstance(action, Send | Append) else Sent.NOTHING
        return self._outcome(sink.reading(exchange), carried)

    def _refuse_unknown_name(self, exc: OSError) -> None:
        """A name that does not exist is a typing error, until it has once existed."""
        unknown = isinstance(exc, socket.gaierror) and exc.errno == socket.EAI_NONAME
        if unknown and self._attempts == 1 and self._transfer.locations is None:
            raise TransferFailed(
                f"{self._url.origin.host}: {exc.strerror}", resumable=True
            ) from exc

    def _begin_attempt(self, action: Send | Append) -> None:
        self._attempts += 1
        self._position = 0
        if isinstance(action, Append):
            range_ = action.range
            self._position = (
                range_.total if range_.first is None else range_.first
            ) or 0
        else:
            self._transfer.declared_length = self._source.length is not None
        self._report(force=True)

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
            cause=reading.cause,
            now=trio.current_time(),
            wall_time=time.time(),
        )

    async def _exchange(self, request: WireRequest, sink: ResponseSink) -> Exchange:
        """Perform *request*. Raises :class:`OSError` if there is no connection for it."""
        async with self._pool.link(request.url.origin) as link:
            exchange = Exchange(
                link,
                request.head,
                request.outgoing,
                sink,
                idle_timeout=self._timeouts.idle,
                limiter=self._limiter,
                on_continue=self._note_continue,
                on_sent=self._note_sent,
                on_all_sent=self._note_all_sent,
            )
            await exchange.run()
            return exchange

    # What is learnt on the way.

    async def _note_continue(self, fields: Fields) -> None:
        """A 100 came: the offer (R1), an acknowledgement (R30), or neither."""
        acknowledged = fields.get("acknowledge")
        if acknowledged is not None:
            try:
                offset = parse_integer(acknowledged)
            except PeerError:
                return  # only a courtesy: what is malformed is not one
            self._transfer.note_offset(offset)
            self._source.release(offset, acknowledged=True)
            self._report()
        if isinstance(self._action, Send) and self._transfer.locations is None:
            locations = Locations.offered(self._url, fields)
            if locations is not None:
                self._transfer.note_offer(locations)
                self._on_offer(self._url.origin)
                # Before the first byte of content: a killed run must not lose it.
                await self._journal_save()

    def _note_late_offer(self, fields: Fields) -> None:
        """The final response repeats the fields, for whom the 100 did not reach (R5).

        Its Content-Location may be the target's own, so that one is not believed.
        """
        if self._transfer.locations is None:
            offered = Locations.offered(self._url, fields)
            if offered is not None and offered.message is not None:
                self._transfer.note_offer(Locations(message=offered.message))

    def _note_sent(self, size: int) -> None:
        self._position += size
        self._bytes_sent += size
        self._report()

    async def _note_all_sent(self) -> None:
        if isinstance(self._action, Send | Append) and not self._transfer.all_sent:
            self._transfer.all_sent = True
            await self._journal_save()
            self._report(force=True)

    async def _note_decision(self) -> None:
        """After each decision: what is safe may be let go, what is over forgotten."""
        if self._transfer.locations is None:
            await self._journal_forget()
        else:
            self._source.release(self._transfer.acknowledged, acknowledged=False)
        self._report(force=True)

    def _report(self, *, force: bool = False) -> None:
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
                )
            )

    # The journal. A write is one bounded disk call, so it is shielded: cancellation
    # leaves it up to date.

    async def _journal_save(self) -> None:
        if self._entry is None or self._transfer.locations is None:
            return
        save = partial(
            self._entry.save,
            self._transfer.locations,
            all_sent=self._transfer.all_sent,
        )
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(save)
            except OSError as exc:
                logger.warning("the journal cannot be written: %s", exc)

    async def _journal_forget(self) -> None:
        if self._entry is None or self._entry.locations is None:
            return
        with trio.CancelScope(shield=True):
            try:
                await trio.to_thread.run_sync(self._entry.forget)
            except OSError as exc:
                logger.warning("the journal cannot be written: %s", exc)

    # The end.

    async def _finish(self, action: Finish) -> ClientResponse:
        body, saved_to = await self._content.finish()
        await self._journal_forget()
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
        )

    async def _release_message(self, url: Url) -> None:
        """Tell the server that it may forget (R29). A courtesy: it would expire anyway."""
        request = self._builder.release(url)
        with trio.move_on_after(RELEASE_SECONDS):
            try:
                await self._exchange(request, IgnoringSink())
            except OSError as exc:
                logger.debug("%s was not released: %s", url, exc)
