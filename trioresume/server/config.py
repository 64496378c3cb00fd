"""The server's settings, each with its unit, its default and its reason."""

from __future__ import annotations

import math
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields, RequestHead

__all__ = ["Authenticator", "Config", "Principal", "Rejection"]

MIB = 1024 * 1024
HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class Principal:
    """Who sent a request, as far as the server needs to know: a stable name."""

    name: str


@dataclass(frozen=True, slots=True)
class Rejection:
    """A request that is refused before any byte of its content is asked for.

    ``headers`` might carry a challenge (``WWW-Authenticate``), which a 401 needs
    (RFC 9110, section 11.6.1).
    """

    status: Literal[401, 403, 429, 503] = 401
    headers: Fields = field(default_factory=Fields)
    detail: str = ""


Authenticator = Callable[[RequestHead], Awaitable[Principal | Rejection]]
"""From a request's head to who sent it, or to a refusal (R34 to R36).

Called once for each request on each resource, before the 100 and before any byte
of content is read. It runs inside the connection's task and is cancelled after
``header_timeout`` (503). An exception is a bug (500).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of :func:`trioresume.serve`. Times are in seconds, sizes in bytes.

    Raises :class:`~trioresume.errors.CallerError` for a value out of its bounds.
    """

    bind: Sequence[str] = ("127.0.0.1:8080",)
    """``HOST:PORT`` or ``[IPv6]:PORT``; port 0 takes a free one."""
    data_dir: str | os.PathLike[str] = "data"
    """Where uploads, files and the catalog live; made if missing."""
    durability: Literal["disk", "process"] = "disk"
    """What an announced offset survives: power loss, or ``kill -9`` only."""
    authenticate: Authenticator | None = None
    """None: everyone is the same, anonymous principal."""

    operation_path: str = "/operations/"
    """Where the three resources of each operation live; starts and ends with ``/``."""
    public_url: str | None = None
    """``https://host[/root]`` put before the locations; None keeps them path-absolute (R4)."""

    max_upload_size: int | None = None
    """Longest content accepted, None for no limit (413, and 400 in a patch: B7)."""
    max_header_size: int = 16 * 1024
    max_header_fields: int = 100
    max_ranges: int = 16
    """Ranges answered in one response; more are answered with the whole (G16)."""
    max_wait: float = 30.0
    """Upper bound of ``Prefer: wait`` (R27)."""
    drain_size: int = 64 * 1024
    """Content of a refused request that is read so that the connection can be kept (R10)."""
    drain_timeout: float = 2.0
    """How long a refused request's content is read so that its answer can be read."""
    lenient_range_unit: bool = False
    """Whether ``Content-Range: 3-9/10``, without a unit, is understood (B6)."""
    retain_content: bool = True
    """Whether GET serves the request's content (R13); else it is released once processed."""

    header_timeout: float = 15.0
    """From a request's first byte to the end of its head."""
    keep_alive_timeout: float = 75.0
    """How long a connection may be idle between requests."""
    body_timeout: float = 60.0
    """How long content may make no progress before the request counts as cut."""
    send_timeout: float = 60.0
    """How long a response may make no progress before the connection is closed."""
    acknowledge_interval: float = 1.0
    """Shortest time between two ``Acknowledge`` (R30)."""
    grace_timeout: float = 10.0
    """How long running requests may take once a shutdown was asked for."""

    incomplete_lifetime: float = 24 * HOUR
    """How long an incomplete upload is kept after its last request (R22)."""
    response_lifetime: float = 24 * HOUR
    """How long a recorded response is replayed."""
    tombstone_lifetime: float = HOUR
    """How long an ended operation answers 410 before it answers 404 (R27)."""
    file_lifetime: float | None = None
    """How long the file service keeps a file; None: for ever."""

    chunk_size: int = 4 * MIB
    receive_size: int = 2 * MIB
    """The shared receive buffer: the most that is read from one connection at a time."""
    unsealed_chunks: int = 4
    """Full chunks an upload may have on their way to the disk before it is paused."""
    storage_threads: int = 4
    """Threads for disk work other than commits."""
    backlog: int = 1024
    """Connections the kernel queues before they are accepted."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            # Written so that NaN, which compares false with everything, is refused.
            if not (value >= 0 and math.isfinite(value)):
                raise CallerError(
                    f"{setting.name} must be a finite number, not negative"
                )
        for name in (
            "chunk_size",
            "receive_size",
            "unsealed_chunks",
            "storage_threads",
        ):
            if getattr(self, name) < 1:
                raise CallerError(f"{name} must be at least 1")
        if not self.bind:
            raise CallerError("bind must name at least one address")
        path = self.operation_path
        if not (path.startswith("/") and path.endswith("/") and len(path) > 1):
            raise CallerError("operation_path must look like '/name/'")
        if self.durability not in ("disk", "process"):
            raise CallerError("durability is 'disk' or 'process'")
