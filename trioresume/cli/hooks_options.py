"""The options of ``trioresume serve`` for hooks. tusd has the same names for most of them."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Duration, Size
from trioresume.cli.service.reloads import Reloads

__all__ = ["ToldHooks", "hooks_options"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_DEFAULTS = trioresume.Hooks(lambda _: _nothing())


async def _nothing() -> None:
    """Answer nothing: the receiver of the defaults, which nobody calls."""


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--hooks-http",
        metavar="URL",
        help="Send the events of uploads to http://, https:// or unix:PATH.",
    ),
    click.option(
        "--hooks-http-secret-file",
        type=_FILE,
        help="File with the secrets that sign what is sent, one a line, whsec_ and Base64 "
        "(Standard Webhooks).",
    ),
    click.option(
        "--hooks-http-forward-headers",
        metavar="NAMES",
        default="",
        help="Fields of the client's requests to send along, with commas between.",
    ),
    click.option(
        "--hooks-http-retry",
        type=click.IntRange(min=0),
        default=_DEFAULTS.retries,
        help="How often to ask again while a client waits, if the receiver cannot be reached.",
    ),
    click.option(
        "--hooks-http-backoff",
        type=Duration(),
        default=_DEFAULTS.backoff,
        help="Pause before a question is sent again. For an event it doubles each time.",
    ),
    click.option(
        "--hooks-http-timeout",
        type=Duration(minimum=0.1),
        default=_DEFAULTS.timeout,
        help="How long the receiver may take to answer.",
    ),
    click.option(
        "--hooks-http-size-limit",
        type=Size(),
        default=5 * 1024,
        help="Longest answer of the receiver.",
    ),
    click.option(
        "--hooks-http-cacert",
        type=_FILE,
        help="Authorities to trust for https://, instead of the system's (PEM).",
    ),
    click.option(
        "--hooks-dir",
        type=click.Path(path_type=Path, exists=True, file_okay=False),
        help="Directory with executables that are named as the events, such as post-finish.",
    ),
    click.option(
        "--hooks-dir-timeout",
        type=Duration(minimum=0.1),
        default=_DEFAULTS.timeout,
        help="How long an executable may run before it is killed.",
    ),
    click.option(
        "--hooks-enabled-events",
        metavar="NAMES",
        default=",".join(
            kind for kind in trioresume.HookKind if kind in _DEFAULTS.events
        ),
        help="Events to send, with commas between. There are also pre-finish, "
        "pre-terminate, expired and interrupted.",
    ),
    click.option(
        "--hooks-give-up-after",
        type=Duration(),
        default=_DEFAULTS.give_up_after,
        help="How long to try to deliver an event; see 'trioresume hooks'.",
    ),
    click.option(
        "--hooks-max-waiting",
        type=click.IntRange(min=1),
        default=_DEFAULTS.max_waiting,
        help="Most events that wait; beyond this, new uploads are answered 503.",
    ),
    click.option(
        "--progress-hooks-interval",
        type=Duration(minimum=0.1),
        default=_DEFAULTS.progress_interval,
        help="Shortest time between two post-receive events of an upload.",
    ),
)

_NAMES = (
    "hooks_http",
    "hooks_http_secret_file",
    "hooks_http_forward_headers",
    "hooks_http_retry",
    "hooks_http_backoff",
    "hooks_http_timeout",
    "hooks_http_size_limit",
    "hooks_http_cacert",
    "hooks_dir",
    "hooks_dir_timeout",
    "hooks_enabled_events",
    "hooks_give_up_after",
    "hooks_max_waiting",
    "progress_hooks_interval",
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


@dataclass(frozen=True, slots=True)
class ToldHooks:
    """What the options say about hooks."""

    hooks: trioresume.Hooks | None = None
    http: trioresume.HTTPHooks | None = None

    def added_to(self, reloads: Reloads) -> trioresume.Hooks | None:
        """Have SIGHUP read the secrets again; return the hooks."""
        if self.http is not None:
            reloads.add("the secrets of hooks", self.http.reload)
        return self.hooks


def hooks_options(
    command: Callable[Concatenate[ToldHooks, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets what they say."""

    @functools.wraps(command)
    def with_hooks(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        try:
            told = _told(given)
        except trioresume.CallerError as exc:
            raise click.UsageError(f"--hooks-…: {exc}") from exc
        return command(told, *args, **kwargs)

    wrapped: Callable[..., Any] = with_hooks
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def _told(given: dict[str, Any]) -> ToldHooks:
    url, directory = given["hooks_http"], given["hooks_dir"]
    if url is not None and directory is not None:
        raise click.UsageError("--hooks-http and --hooks-dir exclude each other")
    shared = {
        "events": frozenset(_names(given["hooks_enabled_events"])),
        "give_up_after": given["hooks_give_up_after"],
        "max_waiting": given["hooks_max_waiting"],
        "progress_interval": given["progress_hooks_interval"],
        "retries": given["hooks_http_retry"],
        "backoff": given["hooks_http_backoff"],
    }
    if directory is not None:
        receiver = trioresume.ExecutableHooks(directory)
        timeout = given["hooks_dir_timeout"]
        return ToldHooks(trioresume.Hooks(receiver, timeout=timeout, **shared))
    if url is None:
        if given["hooks_http_secret_file"] is not None:
            raise click.UsageError("--hooks-http-secret-file needs --hooks-http")
        return ToldHooks()
    http = trioresume.HTTPHooks(
        url,
        secret_file=given["hooks_http_secret_file"],
        forward_headers=_names(given["hooks_http_forward_headers"]),
        size_limit=given["hooks_http_size_limit"],
        timeout=given["hooks_http_timeout"],
        tls=_tls(given["hooks_http_cacert"]),
    )
    timeout = given["hooks_http_timeout"]
    return ToldHooks(trioresume.Hooks(http, timeout=timeout, **shared), http)


def _names(text: str) -> list[str]:
    return [name for each in text.split(",") if (name := each.strip())]


def _tls(path: Path | None) -> ssl.SSLContext | None:
    if path is None:
        return None
    try:
        context = ssl.create_default_context(cafile=path)
    except ssl.SSLError as exc:
        raise click.UsageError(f"{path} has no certificate in PEM") from exc
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # a cut is no end
    return context
