"""The keys that verify JWTs: from a file, or from a URL that is asked again now and then.

Each key verifies only the algorithms of its own kind (RFC 8725, section 3.1). So a public key
is never taken for the secret of an HMAC, and ``none`` is no algorithm of any key.

The set at a URL is fetched when the service starts, every ten minutes, and when a token names
a key that is not in it, but then at most once a minute: anybody can invent names of keys. While
the URL cannot be reached the old set is used, for a day at most. Everything is fetched by one
task. A request never waits for more than one fetch.
"""

from __future__ import annotations

import json
import logging
import math
import os
import warnings
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import trio

from trioresume.client.client import Client
from trioresume.client.decisions.retry import RetryPolicy
from trioresume.errors import CallerError, TrioresumeError
from trioresume.protocol.urls import Url

if TYPE_CHECKING:
    from trioresume.client.http.tls import ClientTls

__all__ = [
    "ALGORITHMS",
    "JwkFile",
    "JwkSetUrl",
    "KeySource",
    "KeysUnavailable",
    "VerificationKey",
]

logger = logging.getLogger("trioresume.identity")

MOST_KEYS = 64
"""The most keys in one set."""
MOST_BYTES = 256 * 1024
"""The largest set."""
FETCH_TIMEOUT = 10.0
"""Seconds for one fetch."""
REFRESH_INTERVAL = 600.0
"""Seconds between two fetches that nobody asked for."""
RETRY_INTERVAL = 15.0
"""Seconds from a fetch that failed to the next one. They double with each further failure."""
MOST_RETRY_INTERVAL = 300.0
"""The longest of these intervals."""
UNKNOWN_INTERVAL = 60.0
"""Seconds between two fetches for names of keys that are not in the set."""
MOST_STALE = 24 * 3600.0
"""Seconds for which a set is used after the last fetch that succeeded."""

_LOOPBACK = ("127.", "localhost", "::1")

_OF_KIND: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("oct", None): ("HS256", "HS384", "HS512"),
    ("RSA", None): ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    ("EC", "P-256"): ("ES256",),
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA", "Ed25519"),
    ("OKP", "Ed448"): ("EdDSA", "Ed448"),
}
"""The algorithms of each kind of key, by ``kty`` and ``crv``."""

ALGORITHMS = tuple(dict.fromkeys(name for names in _OF_KIND.values() for name in names))
"""Every algorithm that a JWT may be signed with."""

_LEAST_SECRET = {"HS256": 32, "HS384": 48, "HS512": 64}
"""The least bytes of a secret for each HMAC (RFC 7518, section 3.2)."""
_LEAST_RSA_BITS = 2048
_PRIVATE = "it has a private key: the service needs only the public one"


class KeysUnavailable(TrioresumeError):
    """The keys were never fetched, or too long ago."""


@dataclass(frozen=True, slots=True)
class VerificationKey:
    """A key, its name in the set, and the algorithms that it verifies."""

    kid: str | None
    algorithms: frozenset[str]
    _key: Any
    _models: Mapping[str, Any]

    def verify(self, algorithm: str, signed: bytes, signature: bytes) -> bool:
        """Return whether *signature* is that of *signed*."""
        return bool(self._models[algorithm].verify(signed, signature, self._key))


class _Joserfc:
    """What is used of joserfc, which is loaded when it is needed."""

    def __init__(self) -> None:
        try:
            from joserfc import jwk
            from joserfc.errors import JoseError
            from joserfc.jws import JWSRegistry
        except ImportError as exc:
            raise CallerError(
                "JWTs need the package joserfc: install trioresume[identity]"
            ) from exc
        self.jwk = jwk
        self.JoseError = JoseError
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # EdDSA has got other names: RFC 9864
            registry = JWSRegistry(algorithms=[*ALGORITHMS])
            self.models = {name: registry.get_alg(name) for name in ALGORITHMS}

    def pem(self, text: str) -> VerificationKey:
        """Return the public key in *text*. Raises :class:`ValueError`."""
        if "PRIVATE KEY-----" in text:
            raise ValueError(_PRIVATE)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                key = self.jwk.import_key(text)
            except (ValueError, TypeError, self.JoseError) as exc:
                raise ValueError("the PEM is not a key") from exc
        if key.key_type == "oct":
            raise ValueError("the PEM is not a public key")
        return self._key(None, key, key.as_dict(private=False))

    def set(self, text: str, *, is_public: bool) -> list[VerificationKey]:
        """Return the keys of a JWK, or of a JWK set. Raises :class:`ValueError`.

        Keys for other purposes, and of kinds that are not known, are left out
        (RFC 7517, section 5). With *is_public* secrets are refused.
        """
        document = json.loads(text)
        if not isinstance(document, dict):
            raise ValueError("a JWK is a JSON object")
        members = document.get("keys", [document])
        if not isinstance(members, list) or len(members) > MOST_KEYS:
            raise ValueError(f"a JWK set is a list of at most {MOST_KEYS} keys")
        keys = []
        for member in members:
            if not isinstance(member, dict):
                raise ValueError("a JWK is a JSON object")
            if is_public and member.get("kty") == "oct":
                raise ValueError("the set tells a secret to everybody who asks for it")
            if "d" in member:
                raise ValueError(_PRIVATE)
            key = self._member(member)
            if key is not None:
                keys.append(key)
        if not keys:
            raise ValueError("the set has no key for signatures")
        return keys

    def _member(self, member: dict[str, Any]) -> VerificationKey | None:
        kind = str(member.get("kty")), _curve(member)
        if kind not in _OF_KIND or member.get("use", "sig") != "sig":
            return None
        if "verify" not in member.get("key_ops", ["verify"]):
            return None
        kid = member.get("kid")
        if kid is not None and not isinstance(kid, str):
            raise ValueError("the kid of a JWK is a string")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what it warns of is refused below
                key = self.jwk.import_key(member)
                as_dict = key.as_dict(private=False)
                return self._key(kid, key, {**member, **as_dict})
        except (ValueError, TypeError, KeyError, self.JoseError) as exc:
            raise ValueError(f"a JWK cannot be used: {exc}") from exc

    def _key(
        self, kid: str | None, key: Any, about: Mapping[str, Any]
    ) -> VerificationKey:
        algorithms = _OF_KIND.get((key.key_type, _curve(about)))
        if algorithms is None:
            raise ValueError("keys of this kind are not supported")
        named = about.get("alg")
        if named is not None:
            algorithms = tuple(name for name in algorithms if name == named)
            if not algorithms:
                raise ValueError("the alg of a JWK does not fit its kty")
        if key.key_type == "oct":
            size = len(key.raw_value)
            algorithms = tuple(n for n in algorithms if _LEAST_SECRET[n] <= size)
            if not algorithms:
                raise ValueError(
                    f"the secret has {size} bytes; HS256 needs 32, HS384 48, HS512 64"
                )
        if key.key_type == "RSA" and key.raw_value.key_size < _LEAST_RSA_BITS:
            raise ValueError(f"an RSA key has at least {_LEAST_RSA_BITS} bits")
        models = {name: self.models[name] for name in algorithms}
        return VerificationKey(kid, frozenset(algorithms), key, models)


def _curve(about: Mapping[str, Any]) -> str | None:
    return str(about.get("crv")) if about.get("kty") in ("EC", "OKP") else None


class KeySource:
    """Keys that may change. *version* changes with them."""

    def __init__(self) -> None:
        self.keys: list[VerificationKey] = []
        self.version = 0

    def _take(self, keys: list[VerificationKey]) -> None:
        self.keys = keys
        self.version += 1

    async def ready(self) -> None:
        """Wait until there are keys. Raises :class:`KeysUnavailable`."""

    async def look_again(self) -> None:
        """Look for newer keys, because a token names one that is not here."""

    def reload(self) -> None:
        """Read the keys again. Raises :class:`CallerError`; then they stay as they were."""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Keep the keys up to date in the block."""
        yield


class JwkFile(KeySource):
    """Keys in the file *path*: a public key (PEM), a JWK, or a JWK set.

    Raises :class:`CallerError` for a file that cannot be used, and :class:`OSError`.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        super().__init__()
        self._jose = _Joserfc()
        self._path = path
        self.reload()

    def reload(self) -> None:
        with open(self._path, "rb") as file:
            data = file.read(MOST_BYTES + 1)
        try:
            if len(data) > MOST_BYTES:
                raise ValueError(f"it has more than {MOST_BYTES} bytes")
            text = data.decode("utf-8-sig")
            if text.lstrip().startswith("-----BEGIN"):
                keys = [self._jose.pem(text)]
            else:
                keys = self._jose.set(text, is_public=False)
        except (ValueError, RecursionError) as exc:
            raise CallerError(f"{os.fspath(self._path)}: {exc}") from exc
        self._take(keys)


class JwkSetUrl(KeySource):
    """The JWK set at *url*, fetched while :meth:`running`.

    Raises :class:`CallerError` for a URL that makes no sense.
    """

    def __init__(self, url: str, tls: ClientTls | None = None) -> None:
        super().__init__()
        self._jose = _Joserfc()
        self._url = url
        origin = Url.parse(url).origin
        if origin.scheme == "http" and not origin.host.startswith(_LOOPBACK):
            logger.warning(
                "the keys are fetched from %s without TLS: whoever can change what is sent"
                " on the way can let himself in",
                url,
            )
        self._tls = tls
        self._wanted = trio.Event()
        self._ended = trio.Event()
        self._tried_at = self._fetched_at = float("-inf")
        self._text = ""

    async def ready(self) -> None:
        if not self.keys and math.isinf(self._tried_at):
            await self._until_fetched()  # it is the first one
        if not self.keys or trio.current_time() > self._fetched_at + MOST_STALE:
            raise KeysUnavailable(f"the keys at {self._url} cannot be fetched")

    async def look_again(self) -> None:
        if trio.current_time() >= self._tried_at + UNKNOWN_INTERVAL:
            self._wanted.set()
            await self._until_fetched()

    async def _until_fetched(self) -> None:
        with trio.move_on_after(FETCH_TIMEOUT):
            await self._ended.wait()

    def reload(self) -> None:
        """Fetch the set again soon. A fault is logged, and the old set is used."""
        try:
            trio.from_thread.run_sync(self._want)
        except RuntimeError:
            self._want()  # called in trio's own thread

    def _want(self) -> None:
        self._wanted.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        client = Client(
            retry=RetryPolicy(attempts=0),
            tls=self._tls,
            max_response_size=MOST_BYTES,
            idle_timeout=FETCH_TIMEOUT,
            release=False,
        )
        async with client, trio.open_nursery() as nursery:
            nursery.start_soon(self._fetch_for_ever, client)
            try:
                yield
            finally:
                nursery.cancel_scope.cancel()

    async def _fetch_for_ever(self, client: Client) -> None:
        retry = RETRY_INTERVAL
        while True:
            delay = REFRESH_INTERVAL
            if await self._fetch(client):
                retry = RETRY_INTERVAL
            else:
                delay, retry = retry, min(2 * retry, MOST_RETRY_INTERVAL)
            self._tried_at = trio.current_time()
            self._ended.set()
            self._ended = trio.Event()
            with trio.move_on_after(delay):
                await self._wanted.wait()
            self._wanted = trio.Event()

    async def _fetch(self, client: Client) -> bool:
        """Fetch the set; return whether that succeeded."""
        fault = f"no answer within {FETCH_TIMEOUT:g} seconds"
        with trio.move_on_after(FETCH_TIMEOUT):
            try:
                text = await self._get(client)
                if text != self._text:
                    self._take(self._jose.set(text, is_public=True))
                    self._text = text
                self._fetched_at = trio.current_time()
                return True
            except (TrioresumeError, OSError, ValueError, RecursionError) as exc:
                fault = str(exc)
        logger.error("the keys at %s cannot be fetched: %s", self._url, fault)
        return False

    async def _get(self, client: Client) -> str:
        """Return the set as it is at the URL. Raises :class:`ValueError`, and as *client*."""
        response = await client.request(
            "GET", self._url, headers={"Accept": "application/json"}
        )
        if response.status != 200:
            raise ValueError(f"the status is {response.status}")
        return response.body.decode()
