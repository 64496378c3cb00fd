"""Other servers, from their registries, as programs to measure beside trioresume.

``python -m bench.peers`` lists them, installs them and checks that each works. A
:class:`~bench.peers.peer.Peer` says how to install one server into a separate
directory, how to start it, how safely it stores uploads, and with which settings it
runs. All versions are in one table, :data:`VERSIONS`. The settings are those that each
project's documentation recommends for speed.
"""

from __future__ import annotations

from bench.peers.asgi import HYPERCORN_TRIO, UVICORN
from bench.peers.cluster import CLUSTER
from bench.peers.nginx import NGINX
from bench.peers.own import OWN
from bench.peers.peer import Peer
from bench.peers.rustus import RUSTUS
from bench.peers.tus_server import TUS_SERVER
from bench.peers.tusd import TUSD
from bench.peers.tuspyserver import TUSPYSERVER
from bench.peers.upstream import FRONTS
from bench.peers.versions import VERSIONS

__all__ = ["PEERS", "PROXIES", "VERSIONS", "Peer", "find"]

PEERS: dict[str, Peer] = {
    peer.name: peer
    for peer in (
        *OWN,
        TUSD,
        RUSTUS,
        TUS_SERVER,
        TUSPYSERVER,
        NGINX,
        HYPERCORN_TRIO,
        UVICORN,
    )
}
"""Every server that stores uploads, by name."""

PROXIES: dict[str, Peer] = {peer.name: peer for peer in (*FRONTS, *CLUSTER)}
"""Servers that send uploads on to a backend, or to an object store.

They are measured only if they are named."""


def find(name: str) -> Peer:
    """Return the peer called *name*. Raises :class:`LookupError` with the known names."""
    known = PEERS | PROXIES
    try:
        return known[name]
    except KeyError:
        raise LookupError(f"{name!r} is not one of {', '.join(known)}") from None
