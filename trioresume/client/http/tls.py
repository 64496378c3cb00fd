"""TLS for the client: what it trusts and shows, and what went wrong, in words.

The server's certificate is checked against the system's authorities and the host's name.
An error that no further attempt can mend becomes a :class:`HopelessConnection`, whose
message names the host and says what to do. All else is a connection that broke, and is
tried again.
"""

from __future__ import annotations

import logging
import os
import ssl
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trioresume.errors import CallerError

if TYPE_CHECKING:
    from trioresume.protocol.urls import Origin

__all__ = ["ClientTls", "HopelessConnection", "explain", "is_alert"]

logger = logging.getLogger("trioresume.client")


class HopelessConnection(OSError):
    """A connection that no further attempt can make. The message says what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientTls:
    """The client's settings for ``https://``. The files are PEM.

    *cacert* has the certificates of authorities to trust instead of the system's.
    *cert* is the client's own certificate, with the chain above it, and *key* its
    private key, if that is not in the same file. With *insecure* any certificate of the
    server is accepted: anybody on the way can read and change what is sent.
    """

    cacert: str | os.PathLike[str] | None = None
    cert: str | os.PathLike[str] | None = None
    key: str | os.PathLike[str] | None = None
    insecure: bool = False

    def __post_init__(self) -> None:
        if self.key is not None and self.cert is None:
            raise CallerError("a private key needs the certificate that it belongs to")
        if self.insecure and self.cacert is not None:
            raise CallerError(
                "to trust every server and to trust cacert are two things"
            )

    def without_certificate(self) -> ClientTls:
        """Return the same settings for a server that must not learn who this client is."""
        return replace(self, cert=None, key=None)

    def context(self) -> ssl.SSLContext:
        """Make the context. Blocks. Raises :class:`CallerError` if a file cannot be used."""
        path = self.cacert
        try:
            context = ssl.create_default_context(cafile=path)
            if self.cert is not None:
                path = self.cert
                context.load_cert_chain(path, self.key, password=_refuse_password)
        except ssl.SSLError as exc:
            raise CallerError(_why_unusable(path, self.key, exc)) from exc
        except OSError as exc:
            raise CallerError(f"{path} cannot be read: {exc.strerror}") from exc
        # With this option the end of a connection that was cut would look like TLS's own.
        context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
        if self.insecure:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context

    def warn(self) -> None:
        """Log a warning if servers are not checked. The client calls it each time it begins."""
        if self.insecure:
            logger.warning(
                "the server's certificate is not checked: anybody on the way can read"
                " and change what is sent"
            )


def _refuse_password() -> str:
    # Without a function OpenSSL would ask on the terminal, and block the event loop.
    raise CallerError("the private key has a password: use a key without one")


def _why_unusable(
    path: str | os.PathLike[str] | None,
    key: str | os.PathLike[str] | None,
    exc: ssl.SSLError,
) -> str:
    if exc.reason == "KEY_VALUES_MISMATCH":
        return f"the private key does not belong to the certificate in {path}"
    if key is not None:
        return f"{path} and {key} are not a certificate and its private key in PEM"
    return f"{path} does not have what is needed, in PEM: {exc.reason or exc}"


# X509_V_ERR_* of OpenSSL's x509_vfy.h.
_NOT_YET_VALID, _EXPIRED, _WRONG_NAME, _WRONG_ADDRESS = 9, 10, 62, 64
_UNKNOWN_AUTHORITY = frozenset({2, 18, 19, 20, 21})

_SPEAKS_NO_TLS = frozenset(
    {"WRONG_VERSION_NUMBER", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}
)
_NO_COMMON_VERSION = frozenset(
    {
        "NO_PROTOCOLS_AVAILABLE",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
    }
)
_NO_COMMON_CIPHER = frozenset(
    {"NO_SHARED_CIPHER", "SSLV3_ALERT_HANDSHAKE_FAILURE", "WRONG_CIPHER_RETURNED"}
)
# Python has no name for this reason, so it is found in the text.
_NO_COMMON_HTTP = "no application protocol"
_WANTS_CERTIFICATE = frozenset({"TLSV13_ALERT_CERTIFICATE_REQUIRED"})
_REFUSES_CERTIFICATE = frozenset(
    {
        "SSLV3_ALERT_BAD_CERTIFICATE",
        "SSLV3_ALERT_CERTIFICATE_EXPIRED",
        "SSLV3_ALERT_CERTIFICATE_REVOKED",
        "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
        "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
        "TLSV1_ALERT_ACCESS_DENIED",
        "TLSV1_ALERT_UNKNOWN_CA",
    }
)


def is_alert(error: BaseException) -> bool:
    """Whether the cause of *error* is that the peer said in TLS why it closes."""
    cause = error.__cause__
    return isinstance(cause, ssl.SSLError) and not isinstance(cause, ssl.SSLEOFError)


def explain(error: BaseException, origin: Origin) -> HopelessConnection | None:
    """Return why TLS with *origin* can never succeed; None if it is worth another try.

    *error* or one of its causes is the TLS library's, or says it already.
    """
    cause: BaseException | None = error
    while not isinstance(cause, ssl.SSLError | HopelessConnection | None):
        cause = cause.__cause__
    if cause is None or isinstance(cause, HopelessConnection):
        return cause
    words = (
        _about_certificate(cause, origin)
        if isinstance(cause, ssl.SSLCertVerificationError)
        else _about_handshake(cause.reason or str(cause), origin)
    )
    return None if words is None else HopelessConnection(words)


def _about_certificate(error: ssl.SSLCertVerificationError, origin: Origin) -> str:
    whose = f"the certificate of {origin.authority}"
    match error.verify_code:
        case code if code in _UNKNOWN_AUTHORITY:
            return (
                f"{whose} is signed by an authority that this computer does not know. If"
                " you trust the server, give that authority's certificate with --cacert"
            )
        case code if code == _EXPIRED:
            return f"{whose} has expired: the server needs a new one"
        case code if code == _NOT_YET_VALID:
            return f"{whose} is not valid yet: is the clock of this computer right?"
        case code if code in (_WRONG_NAME, _WRONG_ADDRESS):
            return f"{whose} is for another host: use a name that is in it"
        case _:
            return f"{whose} cannot be trusted: {error.verify_message}"


def _about_handshake(reason: str, origin: Origin) -> str | None:
    host = origin.authority
    if reason in _SPEAKS_NO_TLS:
        return f"{host} does not answer in TLS: does its URL begin with http://?"
    if reason in _NO_COMMON_VERSION:
        return (
            f"{host} speaks no version of TLS that this client accepts: the server"
            " needs TLS 1.2 or 1.3"
        )
    if reason in _NO_COMMON_CIPHER:
        return (
            f"{host} and this client have no cipher in common, or the server wants a"
            " certificate of the client (--cert)"
        )
    if _NO_COMMON_HTTP in reason.lower().replace("_", " "):
        return (
            f"{host} does not speak the version of HTTP that was asked for (--http2,"
            " --no-http2)"
        )
    if reason in _WANTS_CERTIFICATE:
        return f"{host} wants a certificate of the client: give one with --cert"
    if reason in _REFUSES_CERTIFICATE:
        return f"{host} does not accept this client's certificate (--cert)"
    return None
