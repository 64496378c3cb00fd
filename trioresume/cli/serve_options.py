"""The options of ``trioresume serve`` that are settings of the server, as tables.

Each row is an option, its setting in :class:`trioresume.Config`, its type and its help.
If the setting is a tuple, the option may be repeated. If its type is a Boolean, the
option is a switch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Duration, Size, switch

__all__ = [
    "LIMITS",
    "PROXIES_AND_BROWSERS",
    "UPLOADS",
    "Settings",
    "settings_options",
]

_DEFAULTS = trioresume.Config()

_Table = tuple[tuple[str, str, click.ParamType[Any], str], ...]

_COUNT = click.IntRange(min=1)
_COUNT_OR_NONE = click.IntRange(min=0)
_SIZE_OR_NONE = Size()
_OR_NONE = (_COUNT_OR_NONE, _SIZE_OR_NONE)
"""Types whose value 0 means "no limit"."""

UPLOADS: _Table = (
    (
        "--durability",
        "durability",
        click.Choice(["disk", "process"]),
        "What acknowledged bytes survive: disk: power loss; process: the process's end.",
    ),
    (
        "--public-url",
        "public_url",
        click.STRING,
        "URL to put before the locations that are sent to clients.",
    ),
    (
        "--max-upload-size",
        "max_upload_size",
        Size(minimum=1),
        "Largest upload to accept.",
    ),
    (
        "--min-resumable-size",
        "min_resumable_size",
        Size(),
        "A smaller upload that is sent whole in one request is not made resumable.",
    ),
    (
        "--max-append-size",
        "max_append_size",
        Size(minimum=1),
        "Largest content of one request of an upload; set it if a proxy has a limit.",
    ),
    (
        "--min-append-size",
        "min_append_size",
        Size(),
        "Smallest content of such a request, unless it is empty or the last one.",
    ),
    (
        "--check-interop-version",
        "check_interop_version",
        click.BOOL,
        "Send 104 only to clients that name an interop version of the draft.",
    ),
    (
        "--incomplete-lifetime",
        "incomplete_lifetime",
        Duration(minimum=1),
        "How long to keep an unfinished upload after its last request.",
    ),
    (
        "--response-lifetime",
        "response_lifetime",
        Duration(minimum=1),
        "How long clients can fetch a final response again.",
    ),
    (
        "--indeterminate-lifetime",
        "indeterminate_lifetime",
        Duration(minimum=1),
        "How long to keep content if it is not known whether its request took effect.",
    ),
    (
        "--retry-interval",
        "retry_interval",
        Duration(),
        "How often to try what a backend could not take; 0: only when a client asks.",
    ),
    (
        "--idle-timeout",
        "body_timeout",
        Duration(minimum=0.1),
        "How long an upload may make no progress before its connection is closed.",
    ),
    (
        "--grace-timeout",
        "grace_timeout",
        Duration(),
        "How long running requests may continue after SIGTERM or Ctrl-C.",
    ),
)

LIMITS: _Table = (
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
        "--max-streams",
        "max_streams",
        _COUNT,
        "Most requests at a time on one HTTP/2 connection.",
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
        "Most space for the uploads and files of each sender. 0: no limit.",
    ),
    (
        "--max-open-uploads-per-principal",
        "max_open_uploads_per_principal",
        _COUNT_OR_NONE,
        "Most unfinished uploads of each sender; more are answered 429. 0: no limit.",
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
        "Bytes of joined tus uploads to hash per hour for each sender.",
    ),
    (
        "--receive-memory",
        "receive_memory",
        Size(minimum=1),
        "Memory that all uploads together may use for content between network and disk.",
    ),
)

PROXIES_AND_BROWSERS: _Table = (
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
        "--http2",
        "http2",
        click.BOOL,
        "Offer HTTP/2 over TLS.",
    ),
    (
        "--h2c",
        "h2c",
        click.BOOL,
        "Also accept HTTP/2 without TLS, from proxies and clients that know of it.",
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

_TABLES = (*UPLOADS, *LIMITS, *PROXIES_AND_BROWSERS)

Settings = dict[str, Any]
"""Attribute names of :class:`trioresume.Config`, and values."""

_P = ParamSpec("_P")
_R = TypeVar("_R")


def settings_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options of the tables to *command*.

    *command* gets their settings as its first argument. 0 becomes None for the limits
    for which it means "no limit".
    """

    @functools.wraps(command)
    def with_settings(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        settings: Settings = {}
        for _, setting, kind, _ in _TABLES:
            value = kwargs.pop(setting)
            settings[setting] = None if kind in _OR_NONE and value == 0 else value
        return command(settings, *args, **kwargs)

    wrapped = cast("Callable[_P, _R]", with_settings)
    for option, setting, kind, text in reversed(_TABLES):
        default = getattr(_DEFAULTS, setting)
        if kind is click.BOOL:
            wrapped = switch(option, setting, default=default, help=text)(wrapped)
            continue
        wrapped = click.option(
            option,
            setting,
            type=kind,
            multiple=isinstance(default, tuple),
            default=0 if default is None and kind in _OR_NONE else default,
            help=text,
        )(wrapped)
    return wrapped
