"""The server's settings, each with its unit, its default and its reason."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from trioresume.errors import CallerError
from trioresume.protocol.cors import CrossOrigin
from trioresume.protocol.dialects import UploadLimits
from trioresume.protocol.forwarded import ForwardedFamily, Proxies
from trioresume.protocol.heads import Fields, RequestHead

__all__ = [
    "UI_PATH",
    "Authenticator",
    "Config",
    "Principal",
    "Rejection",
    "cross_origin",
    "proxies",
    "upload_limits",
]

MIB = 1024 * 1024
_PUBLIC_URL = re.compile(
    r"(?i:https?)://(?:[A-Za-z0-9._~-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])"
    r"(?P<port>:[0-9]{1,5})?(?:/[A-Za-z0-9._~!$&'()*+,;=:@%/-]*)?"
)
_ROOT_PATH = re.compile(r"/(?!/)[A-Za-z0-9._~!$&'()*+,;=:@%/-]*")
HOUR = 3600.0

UI_PATH = "/ui/"
"""Where the page for browsers is, if there is one."""


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
    root_path: str = ""
    """Put before the locations: what a proxy takes off the front of each path, as ``/up``."""
    relative_locations: bool = False
    """Whether no location is absolute, also where a dialect's clients may need it (R4)."""
    interim_responses: Literal["all", "locations", "none"] = "all"
    """Which unasked interim responses are sent; a ``100`` that is waited for always is.

    ``"locations"``: those that tell where the upload is, and none that tell how far it
    is, for proxies that take no more than a few. ``"none"``: for those that take them
    for the final response.
    """

    continue_without_expect: bool = True
    """Whether ``Prefer`` is answered with ``100`` where ``Expect`` is missing (R5, R30).

    False for clients that take it for an error, and do not show what they are: Node's fetch
    does, and is never sent one.
    """

    trusted_proxies: Sequence[str] = ()
    """Addresses and networks of proxies that are believed about who sent a request (G13).

    While one of their connections carries a request, it counts for
    ``max_connections_per_address`` as a connection of the client that they name."""
    forwarded_fields: ForwardedFamily = "x-forwarded"
    """What these proxies write: ``X-Forwarded-*``, or ``Forwarded`` (RFC 7239)."""

    cors_origins: Sequence[str] = ()
    """Origins whose pages may use the service, ``https://host``; ``*`` for any (G15)."""
    cors_credentials: bool = False
    """Whether they may have cookies and client certificates sent along."""
    cors_max_age: float = 2 * HOUR
    """How long a browser may remember that; Chromium does for two hours at most."""
    cors_request_fields: Sequence[str] = ()
    """Fields that pages may send, beside those of HTTP and of the dialects."""
    cors_response_fields: Sequence[str] = ()
    """Fields that pages may read, beside those of HTTP and of the dialects."""

    ui: str | None = None
    """Path to which the page at ``/ui/`` uploads, as ``/files/``; None: there is no page.

    The page itself needs no authentication, what it does needs it as ever."""

    max_upload_size: int | None = None
    """Longest content accepted, None for no limit (413, and 400 in a patch: B7)."""
    min_resumable_size: int = 0
    """Shorter content that is sent whole gets no upload resource of its own (C13)."""
    max_append_size: int | None = None
    """Most content that one request of a resumable upload may carry, None for no limit.

    It is told to clients of Resumable Uploads for HTTP, such as those behind a proxy
    that takes no more (413).
    """
    min_append_size: int = 0
    """Least content of such a request, unless it is empty or completes the upload (400)."""
    check_interop_version: bool = True
    """Whether ``104`` is sent only to clients that name a draft's interop version.

    The RFC to be has no versions; until it is there, its drafts demand this (C3).
    """
    max_stored_bytes: int | None = None
    """What all uploads and files together may take (G7, 507); None: what the disk holds."""
    min_free_space: int = 1024 * MIB
    """Bytes of the disk that content leaves free (507); at most a twentieth of it (G7)."""
    max_stored_bytes_per_principal: int | None = None
    """What the uploads and files of each principal may take (G7, 507)."""
    max_open_uploads_per_principal: int | None = 10_000
    """Uploads of each principal that receive or can be resumed (G5, 429)."""
    digest_budget: int = 1024 * MIB
    """Bytes of joined uploads that each principal may have hashed within an hour (C15).

    Beyond it ``Want-Repr-Digest`` is not answered and ``Repr-Digest`` is refused."""
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
    strict_metadata: bool = False
    """Whether a value of tus's ``Upload-Metadata`` that is not Base64 is refused (D6).

    Else it is kept as it came, and means nothing here."""
    retain_content: bool = True
    """Whether GET serves the request's content (R13); else it is released once processed."""

    max_connections: int = 10_000
    """Connections at a time; at the limit idle ones are closed for new ones, else 503 (G5).

    Fewer if the process may not open two files for each."""
    max_connections_per_address: int | None = 4_000
    """The same for each IPv4 address or IPv6 /64 (429), None for no limit.

    Behind a proxy that is not trusted all connections have the proxy's address."""

    header_timeout: float = 15.0
    """From a request's first byte to the end of its head."""
    keep_alive_timeout: float = 75.0
    """How long a connection may be idle between requests."""
    body_timeout: float = 60.0
    """How long content may make no progress before the request counts as cut."""
    min_body_rate: int = 256
    """Bytes a second below which content counts as making no progress; 0: any will do (G5)."""
    send_timeout: float = 60.0
    """How long a response may make no progress before the connection is closed."""
    acknowledge_interval: float = 1.0
    """Shortest time between two ``Acknowledge`` (R30), or two ``Progress`` (B10)."""
    grace_timeout: float = 7.0
    """How long running requests may take once a shutdown was asked for.

    The whole shutdown takes up to two seconds more. Container runtimes kill after ten."""

    incomplete_lifetime: float = 24 * HOUR
    """How long an incomplete upload is kept after its last request (R22)."""
    max_upload_lifetime: float = 7 * 24 * HOUR
    """How long an upload may take in all, however often it is resumed (G5)."""
    response_lifetime: float = 24 * HOUR
    """How long a recorded response is replayed."""
    tombstone_lifetime: float = HOUR
    """How long an ended operation answers 410 before it answers 404 (R27)."""
    file_lifetime: float | None = None
    """How long the file service keeps a file; None: for ever."""

    chunk_size: int = 4 * MIB
    receive_memory: int = 16 * MIB
    """Memory for content between the network and the disk, of all uploads together."""
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
            "receive_memory",
            "storage_threads",
            "max_connections",
            "max_connections_per_address",
            "max_open_uploads_per_principal",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CallerError(f"{name} must be at least 1")
        if not self.bind:
            raise CallerError("bind must name at least one address")
        path = self.operation_path
        if not (path.startswith("/") and path.endswith("/") and len(path) > 1):
            raise CallerError("operation_path must look like '/name/'")
        if self.durability not in ("disk", "process"):
            raise CallerError("durability is 'disk' or 'process'")
        self._check_edge()

    def _check_edge(self) -> None:
        root = self.root_path
        if root and (_ROOT_PATH.fullmatch(root) is None or root.endswith("/")):
            raise CallerError("root_path must look like '/name'")
        if self.public_url is not None:
            match = _PUBLIC_URL.fullmatch(self.public_url)
            if match is None or int((match["port"] or ":0")[1:]) > 65535:
                raise CallerError(
                    f"public_url must look like 'https://host' or"
                    f" 'https://host/root', not {self.public_url!r}"
                )
        if root and self.public_url is not None:
            raise CallerError("root_path is the path of public_url: one is enough")
        if self.relative_locations and self.public_url is not None:
            raise CallerError("relative_locations and public_url exclude each other")
        if self.interim_responses not in ("all", "locations", "none"):
            raise CallerError("interim_responses is 'all', 'locations' or 'none'")
        if self.ui is not None:
            if not self.ui.startswith("/") or self.ui.startswith(("//", UI_PATH)):
                raise CallerError(f"ui is a path of the target, not under {UI_PATH}")
            if self.operation_path.startswith(UI_PATH):
                raise CallerError(f"operation_path is under {UI_PATH}, as the page is")
        for name, made_of_it in (("trusted_proxies", proxies), ("cors", cross_origin)):
            try:
                made_of_it(self)
            except ValueError as exc:
                raise CallerError(f"{name}: {exc}") from exc


def upload_limits(config: Config) -> UploadLimits:
    """The settings that clients are told as limits (C13)."""
    return UploadLimits(
        max_size=config.max_upload_size,
        min_size=config.min_resumable_size or None,
        max_append_size=config.max_append_size,
        min_append_size=config.min_append_size or None,
    )


def proxies(config: Config) -> Proxies:
    """The proxies that are believed. Raises :class:`ValueError`."""
    return Proxies(config.trusted_proxies, config.forwarded_fields)


def cross_origin(config: Config) -> CrossOrigin | None:
    """What pages of other origins may do, None for nothing. Raises :class:`ValueError`."""
    if not config.cors_origins:
        return None
    return CrossOrigin(
        config.cors_origins,
        credentials=config.cors_credentials,
        max_age=config.cors_max_age,
        request_fields=config.cors_request_fields,
        response_fields=config.cors_response_fields,
    )
