"""The options of ``trioresume serve`` for a backend behind it."""

from __future__ import annotations

import functools
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Duration, Size, switch

__all__ = ["auth_options", "upstream_options"]

_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--upstream",
        metavar="URL",
        multiple=True,
        help="Send requests to the backend at http://, https:// or unix:PATH, instead of "
        "storing files. Several take turns.",
    ),
    click.option(
        "--route",
        metavar="PREFIX=URL",
        multiple=True,
        help="Another backend for the paths below a prefix; may be repeated.",
    ),
    click.option(
        "--pass-through-size",
        type=Size(),
        default=64 * 1024,
        help="A request with at most this much content that nobody wants to resume is "
        "passed to the backend while it arrives.",
    ),
    click.option(
        "--upstream-timeout",
        type=Duration(minimum=0.1),
        default=300.0,
        help="How long a backend may make no progress: then 504.",
    ),
    click.option(
        "--upstream-connect-timeout",
        type=Duration(minimum=0.1),
        default=10.0,
        help="How long connecting to a backend may take.",
    ),
    click.option(
        "--upstream-host",
        metavar="NAME",
        help="Host to name in requests to the backend. [default: the client's]",
    ),
    click.option(
        "--upstream-forwarded",
        type=click.Choice(["x-forwarded", "forwarded", "none"]),
        default="x-forwarded",
        help="Fields that tell the backend who sent a request.",
    ),
    click.option(
        "--upstream-cacert",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Authorities to trust for https:// backends, instead of the system's (PEM).",
    ),
    switch(
        "--upstream-idempotency-keys",
        default=False,
        help="The backend respects Idempotency-Key: send a request again when its "
        "connection was lost, whatever its method.",
    ),
)

_AUTH_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--auth-request",
        metavar="URL",
        help="Ask this service, before any content, whether a request is let in.",
    ),
    click.option(
        "--auth-principal-field",
        metavar="FIELD",
        help="Field of its answer that names the sender.",
    ),
    click.option(
        "--auth-cache",
        type=Duration(),
        default=0.0,
        help="How long to remember that a request is let in.",
    ),
)

_NAMES = (
    "upstream",
    "route",
    "pass_through_size",
    "upstream_timeout",
    "upstream_connect_timeout",
    "upstream_host",
    "upstream_forwarded",
    "upstream_cacert",
    "upstream_idempotency_keys",
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def auth_options(
    command: Callable[Concatenate[trioresume.AuthRequest | None, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options of the authentication by a subrequest to *command*."""

    @functools.wraps(command)
    def with_auth(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        url: Any = kwargs.pop("auth_request")
        name: Any = kwargs.pop("auth_principal_field")
        cache: Any = kwargs.pop("auth_cache")
        if url is None:
            if name is not None or cache:
                raise click.UsageError("--auth-… needs --auth-request")
            return command(None, *args, **kwargs)
        try:
            auth = trioresume.AuthRequest(url, principal_field=name, cache=cache)
        except trioresume.CallerError as exc:
            raise click.UsageError(f"--auth-request: {exc}") from exc
        return command(auth, *args, **kwargs)

    wrapped: Callable[..., Any] = with_auth
    for option in reversed(_AUTH_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def upstream_options(
    command: Callable[Concatenate[trioresume.UpstreamTarget | None, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets the target they describe, or None."""

    @functools.wraps(command)
    def with_upstream(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        return command(_target(**given), *args, **kwargs)

    wrapped: Callable[..., Any] = with_upstream
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def _target(
    upstream: tuple[str, ...],
    route: tuple[str, ...],
    pass_through_size: int,
    upstream_timeout: float,
    upstream_connect_timeout: float,
    upstream_host: str | None,
    upstream_forwarded: Any,
    upstream_cacert: Path | None,
    upstream_idempotency_keys: bool,
) -> trioresume.UpstreamTarget | None:
    if not upstream and not route:
        return None
    routes: dict[str, list[str]] = {}
    for each in route:
        prefix, found, url = each.partition("=")
        if not found:
            raise click.UsageError(f"--route {each!r} is not PREFIX=URL")
        routes.setdefault(prefix, []).append(url)
    tls = None
    if upstream_cacert is not None:
        try:
            tls = ssl.create_default_context(cafile=upstream_cacert)
            tls.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF  # a cut is no end
        except ssl.SSLError as exc:
            raise click.UsageError(
                f"{upstream_cacert} has no certificate in PEM"
            ) from exc
    try:
        return trioresume.UpstreamTarget(
            *upstream,
            routes=routes,
            pass_through_size=pass_through_size,
            timeout=upstream_timeout,
            connect_timeout=upstream_connect_timeout,
            host=upstream_host,
            forwarded=upstream_forwarded,
            repeats_with_key=upstream_idempotency_keys,
            tls=tls,
        )
    except trioresume.CallerError as exc:
        raise click.UsageError(f"--upstream, --route: {exc}") from exc
