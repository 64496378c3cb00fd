"""The options of the commands that connect to ``https://``."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

from trioresume import CallerError, ClientTls

__all__ = ["tls_options"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def tls_options(command: Callable[Concatenate[ClientTls, _P], _R]) -> Callable[_P, _R]:
    """Decorator: add the options for TLS to *command*, which gets them as its first argument."""

    @click.option(
        "--cacert",
        type=_FILE,
        help="PEM file with the authorities to trust, instead of the system's.",
    )
    @click.option(
        "--cert", type=_FILE, help="PEM file with the certificate of this client."
    )
    @click.option(
        "--key",
        type=_FILE,
        help="PEM file with its private key, if --cert does not have it.",
    )
    @click.option(
        "--insecure",
        "-k",
        is_flag=True,
        help="Do not check the server's certificate. Anybody on the way can read and "
        "change what is sent.",
    )
    @functools.wraps(command)
    def with_tls(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        names = ("cacert", "cert", "key", "insecure")
        given: dict[str, Any] = {name: kwargs.pop(name) for name in names}
        try:
            tls = ClientTls(**given)
        except CallerError as exc:
            raise click.UsageError(str(exc)) from exc
        return command(tls, *args, **kwargs)

    return cast("Callable[_P, _R]", with_tls)
