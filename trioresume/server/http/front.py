"""The things that all connections of a service share, whatever they speak.

:class:`Gateway` has the rules for proxies and browsers: who sent a request, and which pages
may. They apply first to a request and last to a response. :class:`Admission` decides which
connections are accepted.

Every connection costs memory and a descriptor. A client that holds all the allowed
connections would keep the others out. So there are two limits, one for all connections and
one for each address, and a rule for a new connection at a limit:

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

Several processes of a service share the two limits (:mod:`.connection_counts`). At a limit a
process can close its own idle connections only.

Every decision here takes constant time and awaits nothing. G5 and G13 are in
docs/supported-protocols.md.
"""

from __future__ import annotations

import ipaddress
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Protocol

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.forwarded import UNIX_PEER, host_of
from trioresume.protocol.framing import HeadLimits
from trioresume.protocol.heads import origin_from
from trioresume.server.api.config import cross_origin, proxies, upload_limits
from trioresume.server.async_store.receive_memory import ReceiveMemory
from trioresume.server.event_loop import RoundLimit
from trioresume.server.http.base_exchange import BaseExchange

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trioresume.protocol.clock import ServiceClock
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.http.connection_counts import SharedCounts
    from trioresume.server.http.exchange import Exchange

__all__ = ["Admission", "Front", "Gateway", "Guest", "address_of", "affordable"]


class Front:
    """The settings and the shared memory of all connections, and the service behind them.

    *handle* answers an exchange, or raises what
    :meth:`~trioresume.server.http.base_exchange.BaseExchange.answer` turns into a problem.
    """

    def __init__(
        self,
        handle: Callable[[Exchange], Awaitable[None]],
        config: Config,
        clock: ServiceClock,
        counts: SharedCounts | None = None,
    ) -> None:
        self.handle = handle
        # A service that is watched replaces these two. No request asks whether it is.
        self.answer: Callable[[BaseExchange, Guest, str], Awaitable[None]] = (
            BaseExchange.answer
        )
        """Answers a request: :meth:`BaseExchange.answer`."""
        self.refuse: Callable[[BaseExchange, PeerError], Awaitable[None]] = (
            BaseExchange.respond_problem
        )
        """Answers what does not become a request of the service, with a problem."""
        self.config = config
        self.clock = clock
        self.memory = ReceiveMemory(config.receive_memory)
        self.admission = Admission(config, counts)
        self.gateway = Gateway(config)
        self.upload_limits = upload_limits(config)
        self.head_limits = HeadLimits(config.max_header_size, config.max_header_fields)


# Proxies and browsers.

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
        if head.peer in (proxy, UNIX_PEER) or self._proxies.trusts(head.peer):
            return ""
        return address_of(f"{head.peer}:0")

    def identify(self, head: RequestHead) -> RequestHead:
        """Return *head* with its sender and its origin, as far as they are known (G13)."""
        host = head.fields.get("host")
        if not (self._has_proxies and self.is_proxy(head.peer)):
            # A proxy that is not trusted may have forwarded it. Many proxies do not tell the
            # scheme, and some put another name for the server in Host. A proxy that adds no
            # field of its own speaks HTTP/1.0, as nginx does.
            if not host or head.http_version == "1.0":
                return head
            for name, _ in head.fields:
                if name in _SIGNS_OF_A_PROXY:
                    return head
            scheme = "http" if head.tls is None else "https"
            return replace(head, origin=origin_from(scheme, host))
        hop = self._proxies.first_hop(head.fields)
        authority = hop.authority_or(host or "")
        known = hop.scheme and authority
        return replace(
            head,
            peer=hop.client or head.peer,
            origin=origin_from(hop.scheme, authority) if known else "",
        )


logger = logging.getLogger("trioresume.server")

# Admission.

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
    """Counts the connections and decides whether a new one is accepted.

    *counts* has the connections of the other processes, if there are others.
    """

    def __init__(self, config: Config, counts: SharedCounts | None = None) -> None:
        self._most = affordable(config.max_connections)
        if self._most < config.max_connections:
            logger.info(
                "the limit of open files allows for %d connections, not for %d",
                self._most,
                config.max_connections,
            )
        self._most_of_all = config.max_connections
        self._most_per_address = config.max_connections_per_address
        self._counts = counts
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
        if self._counts is not None:
            # Counted before the look: two processes that look at the same moment cannot
            # both take the last place.
            self._counts.add(guest.address, 1)
        try:
            if self._is_full_for(guest.address):
                address = self._addresses.get(guest.address)
                self._make_room(
                    {} if address is None else address.idle,
                    ProblemCode.TOO_MANY_REQUESTS,
                    "too many connections from this address",
                )
            elif self._is_full():
                self._make_room(
                    self._idle, ProblemCode.SERVICE_UNAVAILABLE, "too many connections"
                )
        except PeerError:
            if self._counts is not None:
                self._counts.add(guest.address, -1)
            raise
        self._guests.add(guest)
        self._addresses.setdefault(guest.address, _Address()).connections += 1

    def _is_full_for(self, address: str) -> bool:
        """Whether a connection of *address*, which :attr:`_counts` has, is one too many."""
        most = self._most_per_address
        if most is None or not address:
            return False
        if self._counts is not None:
            return self._counts.of(address) > most
        known = self._addresses.get(address)
        return known is not None and known.connections >= most

    def _is_full(self) -> bool:
        """Whether another connection, which :attr:`_counts` has, is one too many."""
        if len(self._guests) >= self._most:
            return True
        return self._counts is not None and self._counts.all > self._most_of_all

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
        if self._counts is not None:
            self._counts.add(guest.address, -1)

    def count_as(self, guest: Guest, address: str) -> None:
        """Count *guest* as a connection of *address* from now on; "" means no address.

        Raises :class:`PeerError` (429) at the limit of *address*; nothing changes then.
        """
        if guest not in self._guests or address == guest.address:
            return
        if self._counts is not None:
            self._counts.add(address, 1)
            self._counts.add(guest.address, -1)
        if self._is_full_for(address):
            if self._counts is not None:
                self._counts.add(guest.address, 1)
                self._counts.add(address, -1)
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
        return ""  # a Unix socket's peer
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
