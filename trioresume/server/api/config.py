"""The server's settings, each with its unit, its default and its reason.

The numbered statements (R4, G5, C13 …) are in docs/supported-protocols.md.
"""

from __future__ import annotations

import math
import os
import re
import ssl
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, fields
from typing import Literal

from trioresume.errors import CallerError
from trioresume.protocol.cors import CrossOrigin
from trioresume.protocol.dialects import UploadLimits
from trioresume.protocol.forwarded import ForwardedFamily, Proxies
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.problem_help import PAGE
from trioresume.server.api.addresses import InheritedAddress, parse_address
from trioresume.server.api.hooks import AnyHooks
from trioresume.server.api.rules import Rule
from trioresume.server.api.tls import TLSSettings
from trioresume.server.api.watching import WatchSettings
from trioresume.ui.appearance import PageAppearance

__all__ = [
    "UI_PATH",
    "Authenticator",
    "Config",
    "Grant",
    "Principal",
    "Rejection",
    "cross_origin",
    "problem_page_of",
    "problem_path_of",
    "proxies",
    "root_of",
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
"""The path of the page for browsers, if the service has one."""


@dataclass(frozen=True, slots=True)
class Grant:
    """What a request may do whose address is its credential, and the upload that it begins.

    The upload's own locations are its credential: its further requests are not
    authenticated.
    """

    target: str
    """The request target without the credential; it is the one that everything else sees."""
    max_size: int | None = None
    """The most bytes of the content; None: the service's own limit."""
    media_type: str | None = None
    """The media type of the content, such as ``image/png`` or ``image/*``; None: any."""

    def allows_type(self, media_type: str) -> bool:
        """Whether content of *media_type*, ``type/subtype`` in lower case, is allowed."""
        wanted = self.media_type
        if wanted is None or media_type == wanted:
            return True
        return wanted.endswith("/*") and media_type.startswith(wanted[:-1])


@dataclass(frozen=True, slots=True)
class Principal:
    """The sender of a request. The server needs only a stable name."""

    name: str
    is_asked_again: bool = field(default=True, compare=False)
    """Whether an authenticator that ``asks_again`` is asked about this sender again.

    :class:`~trioresume.AnyOf` sets it to False for a sender whom another authenticator
    let in."""
    grant: Grant | None = None
    """The limits of a request whose address is its credential."""


@dataclass(frozen=True, slots=True)
class Rejection:
    """The refusal of a request, before any byte of its content is asked for.

    ``headers`` can carry a challenge (``WWW-Authenticate``), which a 401 needs
    (RFC 9110, section 11.6.1).
    """

    status: Literal[401, 403, 429, 502, 503] = 401
    headers: Fields = field(default_factory=Fields)
    detail: str = ""
    body: bytes | None = None
    """The content of the answer; None: a problem document with the ``detail``."""


Authenticator = Callable[[RequestHead], Awaitable[Principal | Rejection]]
"""A function from a request's head to its sender, or to a refusal (R34 to R36).

The server calls it once for each request on each resource, before the 100 and before it
reads any byte of content. The call runs in the connection's task and is cancelled after
``header_timeout`` (503). An exception is a bug (500).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Settings of :func:`trioresume.serve`. Times are in seconds, sizes in bytes.

    Raises :class:`~trioresume.errors.CallerError` for a value out of its bounds.
    """

    bind: Sequence[str] = ("127.0.0.1:8080",)
    """``HOST:PORT`` or ``[IPv6]:PORT``; port 0 takes a free one. ``unix:PATH`` is a Unix socket,
    and ``fd:NUMBER`` a descriptor of a socket that listens already.

    ``https://HOST:PORT`` speaks TLS and ``http://HOST:PORT`` does not. Without a scheme an
    address speaks TLS if ``ssl`` is set."""
    unix_socket_mode: int = 0o660
    """Who may connect to the Unix sockets in ``bind``: the rights of their files."""
    ssl: TLSSettings | ssl.SSLContext | None = None
    """The certificates for TLS, or a context in which the program has set everything."""
    data_dir: str | os.PathLike[str] = "data"
    """The directory of the uploads, the files and the catalog; created if missing."""
    catalog: str | None = None
    """The URL of a PostgreSQL database, which several servers share: a cluster. None: SQLite in
    ``data_dir``. Set it together with ``objects``."""
    objects: str | None = None
    """The object store with the content of a cluster: ``s3://BUCKET/PREFIX``. In ``data_dir``
    are then only unfinished chunks of this server that find no room in memory."""
    durability: Literal["disk", "process"] = "disk"
    """The failures that an announced offset survives: ``"disk"`` includes power loss,
    ``"process"`` only ``kill -9``."""
    authenticate: Authenticator | None = None
    """Tells the sender of each request; None: all senders are one anonymous principal."""

    rules: Sequence[Rule] = ()
    """What holds for some paths and senders only. The first rule that matches decides."""
    hooks: AnyHooks | None = None
    """Who is told of uploads and asked about them: :class:`~trioresume.Hooks`; None: nobody."""

    operation_path: str = "/operations/"
    """The path of the three resources of each operation; starts and ends with ``/``."""
    public_url: str | None = None
    """``https://host[/root]``, the start of all locations; None: they are path-absolute (R4)."""
    root_path: str = ""
    """The start of all locations: the prefix that a proxy removes from paths, as ``/up``."""
    relative_locations: bool = False
    """Whether no location is absolute, even if a dialect's clients may need it (R4)."""
    interim_responses: Literal["all", "locations", "none"] = "all"
    """Which interim responses are sent to a client that does not wait for one.

    A ``100`` that the client waits for is always sent. ``"locations"`` sends those that tell
    where the upload is, and none that tell how far it is. It is for proxies that accept only
    a few interim responses. ``"none"`` is for proxies that take an interim response for the
    final one.
    """

    continue_without_expect: bool = True
    """Whether ``Prefer`` is answered with ``100`` if ``Expect`` is missing (R5, R30).

    Set this to False for clients that take such a ``100`` for an error and that the server
    cannot recognise. Node's fetch is one that it recognises and never sends a ``100``.
    """

    trusted_proxies: Sequence[str] = ()
    """Addresses and networks of proxies that are believed about a request's sender (G13).

    While a connection of a proxy carries a request, it counts for
    ``max_connections_per_address`` as a connection of the client that the proxy names."""
    forwarded_fields: ForwardedFamily = "x-forwarded"
    """The fields that these proxies write: ``X-Forwarded-*``, or ``Forwarded`` (RFC 7239)."""

    cors_origins: Sequence[str] = ()
    """Origins whose pages may use the service, ``https://host``; ``*`` for any (G15)."""
    cors_credentials: bool = False
    """Whether these pages may let the browser send cookies and client certificates."""
    cors_max_age: float = 2 * HOUR
    """Seconds a browser may remember these permissions; Chromium's limit is two hours."""
    cors_request_fields: Sequence[str] = ()
    """Request fields that pages may send, beside those of HTTP and of the dialects."""
    cors_response_fields: Sequence[str] = ()
    """Response fields that pages may read, beside those of HTTP and of the dialects."""

    ui: str | None = None
    """The path to which the page at ``/ui/`` uploads, as ``/files/``; None: no page.

    The page itself needs no authentication. The requests of the page need it."""
    ui_appearance: PageAppearance = field(default_factory=PageAppearance)
    """The page's title, color and languages."""

    max_upload_size: int | None = None
    """The longest content that is accepted, None for no limit (413; 400 in a patch: B7)."""
    min_resumable_size: int = 0
    """Shorter content that comes in one request gets no upload resource (C13)."""
    max_append_size: int | None = None
    """The most content in one request of a resumable upload, None for no limit (413).

    The server tells this limit to clients of Resumable Uploads for HTTP. It helps clients
    behind a proxy that limits the size of a request.
    """
    min_append_size: int = 0
    """The least content of such a request, unless it is empty or completes the upload (400)."""
    check_interop_version: bool = True
    """Whether ``104`` is sent only to clients that name a draft's interop version (C3).

    The drafts demand this. The future RFC will have no versions.
    """
    max_stored_bytes: int | None = None
    """Space for all uploads and files together (G7, 507); None: all that the disk has."""
    min_free_space: int = 1024 * MIB
    """Bytes of the disk that content leaves free (507), at most a twentieth of it (G7)."""
    max_stored_bytes_per_principal: int | None = None
    """Space for the uploads and files of each principal (G7, 507)."""
    max_open_uploads_per_principal: int | None = 10_000
    """Uploads of each principal that are receiving, can be resumed, or wait for their target
    (G5, 429)."""
    digest_budget: int = 1024 * MIB
    """Bytes of joined uploads that are hashed for each principal within an hour (C15).

    Beyond it, ``Want-Repr-Digest`` is ignored and ``Repr-Digest`` is refused."""
    max_header_size: int = 16 * 1024
    """Bytes of a request's head, with the request line (431)."""
    max_header_fields: int = 100
    """Field lines of a request's head (431)."""
    max_ranges: int = 16
    """The most ranges in one response; a request for more gets the whole content (G16)."""
    max_wait: float = 30.0
    """The longest ``Prefer: wait`` that is respected (R27)."""
    drain_size: int = 64 * 1024
    """Bytes of a refused request's content that are read to keep the connection (R10)."""
    drain_timeout: float = 2.0
    """How long a refused request's content is read, so that the client can read the answer."""
    lenient_range_unit: bool = False
    """Whether ``Content-Range: 3-9/10``, without a unit, is understood (B6)."""
    strict_metadata: bool = False
    """Whether a value of tus's ``Upload-Metadata`` must be Base64 (D6).

    If not, the server keeps a value that is not Base64 as it came and does not use it."""
    retain_content: bool = True
    """Whether GET serves the request's content (R13); if not, processing releases it."""

    max_connections: int = 10_000
    """The most connections at a time. At the limit an idle one is closed, or else 503 (G5).

    The limit is lower if the process cannot open two files for each connection."""
    max_connections_per_address: int | None = 4_000
    """The same limit for each IPv4 address or IPv6 /64 network (429), None for no limit.

    Behind a proxy that is not trusted, all connections have the proxy's address."""

    http2: bool = True
    """Whether HTTP/2 is offered over TLS (ALPN)."""
    h2c: bool = False
    """Whether a client may speak HTTP/2 at once, without TLS ("prior knowledge")."""
    max_streams: int = 128
    """The most requests at a time on one HTTP/2 connection.

    Each one but the first counts as a connection more, for the two limits above."""

    header_timeout: float = 15.0
    """From a request's first byte to the end of its head."""
    keep_alive_timeout: float = 75.0
    """How long a connection may be idle between requests."""
    body_timeout: float = 60.0
    """How long content may make no progress before the request counts as cut."""
    min_body_rate: int = 256
    """Bytes a second that content needs to count as progress; 0: any byte counts (G5)."""
    send_timeout: float = 60.0
    """How long a response may make no progress before the connection is closed."""
    acknowledge_interval: float = 1.0
    """Shortest time between two ``Acknowledge`` (R30), or two ``Progress`` (B10)."""
    grace_timeout: float = 7.0
    """How long running requests may go on once a shutdown has begun.

    The whole shutdown takes up to two seconds more. Container runtimes kill after ten."""

    incomplete_lifetime: float = 24 * HOUR
    """How long an incomplete upload is kept after its last request (R22)."""
    max_upload_lifetime: float = 7 * 24 * HOUR
    """How long an upload may take in all, even if it is resumed again and again (G5)."""
    response_lifetime: float = 24 * HOUR
    """How long a recorded response is replayed."""
    indeterminate_lifetime: float = 7 * 24 * HOUR
    """How long the content is kept if nobody knows whether its request took effect.

    Until then ``trioresume retry`` can send the request again."""
    retry_interval: float = 10.0
    """Seconds after which the server tries again what a target could not take; 0: never.

    Without it only a client's next request does."""
    tombstone_lifetime: float = HOUR
    """How long an ended operation answers 410 before it answers 404 (R27)."""
    file_lifetime: float | None = None
    """How long the file service keeps a file; None: for ever."""

    chunk_size: int = 4 * MIB
    """The most bytes of a chunk, the unit in which content is named and stored once."""
    receive_memory: int = 16 * MIB
    """Memory for the content of all uploads, between the network and the disk."""
    storage_threads: int = 4
    """Threads for disk work other than commits."""
    backlog: int = 1024
    """Connections the kernel queues before they are accepted."""

    watch: WatchSettings = field(default_factory=WatchSettings)
    """Metrics, health checks, access log and traces; all are off."""

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            # NaN compares false with everything: in this form the check refuses it.
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
            "max_streams",
            "max_open_uploads_per_principal",
        ):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise CallerError(f"{name} must be at least 1")
        if not self.bind:
            raise CallerError("bind must name at least one address")
        if self.unix_socket_mode > 0o777:
            raise CallerError("unix_socket_mode is above 0o777")
        addresses = [parse_address(b, secure=self.ssl is not None) for b in self.bind]
        handed = [a.descriptor for a in addresses if isinstance(a, InheritedAddress)]
        if len(set(handed)) < len(handed):
            raise CallerError("bind names a descriptor twice")
        path = self.operation_path
        if not (path.startswith("/") and path.endswith("/") and len(path) > 1):
            raise CallerError("operation_path must look like '/name/'")
        if self.durability not in ("disk", "process"):
            raise CallerError("durability is 'disk' or 'process'")
        self._check_cluster()
        self._check_rules()
        self._check_edge()

    def _check_cluster(self) -> None:
        if (self.catalog is None) != (self.objects is None):
            raise CallerError("catalog and objects are set together, or not at all")
        if self.catalog is None or self.objects is None:
            return
        if not self.catalog.startswith(("postgresql://", "postgres://")):
            raise CallerError("catalog is a URL that begins with postgresql://")
        if self.durability != "disk":
            raise CallerError("durability is 'disk' in a cluster")
        from trioresume.store.cluster_store import check_chunk_size
        from trioresume.store.objects.address import parse_address as parse_objects

        parse_objects(self.objects)
        check_chunk_size(self.chunk_size)

    def _check_rules(self) -> None:
        for number, rule in enumerate(self.rules, 1):
            lifetime = rule.incomplete_lifetime
            if lifetime is not None and lifetime > self.max_upload_lifetime:
                raise CallerError(
                    f"rule {number}: incomplete_lifetime: no upload is kept longer than"
                    f" max_upload_lifetime, {self.max_upload_lifetime:g} seconds"
                )
            if rule.public_download and self.authenticate is None:
                raise CallerError(
                    f"rule {number}: public_download: without authentication every"
                    " download is public"
                )

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


def root_of(config: Config) -> str:
    """Return the part that precedes the path in every location that clients are told."""
    if config.public_url is None:
        return config.root_path
    return config.public_url.rstrip("/")


def problem_page_of(config: Config) -> str:
    """Return the location of the page of all problems, which ``type`` leads to."""
    return f"{root_of(config)}{problem_path_of(config)}"


def problem_path_of(config: Config) -> str:
    """Return the path of that page on this server. No operation has such an id."""
    return f"{config.operation_path}{PAGE}"


def upload_limits(config: Config) -> UploadLimits:
    """Return the limits that clients are told (C13)."""
    return UploadLimits(
        max_size=config.max_upload_size,
        min_size=config.min_resumable_size or None,
        max_append_size=config.max_append_size,
        min_append_size=config.min_append_size or None,
    )


def proxies(config: Config) -> Proxies:
    """Return the proxies that are trusted. Raises :class:`ValueError`."""
    return Proxies(config.trusted_proxies, config.forwarded_fields)


def cross_origin(config: Config) -> CrossOrigin | None:
    """Return the rights of pages of other origins, or None. Raises :class:`ValueError`."""
    if not config.cors_origins:
        return None
    return CrossOrigin(
        config.cors_origins,
        credentials=config.cors_credentials,
        max_age=config.cors_max_age,
        request_fields=config.cors_request_fields,
        response_fields=config.cors_response_fields,
    )
