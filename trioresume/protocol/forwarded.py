"""What proxies say about requests that they forward: the sender and the server's name.

There are two families of fields. RFC 7239 has one field for everything, to which each
proxy on the way appends an element::

    Forwarded: for=203.0.113.7;proto=https;host=up.example, for=10.0.0.1

The older fields have one value each. Most proxies send these::

    X-Forwarded-For: 203.0.113.7, 10.0.0.1
    X-Forwarded-Proto: https
    X-Forwarded-Host: up.example
    X-Forwarded-Port: 8443

The last one counts only where the host names no port, because many proxies forward the
host without it. It says on which port the proxy itself listens. If another proxy in
front does TLS, that is often 80, although the scheme is https. So 80 and 443 count as
not said: one is implied by the scheme, and the other contradicts it.

Anybody can send either, and proxies forward fields that they do not know. So the
operator has to configure three things that the server cannot find out: whether the peer
is a proxy, which of the proxy's own peers are proxies, and which family it writes. The
other family's fields came from the client.

The fields are read from their end, because each proxy appends. The peer wrote the last
element. It names the sender from which the peer got the request. If that sender is a
proxy too, the element before is its own, and so on, up to the first sender that is no
proxy. All elements further left were made up by that sender. They are ignored.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trioresume.protocol.fields import parse_parameters, split_list

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = [
    "FORWARDED_FAMILIES",
    "UNIX_PEER",
    "ForwardedFamily",
    "Hop",
    "Proxies",
    "host_of",
]

ForwardedFamily = Literal["x-forwarded", "forwarded"]
FORWARDED_FAMILIES: tuple[ForwardedFamily, ...] = ("x-forwarded", "forwarded")

UNIX_PEER = "unix:"
"""What every peer on a Unix socket is called: it has no address, and no port."""

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# An address with an optional port, as RFC 7239, section 6, and some proxies have it.
_WITH_PORT = re.compile(
    r"(?P<v4>[0-9.]++)(?::[0-9]{1,5})?|\[(?P<v6>[0-9A-Fa-f:.]++)\](?::[0-9]{1,5})?"
)
# A proxy may hide an address behind a made-up name (RFC 7239, section 6.3).
_OBFUSCATED = re.compile(r"_[A-Za-z0-9._-]{1,255}")
_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
_HOST_ALONE = re.compile(r"[^:\[\]]+|\[[^\[\]]+\]")
_PORT_ALONE = re.compile(r"[0-9]{1,5}")


@dataclass(frozen=True, slots=True)
class Hop:
    """What one proxy says about a request that it received; "" if it does not say it."""

    client: str = ""
    """The sender: an address without its port, or a made-up name."""
    scheme: str = ""
    """``http`` or ``https``."""
    authority: str = ""
    """The host that the request was sent to, with the port if there was one."""
    port: str = ""
    """The port that the request was sent to, unless it is 80 or 443."""

    def authority_or(self, host: str) -> str:
        """Return the authority, or else *host*; with the port if it has none."""
        authority = self.authority or host
        match = _HOST_ALONE.fullmatch(authority)
        return f"{authority}:{self.port}" if match and self.port else authority


class Proxies:
    """The proxies that the server trusts.

    *trusted* has addresses and networks, such as ``127.0.0.1`` and ``10.0.0.0/8``. ``unix``
    stands for every peer on a Unix socket.
    *family* is the family of fields that they write. Raises :class:`ValueError` for
    other values.
    """

    def __init__(self, trusted: Iterable[str], family: ForwardedFamily) -> None:
        trusted = tuple(trusted)
        self._unix = "unix" in trusted
        self._networks: tuple[_Network, ...] = tuple(
            _network(each) for each in trusted if each != "unix"
        )
        if family not in FORWARDED_FAMILIES:
            raise ValueError(f"{family!r} is none of {', '.join(FORWARDED_FAMILIES)}")
        self._hops = _FAMILIES[family]

    def trusts(self, address: str) -> bool:
        """Whether *address*, which has no port, belongs to a trusted proxy."""
        if address == "unix":  # no field of a request can say that: see _hop
            return self._unix
        if not self._networks:
            return False
        found = _parse_address(address)
        return found is not None and any(found in each for each in self._networks)

    def first_hop(self, fields: Fields) -> Hop:
        """Return what a trusted peer's *fields* say about the first proxy on the way.

        The first proxy got the request from a sender that is no trusted proxy.
        """
        found = Hop()
        for hop in self._hops(fields):
            found = hop
            if not self.trusts(hop.client):
                break
        return found


def host_of(peer: str) -> str:
    """Return the address in ``HOST:PORT``, the form in which a socket names its peer."""
    return peer.rpartition(":")[0]


# The readers of both families begin with the nearest proxy.


def _forwarded(fields: Fields) -> Iterator[Hop]:
    for line in reversed(fields.get_all("forwarded")):
        for element in reversed(split_list(line)):
            pairs = parse_parameters(split_list(element, ";"))
            if pairs is None:
                return  # malformed: the elements left of it cannot be separated from it
            yield _hop(
                pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", "")
            )


def _x_forwarded(fields: Fields) -> Iterator[Hop]:
    clients, *others = (
        _members(fields.get(f"x-forwarded-{name}") or "")[::-1]
        for name in ("for", "proto", "host", "port")
    )
    for index in range(max(map(len, (clients, *others)))):
        # Not every proxy repeats scheme, host and port: the farthest value holds on.
        yield _hop(
            clients[index] if index < len(clients) else "",
            *(each[min(index, len(each) - 1)] if each else "" for each in others),
        )


def _members(value: str) -> list[str]:
    # These lists have no quotation. A quote comes from a client; it must not hide commas.
    members = (part.strip(" \t") for part in value.split(","))
    return [member for member in members if member]


_FAMILIES = {"x-forwarded": _x_forwarded, "forwarded": _forwarded}


def _hop(client: str, scheme: str, authority: str, port: str = "") -> Hop:
    """Make a hop of the valid values. A malformed one counts as not said."""
    address = _parse_address(client)
    if address is not None:
        client = str(address)
    elif _OBFUSCATED.fullmatch(client) is None:
        client = ""
    scheme = scheme.lower()
    return Hop(
        client,
        scheme if scheme in ("http", "https") else "",
        authority if _AUTHORITY.fullmatch(authority) else "",
        _telling_port(port),
    )


def _telling_port(port: str) -> str:
    if _PORT_ALONE.fullmatch(port) is None:
        return ""
    number = int(port)
    is_default = number in (80, 443)
    return "" if is_default or not 0 < number < 65536 else str(number)


def _parse_address(text: str) -> _Address | None:
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match["v4"] or match["v6"]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # how a socket for IPv4 and IPv6 shows an IPv4 peer
    return address


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no address or network: {exc}") from exc
