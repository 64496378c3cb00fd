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

# Option, setting, type, help. If the setting is a list, the option may be repeated. If the
# setting is a boolean, the option is a switch.
EDGE: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    (
        "--operation-path",
        "operation_path",
        click.STRING,
        "URL path of unfinished uploads and their responses.",
    ),
    (
        "--root-path",
        "root_path",
        click.STRING,
        "Prefix that a proxy removes from each path, such as /up.",
    ),
    (
        "--relative-locations",
        "relative_locations",
        click.BOOL,
        "Never send an absolute location.",
    ),
    (
        "--interim-responses",
        "interim_responses",
        click.Choice(["all", "locations", "none"]),
        "Unrequested 1xx responses to send; some proxies accept few, or none.",
    ),
    (
        "--continue-without-expect",
        "continue_without_expect",
        click.BOOL,
        "Answer a request that has Prefer with 100, even without Expect.",
    ),
    (
        "--lenient-range-unit",
        "lenient_range_unit",
        click.BOOL,
        "Accept Content-Range without a unit: 3-9/10.",
    ),
    (
        "--strict-metadata",
        "strict_metadata",
        click.BOOL,
        "Refuse an Upload-Metadata value that is not Base64.",
    ),
    (
        "--trusted-proxy",
        "trusted_proxies",
        click.STRING,
        "Address or network of a proxy whose fields are believed; may be repeated.",
    ),
    (
        "--forwarded-fields",
        "forwarded_fields",
        click.Choice(["x-forwarded", "forwarded"]),
        "Fields that trusted proxies write: X-Forwarded-*, or Forwarded.",
    ),
    (
        "--cors-origin",
        "cors_origins",
        click.STRING,
        "Origin whose web pages may use the server; may be repeated; * for any.",
    ),
    (
        "--cors-credentials",
        "cors_credentials",
        click.BOOL,
        "Allow these pages to send cookies and client certificates.",
    ),
    (
        "--cors-max-age",
        "cors_max_age",
        Duration(),
        "How long a browser may cache these permissions.",
    ),
    (
        "--cors-request-field",
        "cors_request_fields",
        click.STRING,
        "Another request field that these pages may send; may be repeated.",
    ),
    (
        "--cors-response-field",
        "cors_response_fields",
        click.STRING,
        "Another response field that these pages may read; may be repeated.",
    ),
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def edge_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options of :data:`EDGE` to *command*.

    *command* gets their settings as its first argument.
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
