"""What TLS tells about the sender of a request, as values.

A handshake has checked the certificate's signature against the configured authorities before
any of this is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

__all__ = ["ClientCertificate", "TLSFacts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientCertificate:
    """A client's certificate that one of the configured authorities has signed.

    The names are those of the subject alternative name (RFC 5280, section 4.2.1.6), in the
    certificate's order. ``fingerprint`` is the SHA-256 of the whole certificate (DER), in
    lower-case hexadecimal.
    """

    fingerprint: str
    uris: tuple[str, ...] = ()
    dns_names: tuple[str, ...] = ()
    emails: tuple[str, ...] = ()

    @classmethod
    def from_handshake(
        cls, der: bytes, decoded: Mapping[str, object]
    ) -> ClientCertificate:
        """Make a value of *der* and of the dictionary that :mod:`ssl` decodes it to."""
        names: dict[str, list[str]] = {}
        found = decoded.get("subjectAltName", ())
        for kind, name in found if isinstance(found, tuple) else ():
            if isinstance(name, str):
                names.setdefault(kind, []).append(name)
        return cls(
            fingerprint=hashlib.sha256(der).hexdigest(),
            uris=tuple(names.get("URI", ())),
            dns_names=tuple(names.get("DNS", ())),
            emails=tuple(names.get("email", ())),
        )

    @property
    def san(self) -> str | None:
        """The first URI, or else the first DNS name, or else the first email address.

        It begins with ``URI:``, ``DNS:`` or ``email:``, so that no name of one kind can be
        taken for a name of another. None if the certificate has no such name.
        """
        for kind, names in (
            ("URI", self.uris),
            ("DNS", self.dns_names),
            ("email", self.emails),
        ):
            if names:
                return f"{kind}:{names[0]}"
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class TLSFacts:
    """The result of a handshake."""

    version: str
    """``TLSv1.3`` or ``TLSv1.2``."""
    protocol: str | None = None
    """The application protocol that was agreed on (ALPN): ``h2``, ``http/1.1`` or None."""
    certificate: ClientCertificate | None = None
    """The client's certificate; None if it sent none."""
