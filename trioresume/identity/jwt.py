"""JSON Web Tokens (RFC 7519) as bearer tokens, by the rules of RFC 8725.

A token is taken only if everything about it is understood: three parts, an algorithm that is
allowed and belongs to the key, no critical extension, no token within a token, claims of the
right types, an expiry that is not far away. Everything else is a 401 that says what is wrong
(RFC 6750, section 3.1).

A token that was verified is remembered by its hash until it expires, since each request of an
upload carries it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import re
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Collection
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

from trioresume.errors import CallerError
from trioresume.identity.jwk_sets import (
    ALGORITHMS,
    JwkFile,
    JwkSetUrl,
    KeySource,
    KeysUnavailable,
    VerificationKey,
)
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Principal, Rejection

if TYPE_CHECKING:
    from trioresume.client.http.tls import ClientTls
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config

__all__ = ["JsonWebTokens"]

MOST_TOKEN = 8192
"""Characters of the longest token."""
MOST_REMEMBERED = 4096
"""Verified tokens that are remembered; those that were verified first go first."""
MOST_KEYS_TRIED = 4
"""Keys that are tried for a token that does not name its key."""
MOST_NAME = 255
"""Characters of the longest name of a principal."""

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +(?P<token>[^\s,]+)")
_PART = re.compile(r"[A-Za-z0-9_-]*")
_TYPES = frozenset({"jwt", "at+jwt", "application/jwt", "application/at+jwt"})
_CHALLENGE = 'Bearer realm="trioresume"'
_NO_TOKEN = Rejection(
    401, Fields({"www-authenticate": _CHALLENGE}), "a bearer token is needed"
)


class _Refused(Exception):
    """A token that is not taken. The text is shown to its sender; it repeats nothing of it."""


class JsonWebTokens:
    """An ``authenticate`` for :class:`~trioresume.Config`: a JWT names the sender.

    *keys* is the file of the keys (a public key in PEM, a JWK or a JWK set), or the
    ``https://`` URL of a JWK set. *algorithms* are those that are allowed; all that fit the
    keys, if there are none. *audience* are the names of this service: a token that has an
    audience must have one of them. *issuer* is who must have issued the token, if given.
    The claim *principal_claim* is the sender's name. Clocks may differ by *leeway* seconds. A
    token must expire, within *max_lifetime* seconds. *tls* is for fetching the set.

    Needs the extra ``identity``. Raises :class:`~trioresume.CallerError` if it is missing, and
    for keys and settings that make no sense, :class:`OSError` if the file cannot be read.
    """

    def __init__(
        self,
        keys: str | os.PathLike[str],
        *,
        algorithms: Collection[str] = (),
        audience: Collection[str] = (),
        issuer: str | None = None,
        principal_claim: str = "sub",
        leeway: float = 30.0,
        max_lifetime: float = 24 * 3600.0,
        tls: ClientTls | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if isinstance(algorithms, str) or isinstance(audience, str):
            raise CallerError("algorithms and audience are collections of names")
        unknown = sorted({*algorithms} - {*ALGORITHMS})
        if unknown:
            raise CallerError(f"{unknown[0]!r} is none of {', '.join(ALGORITHMS)}")
        if leeway < 0 or max_lifetime <= 0:
            raise CallerError("leeway and max_lifetime are seconds")
        self._source: KeySource
        if isinstance(keys, str) and keys.startswith(("https://", "http://")):
            self._source = JwkSetUrl(keys, tls)
        else:
            self._source = JwkFile(keys)
        self._algorithms = frozenset(algorithms or ALGORITHMS)
        self._audience = frozenset(audience)
        self._issuer = issuer
        self._claim = principal_claim
        self._leeway = leeway
        self._max_lifetime = max_lifetime
        self._clock = clock
        self._verified: OrderedDict[bytes, tuple[float, Principal]] = OrderedDict()
        self._version = -1
        """The version of the keys that verified them."""

    def reload(self) -> None:
        """Read the file of the keys again, or fetch their set again soon.

        Raises as the constructor; then the keys stay as they were.
        """
        self._source.reload()

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Keep the keys up to date while the service runs."""
        async with self._source.running():
            yield

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        match = _BEARER.fullmatch(head.fields.get("authorization") or "")
        if match is None:
            return _NO_TOKEN
        token = match["token"]
        try:
            if len(token) > MOST_TOKEN:
                raise _Refused("the token is too long")
            return self._known(token) or await self._verify(token)
        except _Refused as exc:
            text = f'{_CHALLENGE}, error="invalid_token", error_description="{exc}"'
            return Rejection(401, Fields({"www-authenticate": text}), str(exc))
        except KeysUnavailable:
            return Rejection(
                503,
                Fields({"retry-after": "15"}),
                "the keys that verify tokens cannot be fetched now",
            )

    def _known(self, token: str) -> Principal | None:
        if self._version != self._source.version:
            self._version = self._source.version
            self._verified.clear()
            return None
        known = self._verified.get(_hash(token))
        if known is None or self._clock() >= known[0]:
            return None
        return known[1]

    async def _verify(self, token: str) -> Principal:
        """Return the sender that *token* names, and remember it. Raises :class:`_Refused`."""
        parts = token.split(".")
        if len(parts) != 3 or not all(map(_PART.fullmatch, parts)):
            raise _Refused("the token is not a signed JWT")
        header = _json(parts[0])
        algorithm = header.get("alg")
        if not isinstance(algorithm, str) or algorithm not in self._algorithms:
            raise _Refused("the algorithm of the token is not allowed")
        if "crit" in header or "b64" in header:
            raise _Refused("the token has an extension that is not understood")
        if "cty" in header:
            raise _Refused("a token within a token is not accepted")
        if str(header.get("typ", "jwt")).lower() not in _TYPES:
            raise _Refused("the token is of another type than JWT")
        signed, signature = f"{parts[0]}.{parts[1]}".encode(), _decoded(parts[2])
        for key in await self._keys_for(header.get("kid"), algorithm):
            if key.verify(algorithm, signed, signature):
                break
        else:
            raise _Refused("the signature of the token is wrong")
        expires_at, principal = self._judge(_json(parts[1]))
        if self._version == self._source.version:
            self._verified[_hash(token)] = expires_at, principal
            while len(self._verified) > MOST_REMEMBERED:
                self._verified.popitem(last=False)
        return principal

    async def _keys_for(self, kid: object, algorithm: str) -> list[VerificationKey]:
        """Return the keys that may have signed; raises :class:`_Refused` if there are none."""
        if kid is not None and not isinstance(kid, str):
            raise _Refused("the kid of the token is not a string")
        await self._source.ready()
        found = self._fitting(kid, algorithm)
        if not found and kid is not None:
            await self._source.look_again()
            found = self._fitting(kid, algorithm)
        if not found:
            raise _Refused("no key fits the token's kid and algorithm")
        return found[:MOST_KEYS_TRIED]

    def _fitting(self, kid: str | None, algorithm: str) -> list[VerificationKey]:
        return [
            key
            for key in self._source.keys
            if algorithm in key.algorithms
            # A key without a name, such as a PEM, fits every name.
            and (kid is None or key.kid is None or key.kid == kid)
        ]

    def _judge(self, claims: dict[str, Any]) -> tuple[float, Principal]:
        """Return when the token expires, and whom it names."""
        now = self._clock()
        expires_at = _time(claims, "exp")
        begins_at, issued_at = _time(claims, "nbf"), _time(claims, "iat")
        if expires_at is None:
            raise _Refused("the token does not say when it expires")
        if now >= expires_at + self._leeway:
            raise _Refused("the token has expired")
        if begins_at is not None and now < begins_at - self._leeway:
            raise _Refused("the token is not valid yet")
        if issued_at is not None and now < issued_at - self._leeway:
            raise _Refused("the token was issued in the future")
        start = now if issued_at is None else issued_at
        longest = self._max_lifetime + (self._leeway if issued_at is None else 0)
        if expires_at - start > longest:
            raise _Refused(
                f"the token is valid for longer than {self._max_lifetime:g} seconds"
            )
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise _Refused("the token is of another issuer")
        self._check_audience(claims.get("aud"))
        name = claims.get(self._claim)
        if not isinstance(name, str) or not 0 < len(name) <= MOST_NAME:
            raise _Refused("the token does not name its sender")
        if not name.isprintable():
            raise _Refused("the name in the token cannot be printed")
        return expires_at + self._leeway, Principal(name)

    def _check_audience(self, audience: object) -> None:
        """RFC 7519, section 4.1.3: who is not in the audience must refuse the token."""
        if audience is None and not self._audience:
            return
        named = [audience] if isinstance(audience, str) else audience
        if not isinstance(named, list) or not all(isinstance(n, str) for n in named):
            raise _Refused("the token does not say for whom it is")
        if not self._audience & {*named}:
            raise _Refused("the token is for another audience")


def _hash(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()


def _decoded(part: str) -> bytes:
    try:
        return base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    except binascii.Error:
        raise _Refused("the token is not Base64") from None


def _json(part: str) -> dict[str, Any]:
    try:
        value = json.loads(_decoded(part), object_pairs_hook=_object)
    except (ValueError, RecursionError):
        raise _Refused("the token is not JSON") from None
    if not isinstance(value, dict):
        raise _Refused("a part of the token is not a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the members. Raises :class:`ValueError` for a name that occurs twice."""
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("a member occurs twice")
    return members


def _time(claims: dict[str, Any], name: str) -> float | None:
    """Return the seconds since 1970 in the claim *name*, None if there is no such claim."""
    value = claims.get(name)
    if value is None and name not in claims:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _Refused(f"the claim {name} of the token is not a number")
    if not abs(value) <= 1e12:  # NaN is JSON for Python
        raise _Refused(f"the claim {name} of the token is not a date")
    return float(value)
