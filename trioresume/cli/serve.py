"""``trioresume serve``: the file service as a command, and ``trioresume token``."""

from __future__ import annotations

import dataclasses
import gc
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Literal

import click
import trio

import trioresume
from trioresume.cli.options import Bind, Duration, ExitCode, Size, common_options

__all__ = ["serve", "token"]

_DEFAULTS = trioresume.Config()


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
def serve(
    bind: tuple[str, ...],
    data_dir: Path,
    base_path: str,
    tokens_file: Path | None,
    durability: Literal["disk", "process"],
    public_url: str | None,
    max_upload_size: int | None,
    incomplete_lifetime: float,
    response_lifetime: float,
    file_lifetime: float | None,
    idle_timeout: float,
    grace_timeout: float,
) -> ExitCode:
    """Take uploads and keep them as files.

    SIGTERM or Ctrl-C ends it: no new requests, a grace period for the running ones.
    A second one stops at once. Nothing that was announced is lost either way.
    """
    config = dataclasses.replace(
        _DEFAULTS,
        bind=bind,
        data_dir=data_dir,
        authenticate=None
        if tokens_file is None
        else trioresume.bearer_tokens(tokens_file),
        durability=durability,
        public_url=None if public_url is None else public_url.rstrip("/"),
        max_upload_size=max_upload_size,
        incomplete_lifetime=incomplete_lifetime,
        response_lifetime=response_lifetime,
        file_lifetime=file_lifetime,
        body_timeout=idle_timeout,
        grace_timeout=grace_timeout,
    )
    _raise_descriptor_limit()
    _calm_collector()
    try:
        trio.run(
            _serve, config, base_path, restrict_keyboard_interrupt_to_checkpoints=True
        )
    except* (OSError, trioresume.TrioresumeError) as group:
        raise click.ClickException(str(_first(group))) from group
    return ExitCode.DONE


def _first(group: BaseExceptionGroup[Exception]) -> BaseException:
    error: BaseException = group
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _serve(config: trioresume.Config, base_path: str) -> None:
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(
                _running, config, base_path, nursery.cancel_scope
            )
            for url in server.urls:
                click.echo(f"You can now upload files to: {url}{base_path}")
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
    async for _ in signals:
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
    """Have the garbage collector look less often, and never at what stays for good.

    A thousand uploads are many objects that live for seconds: with the usual threshold
    it went through all of them again and again, for a tenth of the CPU time. A library
    must not decide this for its process; a command may.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000)


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
