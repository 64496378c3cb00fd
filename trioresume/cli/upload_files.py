"""What ``trioresume upload`` sends: the files on its command line, their names and their URLs."""

from __future__ import annotations

import mimetypes
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path, PurePath
from typing import BinaryIO, cast
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import click

from trioresume import ProtocolName, without_signature
from trioresume.cli.options import ExitCode
from trioresume.cli.progress import FileProgress
from trioresume.text import printable

__all__ = [
    "Chosen",
    "Entry",
    "Job",
    "content_of",
    "disposition",
    "divide",
    "entries_of",
    "headers_of",
    "jobs_of",
    "media_type",
    "parts_of",
    "renamed",
]


@dataclass(frozen=True, slots=True)
class Entry:
    """A file to be sent, and its name below a collection."""

    path: Path
    name: PurePath
    is_stdin: bool = False
    """Whether it is standard input: the word ``-``. ``./-`` is a file of that name."""
    is_named: bool = False
    """Whether *name* was chosen by the user, so that even standard input has one."""
    problem: str | None = None
    """Why nothing of it can be sent, if that is known before it is opened."""


@dataclass(eq=False)
class Job:
    """One file to send, and its result."""

    entry: Entry
    url: str
    method: str
    size: int | None
    """Bytes. None for a pipe, and if the size is known only after reading."""
    parallel: int = 1
    """In how many parts the file is sent at the same time, at most."""
    exit_code: ExitCode = ExitCode.FAILED
    result: dict[str, object] = field(default_factory=dict)
    shown: FileProgress = field(init=False)

    @property
    def shown_url(self) -> str:
        """The URL for people and for logs, without a signature."""
        return without_signature(self.url)

    @property
    def path(self) -> Path:
        """The path of the file; for standard input the word ``-``."""
        return self.entry.path


@dataclass(frozen=True, slots=True)
class Chosen:
    """Which files of a directory are sent: those that match *include*, and not *exclude*.

    Without *include* all files are. A pattern without a slash is compared with the name,
    and a pattern with a slash with the path below the directory.
    """

    include: Sequence[str] = ()
    exclude: Sequence[str] = ()

    def takes_file(self, below: PurePath) -> bool:
        """Whether the file with the path *below* is sent."""
        wanted = not self.include or _matches(below, self.include)
        return wanted and not _matches(below, self.exclude)

    def takes_directory(self, below: PurePath) -> bool:
        """Whether files in the directory with the path *below* may be sent."""
        return not _matches(below, self.exclude)


def _matches(below: PurePath, patterns: Sequence[str]) -> bool:
    return any(
        fnmatchcase(str(below) if "/" in pattern else below.name, pattern)
        for pattern in patterns
    )


def entries_of(
    files: Sequence[str], *, recursive: bool, chosen: Chosen | None = None
) -> Iterator[Entry]:
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
            name = PurePath(path.name)
            yield Entry(path, name, word == _STDIN, problem=problem)
        elif recursive:
            yield from _entries_in(path, chosen or Chosen())
        else:
            raise click.UsageError(
                f"{printable(str(path))} is a directory; use --recursive to send its files"
            )


def _entries_in(directory: Path, chosen: Chosen) -> Iterator[Entry]:
    """Yield the regular files below *directory*, then the folders that cannot be listed."""
    root = Path(os.path.realpath(directory))
    unlisted: list[OSError] = []
    for folder, folders, names in os.walk(directory, onerror=unlisted.append):
        inside = Path(os.path.realpath(folder)).relative_to(root)
        folders[:] = sorted(
            name for name in folders if chosen.takes_directory(inside / name)
        )
        for name in sorted(names):
            path = Path(folder, name)
            if not chosen.takes_file(inside / name):
                continue
            if _may_be_file(path):
                yield Entry(path, PurePath(root.name, inside, name))
            else:
                click.echo(
                    f"{printable(str(path))} is not a regular file and is left out",
                    err=True,
                )
    for exc in unlisted:
        path = Path(os.fsdecode(exc.filename))
        yield Entry(
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


def parts_of(url: str) -> SplitResult:
    """Return the parts of *url*. Raises :class:`click.UsageError` if it cannot be used."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as exc:
        raise click.UsageError(f"{url!r} is not a URL: {exc}") from exc
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise click.UsageError(f"{url!r} is not an http:// or https:// URL")
    if "@" in parts.netloc:
        raise click.UsageError(
            f"the URL for {parts.hostname} contains a user name or a password; use --user, "
            "--netrc or --token-file"
        )
    return parts


def jobs_of(
    entries: Sequence[Entry],
    url: str,
    method: str | None,
    protocol: ProtocolName,
    *,
    recursive: bool,
) -> list[Job]:
    """Return a job for each file. Raises :class:`click.UsageError` for wrong arguments."""
    parts = parts_of(url)
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
            if entry.is_stdin and not entry.is_named:
                raise click.UsageError(
                    "standard input has no name: add a name to the URL, use --name, or use POST"
                )
            name = "/".join(
                quote(_name_bytes(PurePath(part)), safe="") for part in entry.name.parts
            )
            # Keep the query behind the name: it may be the signature of a signed URL.
            target = urlunsplit(parts._replace(path=(parts.path or "/") + name))
        jobs.append(Job(entry, target, method, _size_of(entry)))
    _check_targets(jobs)
    return jobs


def divide(jobs: Sequence[Job], parallel: int, protocol: ProtocolName) -> None:
    """Let each file be sent in parts. Raises :class:`click.UsageError` if one cannot be."""
    if protocol not in ("auto", "tus"):
        raise click.UsageError(
            f"--parallel sends the parts as uploads of tus, not of {protocol}"
        )
    for job in jobs:
        if job.method != "POST":
            raise click.UsageError(
                f"--parallel joins the parts by POST, not by {job.method}: use a URL that ends"
                " with a slash, without --method"
            )
        if job.entry.problem is None and not _has_parts(job.entry):
            name = "standard input" if job.entry.is_stdin else printable(str(job.path))
            raise click.UsageError(
                f"--parallel needs files whose size is known, and {name} is none"
            )
        job.parallel = parallel


def _has_parts(entry: Entry) -> bool:
    return not entry.is_stdin and _may_be_file(entry.path)


def _size_of(entry: Entry) -> int | None:
    """Return the size that the file system reports, or None if it is not known.

    Files in /proc, for example, report 0. Only reading tells their real size.
    """
    try:
        status = entry.path.stat()
    except OSError:
        return None
    regular = not entry.is_stdin and stat.S_ISREG(status.st_mode)
    return status.st_size if regular and status.st_size else None


def _check_targets(jobs: Sequence[Job]) -> None:
    """Refuse two jobs of which one would overwrite the other, before anything is sent.

    With POST each job creates a new file, so only a file that is named twice is refused.
    Raises :class:`click.UsageError`.
    """
    known: dict[tuple[str, str | None], Job] = {}
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
            f"name: both would be stored as {printable(job.shown_url)}"
        )


def _source_of(job: Job) -> str:
    """What tells the file from others; the path of a link that leads nowhere is its own."""
    return _STDIN if job.entry.is_stdin else os.path.realpath(job.path)


def _name_bytes(path: PurePath) -> bytes:
    """Return the file's name in UTF-8 if it is text, else its bytes unchanged."""
    try:
        return path.name.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # half of a UTF-16 pair, as Windows allows it
        return path.name.encode("utf-8", "replace")


def renamed(entries: Sequence[Entry], name: str) -> Entry:
    """Return the only one of *entries* with another name. Raises :class:`click.UsageError`."""
    if len(entries) != 1:
        raise click.UsageError("--name is for a single file")
    if not name or "/" in name or name in (".", ".."):
        raise click.UsageError(f"--name {name!r} is not the name of a file")
    return replace(entries[0], name=PurePath(name), is_named=True)


def headers_of(entry: Entry) -> dict[str, str]:
    """Return the fields that tell the media type and the name of *entry*."""
    headers = {"content-type": media_type(entry.name)}
    if entry.is_named or not _is_nameless(entry):
        headers["content-disposition"] = disposition(entry.name)
    return headers


def disposition(path: PurePath) -> str:
    """Return a Content-Disposition that suggests a name for the stored file.

    It uses the form of RFC 8187, which needs no quoting rules. That form must be UTF-8, so
    U+FFFD replaces each byte that is not.
    """
    name = _name_bytes(path).decode("utf-8", "replace")
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


def _is_nameless(entry: Entry) -> bool:
    """Return whether *entry* has only a descriptor: standard input or ``<(command)``."""
    return entry.is_stdin or entry.path.parent in (
        Path("/dev"),
        Path("/dev/fd"),
        Path("/proc/self/fd"),
    )


def content_of(entry: Entry) -> Path | BinaryIO:
    if not entry.is_stdin:
        return entry.path
    # Unbuffered. It stays open, because descriptor 0 belongs to the process.
    return cast("BinaryIO", open(0, "rb", buffering=0, closefd=False))


# mimetypes returns the type of the uncompressed content, and the compression. The client
# sends a file as it is, so its type is that of the compressed file.
_CODED = {
    "br": "application/x-brotli",
    "bzip2": "application/x-bzip2",
    "compress": "application/x-compress",
    "gzip": "application/gzip",
    "xz": "application/x-xz",
}


def media_type(path: PurePath) -> str:
    """Return the media type that the file's name suggests."""
    found, coding = mimetypes.guess_type(path.name)
    if coding is not None:
        found = _CODED.get(coding)
    return found or "application/octet-stream"
