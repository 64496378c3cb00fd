"""The figures of the model, each with where it comes from: cited, read or assumed.

*Read* are constants of this project; the model imports them. Nobody has run a cluster of this
size: what is assumed is a parameter, so that a reader can put in his own.
"""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.server.api.config import Config
from trioresume.server.shared.operations import ASK_TIMEOUT, MOST_CLAIMS
from trioresume.store.cluster_store import LEAST_CHUNK_SIZE
from trioresume.store.postgres.catalog import LEASE, MOST_AT_ONCE, TAKEOVER_TIMEOUT
from trioresume.store.postgres.connections import Bounds

__all__ = ["Figures", "Prices"]

MIB = 1 << 20
_BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class Figures:
    """Delays in seconds, sizes in bytes, rates a second."""

    # Read: this project's own settings and bounds.
    chunk_size: int = LEAST_CHUNK_SIZE
    store_threads: int = Config().storage_threads
    """Puts of chunks at a time on a node: a thread of the store waits for each."""
    claims: int = MOST_CLAIMS
    """Claims at a time on a node."""
    connections: int = 8
    """Connections of a node for questions. Three more are its commits', listener's and spare."""
    lease: float = LEASE
    takeover_timeout: float = TAKEOVER_TIMEOUT
    ask_timeout: float = ASK_TIMEOUT
    most_at_once: int = MOST_AT_ONCE
    patience: float = _BOUNDS.patience
    keeps_tail_at_cut: bool = False
    """Whether a node puts the bytes that are no chunk when a connection ends. It does not now."""

    # Assumed, from the order of what was seen on one machine: a real database has to be asked.
    statement_cpu: float = 0.00025
    """Of the database, for a question."""
    commit_cpu: float = 0.0006
    """Of the database, for a commit: a part for the batch …"""
    submission_cpu: float = 0.0003
    """… and a part for each submission."""
    receive_cpu: float = 1.0 / (1 << 30)
    """Of a node's event loop, for a byte: one loop takes about 1 GiB/s in small uploads."""

    # Cited.
    put_first_byte: float = 0.15
    """Amazon S3's guide gives 100 to 200 ms for small objects and first bytes."""
    put_rate: float = 85e6
    """Bytes a second of one connection: the guide says 85 to 90 MB/s."""
    puts_per_prefix: float = 3500.0
    """The guide: at least 3,500 PUT, COPY, POST or DELETE requests a second and prefix."""
    gets_per_prefix: float = 5500.0

    # Assumed.
    prefixes: int = 1
    """Partitions that the object store has made of the bucket."""
    round_trip: float = 0.0007
    """Between a node and the database, in another zone of one region."""
    flush: float = 0.0012
    """Of the database's log, with a synchronous standby in another zone."""
    database_cores: int = 32
    node_rate: float = 1.56e9
    """Bytes a second of a node's network, each way: 12.5 Gbit/s."""
    failover: float = 60.0
    """Until another database takes writes; managed services state one to two minutes."""
    retry_after: float = 5.0
    """How long a client waits after a 503, times a random factor from 0.5 to 1.5."""

    @property
    def database_connections(self) -> int:
        """Connections that a node may open."""
        return self.connections + 2


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars: Amazon's public list for S3 Standard, us-east-1, first 50 TB; 2025."""

    put: float = 0.005 / 1000
    get: float = 0.0004 / 1000
    gb_month: float = 0.023
