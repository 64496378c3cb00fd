"""The options of ``trioresume serve`` about TLS."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import SecretFile
from trioresume.cli.serve_options import Settings

__all__ = ["tls_options"]


class _Files(click.Path):
    """The type of an option for an existing file; the option may be repeated."""

    # In an environment variable: separated by spaces, as in all options that may be repeated.
    envvar_list_splitter: ClassVar[str | None] = None  # type: ignore[assignment]

    def __init__(self) -> None:
        super().__init__(path_type=Path, exists=True, dir_okay=False)


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--ssl-certfile",
        type=_Files(),
        multiple=True,
        help="Certificate for TLS (PEM), followed by its chain; may be repeated for "
        "several hosts.",
    ),
    click.option(
        "--ssl-keyfile",
        type=_Files(),
        multiple=True,
        help="Private key of the certificate (PEM), one for each --ssl-certfile. Without "
        "it the key is in the same file.",
    ),
    click.option(
        "--ssl-keyfile-password-file",
        type=SecretFile(),
        help="File whose first line decrypts the private keys.",
    ),
    click.option(
        "--ssl-ca-certs",
        type=click.Path(path_type=Path, exists=True, dir_okay=False),
        help="Certificates of the authorities that sign clients' certificates (PEM).",
    ),
    click.option(
        "--ssl-client-auth",
        type=click.Choice(["none", "optional", "required"]),
        default="none",
        help="Whether a client is asked for a certificate, and must have one.",
    ),
    click.option(
        "--ssl-min-version",
        type=click.Choice(["1.2", "1.3"]),
        default="1.2",
        help="Oldest version of TLS to speak.",
    ),
    click.option(
        "--ssl-principal",
        type=click.Choice(["san", "fingerprint"]),
        help="Take the sender's name from the client's certificate: from its subject "
        "alternative name, or its SHA-256 fingerprint.",
    ),
)

_NAMES = (
    "ssl_certfile",
    "ssl_keyfile",
    "ssl_keyfile_password_file",
    "ssl_ca_certs",
    "ssl_client_auth",
    "ssl_min_version",
    "ssl_principal",
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def tls_options(
    command: Callable[Concatenate[Settings, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options of TLS to *command*.

    *command* gets ``ssl`` and ``principal`` as its first argument.
    """

    @functools.wraps(command)
    def with_tls(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        settings: Settings = {
            "ssl": _settings(**given),
            "principal": given["ssl_principal"],
        }
        return command(settings, *args, **kwargs)

    wrapped: Callable[..., Any] = with_tls
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def _settings(
    ssl_certfile: tuple[Path, ...],
    ssl_keyfile: tuple[Path, ...],
    ssl_keyfile_password_file: str | None,
    ssl_ca_certs: Path | None,
    ssl_client_auth: Any,
    ssl_min_version: Any,
    ssl_principal: str | None,
) -> trioresume.TLSSettings | None:
    """Return the settings, None without a certificate. A contradiction is a usage error."""
    if not ssl_certfile:
        if ssl_keyfile or ssl_keyfile_password_file or ssl_ca_certs or ssl_principal:
            raise click.UsageError("the options of TLS need --ssl-certfile")
        if ssl_client_auth != "none":
            raise click.UsageError("--ssl-client-auth needs --ssl-certfile")
        return None
    if ssl_keyfile and len(ssl_keyfile) != len(ssl_certfile):
        raise click.UsageError(
            "give one --ssl-keyfile for each --ssl-certfile, in the same order, or none"
        )
    if ssl_principal is not None and ssl_client_auth == "none":
        raise click.UsageError("--ssl-principal needs --ssl-client-auth")
    keys = ssl_keyfile or (None,) * len(ssl_certfile)
    try:
        return trioresume.TLSSettings(
            certificates=[
                trioresume.Certificate(certfile, keyfile, ssl_keyfile_password_file)
                for certfile, keyfile in zip(ssl_certfile, keys, strict=True)
            ],
            ca_certs=ssl_ca_certs,
            client_auth=ssl_client_auth,
            min_version=ssl_min_version,
        )
    except trioresume.CallerError as exc:
        raise click.UsageError(f"--ssl-client-auth, --ssl-ca-certs: {exc}") from exc
