"""The client: requests that survive cuts, server restarts and lost responses."""

from __future__ import annotations

import logging
import os
import random
import ssl
from collections.abc import Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, get_args

import trio

from trioresume.client.content.file_source import FileSource
from trioresume.client.content.response_content import ResponseContent
from trioresume.client.content.sources import BodyInput, Source, opened
from trioresume.client.content.window import IterableSource
from trioresume.client.decisions.protocol_choice import (
    Place,
    ProtocolChoice,
    ProtocolName,
    place_of,
)
from trioresume.client.decisions.redirects import Redirects
from trioresume.client.decisions.retry import RetryBudget, RetryPolicy
from trioresume.client.decisions.transfer import Transfer
from trioresume.client.download import Downloader
from trioresume.client.http.carriers import CarrierChoice
from trioresume.client.http.connector import Connector, NetworkConnector
from trioresume.client.http.pool import Pool
from trioresume.client.http.proxies import Proxies
from trioresume.client.http.requests import HeaderInput, RequestBuilder
from trioresume.client.http.round_trip import RateLimiter
from trioresume.client.http.tls import ClientTls
from trioresume.client.parts import MOST_PARTS, Errand, UploadInParts, plan_of
from trioresume.client.progress import Progress
from trioresume.client.response import ClientResponse
from trioresume.client.runner import Timeouts, TransferRunner
from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from trioresume.client.journal import Journal, JournalEntry, PartRecord
    from trioresume.client.parts import RunnerMaker
    from trioresume.protocol.dialects.client import ClientDialect

__all__ = ["Client"]

logger = logging.getLogger("trioresume.client")

MIB = 1 << 20
USER_AGENT = "trioresume"

LONGEST_WAIT_SECONDS = 20
"""The ``Prefer: wait`` of one request for the response message."""


class Client:
    """Sends requests and completes them: each gets its final response.

    *headers* go with every request, also with requests to an operation's resources.
    *token* is sent as ``Authorization: Bearer``. *journal* remembers uploads of files
    across runs. *retry* says how patient the client is. *idle_timeout* is for how many
    seconds a connection may be silent in both directions. *expect_timeout* is how many
    seconds a server that may not know ``Expect`` gets for its 100. *buffer_size* is how
    many bytes are kept of content that cannot be read twice. *max_response_size* is the
    most bytes of a response's content in memory. With *release* the client deletes the
    recorded response at the server after reading it. *limit_rate* is in bytes a second,
    for all requests together. *random* draws the jitter.

    *tls* is for ``https://``: a :class:`ClientTls`, or a context of your own. Over TLS the
    client speaks HTTP/2 if the server agrees (a context of your own says itself what it
    offers), and all requests to an origin share one connection. With *http2* True it
    insists on that, with False it speaks HTTP/1.1 only. With *h2c* it speaks HTTP/2 to
    ``http://`` URLs, whose servers have to expect that. *proxies*
    are the variables that name proxies, such as ``{"https_proxy": "http://host:3128"}``;
    by default those of the environment, and with ``{}`` there is no proxy. *connector*
    makes the connections in another way.

    A request that is redirected (307, 308) before its upload has begun goes to the new
    URL within its own origin, and to *redirect_origins*, such as
    ``https://eu.example.com``. Another origin gets no credentials: only the fields that
    describe the content, and no certificate of the client.

    *protocol* is the protocol of uploads: ``"seed"`` (Partial and Resumable Requests in
    HTTP), ``"rufh"`` (Resumable Uploads for HTTP) or ``"tus"`` (1.0.0). ``"auto"``
    takes the seed if the server offers it. Otherwise it asks the server, once for each
    place, which of the others it speaks. If it speaks none, the request is a plain one.

    Use it as ``async with Client() as client``, from any number of tasks at once.
    Raises :class:`~trioresume.errors.CallerError` for settings that make no sense.
    """

    def __init__(
        self,
        *,
        protocol: ProtocolName = "auto",
        headers: HeaderInput = (),
        token: str | None = None,
        journal: Journal | None = None,
        retry: RetryPolicy | None = None,
        tls: ClientTls | ssl.SSLContext | None = None,
        http2: bool | None = None,
        h2c: bool = False,
        proxies: Mapping[str, str] | None = None,
        redirect_origins: Iterable[str] = (),
        connector: Connector | None = None,
        idle_timeout: float = 60.0,
        expect_timeout: float = 1.0,
        buffer_size: int = 8 * MIB,
        max_response_size: int = 64 * MIB,
        release: bool = True,
        limit_rate: float | None = None,
        random: random.Random | None = None,
    ) -> None:
        if idle_timeout <= 0 or expect_timeout < 0:
            raise CallerError("timeouts must be positive")
        if protocol not in (known := get_args(ProtocolName)):
            raise CallerError(f"{protocol!r} is none of {', '.join(known)}")
        self._protocol = protocol
        self._redirect_origins = frozenset(
            Url.parse(each).origin for each in redirect_origins
        )
        self._standing = _standing_fields(Fields(headers), token)
        self._journal = journal
        self._retry = retry or RetryPolicy()
        tls = tls or ClientTls()
        self._tls = tls
        choice = CarrierChoice(http2, h2c=h2c)
        strange: Connector | None = None
        if connector is None:
            environ = os.environ if proxies is None else proxies
            connector = NetworkConnector(tls, Proxies(environ), choice=choice)
            if isinstance(tls, ClientTls) and tls.cert is not None:
                anonymous = tls.without_certificate()
                strange = NetworkConnector(anonymous, Proxies(environ), choice=choice)
        self._pool = Pool(connector, strange, choice=choice, idle_timeout=idle_timeout)
        self._timeouts = Timeouts(idle_timeout, expect_timeout)
        self._buffer_size = buffer_size
        self._max_response_size = max_response_size
        self._release = release
        self._limiter = RateLimiter(limit_rate)
        self._draw = (random or _RANDOM).random
        self._spoken: dict[Place, ClientDialect] = {}
        """The dialect of each place. The number of places is bounded by the caller's requests."""

    async def __aenter__(self) -> Self:
        if isinstance(self._tls, ClientTls):
            self._tls.warn()
        await self._pool.__aenter__()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._pool.__aexit__(kind, value, traceback)

    async def request(
        self,
        method: str,
        url: str,
        *,
        body: BodyInput = b"",
        headers: HeaderInput = (),
        on_progress: Callable[[Progress], object] | None = None,
        save_to: str | os.PathLike[str] | None = None,
        retry_unsafe: bool = False,
        snapshot_size: bool = False,
        checksum: bool = False,
        parallel: int = 1,
    ) -> ClientResponse:
        """Send a request and return its final response, whatever its status is.

        A server of tus or of RUFH may not give a lost response again. Then the result
        is its statement that the upload is complete, with the upload's ``Location``.

        *body* is bytes, a path, a binary file (sent from its current position), or an
        async iterable of bytes. *on_progress* is called a few times a second, and must
        not block. The content of a 2xx response goes to the file *save_to*, if given.
        *retry_unsafe* allows the client to repeat a request whose method is not
        idempotent, although the server may have acted on it already. *snapshot_size* is
        for a file that grows,
        such as a log. Only the bytes that it has at the beginning are sent. With *checksum*
        the response has the SHA-256 of what was sent.

        With *parallel* a file is divided into up to that many parts, at most 32, of at least
        1 MiB. They are sent at the same time as uploads of tus, and joined by a last request.
        This helps if each connection is slow for itself; over HTTP/2 all parts share one
        connection, so give the client ``http2=False``. It takes the method POST and a file of
        known size. If the server cannot join parts, a warning is logged and the file is sent
        as one upload. If the answer to the last request is lost, the file may be stored, and
        only *retry_unsafe* repeats that request in this call. An upload that an earlier call
        began goes on as it began, in one piece or in its parts.

        If a file changes while it is sent, the request fails. It also fails if the
        server reports another digest of the content (``Repr-Digest``, RFC 9530).

        Raises :class:`~trioresume.errors.TransferFailed` if the retries are used up,
        :class:`~trioresume.errors.UploadForgotten` if the server lost the upload and it
        cannot begin again, :class:`~trioresume.errors.CallerError` if the request
        cannot be sent, and the exceptions of *body* and *on_progress*.

        If the call is cancelled, an upload that has begun stays at the server. If the
        body is a path and there is a journal, the next such request continues it.
        """
        parsed = Url.parse(url)
        self._check_parallel(method, parallel)
        content = ResponseContent(
            None if save_to is None else Path(save_to), self._max_response_size
        )
        try:
            async with (
                opened(body, self._buffer_size, snapshot=snapshot_size) as source,
                self._claimed(method, parsed, source) as entry,
            ):
                stale = None
                if entry is not None and entry.is_stale:
                    stale = entry.locations, entry.dialect
                    await trio.to_thread.run_sync(entry.forget)
                if parallel > 1 and not isinstance(source, FileSource):
                    raise CallerError("only a file of known size can be sent in parts")
                in_parts = parallel > 1 or (entry is not None and entry.parts)
                if isinstance(source, FileSource) and in_parts:
                    make = partial(
                        self._runner_of,
                        url=parsed,
                        content=content,
                        headers=headers,
                        retry_unsafe=retry_unsafe,
                        checksum=checksum,
                    )
                    upload = await self._in_parts(
                        source, entry, parallel, make, on_progress
                    )
                    if upload is not None:
                        return await upload.run()
                choice = self._choice(method, parsed, source, entry)
                redirects = Redirects(parsed, self._redirect_origins)
                if entry is not None and entry.moved is not None:
                    redirects.resume(entry.moved)
                builder = RequestBuilder(
                    method,
                    redirects,
                    source,
                    choice,
                    headers=headers,
                    standing=self._standing,
                    wait=int(min(LONGEST_WAIT_SECONDS, self._timeouts.idle / 2)),
                    follow=on_progress is not None,
                )
                run = TransferRunner(
                    self._transfer(
                        method, choice, redirects, source, entry, retry_unsafe
                    ),
                    builder,
                    source,
                    content,
                    self._pool,
                    entry=entry,
                    timeouts=self._timeouts,
                    limiter=self._limiter,
                    release=self._release,
                    on_progress=on_progress,
                    checksum=checksum,
                )
                if stale is not None:
                    await run.cancel_stale(*stale)
                if isinstance(source, IterableSource):
                    return await _run_beside(source, run)
                return await run.run()
        finally:
            await content.discard()

    async def download(
        self,
        url: str,
        path: str | os.PathLike[str],
        *,
        headers: HeaderInput = (),
        on_progress: Callable[[Progress], object] | None = None,
    ) -> ClientResponse:
        """Download *url* into the file *path*, and return the final response.

        The content comes into ``PATH.part`` first. After a cut the request goes on behind
        what is there, also in a later call, as long as the server has the same version.
        The response has the SHA-256 of the content; it *is_confirmed* if the server told
        the same (``Repr-Digest``). A response that is no success leaves *path* as it is.

        Redirects are followed as for :meth:`request`. Raises
        :class:`~trioresume.errors.TransferFailed` if the retries are used up or the
        content is damaged, :class:`~trioresume.errors.CallerError` if another run is
        downloading into the file, and :class:`OSError`. If the call is cancelled, what
        has arrived is kept.
        """
        own = Fields(headers)
        standing = own.plus(self._standing.without(*(name for name, _ in own)))
        run = Downloader(
            Redirects(Url.parse(url), self._redirect_origins),
            self._pool,
            Path(path),
            standing=standing,
            budget=RetryBudget(self._retry, self._draw),
            idle_timeout=self._timeouts.idle,
            limiter=self._limiter,
            on_progress=on_progress,
        )
        return await run.run()

    def _check_parallel(self, method: str, parallel: int) -> None:
        if not 1 <= parallel <= MOST_PARTS:
            raise CallerError(f"parallel is from 1 to {MOST_PARTS}")
        if parallel > 1 and method != "POST":
            raise CallerError(f"parts are joined by POST, not by {method}")
        if parallel > 1 and self._protocol not in ("auto", "tus"):
            raise CallerError(f"parts are uploads of tus, not of {self._protocol}")

    async def _in_parts(
        self,
        source: FileSource,
        entry: JournalEntry | None,
        parallel: int,
        make: RunnerMaker,
        on_progress: Callable[[Progress], object] | None,
    ) -> UploadInParts | None:
        """Return the upload of *source* in parts; None if it has to go in one piece."""

        def upload_of(plan: Sequence[PartRecord]) -> UploadInParts:
            return UploadInParts(
                source,
                plan,
                entry,
                make,
                on_progress=on_progress,
                release=self._release,
            )

        if entry is not None and entry.parts:
            begun = upload_of(entry.parts)
            if not entry.is_doubtful:
                return begun
            if entry.size == source.length or (
                source.snapshot and entry.size < source.length
            ):
                source.shorten(entry.size)
                entry.trust()
                await begun.prove()
                return begun
            await begun.drop()
            await trio.to_thread.run_sync(entry.forget)
        if parallel == 1:
            return None
        if entry is not None and entry.locations is not None:
            logger.info("%r goes on in one piece, as it began", source.path)
            return None
        plan = plan_of(source.length, parallel)
        if len(plan) == 1:
            return None
        upload = upload_of(plan)
        if await upload.is_offered(RetryBudget(self._retry, self._draw)):
            return upload
        logger.warning(
            "the server does not offer to join parts (the extension concatenation of tus), so"
            " %r is sent as one upload",
            source.path,
        )
        return None

    def _runner_of(
        self,
        errand: Errand,
        *,
        url: Url,
        content: ResponseContent,
        headers: HeaderInput,
        retry_unsafe: bool,
        checksum: bool,
    ) -> TransferRunner:
        """Return the runner for one request of an upload in parts."""
        joins = errand.whole is not None
        source = errand.source
        choice = ProtocolChoice("tus", "POST", source.length, begun=errand.dialect)
        redirects = Redirects(url, self._redirect_origins)
        if errand.moved is not None:
            redirects.resume(errand.moved)
        fields = Fields(headers)
        if joins and "want-repr-digest" not in fields:
            fields = fields.plus({"want-repr-digest": "sha-256=10"})
        locations = errand.memory.locations
        transfer = Transfer(
            method="POST",
            content=source,
            budget=RetryBudget(self._retry, self._draw),
            choice=choice,
            redirects=redirects,
            locations=None if joins else locations,
            all_sent=errand.all_sent,
            proven=errand.proven,
            # A part alone does nothing at the server.
            retry_unsafe=retry_unsafe or not joins,
            max_restarts=self._retry.restarts,
        )
        builder = RequestBuilder(
            "POST",
            redirects,
            source,
            choice,
            headers=fields,
            standing=self._standing,
            wait=int(min(LONGEST_WAIT_SECONDS, self._timeouts.idle / 2)),
            follow=joins and errand.on_progress is not None,
        )
        return TransferRunner(
            transfer,
            builder,
            source,
            content if joins else ResponseContent(None, self._max_response_size),
            self._pool,
            entry=errand.memory,
            timeouts=self._timeouts,
            limiter=self._limiter,
            release=self._release,
            on_progress=errand.on_progress,
            checksum=checksum and joins,
            whole=errand.whole,
        )

    def _choice(
        self, method: str, url: Url, source: Source, entry: JournalEntry | None
    ) -> ProtocolChoice:
        place = place_of(method, url)

        def remember(dialect: ClientDialect) -> None:
            self._spoken[place] = dialect

        return ProtocolChoice(
            self._protocol,
            method,
            source.length,
            known=self._spoken.get(place),
            begun=None if entry is None else entry.dialect,
            remember=remember,
        )

    def _transfer(
        self,
        method: str,
        choice: ProtocolChoice,
        redirects: Redirects,
        source: Source,
        entry: JournalEntry | None,
        retry_unsafe: bool,
    ) -> Transfer:
        return Transfer(
            method=method,
            content=source,
            budget=RetryBudget(self._retry, self._draw),
            choice=choice,
            redirects=redirects,
            locations=None if entry is None else entry.locations,
            all_sent=entry is not None and entry.all_sent,
            proven=None if entry is None or entry.doubt is None else entry.doubt.size,
            retry_unsafe=retry_unsafe,
            max_restarts=self._retry.restarts,
        )

    @asynccontextmanager
    async def _claimed(
        self, method: str, url: Url, source: Source
    ) -> AsyncIterator[JournalEntry | None]:
        """Claim the journal's entry for a file that was given by its path."""
        entry = None
        if self._journal is not None and isinstance(source, FileSource) and source.path:
            entry = await trio.to_thread.run_sync(
                self._claim, self._journal, method, url, source
            )
        try:
            yield entry
        finally:
            if entry is not None:
                entry.close()

    def _claim(
        self, journal: Journal, method: str, url: Url, source: FileSource
    ) -> JournalEntry | None:
        identity = source.identity()
        assert identity is not None
        try:
            # The next run may have another signature, for the same upload.
            entry = journal.claim(method, url.shown, identity)
            if entry.doubt is not None:
                same_size = entry.size == source.length
                if (same_size or source.snapshot) and source.proves(entry.doubt):
                    source.shorten(entry.size)
                    entry.trust()
                else:
                    entry.is_stale, entry.doubt = True, None
            if entry.dialect and self._protocol not in ("auto", entry.dialect.protocol):
                entry.forget()  # the upload cannot go on in another protocol
            redirects = Redirects(url, self._redirect_origins)
            moved = {entry.moved, *(part.moved for part in entry.parts)} - {None}
            if not all(redirects.may_go_to(each.origin) for each in moved if each):
                entry.forget()
            return entry
        except OSError as exc:
            logger.warning(
                "unfinished uploads cannot be remembered in %s: %s",
                journal.directory,
                exc.strerror or exc,
            )
            return None


_RANDOM = random.SystemRandom()


def _standing_fields(headers: Fields, token: str | None) -> Fields:
    standing = headers
    if "user-agent" not in standing:
        standing = standing.plus({"user-agent": USER_AGENT})
    if token is not None:
        standing = standing.without("authorization")
        standing = standing.plus({"authorization": f"Bearer {token}"})
    return standing


async def _run_beside(source: IterableSource, run: TransferRunner) -> ClientResponse:
    """TransferRunner *run*, with the task that pulls its content beside it."""
    result: ClientResponse | None = None
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        try:
            result = await run.run()
        except Exception as exc:  # noqa: BLE001 - raised again below, without a group
            failure = exc
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
    assert result is not None
    return result
