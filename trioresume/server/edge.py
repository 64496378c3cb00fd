"""What lies between the service and its clients: proxies, and browsers with their rules.

A request passes here first, and every final response last; nothing in between knows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from trioresume.protocol.forwarded import host_of, origin_from
from trioresume.server.admission import address_of
from trioresume.server.config import cross_origin, proxies

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields, RequestHead
    from trioresume.server.config import Config

__all__ = ["Edge"]

# Whoever sends one of these is a proxy, or pretends to be.
_SIGNS_OF_A_PROXY = frozenset(
    {
        "forwarded",
        "via",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-proto",
    }
)


class Edge:
    """The settings about proxies and browsers, made ready."""

    def __init__(self, config: Config) -> None:
        self._proxies = proxies(config)
        self._cross_origin = cross_origin(config)

    def is_proxy(self, peer: str) -> bool:
        """Whether *peer* is a trusted proxy."""
        return self._proxies.trusts(host_of(peer))

    def client_address(self, head: RequestHead, proxy: str) -> str:
        """What the client of *head*, which *proxy* handed on, is counted by; "" for nothing.

        A made-up name (RFC 7239, section 6.3) may be new for each request, and a proxy
        that says nothing, or that names itself, stands for everybody: none is counted.
        """
        if head.peer == proxy or self._proxies.trusts(head.peer):
            return ""
        return address_of(f"{head.peer}:0")

    def identify(self, head: RequestHead) -> RequestHead:
        """*head* with who sent it and where to, as far as that can be told (G13)."""
        if not self._proxies.trusts(host_of(head.peer)):
            return replace(head, origin=_direct_origin(head))
        hop = self._proxies.first_hop(head.fields)
        authority = hop.authority or head.fields.get("host")
        known = hop.scheme and authority
        return replace(
            head,
            peer=hop.client or head.peer,
            origin=origin_from(hop.scheme, authority or "") if known else "",
        )

    def preflight(self, head: RequestHead) -> Fields | None:
        """The fields of the answer if *head* is a browser's question; else None.

        Raises :class:`PeerError` (403).
        """
        if self._cross_origin is None:
            return None
        return self._cross_origin.preflight(head)

    def finish(self, head: RequestHead, fields: Fields) -> Fields:
        """*fields* of a final response to *head*, with what a browser needs."""
        if self._cross_origin is None:
            return fields
        return self._cross_origin.marked(head, fields)


def _direct_origin(head: RequestHead) -> str:
    """Where a client that is no proxy sent *head* to; "" if one may have had it before.

    Proxies keep back the scheme, and some put their own name for the server in Host.
    Those that show no sign of themselves speak HTTP/1.0, as nginx does.
    """
    host = head.fields.get("host")
    if not host or head.http_version == "1.0":
        return ""
    for name, _ in head.fields:
        if name in _SIGNS_OF_A_PROXY:
            return ""
    return origin_from("http", host)
