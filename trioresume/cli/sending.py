"""Send files: the options, the run and its output, for the commands that send."""

from __future__ import annotations

import errno
import functools
import json
import os
import signal
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar, cast
from urllib.parse import urljoin, urlsplit

import click
import trio

from trioresume import (
    Client,
    ClientResponse,
    ClientTls,
    Journal,
    ProtocolName,
    RetryPolicy,
    TransferFailed,
    TrioresumeError,
    without_signature,
)
from trioresume.cli.options import Duration, ExitCode, Size
from trioresume.cli.output import output
from trioresume.cli.progress import Display, FileProgress, display
from trioresume.cli.request_options import RequestFields, request_options
from trioresume.cli.tls_options import tls_options
from trioresume.cli.upload_files import Job, content_of, headers_of
from trioresume.text import printable

__all__ = ["Sending", "exit_at_once", "refusal", "sending_options"]

_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--http2/--no-http2",
        default=None,
        help="Insist on HTTP/2, or use HTTP/1.1 only. [default: HTTP/2 over TLS, if the server "
        "agrees]",
    ),
    click.option(
        "--h2c",
        is_flag=True,
        help="Use HTTP/2 without TLS, too: the server of an http:// URL has to expect that.",
    ),
    click.option(
        "--allow-redirect-to",
        metavar="URL",
        multiple=True,
        help="Follow redirects (307, 308) to this server, too; may be repeated. It gets the "
        "file, but no credentials.",
    ),
    click.option(
        "--retry-for",
        type=Duration(),
        default=300.0,
        help="How long to keep trying without any progress.",
    ),
    click.option(
        "--idle-timeout",
        type=Duration(minimum=0.1),
        default=60.0,
        help="How long a connection may be silent before it counts as broken.",
    ),
    click.option(
        "--concurrency",
        type=click.IntRange(1, 64),
        default=1,
        help="How many files to send at the same time.",
    ),
    click.option(
        "--limit-rate",
        type=Size(minimum=1),
        help="Most bytes a second, all files together.",
    ),
    click.option(
        "--checksum",
        is_flag=True,
        help="Print the SHA-256 of each file before its address, and fail if the server does "
        "not confirm that it stored the same.",
    ),
    click.option("--quiet", "-q", is_flag=True, help="Show no progress."),
    click.option(
        "--json", "as_json", is_flag=True, help="Print one JSON object for each file."
    ),
)

_NAMES = (
    "http2",
    "h2c",
    "allow_redirect_to",
    "retry_for",
    "idle_timeout",
    "concurrency",
    "limit_rate",
    "checksum",
    "quiet",
    "as_json",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """How files are sent: what the options say."""

    tls: ClientTls
    fields: RequestFields
    http2: bool | None
    h2c: bool
    allow_redirect_to: tuple[str, ...]
    retry_for: float
    idle_timeout: float
    concurrency: int
    limit_rate: int | None
    checksum: bool
    quiet: bool
    as_json: bool

    def run(
        self,
        jobs: Sequence[Job],
        journal: Journal | None,
        *,
        protocol: ProtocolName = "auto",
        snapshot: bool = False,
    ) -> ExitCode:
        """Send the files of *jobs*, which all go to one server. Return the exit code.

        Raises :class:`click.UsageError` for options that contradict each other.
        """
        if self.h2c and self.http2 is False:
            raise click.UsageError("--h2c is HTTP/2, and --no-http2 forbids it")
        client = Client(
            protocol=protocol,
            headers=self.fields.for_url(jobs[0].url) if jobs else (),
            tls=self.tls,
            http2=self._http2_for(jobs),
            h2c=self.h2c,
            redirect_origins=self.allow_redirect_to,
            journal=journal,
            # --retry-for limits the time. The number of attempts has no limit.
            retry=RetryPolicy(attempts=10**9, seconds=self.retry_for),
            idle_timeout=self.idle_timeout,
            limit_rate=self.limit_rate,
        )
        total = sum(job.size or 0 for job in jobs)
        with display(quiet=self.quiet, count=len(jobs), size=total) as shown:
            run = _Run(client, jobs, self, shown, snapshot=snapshot)
            trio.run(run.run, restrict_keyboard_interrupt_to_checkpoints=True)
        if run.interrupted:
            click.echo(f"Stopped; {_hint(journal)}.", err=True)
            return ExitCode.INTERRUPTED
        return max(
            (job.exit_code for job in jobs), key=_SEVERITY.index, default=ExitCode.DONE
        )

    def _http2_for(self, jobs: Sequence[Job]) -> bool | None:
        """HTTP/1.1 for parts, unless HTTP/2 is asked for: there they share one connection."""
        in_parts = any(job.parallel > 1 for job in jobs)
        return False if in_parts and self.http2 is None and not self.h2c else self.http2


_P = ParamSpec("_P")
_R = TypeVar("_R")


def sending_options(
    command: Callable[Concatenate[Sending, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets what they say as first argument."""

    @functools.wraps(command)
    def with_sending(
        tls: ClientTls, fields: RequestFields, *args: _P.args, **kwargs: _P.kwargs
    ) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        return command(Sending(tls=tls, fields=fields, **given), *args, **kwargs)

    wrapped: Callable[..., Any] = with_sending
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", request_options(tls_options(wrapped)))


def _hint(journal: Journal | None) -> str:
    """Say what running the command again does."""
    if journal is None:
        return "nothing was kept"
    if journal.unsaved:
        return "not everything could be remembered, so some files begin again"
    return "run the same command again to continue"


# The command exits with the last of these that one of the files has.
_SEVERITY = [ExitCode.DONE, ExitCode.UNFINISHED, ExitCode.FAILED]


class _Run:
    """Sends all files, and reacts to signals."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[Job],
        sending: Sending,
        display: Display,
        *,
        snapshot: bool,
    ) -> None:
        self.interrupted = False
        self._snapshot = snapshot
        self._checksum = sending.checksum
        self._as_json = sending.as_json
        self._described: Mapping[str, str] = sending.fields.described
        self._client = client
        self._jobs = jobs
        self._slots = trio.Semaphore(sending.concurrency)
        self._display = display

    async def run(self) -> None:
        """Send all files, a few at a time. A failed file does not stop the others."""
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with self._client, trio.open_nursery() as watching:
                watching.start_soon(self._watch, signals, watching.cancel_scope)
                async with trio.open_nursery() as sending:
                    for job in self._jobs:
                        await self._slots.acquire()
                        sending.start_soon(self._send_one, job)
                watching.cancel_scope.cancel()

    async def _watch(
        self, signals: AsyncIterator[int], whole: trio.CancelScope
    ) -> None:
        async for _ in signals:
            self.interrupted = True
            # After a second signal the user does not want to wait for anything.
            signal.signal(signal.SIGINT, exit_at_once)
            signal.signal(signal.SIGTERM, exit_at_once)
            whole.cancel()

    async def _send_one(self, job: Job) -> None:
        try:
            await self._send(job)
        finally:
            self._slots.release()

    async def _send(self, job: Job) -> None:
        start = trio.current_time()
        shown = FileProgress(printable(job.path.name), str(job.path), job.size)
        job.shown = shown
        self._display.begin(shown)
        job.result = {"file": str(job.path), "url": job.shown_url}
        if job.entry.problem is not None:
            self._report_failure(job, job.entry.problem)
            return
        headers = {**headers_of(job.entry), **self._described}
        try:
            response = await self._client.request(
                job.method,
                job.url,
                body=content_of(job.entry),
                headers=headers,
                on_progress=lambda progress: self._display.show(shown, progress),
                snapshot_size=self._snapshot,
                checksum=self._checksum,
                parallel=job.parallel,
            )
        except TrioresumeError as exc:
            resumable = isinstance(exc, TransferFailed) and exc.resumable
            job.exit_code = ExitCode.UNFINISHED if resumable else ExitCode.FAILED
            self._report_failure(job, f"{job.shown_url}: {exc}")
        except OSError as exc:
            if job.entry.is_stdin and exc.errno == errno.EBADF:
                reason = "standard input is closed, or cannot be read"
            else:
                reason = exc.strerror or str(exc)
            self._report_failure(job, reason)
        else:
            self._report_response(job, response, trio.current_time() - start)

    def _report_response(
        self, job: Job, response: ClientResponse, seconds: float
    ) -> None:
        job.result.update(
            status=response.status,
            protocol=response.protocol,
            bytes=job.shown.size if job.size is None else job.size,
            seconds=round(seconds, 3),
            attempts=response.attempts,
            bytes_resent=response.bytes_resent,
            parts=response.parts,
        )
        if not response.ok:
            if _is_for_now(response):
                job.exit_code = ExitCode.UNFINISHED
            self._report_failure(job, f"{job.shown_url}: {refusal(response)}")
            return
        job.exit_code = ExitCode.DONE
        url = without_signature(response.url)
        location = urljoin(url, response.headers.get("location") or "")
        job.result["location"] = location
        line = location if len(self._jobs) == 1 else f"{job.path}: {location}"
        if self._checksum:
            job.result.update(sha256=response.sha256, confirmed=response.is_confirmed)
            if not response.is_confirmed:
                job.exit_code = ExitCode.FAILED
                self._report_failure(
                    job,
                    f"{location}: it is stored, but the server does not tell its SHA-256,"
                    f" so it was not compared with {response.sha256}",
                )
                return
            line = f"{response.sha256}  {line}"
        self._report(job, line)

    def _report_failure(self, job: Job, reason: str) -> None:
        job.result["error"] = reason
        self._display.end(job.shown, ok=False)
        self._display.write(printable(f"{job.path}: {reason}"), err=True)
        if self._as_json:
            self._display.write(json.dumps(job.result))

    def _report(self, job: Job, line: str) -> None:
        self._display.end(job.shown, ok=True)
        self._display.write(
            json.dumps(job.result) if self._as_json else printable(line)
        )


def exit_at_once(number: int, frame: FrameType | None) -> None:
    """End the process. The journal is on disk, so memory holds nothing that is needed later."""
    del number, frame
    if output.stderr is not None and output.stderr.isatty():
        # The progress bar hides the cursor: show it again.
        output.stderr.write_if_ready(b"\x1b[?25h\n")
    os._exit(ExitCode.INTERRUPTED)


# Statuses that a later run may not get again. A network that asks for a login answers with
# a redirect, or with 511 (RFC 6585, section 6).
_FOR_NOW = frozenset({408, 425, 429, 502, 503, 504, 511})


def _is_for_now(response: ClientResponse) -> bool:
    if 300 <= response.status <= 399:
        return urlsplit(response.url).scheme == "http"  # within TLS it is the server's
    return response.status in _FOR_NOW


def refusal(response: ClientResponse) -> str:
    """Return the server's reason: the status, and a problem's title and detail (RFC 9457)."""
    words = [f"the server answered {response.status}"]
    location = response.headers.get("location")
    if 300 <= response.status <= 399 and location is not None:
        words.append(_about_redirect(response, urljoin(response.url, location)))
    if (response.headers.get("content-type") or "").startswith(
        "application/problem+json"
    ):
        try:
            problem = json.loads(response.body)
            words += [
                str(problem[name]) for name in ("title", "detail") if problem.get(name)
            ]
        except (ValueError, AttributeError):
            pass  # show the status alone
    return ": ".join(words)


def _about_redirect(response: ClientResponse, target: str) -> str:
    if response.status == 303:
        return f"the result is said to be at {target}; nothing shows that the file is stored"
    if response.status in (307, 308):
        return (
            f"a redirect to another server, {target}, which is followed only with"
            " --allow-redirect-to"
        )
    return (
        f"a redirect to {target}, which is not followed, because many programs follow it"
        " without the content; use that URL if it is the right one"
    )
