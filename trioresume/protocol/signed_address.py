"""Signed addresses: a URL that is its own credential, for one kind of request.

The query has the parameter ``signed``::

    signed = BASE64URL(claims) "." BASE64URL(HMAC-SHA256(secret, "trioresume-signed-1." BASE64URL(claims)))

without padding. The claims are a JSON object:

=============  =======================================================================
``kid``        the name of the key
``exp``        when the address ends, in seconds since 1970
``method``     ``POST``, ``PUT``, ``DELETE``, or ``GET``, which includes ``HEAD``
``path``       the path, percent-encoded as in the URL
``prefix``     true: every path that begins so; ``path`` ends with ``/``
``query``      the rest of the query, if there is any
``max_size``   the most bytes of the upload, if there is a limit
``type``       the media type of the content, such as ``image/png`` or ``image/*``
``sub``        the principal that the request counts for
=============  =======================================================================

A claim that is not known makes an address worthless: it may be a limit that a later version
knows. The mac is that of the characters that were sent, so no other form of the same claims has
to be considered.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from trioresume.protocol.path_patterns import path_segments

__all__ = [
    "METHODS",
    "MOST_TEXT",
    "PARAMETER",
    "Claims",
    "kid_of",
    "mac_of",
    "parse_claims",
    "split_target",
    "without_signature",
]

PARAMETER = "signed"
METHODS = ("POST", "PUT", "DELETE", "GET")
MOST_TEXT = 4096
"""Characters of the longest value of the parameter."""

_BEGIN = f"{PARAMETER}="
_CONTEXT = "trioresume-signed-1."


@dataclass(frozen=True, slots=True, kw_only=True)
class Claims:
    """What a signed address allows, and with which key it was signed."""

    kid: str
    expires_at: int
    """In seconds since 1970."""
    method: str
    path: str
    is_prefix: bool = False
    query: str = ""
    max_size: int | None = None
    media_type: str | None = None
    principal: str = ""

    def allows_method(self, method: str) -> bool:
        """Whether a request with *method* is allowed. ``GET`` includes ``HEAD``."""
        return method == self.method or (method == "HEAD" and self.method == "GET")

    def allows_path(self, path: str) -> bool:
        """Whether the *path* of a request, percent-encoded, is the one or below it.

        A path that two programs could read in two ways is not below any.
        """
        if not self.is_prefix:
            return path == self.path
        return path.startswith(self.path) and path_segments(path) is not None

    def encode(self) -> str:
        """Return the claims as they are signed and sent."""
        claims: dict[str, object] = {
            "kid": self.kid,
            "exp": self.expires_at,
            "method": self.method,
            "path": self.path,
        }
        optional = {
            "prefix": self.is_prefix or None,
            "query": self.query or None,
            "max_size": self.max_size,
            "type": self.media_type,
            "sub": self.principal or None,
        }
        claims.update({n: value for n, value in optional.items() if value is not None})
        text = json.dumps(claims, separators=(",", ":"), ensure_ascii=False)
        return _encoded(text.encode())


def mac_of(secret: bytes, claims: str) -> str:
    """Return the mac of encoded *claims*."""
    data = f"{_CONTEXT}{claims}".encode()
    return _encoded(hmac.digest(secret, data, hashlib.sha256))


def split_target(target: str) -> tuple[str, list[str]]:
    """Return a request target or a URL without the parameter, and the parameter's values."""
    path, mark, query = target.partition("?")
    if _BEGIN not in query:
        return target, []
    parts = query.split("&")
    rest = "&".join(part for part in parts if not part.startswith(_BEGIN))
    values = [part[len(_BEGIN) :] for part in parts if part.startswith(_BEGIN)]
    return (f"{path}{mark}{rest}" if rest else path), values


def without_signature(target: str) -> str:
    """Return a request target or a URL as it may be shown to others, and remembered."""
    return split_target(target)[0]


def parse_claims(encoded: str) -> Claims:
    """Parse claims whose mac is right. Raises :class:`ValueError`."""
    claims = json.loads(_decoded(encoded))
    if not isinstance(claims, dict):
        raise ValueError("the claims are no JSON object")
    read = dict(claims)
    parsed = Claims(
        kid=_take(read, "kid", str),
        expires_at=_take(read, "exp", int),
        method=_take(read, "method", str),
        path=_take(read, "path", str),
        is_prefix=_take(read, "prefix", bool, False),
        query=_take(read, "query", str, ""),
        max_size=_take(read, "max_size", int, None),
        media_type=_take(read, "type", str, None),
        principal=_take(read, "sub", str, ""),
    )
    if read:
        raise ValueError("a claim is not known")
    return parsed


_NEEDED: Any = object()


def _take(claims: dict[str, Any], name: str, kind: type, default: Any = _NEEDED) -> Any:
    """Take the claim *name* out of *claims*. Raises :class:`ValueError`."""
    value = claims.pop(name, default)
    if value is default and default is not _NEEDED:
        return value
    if type(value) is not kind:  # a Boolean is an int for Python
        raise ValueError(f"the claim {name} is missing or of a wrong type")
    return value


def kid_of(encoded: str) -> str | None:
    """Return the name of the key in claims that nobody has verified yet."""
    try:
        claims = json.loads(_decoded(encoded))
    except (ValueError, RecursionError):
        return None
    kid = claims.get("kid") if isinstance(claims, Mapping) else None
    return kid if isinstance(kid, str) else None


def _encoded(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(
            text + "=" * (-len(text) % 4), altchars=b"-_", validate=True
        )
    except binascii.Error as exc:
        raise ValueError("not Base64") from exc
