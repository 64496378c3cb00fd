"""Which connections are let in: how many there may be, in all and from one address.

Every connection costs memory and a descriptor, and whoever holds all there may be keeps
the others out (G5). So there are two limits, and a rule for what happens at them:

* of the connections that wait for a request, the one that has waited longest is closed
  for the newcomer. HTTP lets a server close an idle connection at any time; this one
  costs its peer a reconnect, and makes hoarding idle connections pointless;
* if none is idle, the newcomer is told so (503, or 429 at the limit of its address),
  and closed.

At the limit of an address only connections of that address are closed for a newcomer:
nobody can push out others that way.

A connection of a trusted proxy has no address of its own. While it carries a request it
counts as one of the client that the proxy names, and a request above the client's limit is
answered with 429. The connection stays: the next request on it may be another client's.

Everything here is decided at once and in constant time, without awaiting anything.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.server.turnstile import Turnstile

if TYPE_CHECKING:
    from trioresume.server.config import Config

__all__ = ["Admission", "Guest", "address_of", "affordable"]

logger = logging.getLogger("trioresume.server")

RETRY_AFTER = 5
"""Seconds after which somebody who was not let in may try again."""

STORE_DESCRIPTORS = 128
"""Left for the store, the listeners and connections that are being turned away."""

LEAST_CONNECTIONS = 16
"""A service with room for fewer is not started: most of its clients would get a 503."""

_IPV6_NETWORK = 64
"""Bits of an IPv6 address that name a network: one customer has all the rest."""


class Guest(Protocol):
    """A connection, as far as admission is concerned."""

    address: str
    """What connections are counted by, see :func:`address_of`; "" for no count."""

    def dismiss(self) -> None:
        """End: it waits for a request that somebody else's will be instead of."""
        ...


@dataclass(slots=True)
class _Address:
    connections: int = 0
    # Ordered by how long they have been idle, the longest first.
    idle: dict[Guest, None] = field(default_factory=dict)


class Admission:
    """Counts connections and decides who is let in."""

    def __init__(self, config: Config) -> None:
        self._most = affordable(config.max_connections)
        if self._most < config.max_connections:
            logger.info(
                "the limit of open files allows for %d connections, not for %d",
                self._most,
                config.max_connections,
            )
        self._most_per_address = config.max_connections_per_address
        self._guests: set[Guest] = set()
        self._idle: dict[Guest, None] = {}
        self._addresses: dict[str, _Address] = {}
        self.turnstile = Turnstile()
        """For requests with content, of those that were let in."""

    @property
    def connections(self) -> int:
        """How many there are."""
        return len(self._guests)

    def enter(self, guest: Guest) -> None:
        """Let *guest* in, closing an idle connection if need be.

        Raises :class:`PeerError` (429, 503) if it must stay outside.
        """
        address = self._addresses.get(guest.address)
        if (
            self._most_per_address is not None
            and address is not None
            and guest.address
            and address.connections >= self._most_per_address
        ):
            self._make_room(
                address.idle,
                ProblemCode.TOO_MANY_REQUESTS,
                "too many connections from this address",
            )
        elif len(self._guests) >= self._most:
            self._make_room(
                self._idle, ProblemCode.SERVICE_UNAVAILABLE, "too many connections"
            )
        self._guests.add(guest)
        self._addresses.setdefault(guest.address, _Address()).connections += 1

    def _make_room(
        self, idle: dict[Guest, None], problem: ProblemCode, detail: str
    ) -> None:
        longest = next(iter(idle), None)
        if longest is None:
            raise PeerError(
                problem,
                detail,
                fields=(("retry-after", str(RETRY_AFTER)),),
                close=True,
            )
        self.leave(longest)
        longest.dismiss()

    def leave(self, guest: Guest) -> None:
        """*guest* is gone, or is being closed. Idempotent."""
        if guest not in self._guests:
            return
        self._guests.discard(guest)
        self.note_busy(guest)
        self._uncount(guest)

    def count_as(self, guest: Guest, address: str) -> None:
        """*guest* counts as a connection of *address* from now on; "" for no count.

        Raises :class:`PeerError` (429) at the limit of *address*; nothing changes then.
        """
        if guest not in self._guests or address == guest.address:
            return
        counted = self._addresses.get(address)
        if (
            address
            and counted is not None
            and self._most_per_address is not None
            and counted.connections >= self._most_per_address
        ):
            raise PeerError(
                ProblemCode.TOO_MANY_REQUESTS,
                "too many connections from this address",
                fields=(("retry-after", str(RETRY_AFTER)),),
            )
        self._uncount(guest)
        guest.address = address
        self._addresses.setdefault(address, _Address()).connections += 1

    def _uncount(self, guest: Guest) -> None:
        address = self._addresses[guest.address]
        address.connections -= 1
        if address.connections == 0:
            del self._addresses[guest.address]

    def note_idle(self, guest: Guest) -> None:
        """*guest* waits for a request from now on."""
        if guest in self._guests:
            self._idle[guest] = self._addresses[guest.address].idle[guest] = None

    def note_busy(self, guest: Guest) -> None:
        """A request of *guest*'s has begun."""
        if self._idle.pop(guest, guest) is None:
            del self._addresses[guest.address].idle[guest]


def address_of(peer: str) -> str:
    """What connections from *peer*, ``HOST:PORT``, are counted by; "" if they are not.

    An IPv4 address, or the /64 network of an IPv6 one.
    """
    try:
        address = ipaddress.ip_address(peer.rpartition(":")[0])
    except ValueError:
        return ""  # a Unix socket's path, say
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # Without the scope that a link-local address may have.
    network = (int(address) >> (128 - _IPV6_NETWORK)) << (128 - _IPV6_NETWORK)
    return str(ipaddress.IPv6Address(network))


def affordable(wanted: int) -> int:
    """*wanted* connections, or as many as the process has descriptors for.

    An upload takes two, and the store needs some. Without this a flood of connections
    would have the store fail to open its files.

    Raises :class:`CallerError` if that is too few to be of use.
    """
    try:
        import resource
    except ImportError:
        return wanted  # not on this system
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY:
        return wanted
    most = (soft - STORE_DESCRIPTORS) // 2
    if most < LEAST_CONNECTIONS:
        needed = STORE_DESCRIPTORS + 2 * LEAST_CONNECTIONS
        raise CallerError(
            f"the limit of open files is {soft}: at least {needed} are needed (ulimit -n)"
        )
    return min(wanted, most)
