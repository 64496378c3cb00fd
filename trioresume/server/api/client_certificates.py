"""Clients that are known by their certificate."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Literal

from trioresume.server.api.config import Principal, Rejection
from trioresume.server.api.handler import LastingTarget

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Authenticator, Config

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

    return _ClientCertificates(name, otherwise)


class _ClientCertificates:
    """What :func:`client_certificates` returns. It has the parts of *otherwise*, too."""

    def __init__(
        self, name: Literal["san", "fingerprint"], otherwise: Authenticator | None
    ) -> None:
        self._name = name
        self._otherwise = otherwise
        self.asks_again = bool(getattr(otherwise, "asks_again", False))

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        certificate = None if head.tls is None else head.tls.certificate
        if certificate is None:
            if self._otherwise is None:
                return _NO_CERTIFICATE
            return await self._otherwise(head)
        name = certificate.san
        if self._name == "fingerprint":
            name = f"sha256:{certificate.fingerprint}"
        return _NO_NAME if name is None else Principal(name, is_asked_again=False)

    def reload(self) -> None:
        """Have *otherwise* read its files again. Raises as it does."""
        reload = getattr(self._otherwise, "reload", None)
        if reload is not None:
            reload()

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Run what *otherwise* runs beside its calls."""
        async with AsyncExitStack() as stack:
            other: object = self._otherwise
            if isinstance(other, LastingTarget):
                await stack.enter_async_context(other.running(config))
            yield
