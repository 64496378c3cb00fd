"""The base class of all peers: how to install and start a server."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Literal

__all__ = ["Carrier", "Certificate", "Launch", "Peer", "ToolMissing"]


class ToolMissing(Exception):
    """This machine lacks a command that is needed to install or run a peer."""


class Carrier(Enum):
    """What carries the requests: HTTP/1.1 or HTTP/2, and whether there is TLS below."""

    PLAIN = "plain"
    TLS = "tls"
    """HTTP/1.1 over TLS."""
    HTTP2 = "h2"
    """HTTP/2 over TLS."""
    H2C = "h2c"
    """HTTP/2 without TLS, known of beforehand."""

    @property
    def is_secure(self) -> bool:
        return self in (Carrier.TLS, Carrier.HTTP2)

    @property
    def is_http2(self) -> bool:
        return self in (Carrier.HTTP2, Carrier.H2C)


@dataclass(frozen=True, slots=True)
class Certificate:
    """A server's certificate and its private key, in PEM files."""

    certfile: Path
    keyfile: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """A command that serves on a port until SIGTERM."""

    command: tuple[str, ...]
    environment: dict[str, str] = field(default_factory=dict)
    path: str = "/files/"
    """The path for uploads: that of the collection, with its slash."""


@dataclass(frozen=True, kw_only=True)
class Peer(ABC):
    """A server to measure.

    ``protocols`` are those that it speaks: ``seed``, ``tus``, ``rufh`` (resumable) or
    ``plain`` (PUT, no resumption). By default it is measured with the first one.
    ``hashes`` and ``syncs`` say how it protects stored uploads, and ``settings`` how it
    is run; a report repeats them. ``needs`` names commands that must be on the search
    path. ``request_limit``, if set, is the largest body that the client may send in one
    request, because the server holds each body in memory. ``plain_method`` is the method
    of ``plain``: PUT of a name, or POST to the collection, which answers with a
    ``Location``. ``serves_back`` is false if uploads cannot be fetched.
    ``interop_version`` is the one that the server speaks in ``rufh``. ``carriers`` are what
    it can be measured with; for those with TLS there is :meth:`secure`, and ``h2c_options``
    are for HTTP/2 without TLS.
    """

    name: str
    protocols: tuple[str, ...]
    hashes: str
    syncs: str
    settings: str
    needs: tuple[str, ...] = ()
    request_limit: int | None = None
    plain_method: Literal["PUT", "POST"] = "PUT"
    serves_back: bool = True
    interop_version: int | None = 8
    carriers: tuple[Carrier, ...] = (Carrier.PLAIN,)
    h2c_options: tuple[str, ...] = ()

    @property
    def resumes(self) -> bool:
        """Whether a cut upload can be resumed."""
        return self.protocols[0] != "plain"

    @property
    @abstractmethod
    def version(self) -> str:
        """The pinned version. Without one, :meth:`resolved_version` tells the real one."""

    @property
    def installs(self) -> bool:
        """Whether the peer has to be installed at all."""
        return True

    def key(self) -> str:
        """Return the name of its directory in the cache, which depends on the version."""
        return f"{self.name}-{self.version}"

    def missing_tools(self) -> list[str]:
        """Return those of ``needs`` that this machine does not have."""
        return [tool for tool in self.needs if shutil.which(tool) is None]

    def require_tools(self) -> None:
        """Raise :class:`ToolMissing` unless this machine has all of ``needs``."""
        missing = self.missing_tools()
        if missing:
            raise ToolMissing(f"{self.name} needs {' and '.join(missing)}")

    @abstractmethod
    def install(self, at: Path, log: Path) -> None:
        """Install into the empty directory *at*, and append all output to *log*.

        Raises :class:`~bench.peers.cache.InstallFailed`.
        """

    @abstractmethod
    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        """Return how to serve *data_dir* on *port* of the loopback interface."""

    def secure(self, launch: Launch, certificate: Certificate) -> Launch:
        """Return *launch* changed so that the server speaks TLS, and HTTP/2 if it can."""
        raise NotImplementedError(f"{self.name} does not speak TLS")

    def resolved_version(self, at: Path) -> str:
        """Return the version that is installed *at*."""
        return self.version
