"""The rules for proxies and browsers: who sent a request, and which pages may.

They apply first to a request and last to a response. G13 is in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trioresume.protocol.forwarded import host_of, origin_from
from trioresume.server.api.config import cross_origin, proxies
from trioresume.server.http.connection_limits import address_of

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = ["Gateway"]

# Only a proxy sends one of these, or a client that pretends to be one.
_SIGNS_OF_A_PROXY = frozenset(
    {
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
    }
)


class Gateway:
    """The settings about proxies and browsers, parsed."""

    def __init__(self, config: Config) -> None:
        self._proxies = proxies(config)
        self._has_proxies = bool(config.trusted_proxies)
        self.cross_origin = cross_origin(config)
        """The rights of pages of other origins; None if they have none."""

    def is_proxy(self, peer: str) -> bool:
        """Whether *peer* is a trusted proxy."""
        return self._proxies.trusts(host_of(peer))

    def address_of(self, peer: str) -> str:
        """Return the address that connections from *peer* count for; "" for a trusted proxy."""
        return "" if self.is_proxy(peer) else address_of(peer)

    def client_address(self, head: RequestHead, proxy: str) -> str:
        """Return the address that the client of *head* counts for; *proxy* forwarded it.

        Returns "" if the client is not counted: if the proxy names no client, names itself,
        or invents a name (RFC 7239, section 6.3), which may be new for each request.
        """
        if head.peer == proxy or self._proxies.trusts(head.peer):
            return ""
        return address_of(f"{head.peer}:0")

    def identify(self, head: RequestHead) -> RequestHead:
        """Return *head* with its sender and its origin, as far as they are known (G13)."""
        if not (self._has_proxies and self.is_proxy(head.peer)):
            return replace(head, origin=_direct_origin(head))
        hop = self._proxies.first_hop(head.fields)
        authority = hop.authority_or(head.fields.get("host") or "")
        known = hop.scheme and authority
        return replace(
            head,
            peer=hop.client or head.peer,
            origin=origin_from(hop.scheme, authority) if known else "",
        )


def _direct_origin(head: RequestHead) -> str:
    """Return the origin to which a client sent *head*; "" if a proxy may have forwarded it.

    Many proxies do not tell the scheme, and some put another name for the server in Host.
    A proxy that adds no field of its own speaks HTTP/1.0, as nginx does.
    """
    host = head.fields.get("host")
    if not host or head.http_version == "1.0":
        return ""
    for name, _ in head.fields:
        if name in _SIGNS_OF_A_PROXY:
            return ""
    return origin_from("http" if head.tls is None else "https", host)
