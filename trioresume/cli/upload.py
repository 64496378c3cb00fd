"""``trioresume upload``: files to a server, over any number of cuts and runs."""

from __future__ import annotations

import json
import mimetypes
import os
import signal
import sys
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Protocol, get_args
from urllib.parse import quote, urljoin, urlsplit

import click
import trio
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress as Bars,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from trioresume import (
    Client,
    ClientResponse,
    Journal,
    Progress,
    ProtocolName,
    RetryPolicy,
    TransferFailed,
    TrioresumeError,
)
from trioresume.cli.options import (
    Duration,
    ExitCode,
    SecretFile,
    Size,
    common_options,
)
from trioresume.cli.output import output

__all__ = ["upload"]

PLAIN_INTERVAL_SECONDS = 10.0
"""How often progress is told where there is no terminal to draw a bar on."""


@click.command()
@common_options
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
)
@click.argument("url")
@click.option(
    "--method",
    metavar="METHOD",
    help="POST if the URL ends with a slash, else PUT. With PUT and a slash, each "
    "file's name is put behind it.",
)
@click.option(
    "--protocol",
    type=click.Choice(get_args(ProtocolName)),
    default="auto",
    help="What to speak: seed, rufh or tus; auto takes the first of seed, tus and rufh "
    "that the server speaks, else a plain request. tus always begins with POST.",
)
@click.option(
    "--token-file", type=SecretFile(), help="File with the bearer token to send."
)
@click.option(
    "--retry-for",
    type=Duration(),
    default=300.0,
    help="How long to go on trying while nothing gets through.",
)
@click.option(
    "--idle-timeout",
    type=Duration(minimum=0.1),
    default=60.0,
    help="How long a connection may be silent before it counts as cut.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(1, 64),
    default=1,
    help="How many files to send at the same time.",
)
@click.option(
    "--limit-rate", type=Size(minimum=1), help="Most bytes a second, for all files."
)
@click.option(
    "--journal/--no-journal",
    default=True,
    help="Remember unfinished uploads, so that running the command again resumes.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object for each file."
)
def upload(
    files: tuple[Path, ...],
    url: str,
    method: str | None,
    protocol: ProtocolName,
    token_file: str | None,
    retry_for: float,
    idle_timeout: float,
    concurrency: int,
    limit_rate: int | None,
    journal: bool,
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Send each FILE to URL; print where it is to be found.

    When the connection breaks, sending goes on from the last byte the server has. When
    retries are used up, or after Ctrl-C, run the same command again.
    """
    output.never_wait()
    jobs = _jobs(files, url, method, protocol)
    # Attempts are not what runs out: only time is, as the option says.
    retry = RetryPolicy(attempts=10**9, seconds=retry_for)
    client = Client(
        protocol=protocol,
        token=token_file,
        journal=Journal() if journal else None,
        retry=retry,
        idle_timeout=idle_timeout,
        limit_rate=limit_rate,
    )
    with _display(quiet=quiet) as display:
        upload = _Uploads(client, jobs, concurrency, display, as_json=as_json)
        trio.run(upload.run, restrict_keyboard_interrupt_to_checkpoints=True)
    if upload.interrupted:
        hint = "run the same command again to go on" if journal else "nothing was kept"
        click.echo(f"Stopped; {hint}.", err=True)
        return ExitCode.INTERRUPTED
    return max((job.exit_code for job in jobs), key=_SEVERITY.index)


# From the least to the most that went wrong, over all files.
_SEVERITY = [ExitCode.DONE, ExitCode.UNFINISHED, ExitCode.FAILED]


@dataclass(eq=False)
class _Job:
    """One file's way."""

    path: Path
    url: str
    method: str
    size: int
    exit_code: ExitCode = ExitCode.FAILED
    result: dict[str, object] = field(default_factory=dict)


def _jobs(
    files: Sequence[Path], url: str, method: str | None, protocol: ProtocolName
) -> list[_Job]:
    """What to do. Raises :class:`click.UsageError` for what cannot be meant."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError(f"{url!r} is not an http:// URL")
    collection = parts.path.endswith("/") or not parts.path
    if len(files) > 1 and not collection:
        raise click.UsageError("several files need a URL that ends with a slash")
    posts = collection or protocol == "tus"
    method = (method or ("POST" if posts else "PUT")).upper()
    if protocol == "tus" and method != "POST":
        raise click.UsageError("in tus an upload begins with POST")
    jobs = []
    for path in files:
        target = url
        if collection and method == "PUT":
            target = urljoin(url, quote(path.name))
        jobs.append(_Job(path, target, method, path.stat().st_size))
    if len({(job.path.resolve(), job.url) for job in jobs}) < len(jobs):
        raise click.UsageError("a file is named twice")
    return jobs


# --------------------------------------------------------------------------- sending


class _Uploads:
    """All of the command's uploads, and its reaction to signals."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[_Job],
        concurrency: int,
        display: _Display,
        *,
        as_json: bool,
    ) -> None:
        self.interrupted = False
        self._client = client
        self._jobs = jobs
        self._slots = trio.Semaphore(concurrency)
        self._display = display
        self._as_json = as_json

    async def run(self) -> None:
        """Send everything, a few at a time; a failed file does not stop the others."""
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
            # Whoever asks a second time does not want to wait for anything.
            signal.signal(signal.SIGINT, _exit_at_once)
            signal.signal(signal.SIGTERM, _exit_at_once)
            whole.cancel()

    async def _send_one(self, job: _Job) -> None:
        try:
            await self._send(job)
        finally:
            self._slots.release()

    async def _send(self, job: _Job) -> None:
        start = trio.current_time()
        self._display.begin(job)
        job.result = {"file": str(job.path), "url": job.url}
        try:
            response = await self._client.request(
                job.method,
                job.url,
                body=job.path,
                headers={
                    "content-type": _media_type(job.path),
                    # RFC 8187: any name, in the one form that needs no quoting rules.
                    "content-disposition": "attachment; filename*=UTF-8''"
                    + quote(os.fsencode(job.path.name), safe=""),
                },
                on_progress=lambda progress: self._display.show(job, progress),
            )
        except TrioresumeError as exc:
            resumable = isinstance(exc, TransferFailed) and exc.resumable
            job.exit_code = ExitCode.UNFINISHED if resumable else ExitCode.FAILED
            self._report_failure(job, str(exc))
        except OSError as exc:
            self._report_failure(job, str(exc))
        else:
            self._report_response(job, response, trio.current_time() - start)

    def _report_response(
        self, job: _Job, response: ClientResponse, seconds: float
    ) -> None:
        job.result.update(
            status=response.status,
            protocol=response.protocol,
            bytes=job.size,
            seconds=round(seconds, 3),
            attempts=response.attempts,
            bytes_resent=response.bytes_resent,
        )
        if not response.ok:
            self._report_failure(job, _refusal(response))
            return
        job.exit_code = ExitCode.DONE
        location = urljoin(response.url, response.headers.get("location") or "")
        job.result["location"] = location
        line = location if len(self._jobs) == 1 else f"{job.path}: {location}"
        self._report(job, line)

    def _report_failure(self, job: _Job, reason: str) -> None:
        job.result["error"] = reason
        self._display.end(job)
        self._display.write(_printable(f"{job.path}: {reason}"), err=True)
        if self._as_json:
            self._display.write(json.dumps(job.result))

    def _report(self, job: _Job, line: str) -> None:
        self._display.end(job)
        self._display.write(
            json.dumps(job.result) if self._as_json else _printable(line)
        )


def _printable(text: str) -> str:
    """*text* without what would command a terminal: parts of it are the server's."""
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    """Ends the process; not a byte of state is in memory that is needed later."""
    del number, frame
    if output.stderr is not None and output.stderr.isatty():
        output.stderr.write_if_ready(b"\x1b[?25h\n")  # the bar hides the cursor
    os._exit(ExitCode.INTERRUPTED)


# mimetypes tells the coding apart from what is inside; a file is sent as it is.
_CODED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


def _media_type(path: Path) -> str:
    media_type, coding = mimetypes.guess_type(path.name)
    if coding is not None:
        media_type = _CODED.get(coding)
    return media_type or "application/octet-stream"


def _refusal(response: ClientResponse) -> str:
    """What the server says against it: a problem's title and detail (RFC 9457)."""
    words = [f"the server answered {response.status}"]
    if (response.headers.get("content-type") or "").startswith(
        "application/problem+json"
    ):
        try:
            problem = json.loads(response.body)
            words += [
                str(problem[name]) for name in ("title", "detail") if problem.get(name)
            ]
        except (ValueError, AttributeError):
            pass  # the status has to do
    return ": ".join(words)


# -------------------------------------------------------------------------- showing


class _Display(Protocol):
    """Shows how far the uploads are, and lets lines through."""

    def begin(self, job: _Job) -> None: ...

    def show(self, job: _Job, progress: Progress) -> None: ...

    def end(self, job: _Job) -> None: ...

    def write(self, line: str, *, err: bool = False) -> None: ...


@contextmanager
def _display(*, quiet: bool) -> Iterator[_Display]:
    """Bars on a terminal, lines elsewhere. On standard error: results go to the other."""
    console = Console(stderr=True)
    if quiet:
        yield _Quiet()
    elif console.is_terminal:
        bars = Bars(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            DownloadColumn(binary_units=True),
            TransferSpeedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=console,
            redirect_stdout=False,
        )
        with bars:
            yield _Bars(bars)
    else:
        yield _Lines()


class _Quiet:
    """Nothing but results."""

    def begin(self, job: _Job) -> None:
        """Not shown."""

    def show(self, job: _Job, progress: Progress) -> None:
        """Not shown."""

    def end(self, job: _Job) -> None:
        """Not shown."""

    def write(self, line: str, *, err: bool = False) -> None:
        click.echo(line, err=err)


class _Bars(_Quiet):
    """A bar for each file."""

    def __init__(self, bars: Bars) -> None:
        self._bars = bars
        self._tasks: dict[_Job, TaskID] = {}

    def begin(self, job: _Job) -> None:
        self._tasks[job] = self._bars.add_task(job.path.name, total=job.size, note="")

    def show(self, job: _Job, progress: Progress) -> None:
        note = "" if progress.attempt == 1 else f"attempt {progress.attempt}"
        self._bars.update(self._tasks[job], completed=progress.sent, note=note)

    def end(self, job: _Job) -> None:
        self._bars.stop_task(self._tasks[job])

    def write(self, line: str, *, err: bool = False) -> None:
        # A result on standard output would tear the bar if both are the terminal.
        if err or sys.stdout.isatty():
            self._bars.console.print(
                line, markup=False, highlight=False, soft_wrap=True
            )
        else:
            click.echo(line)


class _Lines(_Quiet):
    """A line now and then, for logs."""

    def __init__(self) -> None:
        self._told: dict[_Job, tuple[float, int]] = {}

    def show(self, job: _Job, progress: Progress) -> None:
        now = trio.current_time()
        told_at, attempt = self._told.setdefault(job, (now, 1))
        if progress.attempt == attempt and now - told_at < PLAIN_INTERVAL_SECONDS:
            return
        self._told[job] = (now, progress.attempt)
        percent = 100 * progress.sent // max(1, job.size)
        click.echo(
            f"{job.path}: {percent} %, {progress.sent} of {job.size} bytes, "
            f"attempt {progress.attempt}",
            err=True,
        )

    def end(self, job: _Job) -> None:
        self._told.pop(job, None)
