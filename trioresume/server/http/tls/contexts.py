"""The server's certificates as OpenSSL contexts, chosen by host name and read again on demand.

Each certificate has a context of its own. A handshake begins with the first one. When the
client names a host (SNI), the callback puts the context of that host's certificate in its
place. All else is the same in every context.

A host name belongs to the first certificate whose subject alternative name contains it. To
read these names, a client in memory shakes hands with the context. So the standard library
decodes the certificate, and a certificate that no client can use is noticed at the start.
"""

from __future__ import annotations

import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.errors import CallerError
from trioresume.server.api.tls import MIN_VERSIONS

if TYPE_CHECKING:
    from trioresume.server.api.tls import Certificate, TLSSettings

__all__ = ["ServerContexts", "ends_of_validity"]

logger = logging.getLogger("trioresume.server")

_NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME, which Python does not name: an expired certificate has names, too."""

_CLIENT_AUTH = {
    "none": ssl.CERT_NONE,
    "optional": ssl.CERT_OPTIONAL,
    "required": ssl.CERT_REQUIRED,
}


class ServerContexts:
    """The context for the next handshake.

    Raises :class:`~trioresume.errors.CallerError` if a file cannot be read or used.
    """

    def __init__(
        self, settings: TLSSettings | ssl.SSLContext, protocols: Sequence[str]
    ) -> None:
        self._settings = settings
        self._protocols = protocols
        self.first: ssl.SSLContext
        """The context with which each handshake begins."""
        if isinstance(settings, ssl.SSLContext):
            self.first = settings  # its owner has set everything
        else:
            self.first = self._loaded(settings)

    def reload(self) -> None:
        """Read all files again. Connections keep the certificate that they have.

        Raises :class:`~trioresume.errors.CallerError` as the constructor does; nothing has
        changed then. Does nothing for a context that the embedding program made.
        """
        if not isinstance(self._settings, ssl.SSLContext):
            self.first = self._loaded(self._settings)

    def _loaded(self, settings: TLSSettings) -> ssl.SSLContext:
        try:
            return _load(settings, self._protocols)
        # Each file is read more than once. It may vanish, or change, between two reads.
        except (OSError, ValueError) as exc:
            names = ", ".join(_files(settings))
            raise CallerError(
                f"the certificates in {names} cannot be used: {exc}"
            ) from exc


def _files(settings: TLSSettings) -> list[str]:
    """Return the names of all files that *settings* has."""
    found = [settings.ca_certs]
    for certificate in settings.certificates:
        found += [certificate.certfile, certificate.keyfile]
    return [os.fspath(path) for path in found if path is not None]


def _load(settings: TLSSettings, protocols: Sequence[str]) -> ssl.SSLContext:
    contexts: list[ssl.SSLContext] = []
    by_host: dict[str, ssl.SSLContext] = {}
    for certificate in settings.certificates:
        context = _context(settings, certificate, protocols)
        identity = _identity(certificate)
        _warn_of_end(certificate, identity)
        contexts.append(context)
        for name in identity.names:
            by_host.setdefault(name, context)

    def choose(tls: ssl.SSLObject, host: str | None, _: ssl.SSLContext) -> None:
        found = _find(by_host, host or "")
        if found is not None:
            tls.context = found

    if len(contexts) > 1:
        _mute_unreadable_names()
        contexts[0].sni_callback = choose
    return contexts[0]


def _mute_unreadable_names() -> None:
    """Keep host names that are not ASCII out of the error output, from now on.

    Python refuses such a handshake by itself. But it has no place to raise the error, so it
    gives the error to ``sys.unraisablehook``, which prints a traceback: one for each client
    that wants it. All other errors go to the hook that was there before.
    """
    if not isinstance(sys.unraisablehook, _NamesMuted):
        sys.unraisablehook = _NamesMuted(sys.unraisablehook)


class _NamesMuted:
    """A hook for unraisable errors that passes on all but those of host names."""

    def __init__(self, before: Callable[[sys.UnraisableHookArgs], object]) -> None:
        self._before = before

    def __call__(self, unraisable: sys.UnraisableHookArgs, /) -> None:
        error = unraisable.exc_value
        # The object is the host name itself, or nothing: Python's versions differ.
        names = (getattr(error, "object", None), None)
        if isinstance(error, UnicodeDecodeError) and unraisable.object in names:
            logger.debug("a host name that is not ASCII: %r", error.object)
        else:
            self._before(unraisable)


def _find(by_host: dict[str, ssl.SSLContext], host: str) -> ssl.SSLContext | None:
    """Return the context for *host*; a wildcard stands for one label (RFC 9525, section 6.3)."""
    host = host.lower().rstrip(".")
    exact = by_host.get(host)
    return exact or by_host.get("*." + host.partition(".")[2])


def _context(
    settings: TLSSettings, certificate: Certificate, protocols: Sequence[str]
) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = MIN_VERSIONS[settings.min_version]
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could ask for it without end
    # Python's default takes a connection that was cut for one that was ended in order.
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    # With this the kernel encrypts, if it can. Python has the name since 3.12.
    context.options |= getattr(ssl, "OP_ENABLE_KTLS", 0)
    context.set_alpn_protocols(list(protocols))
    _load_certificate(context, certificate)
    if settings.ca_certs is not None:
        path = _readable(settings.ca_certs)
        try:
            context.load_verify_locations(path)
        except ssl.SSLError as exc:
            raise CallerError(f"{path} holds no certificates of authorities") from exc
    context.verify_mode = _CLIENT_AUTH[settings.client_auth]
    return context


def _load_certificate(context: ssl.SSLContext, certificate: Certificate) -> None:
    certfile = _readable(certificate.certfile)
    keyfile = _readable(certificate.keyfile or certificate.certfile)
    # Without a function OpenSSL would ask for a password on the terminal.
    password = certificate.password or ""
    try:
        context.load_cert_chain(certfile, keyfile, lambda: password)
    except ssl.SSLError as exc:
        raise CallerError(_fault(exc, certificate, certfile, keyfile)) from exc


def _fault(
    error: ssl.SSLError, certificate: Certificate, certfile: str, keyfile: str
) -> str:
    if error.reason == "KEY_VALUES_MISMATCH":
        return f"the key in {keyfile} does not belong to the certificate in {certfile}"
    with open(keyfile, "rb") as file:
        encrypted = b"ENCRYPTED" in file.read()
    if encrypted and certificate.password is None:
        return f"the key in {keyfile} is encrypted, and no password is given"
    if encrypted:
        return f"the password does not decrypt the key in {keyfile}"
    reason = (error.reason or "not PEM").replace("_", " ").lower()
    return f"no certificate and key can be read from {certfile} and {keyfile}: {reason}"


def _readable(path: str | os.PathLike[str]) -> str:
    """Return *path*. OpenSSL's own errors do not name the file."""
    name = os.fspath(path)
    try:
        with open(name, "rb"):
            return name
    except OSError as exc:
        raise CallerError(f"{name} cannot be read: {exc.strerror}") from exc


@dataclass(frozen=True, slots=True)
class _Identity:
    """Names and end of a certificate."""

    names: tuple[str, ...]
    ends: float
    """The end of its validity, in seconds since 1970."""


def _identity(certificate: Certificate) -> _Identity:
    """Return what clients see of *certificate*.

    Raises :class:`CallerError` if no client could accept it, whatever it trusts.
    """
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    _load_certificate(server, certificate)
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_flags |= ssl.VerifyFlags(_NO_CHECK_TIME)
    client.verify_flags |= (
        ssl.VERIFY_X509_PARTIAL_CHAIN
    )  # the certificate proves itself
    client.load_verify_locations(os.fspath(certificate.certfile))
    try:
        decoded = _handshake_in_memory(server, client)
    except ssl.SSLError as exc:
        reason = getattr(exc, "verify_message", None) or exc.reason
        raise CallerError(
            f"no client can accept the certificate in {certificate.certfile}: {reason}"
        ) from exc
    found = decoded.get("subjectAltName", ())
    assert isinstance(found, tuple)
    names = tuple(name.lower() for kind, name in found if kind == "DNS")
    return _Identity(names, ssl.cert_time_to_seconds(str(decoded["notAfter"])))


def ends_of_validity(certificate: Certificate) -> float:
    """Return the end of *certificate*'s validity, in seconds since 1970.

    Raises :class:`CallerError` if no client could accept it, whatever it trusts.
    """
    return _identity(certificate).ends


def _handshake_in_memory(
    server: ssl.SSLContext, client: ssl.SSLContext
) -> dict[str, object]:
    """Shake hands, and return the server's certificate as the client decodes it."""
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.wrap_bio(there, back, server_side=True)
    theirs = client.wrap_bio(back, there)
    for end in (theirs, ours, theirs):
        try:
            end.do_handshake()
        except ssl.SSLWantReadError:
            pass  # the other end's turn
    return dict(theirs.getpeercert() or {})


def _warn_of_end(certificate: Certificate, identity: _Identity) -> None:
    if identity.ends < time.time():
        logger.warning("the certificate in %s has expired", certificate.certfile)
