"""``trioresume upload``: files to a server, over any number of cuts and runs."""

from __future__ import annotations

import json
import mimetypes
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from types import FrameType
from typing import BinaryIO, cast, get_args
from urllib.parse import quote, urljoin, urlsplit, urlunsplit

import click
import trio

from trioresume import (
    Client,
    ClientResponse,
    Journal,
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
from trioresume.cli.progress import Display, FileProgress, display
from trioresume.text import printable

__all__ = ["upload"]


@click.command()
@common_options
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, allow_dash=True),
)
@click.argument("url")
@click.option(
    "--recursive",
    "-r",
    is_flag=True,
    help="Send the files in each FILE that is a directory. With PUT their names are "
    "DIRECTORY/NAME; links to directories are not followed.",
)
@click.option(
    "--snapshot-size",
    is_flag=True,
    help="Send what is in each file at the beginning, though it grows meanwhile.",
)
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
    recursive: bool,
    snapshot_size: bool,
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
    """Send each FILE to URL; print where it is to be found. - is standard input.

    When the connection breaks, sending goes on from the last byte the server has. When
    retries are used up, or after Ctrl-C, run the same command again.
    """
    output.never_wait()
    entries = list(_entries(files, recursive=recursive))
    jobs = _jobs(entries, url, method, protocol, recursive=recursive)
    remembered = _journal() if journal else None
    # Attempts are not what runs out: only time is, as the option says.
    retry = RetryPolicy(attempts=10**9, seconds=retry_for)
    client = Client(
        protocol=protocol,
        token=token_file,
        journal=remembered,
        retry=retry,
        idle_timeout=idle_timeout,
        limit_rate=limit_rate,
    )
    size = sum(job.size or 0 for job in jobs)
    with display(quiet=quiet, count=len(jobs), size=size) as shown:
        upload = _Uploads(
            client, jobs, concurrency, shown, as_json=as_json, snapshot=snapshot_size
        )
        trio.run(upload.run, restrict_keyboard_interrupt_to_checkpoints=True)
    if upload.interrupted:
        keeps = remembered is not None
        hint = "run the same command again to go on" if keeps else "nothing was kept"
        click.echo(f"Stopped; {hint}.", err=True)
        return ExitCode.INTERRUPTED
    return max(
        (job.exit_code for job in jobs), key=_SEVERITY.index, default=ExitCode.DONE
    )


def _journal() -> Journal | None:
    """The journal; None, and a warning, where there is no place for one."""
    try:
        return Journal()
    except TrioresumeError as exc:
        click.echo(
            f"Warning: {exc}. This run works, but another run cannot resume its uploads. "
            "Set HOME or XDG_STATE_HOME.",
            err=True,
        )
        return None


# From the least to the most that went wrong, over all files.
_SEVERITY = [ExitCode.DONE, ExitCode.UNFINISHED, ExitCode.FAILED]


@dataclass(eq=False)
class _Job:
    """One file's way."""

    path: Path
    url: str
    method: str
    size: int | None
    """None for a pipe and the like, and where only reading tells."""
    exit_code: ExitCode = ExitCode.FAILED
    result: dict[str, object] = field(default_factory=dict)
    shown: FileProgress = field(init=False)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file to be sent, and its name below a collection."""

    path: Path
    name: PurePath


def _entries(files: Sequence[Path], *, recursive: bool) -> Iterator[_Entry]:
    """The files that are named, and those in directories that are.

    Raises :class:`click.UsageError` for a directory without ``--recursive``.
    """
    for path in files:
        if path == _STDIN or not path.is_dir():
            yield _Entry(path, PurePath(path.name))
        elif recursive:
            yield from _entries_in(path)
        else:
            raise click.UsageError(
                f"{printable(str(path))} is a directory; --recursive sends what is in it"
            )


def _entries_in(directory: Path) -> Iterator[_Entry]:
    """All regular files below *directory*, in order; what cannot be listed is told."""
    above = directory.resolve().parent

    def complain(exc: OSError) -> None:
        raise click.UsageError(
            f"{printable(str(exc.filename))} cannot be listed: {exc.strerror}"
        )

    for folder, folders, names in os.walk(directory, onerror=complain):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if path.is_file() or path.is_symlink():
                yield _Entry(path, (path.parent.resolve() / name).relative_to(above))
            else:
                click.echo(
                    f"{printable(str(path))} is no regular file and is left out",
                    err=True,
                )


_STDIN = Path("-")


def _jobs(
    entries: Sequence[_Entry],
    url: str,
    method: str | None,
    protocol: ProtocolName,
    *,
    recursive: bool,
) -> list[_Job]:
    """What to do. Raises :class:`click.UsageError` for what cannot be meant."""
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError(f"{url!r} is not an http:// URL")
    if "@" in parts.netloc:
        raise click.UsageError(
            f"the URL for {parts.hostname} has a user name or a password in it; "
            "--token-file names a file with a token"
        )
    collection = parts.path.endswith("/") or not parts.path
    if (len(entries) > 1 or recursive) and not collection:
        raise click.UsageError("several files need a URL that ends with a slash")
    posts = collection or protocol == "tus"
    method = (method or ("POST" if posts else "PUT")).upper()
    if protocol == "tus" and method != "POST":
        raise click.UsageError("in tus an upload begins with POST")
    jobs = []
    for entry in entries:
        path, target = entry.path, url
        if collection and method == "PUT":
            if path == _STDIN:
                raise click.UsageError(
                    "standard input has no name: put one behind the URL, or use POST"
                )
            name = "/".join(
                quote(_name_bytes(PurePath(part)), safe="") for part in entry.name.parts
            )
            # The query stays behind the name: it may be what permits the upload.
            target = urlunsplit(parts._replace(path=(parts.path or "/") + name))
        jobs.append(_Job(path, target, method, _size_of(path)))
    _check_targets(jobs)
    return jobs


def _size_of(path: Path) -> int | None:
    """The size that a file says it has; it may say 0 for what only reading tells."""
    try:
        status = path.stat()
    except OSError:
        return None
    regular = path != _STDIN and stat.S_ISREG(status.st_mode)
    return status.st_size if regular and status.st_size else None


def _check_targets(jobs: Sequence[_Job]) -> None:
    """Refuse jobs of which one would overwrite another, before anything is sent.

    Each POST makes a file of its own; there a file that is named twice is a mistake.
    Raises :class:`click.UsageError`.
    """
    known: dict[tuple[str, Path | None], _Job] = {}
    for job in jobs:
        source = job.path.resolve()
        other = known.setdefault(
            (job.url, source if job.method == "POST" else None), job
        )
        if other is job:
            continue
        if other.path.resolve() == source:
            raise click.UsageError(f"{printable(str(job.path))} is named twice")
        raise click.UsageError(
            f"{printable(str(other.path))} and {printable(str(job.path))} have the same "
            f"name: both would be stored as {printable(job.url)}"
        )


def _name_bytes(path: PurePath) -> bytes:
    """The name of the file, as UTF-8 where it is text, else the bytes that it has."""
    try:
        return path.name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a UTF-16 pair, as Windows allows it
        return path.name.encode("utf-8", "replace")


def _disposition(path: Path) -> str:
    """A suggestion for the name of the stored file.

    RFC 8187: the one form that needs no quoting rules. It has to be UTF-8, so a byte that
    is not becomes U+FFFD.
    """
    name = _name_bytes(path).decode("utf-8", "replace")
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


# --------------------------------------------------------------------------- sending


class _Uploads:
    """All of the command's uploads, and its reaction to signals."""

    def __init__(
        self,
        client: Client,
        jobs: Sequence[_Job],
        concurrency: int,
        display: Display,
        *,
        as_json: bool,
        snapshot: bool,
    ) -> None:
        self.interrupted = False
        self._snapshot = snapshot
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
        shown = FileProgress(printable(job.path.name), str(job.path), job.size)
        job.shown = shown
        self._display.begin(shown)
        job.result = {"file": str(job.path), "url": job.url}
        headers = {"content-type": _media_type(job.path)}
        if not _is_nameless(job.path):
            headers["content-disposition"] = _disposition(job.path)
        try:
            response = await self._client.request(
                job.method,
                job.url,
                body=_content_of(job.path),
                headers=headers,
                on_progress=lambda progress: self._display.show(shown, progress),
                snapshot_size=self._snapshot,
            )
        except TrioresumeError as exc:
            resumable = isinstance(exc, TransferFailed) and exc.resumable
            job.exit_code = ExitCode.UNFINISHED if resumable else ExitCode.FAILED
            self._report_failure(job, f"{job.url}: {exc}")
        except OSError as exc:
            self._report_failure(job, exc.strerror or str(exc))
        else:
            self._report_response(job, response, trio.current_time() - start)

    def _report_response(
        self, job: _Job, response: ClientResponse, seconds: float
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
            if _is_for_now(response.status):
                job.exit_code = ExitCode.UNFINISHED
            self._report_failure(job, f"{job.url}: {_refusal(response)}")
            return
        job.exit_code = ExitCode.DONE
        location = urljoin(response.url, response.headers.get("location") or "")
        job.result["location"] = location
        line = location if len(self._jobs) == 1 else f"{job.path}: {location}"
        self._report(job, line)

    def _report_failure(self, job: _Job, reason: str) -> None:
        job.result["error"] = reason
        self._display.end(job.shown, ok=False)
        self._display.write(printable(f"{job.path}: {reason}"), err=True)
        if self._as_json:
            self._display.write(json.dumps(job.result))

    def _report(self, job: _Job, line: str) -> None:
        self._display.end(job.shown, ok=True)
        self._display.write(
            json.dumps(job.result) if self._as_json else printable(line)
        )


def _is_nameless(path: Path) -> bool:
    """Whether the name is only a descriptor's, as for standard input and ``<(command)``."""
    return path == _STDIN or path.parent in (
        Path("/dev"),
        Path("/dev/fd"),
        Path("/proc/self/fd"),
    )


def _content_of(path: Path) -> Path | BinaryIO:
    if path != _STDIN:
        return path
    # Unbuffered, and left open: it is the process's own.
    return cast("BinaryIO", open(0, "rb", buffering=0, closefd=False))


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


# Answers that another run may not get. A network that wants a login redirects, or says 511
# (RFC 6585, section 6).
_FOR_NOW = frozenset({408, 425, 429, 502, 503, 504, 511})


def _is_for_now(status: int) -> bool:
    return 300 <= status <= 399 or status in _FOR_NOW


def _refusal(response: ClientResponse) -> str:
    """What the server says against it: a problem's title and detail (RFC 9457)."""
    words = [f"the server answered {response.status}"]
    location = response.headers.get("location")
    if 300 <= response.status <= 399 and location is not None:
        words.append(f"a redirect to {location}, which is not followed")
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
