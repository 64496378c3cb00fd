"""Decide which connections are accepted, with a limit for all and a limit per address.

Every connection costs memory and a descriptor. A client that holds all the allowed
connections would keep the others out (G5 in docs/supported-protocols.md). So there are two
limits, and a rule for a new connection at a limit:

* The server closes the connection that has waited longest for a request. HTTP lets a server
  close an idle connection at any time. The peer of that connection has to reconnect, and
  hoarding idle connections becomes pointless.
* If no connection is idle, the new one gets a 503, or a 429 at the limit of its address, and
  is closed.

At the limit of an address the server closes only connections of that address: a client
cannot push out connections of other addresses that way.

A connection of a trusted proxy has no address of its own. While it carries a request, it
counts as a connection of the client that the proxy names. A request above that client's
limit is answered with 429. The connection stays open: its next request may come from another
client.

Every decision here takes constant time and awaits nothing.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.server.event_loop import RoundLimit

if TYPE_CHECKING:
    from trioresume.server.api.config import Config

__all__ = ["Admission", "Guest", "address_of", "affordable"]

logger = logging.getLogger("trioresume.server")

RETRY_AFTER = 5
"""Seconds after which a client that was turned away may try again."""

STORE_DESCRIPTORS = 128
"""Descriptors left for the store, the listeners and connections that are turned away."""

LEAST_CONNECTIONS = 16
"""A service with room for fewer connections does not start: most clients would get a 503."""

_IPV6_NETWORK = 64
"""Bits of an IPv6 address that name a network: one customer has all its addresses."""


class Guest(Protocol):
    """A connection, as admission sees it."""

    address: str
    """The address this connection counts for, from :func:`address_of`; "" if it has none."""

    def dismiss(self) -> None:
        """Close this idle connection, because a new connection needs its place."""
        ...


@dataclass(slots=True)
class _Address:
    connections: int = 0
    # In the order of idle time; the longest idle connection is first.
    idle: dict[Guest, None] = field(default_factory=dict)


class Admission:
    """Counts the connections and decides whether a new one is accepted."""

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
        self.starts = RoundLimit()
        """Lets a few requests with content begin in each round of the event loop."""

    @property
    def connections(self) -> int:
        """The number of accepted connections."""
        return len(self._guests)

    def enter(self, guest: Guest) -> None:
        """Let *guest* in. At a limit, close an idle connection for it.

        Raises :class:`PeerError` (429, 503) if there is no place for *guest*.
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
        """Stop counting *guest*, because it is closed or being closed. Idempotent."""
        if guest not in self._guests:
            return
        self._guests.discard(guest)
        self.note_busy(guest)
        self._uncount(guest)

    def count_as(self, guest: Guest, address: str) -> None:
        """Count *guest* as a connection of *address* from now on; "" means no address.

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
        """Note that *guest* waits for a request from now on."""
        if guest in self._guests:
            self._idle[guest] = self._addresses[guest.address].idle[guest] = None

    def note_busy(self, guest: Guest) -> None:
        """Note that a request of *guest* has begun."""
        if self._idle.pop(guest, guest) is None:
            del self._addresses[guest.address].idle[guest]


def address_of(peer: str) -> str:
    """Return the address that connections from *peer* (``HOST:PORT``) count for.

    That is an IPv4 address, or the /64 network of an IPv6 address. Returns "" for a peer
    without an IP address.
    """
    try:
        address = ipaddress.ip_address(peer.rpartition(":")[0])
    except ValueError:
        return ""  # for example the path of a Unix socket
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    # The integer leaves out the scope that a link-local address may have.
    network = (int(address) >> (128 - _IPV6_NETWORK)) << (128 - _IPV6_NETWORK)
    return str(ipaddress.IPv6Address(network))


def affordable(wanted: int) -> int:
    """Return *wanted*, or the lower number of connections that the process can open.

    An upload takes two descriptors, and the store needs some. Without this limit a flood of
    connections would make the store fail to open its files.

    Raises :class:`CallerError` if the process can open too few connections to be of use.
    """
    try:
        import resource
    except ImportError:
        return wanted  # this system has no such limit
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
