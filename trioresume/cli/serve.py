"""``trioresume serve``: the service as a command, and ``trioresume token``."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import click
from click.core import ParameterSource

import trioresume
from trioresume.cli.applications import AppOptions, application_target
from trioresume.cli.cluster_options import (
    CLUSTER_CHUNK_SIZE,
    check_cluster,
    without_password,
)
from trioresume.cli.files_options import (
    FilesOptions,
    check_unused,
    file_service,
    files_options,
)
from trioresume.cli.help import Command
from trioresume.cli.hooks_options import ToldHooks, hooks_options
from trioresume.cli.identity_options import (
    Identity,
    authenticator,
    identity_options,
    senders,
)
from trioresume.cli.logs import LogFile, every_line_says
from trioresume.cli.options import (
    CONFIG_FILE,
    Bind,
    Duration,
    ExitCode,
    Mode,
    common_options,
    switch,
)
from trioresume.cli.output import output
from trioresume.cli.rules import configured_rules, with_file
from trioresume.cli.sections import SERVE, SERVE_NEEDS
from trioresume.cli.serve_options import Settings, settings_options
from trioresume.cli.service.plan import PLAN_TAKER, Plan
from trioresume.cli.service.reloads import Reloads
from trioresume.cli.service.running import ignore_hangups, start, start_worker
from trioresume.cli.service.systemd import (
    ServiceManager,
    chosen_sockets,
    expected_sockets,
    forget,
    handed_sockets,
)
from trioresume.cli.service.workers import Workers, own_seat, worker_command
from trioresume.cli.tls import tls_options
from trioresume.cli.ui_options import PageOptions, ui_options
from trioresume.cli.upstream_options import auth_options, upstream_options
from trioresume.cli.watch_options import watch_options

__all__ = ["serve", "token"]

_DEFAULTS = trioresume.Config()


@click.command(
    cls=Command,
    sections=SERVE,
    needs=SERVE_NEEDS,
    examples=(
        "trioresume serve --data-dir /srv/uploads",
        "trioresume serve --bind 0.0.0.0:443 --ssl-certfile chain.pem --ssl-keyfile key.pem",
        "trioresume serve --upstream http://127.0.0.1:3000",
    ),
)
@common_options
@click.option(
    "--bind",
    type=Bind(),
    multiple=True,
    default=tuple(_DEFAULTS.bind),
    help="Address to listen on: HOST:PORT, unix:PATH or fd:NUMBER; may be repeated. Port "
    "0 takes a free port. With a certificate it speaks TLS, unless it begins with http://.",
)
@click.option(
    "--unix-socket-mode",
    type=Mode(),
    default=f"{_DEFAULTS.unix_socket_mode:o}",
    help="Who may connect to the Unix sockets of --bind: the rights of their files.",
)
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(str(_DEFAULTS.data_dir)),
    help="Directory where uploads and files are stored.",
)
@click.option(
    "--catalog",
    metavar="URL",
    callback=without_password,
    help="PostgreSQL database with the catalog that the servers of a cluster share, as "
    "postgresql://USER@HOST/NAME. The password comes from PGPASSWORD or the file that "
    "PGPASSFILE names, ~/.pgpass by default.",
)
@click.option(
    "--objects",
    metavar="URL",
    help="Object store with the content of a cluster, as s3://BUCKET/PREFIX. The keys are "
    "where Amazon's own programs look for them.",
)
@click.option("--base-path", default="/files/", help="URL path of the file service.")
@click.option(
    "--file-lifetime",
    type=Duration(minimum=1),
    help="How long to keep a stored file. [default: forever]",
)
@ui_options
@click.option(
    "--app",
    metavar="MODULE:NAME",
    help="ASGI application that gets each complete request, instead of the file service.",
)
@switch("--wsgi", default=False, help="Whether the application is a WSGI one.")
@click.option(
    "--app-loop",
    type=click.Choice(["asyncio", "trio"]),
    default="asyncio",
    help="Event loop of an ASGI application: asyncio, in a thread, or the server's own.",
)
@click.option(
    "--app-threads",
    type=click.IntRange(min=1),
    default=8,
    help="Most requests that a WSGI application gets at a time.",
)
@click.option(
    "--front",
    type=click.Choice(["own", "hypercorn"]),
    default="own",
    help="What carries HTTP: the server's own code, or hypercorn's trio worker.",
)
@click.option(
    "--workers",
    type=Workers(),
    default="1",
    help="Processes that serve: a number, or auto for one per processor. With more than "
    "one, SIGHUP replaces them one generation after the other.",
)
@switch("--http3", default=False, help="Speak HTTP/3, too; needs --front hypercorn.")
@click.option(
    "--log-file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="File to which log messages are appended, instead of standard error. SIGHUP "
    "opens it again.",
)
@watch_options
@settings_options
@tls_options
@upstream_options
@auth_options
@identity_options
@files_options
@hooks_options
def serve(
    hooks: ToldHooks,
    files: FilesOptions,
    identity: Identity,
    auth: trioresume.AuthRequest | None,
    upstream: trioresume.UpstreamTarget | None,
    tls: Settings,
    settings: Settings,
    watch: trioresume.WatchSettings,
    page: PageOptions,
    bind: tuple[str, ...],
    unix_socket_mode: int,
    data_dir: Path,
    catalog: str | None,
    objects: str | None,
    base_path: str,
    file_lifetime: float | None,
    front: str,
    http3: bool,
    workers: int,
    log_file: Path | None,
    **app: Unpack[AppOptions],
) -> ExitCode:
    """Accept resumable uploads and store them as files, or send them to a backend.

    With --app an application gets them: the whole content at once, in an ordinary request,
    however often the upload was cut.

    SIGTERM or Ctrl-C stops the server: it accepts no new requests, and gives running
    requests some time to finish. A second signal stops it at once. In both cases no
    acknowledged byte is lost. SIGHUP makes the server read its certificates, tokens,
    passwords, keys, rules and hook secrets again, and open its log files again. No
    connection ends. With --workers it starts new workers, with the present configuration
    and program. The old ones finish their requests, and end.
    """
    take = click.get_current_context().meta.get(PLAN_TAKER)
    seat = own_seat()
    if isinstance(seat, trioresume.Seat):
        every_line_says(worker=seat.number)
        take = take or start_worker
        bind = tuple(seat.bind)
    manager = ServiceManager(os.environ, os.getpid())
    handed = handed_sockets(os.environ, os.getpid())
    reloads = Reloads()
    if isinstance(seat, trioresume.Seat):
        if log_file is not None:
            _log_to(log_file, reloads)
        output.never_wait(linger=1.0)
    elif take is not None:  # for a look at the plan
        handed = (*handed, *expected_sockets(bind))
    else:
        ignore_hangups()
        forget(os.environ)
        if log_file is not None:
            _log_to(log_file, reloads)
        # Wait only one second for a reader of the output: a container runtime, for
        # example, kills a process that does not end soon.
        output.never_wait(linger=1.0)
    target: trioresume.Target | trioresume.FileService | trioresume.UpstreamTarget
    names_owner = identity.downloads == "public"
    target = (
        _target(base_path, app, files, names_owner=names_owner)
        if upstream is None
        else upstream
    )
    if app["app"] is not None or upstream is not None:
        if app["app"] is not None and upstream is not None:
            raise click.UsageError("--app and --upstream exclude each other")
        if page["ui"] or file_lifetime is not None:
            raise click.UsageError("--ui and --file-lifetime are for the file service")
        check_unused(files)
        base_path = "/"
    if catalog is not None:
        check_cluster(workers=Workers.number(workers))
        settings["chunk_size"] = CLUSTER_CHUNK_SIZE
    if settings["public_url"] is not None:
        settings["public_url"] = settings["public_url"].rstrip("/")
    config = _config(
        bind=bind
        if isinstance(seat, trioresume.Seat)
        else chosen_sockets(bind, handed, is_given=is_given("bind")),
        unix_socket_mode=unix_socket_mode,
        data_dir=data_dir,
        catalog=catalog,
        objects=objects,
        authenticate=authenticator(
            identity,
            auth,
            tls["principal"],
            reloads,
            base_path if isinstance(target, trioresume.FileService) else None,
        ),
        hooks=hooks.added_to(reloads),
        ssl=tls["ssl"],
        file_lifetime=file_lifetime,
        ui=base_path if page["ui"] else None,
        ui_appearance=page["appearance"],
        rules=configured_rules(),
        watch=watch,
        **settings,
    )
    if watch.access_log is not None:
        reloads.add(
            "the access log",
            watch.access_log.reload,
            done="was opened again",
            kept="stays as it was",
        )
    (take or start)(
        Plan(
            config=config,
            base_path=base_path,
            target=target,
            run=_run(seat, Workers.number(workers), front, http3),
            has_workers=Workers.number(workers) > 1,
            reloads=reloads,
            manager=manager,
            senders=senders(identity, auth, tls["principal"]),
            downloads=identity.downloads,
            keeps_files=app["app"] is None and upstream is None,
            log_file=log_file,
            config_file=click.get_current_context().meta.get(CONFIG_FILE),
        )
    )
    return ExitCode.DONE


def is_given(name: str) -> bool:
    """Return whether somebody has set the parameter *name* of the running command."""
    context = click.get_current_context()
    return context.get_parameter_source(name) is not ParameterSource.DEFAULT


def _config(**settings: Any) -> trioresume.Config:
    """Return the settings. Settings that contradict each other are a usage error."""
    try:
        return dataclasses.replace(_DEFAULTS, **settings)
    except trioresume.CallerError as exc:
        raise click.UsageError(with_file(str(exc))) from exc


def _log_to(path: Path, reloads: Reloads) -> None:
    """Send the log to the file *path*. One that cannot be opened is a usage error."""
    try:
        file = LogFile(path)
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be opened: {exc.strerror}") from exc
    reloads.add(
        "the log file",
        file.reopen,
        done="was opened again",
        kept="stays as it was",
    )


def _run(
    seat: object, workers: int, front: str, http3: bool
) -> Callable[..., Awaitable[None]]:
    """Return the function that serves, as a worker, with workers, or alone."""
    if workers > 1 and front == "hypercorn":
        raise click.UsageError("--workers needs --front own")
    if isinstance(seat, trioresume.Seat):
        return partial(trioresume.serve_worker, seat=seat)
    if workers > 1:
        return partial(
            trioresume.serve_workers, count=workers, command=worker_command()
        )
    return _front(front, http3)


def _front(front: str, http3: bool) -> Callable[..., Awaitable[None]]:
    """Return the function that serves with the wanted front."""
    if front == "hypercorn":
        # Imported only here: it takes a third of a second.
        from trioresume.asgi import serve as serve_through_hypercorn

        return partial(serve_through_hypercorn, http3=http3)
    if http3:
        raise click.UsageError("--http3 needs --front hypercorn")
    return trioresume.serve


def _target(
    base_path: str, app: AppOptions, files: FilesOptions, *, names_owner: bool
) -> trioresume.Target | trioresume.FileService:
    """Return the receiver of the uploads. A base path that cannot be is a usage error."""
    try:
        return application_target(app) or file_service(
            base_path, files, names_owner=names_owner
        )
    except trioresume.CallerError as exc:
        raise click.UsageError(f"--base-path {base_path!r}: {exc}") from exc


@click.command(cls=Command, examples=("trioresume token anna >> token-of-anna",))
@common_options
@click.argument("name")
def token(name: str) -> None:
    """Create a bearer token for NAME.

    The first line of the output is the token: give it to NAME. Add the second line to the
    file of 'trioresume serve --tokens-file'. The token is not stored.
    """
    secret, line = trioresume.new_token(name)
    click.echo(secret)
    click.echo(line)
