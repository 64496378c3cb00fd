"""Which proxy a request takes, as the environment's variables say.

The variables are those of curl: ``http_proxy`` in lower case only, because a web
server's ``HTTP_PROXY`` would come from a request's ``Proxy`` field; ``https_proxy``,
``all_proxy`` and ``no_proxy`` in lower case or else in upper case. ``no_proxy`` is a
list of host names, which also mean the names below them, of addresses and of networks;
``*`` means every host.
"""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from trioresume.errors import CallerError
from trioresume.protocol.urls import Origin

__all__ = ["Proxies", "Proxy"]

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Proxy:
    """A proxy. Its text form has no credentials."""

    origin: Origin
    authorization: str | None = None
    """The value of ``Proxy-Authorization``."""

    @property
    def fields(self) -> list[tuple[str, str]]:
        """The fields for the proxy itself."""
        if self.authorization is None:
            return []
        return [("Proxy-Authorization", self.authorization)]

    def __str__(self) -> str:
        return f"{self.origin.scheme}://{self.origin.host}:{self.origin.port}"

    @classmethod
    def parse(cls, value: str, variable: str) -> Proxy:
        """Read the *value* of the *variable*. Raises :class:`CallerError` if it is no proxy."""
        text = value if "://" in value else f"http://{value}"
        try:
            parts = urlsplit(text)
            port, host = parts.port, parts.hostname
        except ValueError:
            parts, port, host = urlsplit("//"), None, None
        # The value may hold a password, so that no message shows it.
        if parts.scheme.startswith("socks"):
            raise CallerError(
                f"the variable {variable} names a SOCKS proxy, and only HTTP proxies are"
                " supported: remove it, or name the host in no_proxy"
            )
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise CallerError(
                f"the variable {variable} is not a proxy's URL, such as http://host:3128"
            )
        authorization = None
        if parts.username is not None:
            login = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
            encoded = base64.b64encode(login.encode()).decode("ascii")
            authorization = f"Basic {encoded}"
        origin = Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])
        return cls(origin, authorization)


class Proxies:
    """The proxies that *environ* names; a mapping with the variables' names and values."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ

    def _value(self, name: str) -> tuple[str, str] | None:
        """Return the variable for *name* that has a value, and that value."""
        for variable in (name,) if name == "http_proxy" else (name, name.upper()):
            value = self._environ.get(variable, "").strip()
            if value:
                return variable, value
        return None

    def proxy_for(self, origin: Origin) -> Proxy | None:
        """Return the proxy on the way to *origin*; None for a direct connection.

        Raises :class:`CallerError` if a variable names a proxy that cannot be used.
        """
        found = self._value(f"{origin.scheme}_proxy") or self._value("all_proxy")
        if found is None or self._is_exempt(origin.host):
            return None
        return Proxy.parse(found[1], found[0])

    def _is_exempt(self, host: str) -> bool:
        listed = self._value("no_proxy")
        if listed is None:
            return False
        members = [each for each in re.split(r"[,\s]+", listed[1].lower()) if each]
        return "*" in members or any(_covers(each, host) for each in members)


def _covers(member: str, host: str) -> bool:
    """Whether *member* of ``no_proxy`` means *host*."""
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(
            member.strip("[]"), strict=False
        )
    except ValueError:
        pass  # one of them is a name
    name = member.strip(".")
    return bool(name) and (host == name or host.endswith(f".{name}"))
