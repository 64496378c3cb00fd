"""Other servers, from their registries, as programs to measure beside trioresume.

``python -m bench.peers`` lists them, installs them and lets each prove itself.
A peer is one :class:`~bench.peers.peer.Peer`: how to install it into a directory of
its own, how to start it, what it promises about what it stored, and with which
settings it runs. Versions stand in one table, :data:`VERSIONS`; the settings are
what each project's own documentation recommends for speed.
"""

from __future__ import annotations

from bench.peers.asgi import HYPERCORN_TRIO, UVICORN
from bench.peers.nginx import NGINX
from bench.peers.own import OWN
from bench.peers.peer import Peer
from bench.peers.rustus import RUSTUS
from bench.peers.tus_server import TUS_SERVER
from bench.peers.tusd import TUSD
from bench.peers.tuspyserver import TUSPYSERVER
from bench.peers.versions import VERSIONS

__all__ = ["PEERS", "VERSIONS", "Peer", "find"]

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
"""Every server that can be measured, by name."""


def find(name: str) -> Peer:
    """The peer of that *name*. Raises :class:`LookupError` that tells the known ones."""
    try:
        return PEERS[name]
    except KeyError:
        raise LookupError(f"{name!r} is none of {', '.join(PEERS)}") from None
