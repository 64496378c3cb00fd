"""Clients that are known by their certificate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from trioresume.server.api.config import Principal, Rejection

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Authenticator

__all__ = ["client_certificates"]

_NO_CERTIFICATE = Rejection(403, detail="a client certificate is needed")
_NO_NAME = Rejection(
    403, detail="the client certificate has no URI, DNS name or email address"
)


def client_certificates(
    name: Literal["san", "fingerprint"], otherwise: Authenticator | None = None
) -> Authenticator:
    """Return an ``authenticate`` for :class:`~trioresume.Config`: the certificate is the sender.

    With ``"san"`` the principal is the certificate's first URI, or else its first DNS name,
    or else its first email address: ``URI:…``, ``DNS:…`` or ``email:…``. With
    ``"fingerprint"`` it is ``sha256:`` and the SHA-256 of the certificate.

    A request over a connection without a client certificate is given to *otherwise*, and is
    refused with 403 if there is none.
    """

    async def authenticate(head: RequestHead) -> Principal | Rejection:
        certificate = None if head.tls is None else head.tls.certificate
        if certificate is None:
            return _NO_CERTIFICATE if otherwise is None else await otherwise(head)
        if name == "fingerprint":
            return Principal(f"sha256:{certificate.fingerprint}")
        return _NO_NAME if certificate.san is None else Principal(certificate.san)

    return authenticate
