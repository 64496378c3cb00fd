"""The options of ``trioresume serve`` about metrics, health checks, access log and traces."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Bind, switch
from trioresume.cli.service.plan import is_look
from trioresume.cli.service.traces import exporting

__all__ = ["watch_options"]


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--admin-bind",
        type=Bind(),
        multiple=True,
        help="Address, such as HOST:PORT or unix:PATH, for /metrics, /healthz and /readyz; may be "
        "repeated. It asks for no credentials: let only operators connect to it.",
    ),
    click.option(
        "--admin-page",
        type=click.Choice(["off", "read", "change"]),
        default="off",
        help="Page for operators at /admin/ of --admin-bind. It shows uploads, files, quotas, hooks "
        "and errors; with change it may also cancel, delete and retry.",
    ),
    click.option(
        "--admin-name",
        metavar="HOST",
        multiple=True,
        help="Name by which browsers may ask for this page, beside localhost and IP addresses; "
        "may be repeated.",
    ),
    switch(
        "--public-health",
        default=False,
        help="Answer GET /healthz on the public addresses, without credentials.",
    ),
    click.option(
        "--access-log",
        metavar="FILE",
        help="File to which a line is appended for each request; - is standard output. "
        "SIGHUP opens it again.",
    ),
    click.option(
        "--access-log-format",
        type=click.Choice(["common", "combined", "json"]),
        default="combined",
        help="Format of these lines.",
    ),
    switch(
        "--tracing",
        default=False,
        help="Send a span of OpenTelemetry for each request, to where the variables "
        "OTEL_EXPORTER_OTLP_… say. Needs the extra 'tracing'.",
    ),
)

_NAMES = (
    "admin_bind",
    "admin_page",
    "admin_name",
    "public_health",
    "access_log",
    "access_log_format",
    "tracing",
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def watch_options(
    command: Callable[Concatenate[trioresume.WatchSettings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add these options to *command*, which gets them as its first argument."""

    @functools.wraps(command)
    def with_watch(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        with exporting() if given["tracing"] else nullcontext():
            return command(_settings(**given), *args, **kwargs)

    wrapped: Callable[..., Any] = with_watch
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def _settings(
    admin_bind: tuple[str, ...],
    admin_page: Any,
    admin_name: tuple[str, ...],
    public_health: bool,
    access_log: str | None,
    access_log_format: Any,
    tracing: bool,
) -> trioresume.WatchSettings:
    try:
        log = (
            None
            if access_log is None or is_look()
            else trioresume.AccessLog(access_log, access_log_format)
        )
        return trioresume.WatchSettings(
            admin_bind=admin_bind,
            admin_page=admin_page,
            admin_names=admin_name,
            public_health=public_health,
            access_log=log,
            tracing=tracing,
        )
    except trioresume.CallerError as exc:
        raise click.UsageError(str(exc)) from exc
