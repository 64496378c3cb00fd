"""``trioresume serve``: the file service as a command, and ``trioresume token``."""

from __future__ import annotations

import dataclasses
import gc
import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import click
import trio

import trioresume
from trioresume.cli.edge import edge_options
from trioresume.cli.limits import Settings, limit_options
from trioresume.cli.options import (
    Bind,
    Duration,
    ExitCode,
    Size,
    common_options,
    switch,
)
from trioresume.cli.output import output

__all__ = ["serve", "token"]

logger = logging.getLogger("trioresume.cli")

_DEFAULTS = trioresume.Config()

_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):
    _SIGNALS.append(signal.SIGHUP)


@click.command()
@common_options
@click.option(
    "--bind",
    type=Bind(),
    multiple=True,
    default=tuple(_DEFAULTS.bind),
    help="Address to listen on; may be repeated. Port 0 takes a free one.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(str(_DEFAULTS.data_dir)),
    help="Where uploads and files are kept.",
)
@click.option("--base-path", default="/files/", help="Path of the file service.")
@click.option(
    "--tokens-file",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Bearer tokens that may use the service, as lines 'NAME SHA256' "
    "(see 'trioresume token'); without it, everybody may.",
)
@click.option(
    "--durability",
    type=click.Choice(["disk", "process"]),
    default=_DEFAULTS.durability,
    help="What announced bytes survive: power loss, or only the end of the process.",
)
@click.option("--public-url", help="Put before the locations that clients are told.")
@click.option(
    "--max-upload-size", type=Size(minimum=1), help="Longest content accepted."
)
@click.option(
    "--min-resumable-size",
    type=Size(),
    default=_DEFAULTS.min_resumable_size,
    help="Shorter content sent whole gets no upload resource of its own.",
)
@click.option(
    "--max-append-size",
    type=Size(minimum=1),
    help="Most content in one request of a resumable upload, as a proxy may demand.",
)
@click.option(
    "--min-append-size",
    type=Size(),
    default=_DEFAULTS.min_append_size,
    help="Least content in such a request, unless it is empty or the last.",
)
@switch(
    "--check-interop-version",
    default=_DEFAULTS.check_interop_version,
    help="Whether 104 is sent only to clients that name a draft's interop version.",
)
@click.option(
    "--incomplete-lifetime",
    type=Duration(minimum=1),
    default=_DEFAULTS.incomplete_lifetime,
    help="How long an incomplete upload is kept after its last request.",
)
@click.option(
    "--response-lifetime",
    type=Duration(minimum=1),
    default=_DEFAULTS.response_lifetime,
    help="How long a final response can be fetched again.",
)
@click.option(
    "--file-lifetime",
    type=Duration(minimum=1),
    help="How long a finished file is kept; for ever, if not given.",
)
@click.option(
    "--idle-timeout",
    type=Duration(minimum=0.1),
    default=_DEFAULTS.body_timeout,
    help="How long an upload may make no progress before it counts as cut.",
)
@click.option(
    "--grace-timeout",
    type=Duration(),
    default=_DEFAULTS.grace_timeout,
    help="How long running requests may take after SIGTERM or Ctrl-C.",
)
@switch("--ui", default=False, help="Serve a page for people to upload with, at /ui/.")
@limit_options
@edge_options
def serve(
    edge: Settings,
    limits: Settings,
    bind: tuple[str, ...],
    data_dir: Path,
    base_path: str,
    tokens_file: Path | None,
    durability: Literal["disk", "process"],
    public_url: str | None,
    max_upload_size: int | None,
    min_resumable_size: int,
    max_append_size: int | None,
    min_append_size: int,
    check_interop_version: bool,
    incomplete_lifetime: float,
    response_lifetime: float,
    file_lifetime: float | None,
    idle_timeout: float,
    grace_timeout: float,
    ui: bool,
) -> ExitCode:
    """Take uploads and keep them as files.

    SIGTERM or Ctrl-C ends it: no new requests, a grace period for the running ones.
    A second one stops at once. Nothing that was announced is lost either way. SIGHUP, as
    of a terminal that is closed, changes nothing.
    """
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)  # until _obey tells of it
    # Whoever waits for the service to end, such as a container runtime, waits not long.
    output.never_wait(linger=1.0)
    settings: dict[str, Any] = {**limits, **edge}
    _check_base_path(base_path)
    config = _config(
        bind=bind,
        data_dir=data_dir,
        authenticate=None if tokens_file is None else _tokens(tokens_file),
        durability=durability,
        public_url=None if public_url is None else public_url.rstrip("/"),
        max_upload_size=max_upload_size,
        min_resumable_size=min_resumable_size,
        max_append_size=max_append_size,
        min_append_size=min_append_size,
        check_interop_version=check_interop_version,
        incomplete_lifetime=incomplete_lifetime,
        response_lifetime=response_lifetime,
        file_lifetime=file_lifetime,
        body_timeout=idle_timeout,
        grace_timeout=grace_timeout,
        ui=base_path if ui else None,
        **settings,
    )
    _raise_descriptor_limit()
    _calm_collector()
    try:
        trio.run(
            _serve,
            config,
            base_path,
            restrict_keyboard_interrupt_to_checkpoints=True,
        )
    except* (OSError, trioresume.TrioresumeError) as group:
        raise click.ClickException(str(_first(group))) from group
    return ExitCode.DONE


def _config(**settings: Any) -> trioresume.Config:
    """The settings; what cannot be meant together is wrong usage."""
    try:
        return dataclasses.replace(_DEFAULTS, **settings)
    except trioresume.CallerError as exc:
        raise click.UsageError(str(exc)) from exc


def _tokens(path: Path) -> trioresume.Authenticator:
    """The tokens in *path*; a file that cannot be used is wrong usage."""
    try:
        return trioresume.bearer_tokens(path)
    except trioresume.CallerError as exc:
        raise click.UsageError(str(exc)) from exc
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be read: {exc.strerror}") from exc


def _check_base_path(base_path: str) -> None:
    try:
        trioresume.FileService(base_path)
    except trioresume.CallerError as exc:
        raise click.UsageError(f"--base-path {base_path!r}: {exc}") from exc


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(config: trioresume.Config, base_path: str) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                _running, config, base_path, nursery.cancel_scope
            )
            for url in server.urls:
                click.echo(f"You can now upload files to: {url}{base_path}")
            for url in server.urls if config.ui is not None else ():
                click.echo(f"In a browser: {url}/ui/")
            nursery.start_soon(_obey, signals, server, nursery.cancel_scope)


async def _running(
    config: trioresume.Config,
    base_path: str,
    whole: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[trioresume.Server],
) -> None:
    await trioresume.serve(
        trioresume.FileService(base_path), config, task_status=task_status
    )
    whole.cancel()


async def _obey(
    signals: AsyncIterator[int], server: trioresume.Server, whole: trio.CancelScope
) -> None:
    count = 0
    async for number in signals:
        if number not in (signal.SIGINT, signal.SIGTERM):
            logger.info("SIGHUP: there is nothing to read again, the service goes on")
            continue
        count += 1
        if count == 1:
            click.echo("Shutting down; once more stops at once.", err=True)
            server.shutdown()
        else:
            whole.cancel()


def _raise_descriptor_limit() -> None:
    """Each upload needs two descriptors: take as many as the system lets us have."""
    try:
        import resource
    except ImportError:
        return  # not on this system
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            pass  # some systems have a lower limit than they say


def _calm_collector() -> None:
    """Have the garbage collector look at little each time, and never at what stays.

    What a request made is freed with it: the collector is for accidents. With the usual
    thresholds it goes through all that thousands of open uploads are made of, again and
    again: with 3,500 of them for a quarter of a second, in which nobody is answered, and
    with 10,000 for a second. Looking at 2,000 new objects and at the few thousand before
    them takes 5 ms; at all of them it looks after some ten million. A library must not
    decide this for its process; a command may.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(2_000, 1, 5_000)


@click.command()
@common_options
@click.argument("name")
def token(name: str) -> None:
    """Make a bearer token for NAME.

    Prints the token, to be given to NAME, on the first line, and on the second the
    line for the file of 'trioresume serve --tokens-file'. The token is not kept.
    """
    secret, line = trioresume.new_token(name)
    click.echo(secret)
    click.echo(line)
