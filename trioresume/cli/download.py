"""``trioresume download``: fetch files, and resume after broken connections and stopped runs."""

from __future__ import annotations

import json
import signal
from collections.abc import AsyncIterator, Callable
from functools import partial
from pathlib import Path
from urllib.parse import unquote

import click
import trio

from trioresume import (
    Client,
    ClientResponse,
    ClientTls,
    Progress,
    RetryPolicy,
    TransferFailed,
    TrioresumeError,
    without_signature,
)
from trioresume.cli.help import Command
from trioresume.cli.options import Duration, ExitCode, common_options
from trioresume.cli.output import output
from trioresume.cli.progress import FileProgress, display
from trioresume.cli.request_options import RequestFields, request_options
from trioresume.cli.sections import DOWNLOAD
from trioresume.cli.sending import exit_at_once, refusal
from trioresume.cli.tls_options import tls_options
from trioresume.cli.upload_files import parts_of
from trioresume.text import printable

__all__ = ["download"]


@click.command(
    cls=Command,
    sections=DOWNLOAD,
    examples=(
        "trioresume download http://127.0.0.1:8080/files/film.mkv",
        "trioresume download --token-file token https://upload.example.org/files/film.mkv film.mkv",
    ),
)
@common_options
@click.argument("url")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--force", "-f", is_flag=True, help="Replace a FILE that exists.")
@click.option(
    "--checksum",
    is_flag=True,
    help="Print the SHA-256 before the name, and fail if the server does not tell one to "
    "compare it with.",
)
@request_options
@tls_options
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
    "--allow-redirect-to",
    metavar="URL",
    multiple=True,
    help="Follow redirects to this server, too; may be repeated. It gets no credentials.",
)
@click.option("--quiet", "-q", is_flag=True, help="Show no progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def download(
    tls: ClientTls,
    fields: RequestFields,
    url: str,
    file: Path | None,
    force: bool,
    checksum: bool,
    retry_for: float,
    idle_timeout: float,
    allow_redirect_to: tuple[str, ...],
    quiet: bool,
    as_json: bool,
) -> ExitCode:
    """Fetch URL into FILE, by default under the last part of the URL, and print its name.

    When the connection breaks, the command continues the download where it broke. If retries
    are used up, or after Ctrl-C, run the same command again to continue. Until the download
    is complete and has the digest that the server sends, the content is in FILE.part.
    """
    output.never_wait()
    path = _path_for(url, file)
    if path.exists() and not force:
        raise click.UsageError(
            f"{printable(str(path))} exists; use --force to replace it"
        )
    client = Client(
        headers=fields.for_url(url),
        tls=tls,
        redirect_origins=allow_redirect_to,
        retry=RetryPolicy(attempts=10**9, seconds=retry_for),
        idle_timeout=idle_timeout,
    )
    with display(quiet=quiet, count=1, size=0) as shown:
        bar = FileProgress(printable(path.name), str(path), None)
        shown.begin(bar)
        run = _Run(client, url, path, partial(shown.show, bar))
        try:
            trio.run(run.run, restrict_keyboard_interrupt_to_checkpoints=True)
        finally:
            shown.end(bar, ok=run.response is not None and run.response.ok)
    return _report(run, path, checksum=checksum, as_json=as_json)


class _Run:
    """Runs the download, and reacts to signals."""

    def __init__(
        self, client: Client, url: str, path: Path, show: Callable[[Progress], object]
    ) -> None:
        self.response: ClientResponse | None = None
        self.failure: Exception | None = None
        self._client = client
        self._url = url
        self._path = path
        self._show = show

    async def run(self) -> None:
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
            async with self._client, trio.open_nursery() as nursery:
                nursery.start_soon(self._watch, signals, nursery.cancel_scope)
                try:
                    self.response = await self._client.download(
                        self._url, self._path, on_progress=self._show
                    )
                except (TrioresumeError, OSError) as exc:
                    self.failure = exc
                nursery.cancel_scope.cancel()

    async def _watch(
        self, signals: AsyncIterator[int], whole: trio.CancelScope
    ) -> None:
        async for _ in signals:
            signal.signal(signal.SIGINT, exit_at_once)
            signal.signal(signal.SIGTERM, exit_at_once)
            whole.cancel()


def _report(run: _Run, path: Path, *, checksum: bool, as_json: bool) -> ExitCode:
    """Print what became of the download, and return the exit code."""
    response = run.response
    name = printable(str(path))
    if response is None and run.failure is None:
        click.echo("Stopped; run the same command again to continue.", err=True)
        return ExitCode.INTERRUPTED
    result: dict[str, object] = {"file": str(path)}
    code = ExitCode.FAILED
    problem: str | None
    if response is None:
        failure = run.failure
        if isinstance(failure, TransferFailed) and failure.resumable:
            code = ExitCode.UNFINISHED
        problem = str(failure)
        if isinstance(failure, OSError):
            problem = f"{name}: {failure.strerror or failure}"
    else:
        result.update(
            url=without_signature(response.url),
            status=response.status,
            attempts=response.attempts,
            sha256=response.sha256,
            confirmed=response.is_confirmed,
        )
        problem = (
            None
            if response.ok
            else f"{without_signature(response.url)}: {refusal(response)}"
        )
        if checksum and response.ok and not response.is_confirmed:
            problem = (
                f"{name}: it is there, but the server does not tell its SHA-256, so it was"
                f" not compared with {response.sha256}"
            )
    if problem is not None:
        result["error"] = problem
        click.echo(printable(problem), err=True)
    else:
        code = ExitCode.DONE
    if as_json:
        click.echo(json.dumps(result))
    elif problem is None and response is not None:
        click.echo(f"{response.sha256}  {name}" if checksum else name)
    return code


def _path_for(url: str, file: Path | None) -> Path:
    """Return the file to write. Raises :class:`click.UsageError` if the URL has no name."""
    parts = parts_of(url)
    name = unquote(parts.path.rpartition("/")[2])
    if file is not None and not file.is_dir():
        return file
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise click.UsageError("the URL has no name for the file: give FILE")
    return (file or Path()) / name
