"""The options of ``trioresume serve`` about proxies, browsers, and what clients may write."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.limits import Settings
from trioresume.cli.options import Duration, switch

__all__ = ["EDGE", "edge_options"]

_DEFAULTS = trioresume.Config()

# Option, setting, type, help. A setting that is a list makes an option that is
# repeated, one that is a truth value a switch.
EDGE: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    (
        "--operation-path",
        "operation_path",
        click.STRING,
        "Path under which unfinished uploads and their responses live.",
    ),
    (
        "--root-path",
        "root_path",
        click.STRING,
        "What a proxy takes off the front of each path, as /up.",
    ),
    (
        "--relative-locations",
        "relative_locations",
        click.BOOL,
        "Never tell an absolute location.",
    ),
    (
        "--interim-responses",
        "interim_responses",
        click.Choice(["all", "locations", "none"]),
        "Unasked 1xx responses to send; a proxy may take few, or none.",
    ),
    (
        "--continue-without-expect",
        "continue_without_expect",
        click.BOOL,
        "Answer Prefer with 100 also where Expect is missing.",
    ),
    (
        "--lenient-range-unit",
        "lenient_range_unit",
        click.BOOL,
        "Take Content-Range: 3-9/10, without a unit.",
    ),
    (
        "--strict-metadata",
        "strict_metadata",
        click.BOOL,
        "Refuse a value of Upload-Metadata that is not Base64.",
    ),
    (
        "--trusted-proxy",
        "trusted_proxies",
        click.STRING,
        "Address or network of a proxy that is believed; may be repeated.",
    ),
    (
        "--forwarded-fields",
        "forwarded_fields",
        click.Choice(["x-forwarded", "forwarded"]),
        "What trusted proxies write: X-Forwarded-*, or Forwarded.",
    ),
    (
        "--cors-origin",
        "cors_origins",
        click.STRING,
        "Origin whose pages may use the service; may be repeated; * for any.",
    ),
    (
        "--cors-credentials",
        "cors_credentials",
        click.BOOL,
        "Let these pages have cookies and client certificates sent along.",
    ),
    (
        "--cors-max-age",
        "cors_max_age",
        Duration(),
        "How long a browser may remember what these pages may do.",
    ),
    (
        "--cors-request-field",
        "cors_request_fields",
        click.STRING,
        "Further field that these pages may send; may be repeated.",
    ),
    (
        "--cors-response-field",
        "cors_response_fields",
        click.STRING,
        "Further field that these pages may read; may be repeated.",
    ),
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def edge_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: the options of :data:`EDGE`, given to *command* as settings.

    *command* gets them as its first argument.
    """

    def with_settings(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        settings: Settings = {name: kwargs.pop(name) for _, name, _, _ in EDGE}
        return command(settings, *args, **kwargs)

    wrapped = cast("Callable[_P, _R]", functools.wraps(command)(with_settings))
    for option, setting, kind, text in reversed(EDGE):
        default = getattr(_DEFAULTS, setting)
        if kind is click.BOOL:
            wrapped = switch(option, setting, default=default, help=text)(wrapped)
            continue
        wrapped = click.option(
            option,
            setting,
            type=kind,
            multiple=isinstance(default, tuple),
            default=default,
            help=text,
        )(wrapped)
    return wrapped
