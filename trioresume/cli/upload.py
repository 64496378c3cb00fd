"""``trioresume upload``: send files, and resume after broken connections and stopped runs."""

from __future__ import annotations

import errno
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
    ClientTls,
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
from trioresume.cli.tls_options import tls_options
from trioresume.text import printable

__all__ = ["upload"]


@click.command()
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
@click.option(
    "--token-file", type=SecretFile(), help="File whose first line is the bearer token."
)
@tls_options
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
    files: tuple[str, ...],
    url: str,
    recursive: bool,
    snapshot_size: bool,
    method: str | None,
    protocol: ProtocolName,
    token_file: str | None,
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
    entries = list(_entries(files, recursive=recursive))
    jobs = _jobs(entries, url, method, protocol, recursive=recursive)
    remembered = _journal() if journal else None
    # --retry-for limits the time. The number of attempts has no limit.
    retry = RetryPolicy(attempts=10**9, seconds=retry_for)
    client = Client(
        protocol=protocol,
        token=token_file,
        tls=tls,
        redirect_origins=allow_redirect_to,
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


@dataclass(frozen=True, slots=True)
class _Entry:
    """A file to be sent, and its name below a collection."""

    path: Path
    name: PurePath
    is_stdin: bool = False
    """Whether it is standard input: the word ``-``. ``./-`` is a file of that name."""
    problem: str | None = None
    """Why nothing of it can be sent, if that is known before it is opened."""


@dataclass(eq=False)
class _Job:
    """One file to send, and its result."""

    entry: _Entry
    url: str
    method: str
    size: int | None
    """Bytes. None for a pipe, and if the size is known only after reading."""
    exit_code: ExitCode = ExitCode.FAILED
    result: dict[str, object] = field(default_factory=dict)
    shown: FileProgress = field(init=False)

    @property
    def path(self) -> Path:
        """The path of the file; for standard input the word ``-``."""
        return self.entry.path


def _entries(files: Sequence[str], *, recursive: bool) -> Iterator[_Entry]:
    """Yield the files on the command line, and the files in directories on it.

    A file that cannot be read is one of them: the others are sent all the same. Raises
    :class:`click.UsageError` for a directory without ``--recursive``, and if no file that is
    named exists.
    """
    if not any(word == _STDIN or os.path.lexists(word) for word in files):
        raise click.UsageError(f"{printable(files[0])!r} does not exist")
    for word in files:
        path = Path(word)
        if word == _STDIN or not os.path.isdir(word):
            problem = None if word else "the name of the file is empty"
            yield _Entry(path, PurePath(path.name), word == _STDIN, problem)
        elif recursive:
            yield from _entries_in(path)
        else:
            raise click.UsageError(
                f"{printable(str(path))} is a directory; use --recursive to send its files"
            )


def _entries_in(directory: Path) -> Iterator[_Entry]:
    """Yield the regular files below *directory*, then the folders that cannot be listed."""
    above = Path(os.path.realpath(directory)).parent
    unlisted: list[OSError] = []
    for folder, folders, names in os.walk(directory, onerror=unlisted.append):
        folders.sort()
        for name in sorted(names):
            path = Path(folder, name)
            if _may_be_file(path):
                below = Path(os.path.realpath(folder), name).relative_to(above)
                yield _Entry(path, below)
            else:
                click.echo(
                    f"{printable(str(path))} is not a regular file and is left out",
                    err=True,
                )
    for exc in unlisted:
        path = Path(os.fsdecode(exc.filename))
        yield _Entry(
            path,
            PurePath(path.name),
            problem=f"the directory cannot be listed: {exc.strerror}",
        )


def _may_be_file(path: Path) -> bool:
    """Whether *path* is a regular file, or cannot be asked; then its opening says why."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError:
        return True


_STDIN = "-"


def _jobs(
    entries: Sequence[_Entry],
    url: str,
    method: str | None,
    protocol: ProtocolName,
    *,
    recursive: bool,
) -> list[_Job]:
    """Return a job for each file. Raises :class:`click.UsageError` for wrong arguments."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise click.UsageError(f"{url!r} is not a URL: {exc}") from exc
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError(f"{url!r} is not an http:// or https:// URL")
    if "@" in parts.netloc:
        raise click.UsageError(
            f"the URL for {parts.hostname} contains a user name or a password; "
            "put a token into a file and name it with --token-file"
        )
    collection = parts.path.endswith("/") or not parts.path
    if (len(entries) > 1 or recursive) and not collection:
        raise click.UsageError("several files need a URL that ends with a slash")
    posts = collection or protocol == "tus"
    method = (method or ("POST" if posts else "PUT")).upper()
    if protocol == "tus" and method != "POST":
        raise click.UsageError("a tus upload begins with POST; leave out --method")
    jobs = []
    for entry in entries:
        target = url
        if collection and method == "PUT":
            if entry.is_stdin:
                raise click.UsageError(
                    "standard input has no name: add a name to the URL, or use POST"
                )
            name = "/".join(
                quote(_name_bytes(PurePath(part)), safe="") for part in entry.name.parts
            )
            # Keep the query behind the name: it may be the signature of a signed URL.
            target = urlunsplit(parts._replace(path=(parts.path or "/") + name))
        jobs.append(_Job(entry, target, method, _size_of(entry)))
    _check_targets(jobs)
    return jobs


def _size_of(entry: _Entry) -> int | None:
    """Return the size that the file system reports, or None if it is not known.

    Files in /proc, for example, report 0. Only reading tells their real size.
    """
    try:
        status = entry.path.stat()
    except OSError:
        return None
    regular = not entry.is_stdin and stat.S_ISREG(status.st_mode)
    return status.st_size if regular and status.st_size else None


def _check_targets(jobs: Sequence[_Job]) -> None:
    """Refuse two jobs of which one would overwrite the other, before anything is sent.

    With POST each job creates a new file, so only a file that is named twice is refused.
    Raises :class:`click.UsageError`.
    """
    known: dict[tuple[str, str | None], _Job] = {}
    for job in jobs:
        if job.entry.problem is not None:
            continue
        source = _source_of(job)
        other = known.setdefault(
            (job.url, source if job.method == "POST" else None), job
        )
        if other is job:
            continue
        if _source_of(other) == source:
            raise click.UsageError(f"{printable(str(job.path))} is named twice")
        raise click.UsageError(
            f"{printable(str(other.path))} and {printable(str(job.path))} have the same "
            f"name: both would be stored as {printable(job.url)}"
        )


def _source_of(job: _Job) -> str:
    """What tells the file from others; the path of a link that leads nowhere is its own."""
    return _STDIN if job.entry.is_stdin else os.path.realpath(job.path)


def _name_bytes(path: PurePath) -> bytes:
    """Return the file's name in UTF-8 if it is text, else its bytes unchanged."""
    try:
        return path.name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a UTF-16 pair, as Windows allows it
        return path.name.encode("utf-8", "replace")


def _disposition(path: Path) -> str:
    """Return a Content-Disposition that suggests a name for the stored file.

    It uses the form of RFC 8187, which needs no quoting rules. That form must be UTF-8, so
    U+FFFD replaces each byte that is not.
    """
    name = _name_bytes(path).decode("utf-8", "replace")
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


# --------------------------------------------------------------------------- sending


class _Uploads:
    """Runs all uploads of the command, and reacts to signals."""

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
        if job.entry.problem is not None:
            self._report_failure(job, job.entry.problem)
            return
        headers = {"content-type": _media_type(job.path)}
        if not _is_nameless(job.entry):
            headers["content-disposition"] = _disposition(job.path)
        try:
            response = await self._client.request(
                job.method,
                job.url,
                body=_content_of(job.entry),
                headers=headers,
                on_progress=lambda progress: self._display.show(shown, progress),
                snapshot_size=self._snapshot,
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
            if _is_for_now(response):
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


def _is_nameless(entry: _Entry) -> bool:
    """Return whether *entry* has only a descriptor: standard input or ``<(command)``."""
    return entry.is_stdin or entry.path.parent in (
        Path("/dev"),
        Path("/dev/fd"),
        Path("/proc/self/fd"),
    )


def _content_of(entry: _Entry) -> Path | BinaryIO:
    if not entry.is_stdin:
        return entry.path
    # Unbuffered. It stays open, because descriptor 0 belongs to the process.
    return cast("BinaryIO", open(0, "rb", buffering=0, closefd=False))


def _exit_at_once(number: int, frame: FrameType | None) -> None:
    """End the process. The journal is on disk, so memory holds nothing that is needed later."""
    del number, frame
    if output.stderr is not None and output.stderr.isatty():
        # The progress bar hides the cursor: show it again.
        output.stderr.write_if_ready(b"\x1b[?25h\n")
    os._exit(ExitCode.INTERRUPTED)


# mimetypes returns the type of the uncompressed content, and the compression. The client
# sends a file as it is, so its type is that of the compressed file.
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
