"""Absolute http and https URIs, as a client uses them.

A server offers a location as a URI reference, which is resolved against the request's
URI (R4). The client follows it only within the request's own origin (RFC 9110, section
4.3.1). Requests to it carry the user's credentials and content, and a forged field must
not send those to another server.

Statement numbers such as R4 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import quote, urljoin, urlsplit

from trioresume.errors import CallerError
from trioresume.protocol.signed_address import without_signature

__all__ = ["Origin", "Url"]

_DEFAULT_PORTS = {"http": 80, "https": 443}

# The characters that may stand unescaped in a path or a query (RFC 3986, sections 3.3
# and 3.4), and the per cent sign, because an existing escape must not change.
_PATH_SAFE = "/:@!$&'()*+,;=~%"
_QUERY_SAFE = _PATH_SAFE + "?"


@dataclass(frozen=True, slots=True)
class Origin:
    """Scheme, host and port, normalised. URLs with equal origins get the same trust."""

    scheme: str
    host: str
    port: int

    @property
    def authority(self) -> str:
        """The value of ``Host``, with the port only if it is not the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.port == _DEFAULT_PORTS.get(self.scheme):
            return host
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Url:
    """An absolute http or https URI, split into the parts that a request needs."""

    origin: Origin
    target: str
    """The request target in origin form: path and query, percent-encoded."""

    @classmethod
    def parse(cls, text: str) -> Url:
        """Parse *text*. Raises :class:`CallerError` unless it is an http(s) URI with a host.

        Credentials in the URI are refused, because they leak into logs and journals.
        """
        try:
            parts = urlsplit(text)
            port = parts.port
            host = parts.hostname
        except ValueError as exc:
            raise CallerError(f"{text!r} is not a URL: {exc}") from exc
        if parts.scheme not in _DEFAULT_PORTS or not host:
            raise CallerError(f"{text!r} is not an absolute http:// or https:// URL")
        if parts.username is not None or parts.password is not None:
            raise CallerError(
                "credentials do not belong in a URL; use a token or a header"
            )
        try:
            host = host.encode("idna").decode("ascii") if ":" not in host else host
        except UnicodeError as exc:
            raise CallerError(f"the host of {text!r} is not a name") from exc
        target = quote(parts.path or "/", safe=_PATH_SAFE)
        if parts.query:
            target += "?" + quote(parts.query, safe=_QUERY_SAFE)
        origin = Origin(parts.scheme, host, port or _DEFAULT_PORTS[parts.scheme])
        return cls(origin, target)

    def resolve(self, reference: str) -> Url | None:
        """Resolve *reference* against this URI; None if the result has another origin."""
        url = self.join(reference)
        return None if url is None or url.origin != self.origin else url

    def join(self, reference: str) -> Url | None:
        """Resolve *reference* against this URI; None if that is no URI to send requests to."""
        try:
            return Url.parse(urljoin(str(self), reference))
        except (CallerError, ValueError):
            return None

    def beside(self, name: str) -> Url:
        """The URL of *name* in the same folder."""
        folder = self.target.partition("?")[0].rpartition("/")[0]
        return Url(self.origin, f"{folder}/{name}")

    @property
    def shown(self) -> str:
        """The URL for people, logs and records: without a signature."""
        return without_signature(str(self))

    def __str__(self) -> str:
        return f"{self.origin.scheme}://{self.origin.authority}{self.target}"
