"""What proxies tell of the requests they hand on: who sent one, by which name.

Two families of fields say it. RFC 7239 has one field for everything; every proxy on the
way appends an element::

    Forwarded: for=203.0.113.7;proto=https;host=up.example, for=10.0.0.1

The older ones say one thing each, and are what most proxies send::

    X-Forwarded-For: 203.0.113.7, 10.0.0.1
    X-Forwarded-Proto: https
    X-Forwarded-Host: up.example

Anybody can send either, and proxies hand on what they do not know. So three things have
to be told to the server and cannot be found out: whether the peer is a proxy, which of
its own peers are, and which family it writes. What is in the other family came from the
client.

What proxies wrote is read from its end, because each appends. The last element is the
peer's own, and tells who the peer was sent the request by. If that was a proxy too, the
element before is that one's, and so on, up to the first sender that is no proxy. What is
further left is that sender's own invention, and is never looked at.
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
    "ForwardedFamily",
    "Hop",
    "Proxies",
    "host_of",
    "origin_from",
]

ForwardedFamily = Literal["x-forwarded", "forwarded"]
FORWARDED_FAMILIES: tuple[ForwardedFamily, ...] = ("x-forwarded", "forwarded")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_Network = ipaddress.IPv4Network | ipaddress.IPv6Network

# An address with the port that RFC 7239, section 6, and some proxies allow for.
_WITH_PORT = re.compile(
    r"(?P<v4>[0-9.]++)(?::[0-9]{1,5})?|\[(?P<v6>[0-9A-Fa-f:.]++)\](?::[0-9]{1,5})?"
)
# Whoever wants to hide an address gives it a made-up name (RFC 7239, section 6.3).
_OBFUSCATED = re.compile(r"_[A-Za-z0-9._-]{1,255}")
_AUTHORITY = re.compile(
    r"(?:[A-Za-z0-9._~-]{1,255}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?"
)


@dataclass(frozen=True, slots=True)
class Hop:
    """What one proxy says of a request it received; "" for what it does not say."""

    client: str = ""
    """Who sent it: an address without its port, or a made-up name."""
    scheme: str = ""
    """``http`` or ``https``."""
    authority: str = ""
    """The host, and port if there was one, that it was sent to."""


class Proxies:
    """The proxies whose word is believed.

    *trusted* has addresses and networks, such as ``127.0.0.1`` and ``10.0.0.0/8``;
    *family* is what these proxies write. Raises :class:`ValueError` for anything else.
    """

    def __init__(self, trusted: Iterable[str], family: ForwardedFamily) -> None:
        self._networks: tuple[_Network, ...] = tuple(map(_network, trusted))
        if family not in FORWARDED_FAMILIES:
            raise ValueError(f"{family!r} is none of {', '.join(FORWARDED_FAMILIES)}")
        self._hops = _FAMILIES[family]

    def trusts(self, address: str) -> bool:
        """Whether *address*, without a port, is that of a trusted proxy."""
        if not self._networks:
            return False
        found = _parse_address(address)
        return found is not None and any(found in each for each in self._networks)

    def first_hop(self, fields: Fields) -> Hop:
        """What a trusted peer's *fields* say of the first proxy that the request met.

        That is the one which has it from somebody who is no trusted proxy.
        """
        found = Hop()
        for hop in self._hops(fields):
            found = hop
            if not self.trusts(hop.client):
                break
        return found


def host_of(peer: str) -> str:
    """The address in ``HOST:PORT``, as a socket's peer is described."""
    return peer.rpartition(":")[0]


_PORT = re.compile(r"(?P<host>.+?):(?P<port>[0-9]*)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_from(scheme: str, authority: str) -> str:
    """``scheme://authority``, without a port that *scheme* implies.

    With and without it, it is one origin (RFC 9110, section 4.2.3). But browsers and
    clients compare strings, and the client did not write a port that a proxy added.
    """
    match = _PORT.fullmatch(authority)
    if match is not None and not authority.endswith("]"):
        port = match["port"]
        if not port or int(port) == _DEFAULT_PORTS.get(scheme):
            authority = match["host"]
    return f"{scheme}://{authority}"


# From the nearest proxy to the farthest.


def _forwarded(fields: Fields) -> Iterator[Hop]:
    for line in reversed(fields.get_all("forwarded")):
        for element in reversed(split_list(line)):
            pairs = parse_parameters(split_list(element, ";"))
            if pairs is None:
                return  # what is left of it cannot be told apart from it
            yield _hop(
                pairs.get("for", ""), pairs.get("proto", ""), pairs.get("host", "")
            )


def _x_forwarded(fields: Fields) -> Iterator[Hop]:
    clients, schemes, authorities = (
        _members(fields.get(f"x-forwarded-{name}") or "")[::-1]
        for name in ("for", "proto", "host")
    )
    for index in range(max(map(len, (clients, schemes, authorities)))):
        # Not every proxy repeats them: the farthest one that is there still holds.
        yield _hop(
            clients[index] if index < len(clients) else "",
            schemes[min(index, len(schemes) - 1)] if schemes else "",
            authorities[min(index, len(authorities) - 1)] if authorities else "",
        )


def _members(value: str) -> list[str]:
    # These lists know no quotation: a quote is a client's, and must hide nothing.
    members = (part.strip(" \t") for part in value.split(","))
    return [member for member in members if member]


_FAMILIES = {"x-forwarded": _x_forwarded, "forwarded": _forwarded}


def _hop(client: str, scheme: str, authority: str) -> Hop:
    """A hop of what can be believed to be one: anything malformed is not said."""
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
    )


def _parse_address(text: str) -> _Address | None:
    match = _WITH_PORT.fullmatch(text)
    if match is not None:
        text = match["v4"] or match["v6"]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped  # as a socket for both versions shows IPv4
    return address


def _network(text: str) -> _Network:
    try:
        return ipaddress.ip_network(text)
    except ValueError as exc:
        raise ValueError(f"{text!r} is no address or network: {exc}") from exc
