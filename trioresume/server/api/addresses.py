"""The addresses to listen on, as ``Config.bind`` spells them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from trioresume.errors import CallerError

__all__ = ["Address", "parse_address"]


@dataclass(frozen=True, slots=True)
class Address:
    """An address and what is spoken there."""

    scheme: Literal["http", "https"]
    host: str
    port: int


def parse_address(bind: str, *, secure: bool) -> Address:
    """Read ``HOST:PORT``, ``http://HOST:PORT`` or ``https://HOST:PORT``.

    *secure* says whether there is a certificate. Without a scheme it decides: whoever sets a
    certificate must not get a port without TLS by forgetting a word.

    Raises :class:`~trioresume.errors.CallerError`, also for ``https`` without a certificate.
    """
    given, separator, rest = bind.partition("://")
    scheme = given if separator else "https" if secure else "http"
    host, colon, port = (rest if separator else bind).rpartition(":")
    if not colon or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise CallerError(f"{bind!r} is not HOST:PORT")
    if scheme not in ("http", "https"):
        raise CallerError(f"{bind!r} begins with neither http:// nor https://")
    if scheme == "https" and not secure:
        raise CallerError(f"{bind!r} needs a certificate")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    return Address("https" if scheme == "https" else "http", host, int(port))
