"""The addresses to listen on, as ``Config.bind`` spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trioresume.errors import CallerError

__all__ = [
    "Address",
    "InheritedAddress",
    "TCPAddress",
    "UnixAddress",
    "parse_address",
]

Scheme = Literal["http", "https"]


@dataclass(frozen=True, slots=True)
class TCPAddress:
    """A port of an interface, and what is spoken there."""

    scheme: Scheme
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class UnixAddress:
    """A Unix socket in the file system."""

    scheme: Scheme
    path: str


@dataclass(frozen=True, slots=True)
class InheritedAddress:
    """A socket that listens already: its descriptor was handed to this process."""

    scheme: Scheme
    descriptor: int


Address = TCPAddress | UnixAddress | InheritedAddress


def parse_address(bind: str, *, secure: bool) -> Address:
    """Read ``HOST:PORT``, ``unix:PATH`` or ``fd:NUMBER``, with ``http://`` or ``https://`` or not.

    *secure* says whether there is a certificate. Without a scheme it decides: whoever sets a
    certificate must not get a port without TLS by forgetting a word.

    Raises :class:`~trioresume.errors.CallerError`, also for ``https`` without a certificate.
    """
    given, separator, rest = bind.partition("://")
    if separator and given not in ("http", "https"):
        raise CallerError(f"{bind!r} begins with neither http:// nor https://")
    if given == "https" and separator and not secure:
        raise CallerError(f"{bind!r} needs a certificate")
    place = rest if separator else bind
    is_plain = given == "http" if separator else not secure
    scheme: Scheme = "http" if is_plain else "https"
    if place.startswith("unix:"):
        path = place.removeprefix("unix:")
        if not path or "\0" in path or path.endswith("/"):
            raise CallerError(f"{bind!r} names no file for a Unix socket")
        return UnixAddress(scheme, path)
    host, colon, port = place.rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or len(port) > 9:
        raise CallerError(f"{bind!r} is not HOST:PORT, unix:PATH or fd:NUMBER")
    if host == "fd":
        return InheritedAddress(scheme, int(port))
    if int(port) > 65535:
        raise CallerError(f"{bind!r} is not HOST:PORT: the port is above 65535")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return TCPAddress(scheme, host, int(port))
