"""One file in several parts: sent at the same time, each an upload, then joined (tus, D7).

The rules:

* The plan is made once. Its parts cover the file without a gap. The journal has the whole
  plan in the file's own entry, so a later run goes on with the same parts, whatever number
  of parts it is asked for.
* A part is an upload like any other: it is cut, resumed and begun again for itself. Nothing
  at the server comes of a part alone, so a part may safely be sent twice.
* The request that joins the parts is sent when the server has said of each part that it is
  complete. It has no content, so nothing of it can be resumed. If its answer is lost, the
  file may be stored. It is repeated only if the caller allows that.
* The answer to that request is about the whole file. So the digest in it is compared with
  the digest of the whole file, which is read once more for that.

Statement numbers such as D7 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.client.content.sources import BytesSource
from trioresume.client.journal import PartRecord
from trioresume.client.progress import Progress
from trioresume.errors import TransferFailed
from trioresume.protocol.dialects.client import Locations
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.tus.client import TUS_PART, TusJoin

if TYPE_CHECKING:
    from trioresume.client.content.file_source import FileSource, Proof
    from trioresume.client.content.sources import Source
    from trioresume.client.decisions.retry import RetryBudget
    from trioresume.client.journal import JournalEntry
    from trioresume.client.response import ClientResponse
    from trioresume.client.runner import Memory, TransferRunner
    from trioresume.protocol.dialects.client import ClientDialect
    from trioresume.protocol.urls import Url

__all__ = ["LEAST_PART_BYTES", "MOST_PARTS", "Errand", "UploadInParts", "plan_of"]

logger = logging.getLogger("trioresume.client")

LEAST_PART_BYTES = 1 << 20
"""A part costs three requests. They take longer than to send less than this."""

MOST_PARTS = 32
"""The request that joins the parts names all of them in one field, and servers and proxies
limit a field's length, many of them to 8 KiB.
"""

PROGRESS_INTERVAL_SECONDS = 0.1

# After these answers to the joining request it may be sent again later, with the same parts:
# credentials that were refused, too little room, and "not now". 409: a part is incomplete.
_JOIN_AGAIN = frozenset({401, 403, 407, 408, 409, 413, 423, 425, 429})


# A server that does not know OPTIONS may answer with any other status, such as 501.
_NOT_NOW = frozenset({408, 425, 429, 502, 503, 504})


@dataclass(frozen=True, slots=True, kw_only=True)
class Errand:
    """One of the requests of an upload in parts."""

    source: Source
    dialect: ClientDialect
    memory: Memory
    moved: Url | None = None
    """The URL to which the request was redirected before."""
    all_sent: bool = False
    proven: int | None = None
    on_progress: Callable[[Progress], object] | None = None
    whole: FileSource | None = None
    """For the request that joins the parts: the file. The answer is the caller's."""


class RunnerMaker(Protocol):
    """Makes the runner that performs an errand."""

    def __call__(self, errand: Errand) -> TransferRunner: ...


def plan_of(length: int, most: int) -> tuple[PartRecord, ...]:
    """Divide *length* bytes into at most *most* parts; a short file is one part."""
    count = max(1, min(most, length // LEAST_PART_BYTES))
    edges = [length * number // count for number in range(count + 1)]
    return tuple(
        PartRecord(start, stop - start) for start, stop in itertools.pairwise(edges)
    )


class _Part:
    """One part, and what is remembered of it."""

    def __init__(
        self, record: PartRecord, source: FileSource, upload: UploadInParts
    ) -> None:
        self.record = record
        self.source = upload.path
        self.bytes = source
        self.proven: int | None = None
        """How many bytes at the server are known to be the file's; None means all."""
        self.locations = None if record.content is None else Locations(record.content)
        self._upload = upload

    @property
    def directory(self) -> Path:
        return self._upload.directory

    def save(
        self,
        locations: Locations,
        *,
        all_sent: bool,
        dialect: ClientDialect,
        proof: Proof | None,
        moved: Url | None,
    ) -> None:
        del dialect  # it is that of all parts
        known = self.record.proof
        # A later run hashes only what it has read. The earlier proof still holds then.
        if proof is None or proof.size <= (0 if known is None else known.size):
            proof = known if locations == self.locations else None
        self.locations = locations
        self._note(
            replace(
                self.record,
                content=locations.content,
                moved=moved,
                all_sent=all_sent,
                proof=proof,
            )
        )

    def end(self, status: int) -> None:
        """Keep a part that is complete: it is to be joined. Forget one that was refused."""
        if not 200 <= status <= 299:
            self.forget()

    def forget(self) -> None:
        self.locations = None
        self._note(PartRecord(self.record.start, self.record.size))

    def _note(self, record: PartRecord) -> None:
        self._upload.note(self, record)


class _JoinMemory:
    """What the request that joins the parts leaves in the journal."""

    locations = Locations()

    def __init__(self, upload: UploadInParts) -> None:
        self._upload = upload

    @property
    def source(self) -> str:
        return self._upload.path

    @property
    def directory(self) -> Path:
        return self._upload.directory

    def save(
        self,
        locations: Locations,
        *,
        all_sent: bool,
        dialect: ClientDialect,
        proof: Proof | None,
        moved: Url | None,
    ) -> None:
        """Nothing is saved: the parts are remembered until the answer is there."""

    def end(self, status: int) -> None:
        if not (status in _JOIN_AGAIN or status >= 500):
            self.forget()

    def forget(self) -> None:
        self._upload.forget()


class UploadInParts:
    """Sends the file *source* in the parts of *plan*, and joins them.

    *entry* is the file's entry in the journal. *make* makes the runner of a request. With
    *release* the parts are deleted at the server at the end: the joined file has all.
    """

    def __init__(
        self,
        source: FileSource,
        plan: Sequence[PartRecord],
        entry: JournalEntry | None,
        make: RunnerMaker,
        *,
        on_progress: Callable[[Progress], object] | None,
        release: bool,
    ) -> None:
        self._source = source
        self._entry = entry
        self._make = make
        self._release = release
        self._lock = threading.Lock()
        """Parts are noted in worker threads."""
        self.path = source.path or ""
        self._parts = [
            _Part(record, source.part(record.start, record.size), self)
            for record in plan
        ]
        self._sum = _Sum([record.size for record in plan], on_progress)
        self._failure: Exception | None = None
        self._refusal: ClientResponse | None = None
        self._responses: list[ClientResponse] = []

    @property
    def directory(self) -> Path:
        """Where the journal is, for a warning."""
        return Path() if self._entry is None else self._entry.directory

    def note(self, part: _Part, record: PartRecord) -> None:
        """Note *record* of *part*, durably. Blocks. Raises :class:`OSError`."""
        with self._lock:
            part.record = record
            if self._entry is not None:
                self._entry.save_parts(tuple(each.record for each in self._parts))

    def forget(self) -> None:
        """Forget all parts. Blocks. Raises :class:`OSError`."""
        with self._lock:
            if self._entry is not None:
                self._entry.forget()

    # Before anything is sent.

    async def is_offered(self, budget: RetryBudget) -> bool:
        """Whether the server can join parts. It is asked until it answers.

        Raises :class:`TransferFailed` if *budget* is used up.
        """
        runner = self._make(self._joining([]))
        while True:
            answer = await runner.discover()
            if answer is not None and answer.status not in _NOT_NOW:
                return answer.ok and Discovery.of(answer.fields).joins
            delay = budget.delay(trio.current_time())
            trouble = (
                "the server does not answer"
                if answer is None
                else f"the server answered {answer.status}"
            )
            if delay is None:
                raise TransferFailed(f"retries are used up: {trouble}", resumable=True)
            self._sum.show_trouble(trouble, delay)
            await trio.sleep(delay)

    async def prove(self) -> None:
        """Compare what an earlier run sent with the file, which may have changed since.

        A part that is not proven begins again, and its old upload is dropped.
        """
        for part in self._parts:
            record = part.record
            if record.content is None:
                continue
            proof = record.proof
            if proof is not None and await trio.to_thread.run_sync(
                part.bytes.proves, proof
            ):
                part.proven = proof.size
                continue
            await self._drop(part)
            part.locations = None
            part.record = PartRecord(record.start, record.size)

    async def drop(self) -> None:
        """Ask the server to drop all parts. This is optional: they would expire."""
        async with trio.open_nursery() as nursery:
            for part in self._parts:
                nursery.start_soon(self._drop, part)

    async def _drop(self, part: _Part) -> None:
        url = part.record.content
        if url is not None:
            await self._make(self._sending(part)).drop(url)

    # Sending and joining.

    async def run(self) -> ClientResponse:
        """Send what is missing of the parts, join them, and return the final response.

        If a part is refused, the refusal is returned. If one fails, the others stop, and
        its exception is raised. The journal then has all that was sent.
        """
        async with trio.open_nursery() as nursery:
            for number in range(len(self._parts)):
                nursery.start_soon(self._send, number, nursery.cancel_scope)
        if self._failure is not None:
            raise self._failure
        if self._refusal is not None:
            return self._counted(self._refusal)
        return await self._join()

    async def _send(self, number: int, all_parts: trio.CancelScope) -> None:
        part = self._parts[number]

        def show(progress: Progress) -> None:
            self._sum.note(number, progress)

        try:
            runner = self._make(replace(self._sending(part), on_progress=show))
            response = await runner.run()
            self._responses.append(response)
            if response.ok:
                self._sum.end(number)
                return
            self._refusal = self._refusal or response
        except Exception as exc:  # noqa: BLE001 - raised again by run, without a group
            self._failure = self._failure or exc
        all_parts.cancel()

    def _sending(self, part: _Part) -> Errand:
        return Errand(
            source=part.bytes,
            dialect=TUS_PART,
            memory=part,
            moved=part.record.moved,
            all_sent=part.record.all_sent,
            proven=part.proven,
        )

    def _joining(self, references: Sequence[str], moved: Url | None = None) -> Errand:
        return Errand(
            source=BytesSource(b""),
            dialect=TusJoin(references),
            memory=_JoinMemory(self),
            moved=moved,
            on_progress=self._sum.show_join if self._sum.is_shown else None,
            whole=self._source,
        )

    async def _join(self) -> ClientResponse:
        moved = {part.record.moved for part in self._parts}
        target = moved.pop() if len(moved) == 1 else None
        locations = [part.record.content for part in self._parts]
        one_place = len({url.origin for url in locations if url is not None}) == 1
        references = [
            url.target if one_place else str(url)
            for url in locations
            if url is not None
        ]
        assert len(references) == len(self._parts)
        runner = self._make(self._joining(references, target))
        try:
            response = await runner.run()
        except TransferFailed as exc:
            if exc.resumable:
                raise
            # What failed is not known to be final, and all parts are there.
            raise TransferFailed(
                f"all parts are uploaded, but joining them failed: {exc}; the next run joins"
                " them, so the file may be stored twice",
                resumable=True,
            ) from exc
        if response.ok and self._release:
            await self.drop()
        return self._counted(response)

    def _counted(self, response: ClientResponse) -> ClientResponse:
        """Return *response* with the numbers of all parts together."""
        return replace(
            response,
            attempts=1 + sum(each.attempts - 1 for each in self._responses),
            bytes_resent=sum(each.bytes_resent for each in self._responses),
            parts=len(self._parts),
        )


class _Sum:
    """The progress of all parts together."""

    def __init__(
        self, sizes: Sequence[int], on_progress: Callable[[Progress], object] | None
    ) -> None:
        self._total = sum(sizes)
        self._sizes = sizes
        self._parts = [Progress(0, 0, size, 1) for size in sizes]
        self._running = set(range(len(sizes)))
        self._on_progress = on_progress
        self._shown_at = float("-inf")
        self._trouble: str | None = None

    @property
    def is_shown(self) -> bool:
        """Whether somebody wants to know it."""
        return self._on_progress is not None

    def note(self, number: int, progress: Progress) -> None:
        """Note the progress of the part with this number."""
        self._parts[number] = progress
        self._show()

    def end(self, number: int) -> None:
        """Note that the part with this number is complete."""
        size = self._sizes[number]
        self._running.discard(number)
        self._parts[number] = replace(
            self._parts[number],
            sent=size,
            acknowledged=size,
            trouble=None,
            retry_in=None,
        )
        self._show(force=True)

    def show_trouble(self, trouble: str, retry_in: float) -> None:
        """Say why nothing gets through before the first part."""
        if self._on_progress is not None:
            told = replace(self._sum(), trouble=trouble, retry_in=retry_in)
            self._on_progress(told)

    def show_join(self, progress: Progress) -> None:
        """Show the progress of the request that joins the parts."""
        if self._on_progress is not None:
            told = self._sum()
            self._on_progress(
                replace(
                    told,
                    trouble=progress.trouble,
                    retry_in=progress.retry_in,
                    processing=progress.processing,
                )
            )

    def _sum(self) -> Progress:
        running = [self._parts[number] for number in self._running]
        stuck = bool(running) and all(part.trouble is not None for part in running)
        waits = [part.retry_in for part in running if part.retry_in is not None]
        return Progress(
            sum(part.sent for part in self._parts),
            sum(part.acknowledged for part in self._parts),
            self._total,
            1 + sum(part.attempt - 1 for part in self._parts),
            transferred=sum(part.transferred for part in self._parts),
            trouble=running[0].trouble if stuck else None,
            retry_in=min(waits) if stuck and waits else None,
        )

    def _show(self, *, force: bool = False) -> None:
        if self._on_progress is None:
            return
        told, now = self._sum(), trio.current_time()
        if (
            force
            or told.trouble != self._trouble
            or now - self._shown_at >= PROGRESS_INTERVAL_SECONDS
        ):
            self._shown_at, self._trouble = now, told.trouble
            self._on_progress(told)
