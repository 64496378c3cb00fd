"""The options of ``trioresume serve`` about who may use it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import Duration
from trioresume.cli.service.reloads import Reloads

__all__ = ["Identity", "authenticator", "identity_options"]

_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)

_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--downloads",
        type=click.Choice(["owner", "public", "signed"]),
        default="owner",
        help="Who may download files: their owner, everybody who knows the address, or only "
        "who has a signed address.",
    ),
    click.option(
        "--tokens-file",
        type=_FILE,
        help="File with the bearer tokens that are allowed, as lines 'NAME SHA256' "
        "(see 'trioresume token'). Without this and the options below everybody may use "
        "the server.",
    ),
    click.option(
        "--htpasswd-file",
        type=_FILE,
        help="File with names and bcrypt hashes of passwords, as 'htpasswd -B' writes it.",
    ),
    click.option(
        "--signing-keys",
        type=_FILE,
        help="File with the keys of signed addresses, as lines 'ID SECRET' (see 'trioresume "
        "signing-key').",
    ),
    click.option(
        "--jwt-keys",
        metavar="FILE|URL",
        help="Let in who has a JWT that a key of this file (PEM, JWK or JWK set) or of the "
        "JWK set at this URL verifies.",
    ),
    click.option(
        "--jwt-algorithm",
        "jwt_algorithms",
        metavar="NAME",
        multiple=True,
        help="Algorithm that JWTs may have, such as ES256; may be repeated. [default: those "
        "of the keys]",
    ),
    click.option(
        "--jwt-audience",
        metavar="NAME",
        multiple=True,
        help="Name of this service as the audience of JWTs; may be repeated. Without it a "
        "JWT that has an audience is refused.",
    ),
    click.option(
        "--jwt-issuer",
        metavar="NAME",
        help="Issuer that JWTs must have. [default: any]",
    ),
    click.option(
        "--jwt-principal-claim",
        metavar="CLAIM",
        default="sub",
        help="Claim of a JWT that is the sender's name.",
    ),
    click.option(
        "--jwt-leeway",
        type=Duration(),
        default=30.0,
        help="By how much the clock of a JWT's issuer may differ.",
    ),
    click.option(
        "--jwt-max-lifetime",
        type=Duration(minimum=1),
        default=24 * 3600.0,
        help="How long a JWT may be valid at most.",
    ),
    click.option(
        "--jwt-cacert",
        type=_FILE,
        help="Authorities to trust for the URL of --jwt-keys, instead of the system's "
        "(PEM).",
    ),
)

_NAMES = (
    "downloads",
    "tokens_file",
    "htpasswd_file",
    "signing_keys",
    "jwt_keys",
    "jwt_algorithms",
    "jwt_audience",
    "jwt_issuer",
    "jwt_principal_claim",
    "jwt_leeway",
    "jwt_max_lifetime",
    "jwt_cacert",
)

_NEEDS_KEYS = ("jwt_algorithms", "jwt_audience", "jwt_issuer", "jwt_cacert")

_P = ParamSpec("_P")
_R = TypeVar("_R")
_T = TypeVar("_T")

_Known = trioresume.BearerTokens | trioresume.JsonWebTokens | trioresume.PasswordFile

_READ_AGAIN: dict[type, str] = {
    trioresume.BearerTokens: "the tokens",
    trioresume.JsonWebTokens: "the keys of JWTs",
    trioresume.PasswordFile: "the passwords",
}
"""What the log calls the files of each authenticator."""


@dataclass(frozen=True, slots=True)
class Identity:
    """What the options say about senders."""

    known: tuple[_Known, ...]
    """The authenticators, in the order in which they are asked."""
    signed: trioresume.SignedAddresses | None
    """The one of signed addresses, which is asked before all others."""
    downloads: Any
    """Who may download: ``owner``, ``public`` or ``signed``."""

    def add_to(self, reloads: Reloads) -> None:
        """Have SIGHUP read the files of the authenticators again."""
        for each in self.known:
            reloads.add(_READ_AGAIN[type(each)], each.reload)
        if self.signed is not None:
            reloads.add("the keys of signed addresses", self.signed.reload)


def identity_options(
    command: Callable[Concatenate[Identity, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets what they say."""

    @functools.wraps(command)
    def with_identity(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        given: dict[str, Any] = {name: kwargs.pop(name) for name in _NAMES}
        return command(_identity(**given), *args, **kwargs)

    wrapped: Callable[..., Any] = with_identity
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)


def senders(
    identity: Identity, auth: trioresume.AuthRequest | None, certificate_name: Any
) -> str | None:
    """Return who may use the service, in words; None if anybody may."""
    known = [] if identity.signed is None else ["holders of a signed address"]
    if certificate_name is not None:
        known.append("clients with a certificate")
    for each in identity.known:
        if isinstance(each, trioresume.BearerTokens):
            count = len(each.names)
            known.append(f"{count} {'name' if count == 1 else 'names'} with a token")
        else:
            known.append(_OWNERS[type(each)])
    if auth is not None:
        known.append("those that --auth-request accepts")
    return ", ".join(known) or None


_OWNERS: dict[type, str] = {
    trioresume.JsonWebTokens: "owners of a JWT",
    trioresume.PasswordFile: "names with a password",
}


def _identity(
    downloads: str,
    tokens_file: Path | None,
    htpasswd_file: Path | None,
    signing_keys: Path | None,
    **jwt: Any,
) -> Identity:
    known: list[_Known] = []
    if tokens_file is not None:
        known.append(_made(tokens_file, lambda: trioresume.bearer_tokens(tokens_file)))
    if jwt["jwt_keys"] is not None:
        known.append(_made(jwt["jwt_keys"], lambda: _jwt(**jwt)))
    else:
        for name in _NEEDS_KEYS:
            if jwt[name]:
                option = name.removesuffix("s").replace("_", "-")
                raise click.UsageError(f"--{option} needs --jwt-keys")
    if htpasswd_file is not None:
        known.append(
            _made(htpasswd_file, lambda: trioresume.PasswordFile(htpasswd_file))
        )
    signed = None
    if signing_keys is not None:
        signed = _made(signing_keys, lambda: trioresume.SignedAddresses(signing_keys))
    if downloads == "signed" and signed is None:
        raise click.UsageError("--downloads signed needs --signing-keys")
    return Identity(tuple(known), signed, downloads)


def _jwt(
    jwt_keys: str,
    jwt_algorithms: tuple[str, ...],
    jwt_audience: tuple[str, ...],
    jwt_issuer: str | None,
    jwt_principal_claim: str,
    jwt_leeway: float,
    jwt_max_lifetime: float,
    jwt_cacert: Path | None,
) -> trioresume.JsonWebTokens:
    return trioresume.JsonWebTokens(
        jwt_keys,
        algorithms=jwt_algorithms,
        audience=jwt_audience,
        issuer=jwt_issuer,
        principal_claim=jwt_principal_claim,
        leeway=jwt_leeway,
        max_lifetime=jwt_max_lifetime,
        tls=None if jwt_cacert is None else trioresume.ClientTls(cacert=jwt_cacert),
    )


def _made(path: Path | str, make: Callable[[], _T]) -> _T:
    """Return what *make* makes from the file *path*. A bad file is a usage error."""
    try:
        return make()
    except trioresume.CallerError as exc:
        raise click.UsageError(str(exc)) from exc
    except OSError as exc:
        raise click.UsageError(f"{path} cannot be read: {exc.strerror}") from exc


def authenticator(
    identity: Identity,
    auth: trioresume.AuthRequest | None,
    certificate_name: Any,
    reloads: Reloads,
    files: str | None,
) -> trioresume.Authenticator | None:
    """Return the check of senders: by the address, their certificate, and in other ways.

    *files* is the path of the file service, None if there is none.
    """
    known = _senders(identity, auth, certificate_name, reloads)
    if identity.downloads == "owner":
        return known
    if known is None:
        raise click.UsageError(
            "--downloads is for a service that knows its senders: without"
            " authentication everybody may download everything"
        )
    if files is None:
        raise click.UsageError("--downloads is for the file service")
    return trioresume.Downloads(identity.downloads, known, base=files)


def _senders(
    identity: Identity,
    auth: trioresume.AuthRequest | None,
    certificate_name: Any,
    reloads: Reloads,
) -> trioresume.Authenticator | None:
    identity.add_to(reloads)
    known: list[trioresume.Authenticator] = [*identity.known]
    if auth is not None:
        known.append(auth)
    other: trioresume.Authenticator | None = None
    if known:
        other = known[0] if len(known) == 1 else trioresume.AnyOf(*known)
    if certificate_name is not None:
        other = trioresume.client_certificates(certificate_name, other)
    if identity.signed is None:
        return other
    return (
        identity.signed if other is None else trioresume.AnyOf(identity.signed, other)
    )
