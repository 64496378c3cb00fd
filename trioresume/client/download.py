"""Downloads: a ``GET`` into a file that goes on after cuts, also in a later run.

The request for the rest has ``Range`` and ``If-Range`` (RFC 9110, section 13.1.5), so that
a file never has the bytes of two versions. At the end its length is compared with what
the server said, and its digest with ``Repr-Digest`` (RFC 9530), if the server tells one.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.client.content.partial_file import PartialFile
from trioresume.client.http.round_trip import Observer, RateLimiter, RoundTrip
from trioresume.client.http.tls import HopelessConnection, explain
from trioresume.client.progress import Progress, words_for
from trioresume.client.response import ClientResponse
from trioresume.errors import PeerError, TransferFailed
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.dialects.marks import is_page
from trioresume.protocol.heads import Fields
from trioresume.protocol.ranges import parse_content_range
from trioresume.protocol.structured import byte_sequences

if TYPE_CHECKING:
    from trioresume.client.decisions.redirects import Redirects
    from trioresume.client.decisions.retry import RetryBudget
    from trioresume.client.http.pool import Pool
    from trioresume.protocol.urls import Url

__all__ = ["Downloader"]

_BLOCK = 1 << 20
"""Bytes that are written at a time."""
_SYNC_EVERY = 32 << 20
"""Bytes after which the file is synced, so that a killed run loses no more."""
_REPORT_EVERY = 0.1
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_MOST_REFUSAL = 64 * 1024
"""Bytes of a refusal's content that are kept."""


class _Sink:
    """Takes one response: a part that fits goes into the file, a refusal into memory."""

    def __init__(
        self, file: PartialFile, note: Callable[[int, int | None], None]
    ) -> None:
        self._file = file
        self._note = note
        self._buffer = bytearray()
        self._unsynced = 0
        self._asked_from = file.size
        self.total: int | None = None
        """The length of the whole content, if the server said it."""
        self.is_content = False
        """Whether the response has content of the file."""
        self.is_unusable = False
        """Whether it has another part than was asked for."""
        self.refusal = bytearray()

    async def begin(self, answer: Answer) -> None:
        if answer.status == 200 and self._asked_from and is_page(answer):
            # Rather the page of a captive portal than another version of the file.
            self.is_unusable = True
        elif answer.status == 200:
            validator = answer.strong_etag or answer.fields.get("last-modified")
            await trio.to_thread.run_sync(self._file.begin, validator)
            length = answer.fields.get("content-length") or ""
            self.total = int(length) if length.isdecimal() else None
            self.is_content = True
        elif answer.status == 206:
            try:
                part = parse_content_range(answer.fields.get("content-range") or "")
            except PeerError:
                self.is_unusable = True
                return
            self.is_unusable = part.first != self._asked_from
            self.is_content = not self.is_unusable
            self.total = part.total

    async def write(self, data: bytes | bytearray) -> None:
        if self.is_content:
            self._buffer += data
            if len(self._buffer) >= _BLOCK:
                await self.flush()
        elif len(self.refusal) < _MOST_REFUSAL:
            self.refusal += data

    async def flush(self) -> None:
        """Write what has arrived, and sync it from time to time."""
        data = bytes(self._buffer)
        self._buffer.clear()
        self._unsynced += len(data)
        # Shielded: the file and its count must agree.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._file.write, data)
            if self._unsynced >= _SYNC_EVERY:
                self._unsynced = 0
                await trio.to_thread.run_sync(self._file.sync)
        self._note(len(data), self.total)


class Downloader:
    """One download. *standing* are the fields of each request of its own origin."""

    def __init__(
        self,
        redirects: Redirects,
        pool: Pool,
        path: Path,
        *,
        standing: Fields,
        budget: RetryBudget,
        idle_timeout: float,
        limiter: RateLimiter,
        on_progress: Callable[[Progress], object] | None,
    ) -> None:
        self._redirects = redirects
        self._asked = redirects.url.shown  # another signature is for the same file
        self._pool = pool
        self._path = path
        self._standing = standing
        self._budget = budget
        self._idle_timeout = idle_timeout
        self._limiter = limiter
        self._on_progress = on_progress
        self._attempts = 0
        self._received = 0
        self._total: int | None = None
        self._reported_at = float("-inf")

    async def run(self) -> ClientResponse:
        """Perform it. See :meth:`Client.download`."""
        self._file = await trio.to_thread.run_sync(PartialFile, self._path, self._asked)
        try:
            while True:
                response = await self._attempt()
                if response is not None:
                    return response
        finally:
            with trio.CancelScope(shield=True):
                await trio.to_thread.run_sync(self._leave)

    def _leave(self) -> None:
        try:
            if self._path.with_name(f"{self._path.name}.part").exists():
                self._file.sync()
        finally:
            self._file.close()

    async def _attempt(self) -> ClientResponse | None:
        """Ask for the rest once. Return the response when it is over, None to go on."""
        self._attempts += 1
        self._report(force=True)
        before = self._file.size
        sink = _Sink(self._file, self._note)
        url = self._redirects.url
        try:
            exchange = await self._round_trip(url, sink)
        except _NotConnected as exc:
            if self._attempts == 1 and isinstance(exc.reason, HopelessConnection):
                raise TransferFailed(str(exc.reason)) from exc.reason
            await self._wait(exc.reason, None)
            return None
        finally:
            with trio.CancelScope(shield=True):
                await sink.flush()
        self._total = sink.total if sink.is_content else self._total
        if self._file.size > before and sink.is_content:
            self._budget.note_progress()
        answer = exchange.answer
        if answer is None or (sink.is_content and not self._is_all(exchange, sink)):
            if exchange.cause is not None and self._attempts == 1:
                hopeless = explain(exchange.cause, url.origin)
                if hopeless is not None:
                    raise TransferFailed(str(hopeless)) from exchange.cause
            await self._wait(exchange.cause or EOFError("connection lost"), answer)
            return None
        if sink.is_content:
            return await self._finish(answer)
        return await self._refused(answer, sink)

    def _is_all(self, exchange: RoundTrip, sink: _Sink) -> bool:
        return exchange.whole and sink.total in (None, self._file.size)

    async def _refused(self, answer: Answer, sink: _Sink) -> ClientResponse | None:
        if self._follows(answer):
            self._attempts -= 1
            return None
        if answer.status == 416 and self._file.size:
            # The validator still holds, and there is no rest: either all is there, or the
            # bytes are not what they seem.
            size = (answer.fields.get("content-range") or "").removeprefix("bytes */")
            if size == str(self._file.size):
                return await self._finish(answer)
        if answer.status == 416:
            await trio.to_thread.run_sync(self._file.begin, None)
        if answer.status == 416 or sink.is_unusable:
            await self._wait(ValueError("the server sent another part"), None)
            return None
        if answer.status in _AGAIN:
            await self._wait(ValueError(f"the server answered {answer.status}"), answer)
            return None
        return self._response(answer, bytes(sink.refusal), None, None)

    def _follows(self, answer: Answer) -> bool:
        """Follow a redirect, which for a GET may have any of the statuses."""
        if answer.status not in _REDIRECTS:
            return False
        return self._redirects.follow(
            Answer(307, answer.fields)  # the rules are those of a request with content
        )

    async def _wait(self, cause: BaseException, answer: Answer | None) -> None:
        """Wait before the next attempt. Raises :class:`TransferFailed` if there is none."""
        wish = None if answer is None or answer.ok else answer.retry_after(time.time())
        delay = self._budget.delay(trio.current_time(), wish)
        words = words_for(cause)
        if delay is None:
            raise TransferFailed(
                f"{self._redirects.url.shown}: {words}; {self._file.size} bytes are kept",
                resumable=True,
            ) from cause
        self._report(force=True, trouble=words, retry_in=delay)
        await trio.sleep(delay)

    async def _finish(self, answer: Answer) -> ClientResponse:
        digest = await trio.to_thread.run_sync(self._file.sha256)
        told = byte_sequences(answer.fields, "repr-digest").get("sha-256")
        if told not in (None, digest):
            await trio.to_thread.run_sync(self._file.discard)
            raise TransferFailed(
                f"{self._redirects.url.shown}: the content is damaged: its SHA-256 is"
                f" {digest.hex()}, and the server says {told and told.hex()}",
                resumable=True,
            )
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(self._file.publish)
        self._report(force=True)
        return self._response(answer, b"", digest, told)

    def _response(
        self, answer: Answer, body: bytes, digest: bytes | None, told: bytes | None
    ) -> ClientResponse:
        return ClientResponse(
            status=answer.status,
            headers=answer.fields,
            body=body,
            saved_to=None if digest is None else self._path,
            url=str(self._redirects.url),
            attempts=self._attempts,
            bytes_resent=0,
            sha256=None if digest is None else digest.hex(),
            is_confirmed=told is not None,
        )

    # One request.

    def _head(self, url: Url) -> h11.Request:
        fields = Fields({"host": url.origin.authority})
        if self._redirects.is_own(url.origin):
            fields = fields.plus(self._standing)
        fields = fields.plus({"want-repr-digest": "sha-256=10"})
        if self._file.size and self._file.validator is not None:
            wish = {
                "range": f"bytes={self._file.size}-",
                "if-range": self._file.validator,
            }
            fields = fields.plus(wish)
        return h11.Request(
            method=b"GET", target=url.target.encode("ascii"), headers=fields.to_wire()
        )

    async def _round_trip(self, url: Url, sink: _Sink) -> RoundTrip:
        connected = False
        try:
            async with self._pool.connection(
                url.origin, own=self._redirects.is_own(url.origin)
            ) as connection:
                connected = True
                exchange = RoundTrip(
                    connection,
                    self._head(url),
                    None,
                    sink,
                    idle_timeout=self._idle_timeout,
                    limiter=self._limiter,
                    observer=Observer(),
                )
                await exchange.run()
                return exchange
        except OSError as exc:
            if connected:
                raise
            raise _NotConnected(exc) from exc

    # Progress.

    def _note(self, size: int, total: int | None) -> None:
        self._received += size
        self._total = total
        self._report()

    def _report(
        self,
        *,
        force: bool = False,
        trouble: str | None = None,
        retry_in: float | None = None,
    ) -> None:
        now = trio.current_time()
        if self._on_progress is None or not (
            force or now - self._reported_at >= _REPORT_EVERY
        ):
            return
        self._reported_at = now
        self._on_progress(
            Progress(
                self._file.size,
                self._file.size,
                self._total,
                max(1, self._attempts),
                transferred=self._received,
                trouble=trouble,
                retry_in=retry_in,
            )
        )


class _NotConnected(Exception):
    """There is no connection for a request, for *reason*."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason
