"""The options of ``trioresume serve`` that limit the resources that clients may use.

They are a table, because all have the same form: option, setting, type, help.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Duration, Size

__all__ = ["LIMITS", "Settings", "limit_options"]

_DEFAULTS = trioresume.Config()

_COUNT = click.IntRange(min=1)

_COUNT_OR_NONE = click.IntRange(min=0)
_SIZE_OR_NONE = Size()
_OR_NONE = (_COUNT_OR_NONE, _SIZE_OR_NONE)
"""Types whose value 0 means "no limit"."""

# Option, setting, type, help.
LIMITS: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    (
        "--max-connections",
        "max_connections",
        _COUNT,
        "Most connections at a time. At the limit, idle ones are closed, else 503.",
    ),
    (
        "--max-connections-per-address",
        "max_connections_per_address",
        _COUNT_OR_NONE,
        "Most connections of each client address; more are answered 429. 0: no limit.",
    ),
    (
        "--max-stored-bytes",
        "max_stored_bytes",
        _SIZE_OR_NONE,
        "Most space for all uploads and files together; more is answered 507. 0: no limit.",
    ),
    (
        "--min-free-space",
        "min_free_space",
        Size(),
        "Disk space that uploads leave free (at most 1/20 of the disk), else 507.",
    ),
    (
        "--max-stored-bytes-per-principal",
        "max_stored_bytes_per_principal",
        _SIZE_OR_NONE,
        "Most space for the uploads and files of each token's name. 0: no limit.",
    ),
    (
        "--max-open-uploads-per-principal",
        "max_open_uploads_per_principal",
        _COUNT_OR_NONE,
        "Most unfinished uploads of each token's name; more are answered 429. 0: no limit.",
    ),
    (
        "--max-upload-lifetime",
        "max_upload_lifetime",
        Duration(minimum=1),
        "How long an upload may take in total, however often it is resumed.",
    ),
    (
        "--header-timeout",
        "header_timeout",
        Duration(minimum=0.1),
        "How long a request's head may take to arrive.",
    ),
    (
        "--keep-alive-timeout",
        "keep_alive_timeout",
        Duration(minimum=0.1),
        "How long a connection may be idle between requests.",
    ),
    (
        "--min-body-rate",
        "min_body_rate",
        Size(),
        "Bytes a second below which an upload counts as making no progress.",
    ),
    (
        "--digest-budget",
        "digest_budget",
        Size(),
        "Bytes of joined tus uploads to hash per hour for each token's name.",
    ),
    (
        "--receive-memory",
        "receive_memory",
        Size(minimum=1),
        "Memory that all uploads together may use for content between network and disk.",
    ),
)

Settings = dict[str, object]
"""Attribute names of :class:`trioresume.Config`, and values."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def limit_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options of :data:`LIMITS` to *command*.

    *command* gets their settings as its first argument. 0 becomes None for the limits
    for which it means "no limit".
    """

    @functools.wraps(command)
    def with_limits(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        settings: Settings = {}
        for _, setting, kind, _ in LIMITS:
            value = kwargs.pop(setting)
            settings[setting] = None if kind in _OR_NONE and value == 0 else value
        return command(settings, *args, **kwargs)

    wrapped = cast("Callable[_P, _R]", with_limits)
    for option, setting, kind, text in reversed(LIMITS):
        default = getattr(_DEFAULTS, setting)
        wrapped = click.option(
            option,
            setting,
            type=kind,
            default=0 if default is None else default,
            help=text,
        )(wrapped)
    return wrapped
