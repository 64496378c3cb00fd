"""The settings of TLS: certificates, and what is asked of clients."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from trioresume.errors import CallerError

__all__ = ["Certificate", "TLSSettings"]

MIN_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}


@dataclass(frozen=True, slots=True)
class Certificate:
    """A certificate of the server with its private key, as PEM files.

    ``certfile`` begins with the certificate; the certificates of the authorities between it
    and the root follow. ``keyfile`` is None if the key is in the same file. ``password``
    decrypts the key.
    """

    certfile: str | os.PathLike[str]
    keyfile: str | os.PathLike[str] | None = None
    password: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSSettings:
    """The settings of TLS, for ``Config.ssl``.

    Raises :class:`~trioresume.errors.CallerError` for values that contradict each other.
    """

    certificates: Sequence[Certificate]
    """The server's certificates. A client that names a host gets the first certificate for
    this host (SNI). The others get the first certificate."""
    ca_certs: str | os.PathLike[str] | None = None
    """A PEM file of the authorities that sign clients' certificates."""
    client_auth: Literal["none", "optional", "required"] = "none"
    """Whether a client is asked for a certificate, and whether it must have one."""
    min_version: Literal["1.2", "1.3"] = "1.2"
    """The oldest version of TLS that is spoken."""

    def __post_init__(self) -> None:
        if not self.certificates:
            raise CallerError("TLS needs a certificate")
        if self.client_auth not in ("none", "optional", "required"):
            raise CallerError("client_auth is 'none', 'optional' or 'required'")
        if self.min_version not in MIN_VERSIONS:
            raise CallerError("min_version is '1.2' or '1.3'")
        if self.client_auth != "none" and self.ca_certs is None:
            raise CallerError(
                "without ca_certs no certificate of a client can be verified"
            )
        if self.client_auth == "none" and self.ca_certs is not None:
            raise CallerError("ca_certs is for client_auth 'optional' or 'required'")
