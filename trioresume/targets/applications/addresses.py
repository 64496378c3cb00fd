"""The scheme, and the names of both sides, as an application is told them."""

from __future__ import annotations

from ipaddress import ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trioresume.protocol.forwarded import UNIX_PEER

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = ["client_of", "scheme_of", "server_of"]


def scheme_of(head: RequestHead, config: Config) -> str:
    """Return ``http`` or ``https``.

    A recorded request no longer has its connection: then ``public_url`` tells, or whether the
    server speaks TLS.
    """
    if head.tls is not None:
        return "https"
    scheme = urlsplit(head.origin or config.public_url or "").scheme
    return scheme or ("http" if config.ssl is None else "https")


def server_of(head: RequestHead, scheme: str) -> tuple[str, int] | None:
    """Return the name and the port in ``Host``; None if there is none that can be used."""
    try:
        parts = urlsplit(f"//{head.fields.get('host') or ''}")
        port = parts.port
    except ValueError:
        return None
    if not parts.hostname:
        return None
    return parts.hostname, port or (443 if scheme == "https" else 80)


def client_of(head: RequestHead) -> tuple[str, int] | None:
    """Return the client's address and port, 0 if only the address is known; None if neither.

    A recorded request has none: its content may have come from several.
    """
    if head.peer in ("", UNIX_PEER):
        return None
    try:
        return str(ip_address(head.peer)), 0  # as a trusted proxy names it
    except ValueError:
        host, _, port = head.peer.rpartition(":")
        return host.strip("[]"), int(port) if port.isdecimal() else 0
