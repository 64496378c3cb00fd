"""The settings of who watches a service, and how."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from trioresume.errors import CallerError
from trioresume.server.api.access_log import AccessLog
from trioresume.server.api.addresses import TCPAddress, parse_address

if TYPE_CHECKING:
    from opentelemetry.trace import TracerProvider

__all__ = ["HEALTH_PATH", "WatchSettings"]

HEALTH_PATH = "/healthz"


@dataclass(frozen=True, slots=True, kw_only=True)
class WatchSettings:
    """The settings of metrics, health checks, access log and traces, for ``Config.watch``.

    Everything is off by default, and costs no request anything then.
    Raises :class:`~trioresume.errors.CallerError` for an address that cannot be parsed.
    """

    admin_bind: Sequence[str] = ()
    """Addresses of a second listener that answers ``/metrics``, ``/healthz`` and ``/readyz``,
    and ``/admin/`` if there is an admin page: ``HOST:PORT``, ``unix:PATH`` or ``fd:NUMBER``.

    It asks for no token and speaks no TLS: bind it where only operators can connect."""
    admin_page: Literal["off", "read", "change"] = "off"
    """Whether the second listener has a page for people, at ``/admin/``.

    The page shows uploads, files, owners and errors to everybody who can connect. With
    ``"change"`` everybody who can connect may also cancel uploads, delete files, and send
    hooks and requests again."""
    admin_names: Sequence[str] = ()
    """Names by which browsers may ask for this page, beside ``localhost`` and IP addresses.

    With any name allowed, a page from elsewhere could read this one: the owner of a name can
    make it point to the second listener."""
    public_health: bool = False
    """Whether ``GET /healthz`` is answered on the public listeners, without a token."""
    access_log: AccessLog | None = None
    """Gets a line for each request; None: no access log."""
    tracing: TracerProvider | bool = False
    """Makes a span of OpenTelemetry for each request; True: by the program's provider.

    This needs the extra ``tracing``."""

    def __post_init__(self) -> None:
        if isinstance(self.admin_bind, str):
            raise CallerError("admin_bind is a sequence of addresses")
        if isinstance(self.admin_names, str):
            raise CallerError("admin_names is a sequence of names")
        if self.admin_page not in ("off", "read", "change"):
            raise CallerError("admin_page is one of off, read and change")
        if self.admin_page != "off" and not self.admin_bind:
            raise CallerError("the admin page needs admin_bind")
        for bind in self.admin_bind:
            address = parse_address(bind, secure=False)
            if isinstance(address, TCPAddress) and not address.host:
                raise CallerError(f"{bind!r} names no host")
