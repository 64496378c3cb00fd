"""``trioresume upload``: send files, and resume after broken connections and stopped runs."""

from __future__ import annotations

import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Mapping, Sequence
from types import FrameType
from typing import get_args
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
)
from trioresume.cli.help import Command
from trioresume.cli.options import (
    Duration,
    ExitCode,
    Size,
    common_options,
)
from trioresume.cli.output import output
from trioresume.cli.progress import Display, FileProgress, display
from trioresume.cli.request_options import RequestFields, request_options
from trioresume.cli.sections import UPLOAD
from trioresume.cli.tls_options import tls_options
from trioresume.cli.units import size
from trioresume.cli.upload_files import (
    Chosen,
    Job,
    content_of,
    entries_of,
    headers_of,
    jobs_of,
    renamed,
)
from trioresume.text import printable

__all__ = ["upload"]


@click.command(
    cls=Command,
    sections=UPLOAD,
    examples=(
        "trioresume upload film.mkv http://127.0.0.1:8080/files/",
        "trioresume upload -r photos https://upload.example.org/files/ --token-file token",
        "pg_dump shop | trioresume upload - https://upload.example.org/files/shop.sql",
    ),
)
@common_options
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
)
@click.argument("url")
@click.option(
    "--recursive",
    "-r",
    is_flag=True,
    help="If FILE is a directory, send the files in it. With PUT their names are "
    "DIRECTORY/NAME. Links to directories are not followed.",
)
@click.option(
    "--include",
    metavar="GLOB",
    multiple=True,
    help="With --recursive, send only files that match; may be repeated. A GLOB without a "
    "slash is compared with the name, else with the path below the directory.",
)
@click.option(
    "--exclude",
    metavar="GLOB",
    multiple=True,
    help="With --recursive, leave out files and directories that match; may be repeated.",
)
@click.option(
    "--name",
    help="Name to store the file under, instead of its own; for a single file.",
)
@click.option(
    "--checksum",
    is_flag=True,
    help="Print the SHA-256 of each file before its address, and fail if the server does "
    "not confirm that it stored the same.",
)
@click.option(
    "--dry-run",
    "-n",
    is_flag=True,
    help="Only show what would be sent, and where.",
)
@click.option(
    "--snapshot-size",
    is_flag=True,
    help="Send only the bytes that each file has at the beginning. Use this for a file "
    "that grows.",
)
@click.option(
    "--method",
    metavar="METHOD",
    help="HTTP method. With PUT, each file's name is added to a URL that ends with a "
    "slash. [default: POST if the URL ends with a slash, else PUT]",
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(ProtocolName)),
    default="auto",
    help="Protocol. seed: Partial and Resumable Requests in HTTP; rufh: Resumable Uploads "
    "for HTTP; tus: tus 1.0.0, always with POST; auto: the first of seed, tus and rufh "
    "that the server speaks, else a plain request.",
)
@request_options
@tls_options
@click.option(
    "--http2/--no-http2",
    default=None,
    help="Insist on HTTP/2, or use HTTP/1.1 only. [default: HTTP/2 over TLS, if the server "
    "agrees]",
)
@click.option(
    "--h2c",
    is_flag=True,
    help="Use HTTP/2 without TLS, too: the server of an http:// URL has to expect that.",
)
@click.option(
    "--allow-redirect-to",
    metavar="URL",
    multiple=True,
    help="Follow redirects (307, 308) to this server, too; may be repeated. It gets the "
    "file, but no credentials.",
)
@click.option(
    "--retry-for",
    type=Duration(),
    default=300.0,
    help="How long to keep trying without any progress.",
)
@click.option(
    "--idle-timeout",
    type=Duration(minimum=0.1),
    default=60.0,
    help="How long a connection may be silent before it counts as broken.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=1,
    help="How many files to send at the same time.",
)
@click.option(
    "--limit-rate",
    type=Size(minimum=1),
    help="Most bytes a second, all files together.",
)
@click.option(
    "--journal/--no-journal",
    default=True,
    help="Remember unfinished uploads, so that the same command resumes them.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each file."
)
def upload(
    tls: ClientTls,
    fields: RequestFields,
    files: tuple[str, ...],
    url: str,
    recursive: bool,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    name: str | None,
    checksum: bool,
    dry_run: bool,
    snapshot_size: bool,
    method: str | None,
    protocol: ProtocolName,
    http2: bool | None,
    h2c: bool,
    allow_redirect_to: tuple[str, ...],
    retry_for: float,
    idle_timeout: float,
    concurrency: int,
    limit_rate: int | None,
    journal: bool,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Send each FILE to URL and print the address of the stored file.

    FILE may be - for standard input. When the connection breaks, the upload continues by
    itself from the last byte that the server has. If retries are used up, or after
    Ctrl-C, run the same command again to continue.
    """
    output.never_wait()
    if (include or exclude) and not recursive:
        raise click.UsageError("--include and --exclude need --recursive")
    entries = list(
        entries_of(files, recursive=recursive, chosen=Chosen(include, exclude))
    )
    if name is not None:
        entries = [renamed(entries, name)]
    jobs = jobs_of(entries, url, method, protocol, recursive=recursive)
    headers = fields.for_url(url)
    if dry_run:
        _show_plan(jobs, as_json=as_json)
        return ExitCode.DONE
    remembered = _journal() if journal else None
    # --retry-for limits the time. The number of attempts has no limit.
    retry = RetryPolicy(attempts=10**9, seconds=retry_for)
    if h2c and http2 is False:
        raise click.UsageError("--h2c is HTTP/2, and --no-http2 forbids it")
    client = Client(
        protocol=protocol,
        headers=headers,
        tls=tls,
        http2=http2,
        h2c=h2c,
        redirect_origins=allow_redirect_to,
        journal=remembered,
        retry=retry,
        idle_timeout=idle_timeout,
        limit_rate=limit_rate,
    )
    total = sum(job.size or 0 for job in jobs)
    with display(quiet=quiet, count=len(jobs), size=total) as shown:
        upload = _Uploads(
            client,
            jobs,
            concurrency,
            shown,
            as_json=as_json,
            snapshot=snapshot_size,
            checksum=checksum,
            described=fields.described,
        )
        trio.run(upload.run, restrict_keyboard_interrupt_to_checkpoints=True)
    if upload.interrupted:
        click.echo(f"Stopped; {_hint(remembered)}.", err=True)
        return ExitCode.INTERRUPTED
    return max(
        (job.exit_code for job in jobs), key=_SEVERITY.index, default=ExitCode.DONE
    )


def _journal() -> Journal | None:
    """Return the journal. If there is no directory for it, warn and return None."""
    try:
        return Journal()
    except TrioresumeError as exc:
        click.echo(
            f"Warning: {exc}. This run works, but a later run cannot resume its uploads. "
            "Set HOME or XDG_STATE_HOME.",
            err=True,
        )
        return None


def _hint(journal: Journal | None) -> str:
    """Say what running the command again does."""
    if journal is None:
        return "nothing was kept"
    if journal.unsaved:
        return "not everything could be remembered, so some files begin again"
    return "run the same command again to continue"


# The command exits with the last of these that one of the files has.
_SEVERITY = [ExitCode.DONE, ExitCode.UNFINISHED, ExitCode.FAILED]


class _Uploads:
    """Runs all uploads of the command, and reacts to signals."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[Job],
        concurrency: int,
        display: Display,
        *,
        as_json: bool,
        snapshot: bool,
        checksum: bool,
        described: Mapping[str, str],
    ) -> None:
        self.interrupted = False
        self._described = described
        self._checksum = checksum
        self._snapshot = snapshot
        self._client = client
        self._jobs = jobs
        self._slots = trio.Semaphore(concurrency)
        self._display = display
        self._as_json = as_json

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
            signal.signal(signal.SIGINT, _exit_at_once)
            signal.signal(signal.SIGTERM, _exit_at_once)
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
        job.result = {"file": str(job.path), "url": job.url}
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
            )
        except TrioresumeError as exc:
            resumable = isinstance(exc, TransferFailed) and exc.resumable
            job.exit_code = ExitCode.UNFINISHED if resumable else ExitCode.FAILED
            self._report_failure(job, f"{job.url}: {exc}")
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
        )
        if not response.ok:
            if _is_for_now(response):
                job.exit_code = ExitCode.UNFINISHED
            self._report_failure(job, f"{job.url}: {_refusal(response)}")
            return
        job.exit_code = ExitCode.DONE
        location = urljoin(response.url, response.headers.get("location") or "")
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


def _show_plan(jobs: Sequence[Job], *, as_json: bool) -> None:
    """Show what would be sent, one line for each file."""
    for job in jobs:
        if as_json:
            plan = {"file": str(job.path), "method": job.method, "url": job.url}
            click.echo(json.dumps({**plan, "bytes": job.size}))
        else:
            problem = f": {job.entry.problem}" if job.entry.problem else ""
            line = f"{job.method} {job.url}  {job.path}  {size(job.size)}{problem}"
            click.echo(printable(line))
    total = sum(job.size or 0 for job in jobs)
    if not as_json:
        click.echo(f"{len(jobs)} files, {size(total)}; nothing was sent", err=True)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
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


def _refusal(response: ClientResponse) -> str:
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
