"""The options of ``trioresume serve`` that bound what clients may take.

A table, because each is the same: an option, the setting it is, how it is written.
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
"""Types of which 0 means that there is no limit."""

# Option, setting, type, help.
LIMITS: tuple[tuple[str, str, click.ParamType[Any], str], ...] = (
    (
        "--max-connections",
        "max_connections",
        _COUNT,
        "Connections at a time; idle ones are closed for new ones, else 503.",
    ),
    (
        "--max-connections-per-address",
        "max_connections_per_address",
        _COUNT_OR_NONE,
        "The same for each client address, else 429; 0: no limit.",
    ),
    (
        "--max-stored-bytes",
        "max_stored_bytes",
        _SIZE_OR_NONE,
        "What all uploads and files together may take, else 507; 0: no limit.",
    ),
    (
        "--min-free-space",
        "min_free_space",
        Size(),
        "What uploads leave free of the disk, at most a twentieth of it, else 507.",
    ),
    (
        "--max-stored-bytes-per-principal",
        "max_stored_bytes_per_principal",
        _SIZE_OR_NONE,
        "What the uploads and files of each token's name may take; 0: no limit.",
    ),
    (
        "--max-open-uploads-per-principal",
        "max_open_uploads_per_principal",
        _COUNT_OR_NONE,
        "Unfinished uploads of each token's name, else 429; 0: no limit.",
    ),
    (
        "--max-upload-lifetime",
        "max_upload_lifetime",
        Duration(minimum=1),
        "How long an upload may take in all, however often it is resumed.",
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
        "Bytes of joined uploads that are hashed for each token's name in an hour.",
    ),
    (
        "--receive-memory",
        "receive_memory",
        Size(minimum=1),
        "Memory for content between the network and the disk, of all uploads together.",
    ),
)

Settings = dict[str, object]
"""From names of :class:`trioresume.Config` to values."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def limit_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: the options of :data:`LIMITS`, given to *command* as settings.

    *command* gets them as its first argument. A limit of which 0 means that there is none becomes None.
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
