"""Keys, and JWTs that they have signed, as an issuer makes them."""

from __future__ import annotations

import base64
import json
import time
import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

from joserfc import jwk, jws

__all__ = ["KEYS", "NOW", "jwks", "part", "public", "secret_key", "signed"]

NOW = time.time()

KEYS: Mapping[str, tuple[str, ...]] = {
    "hs": ("HS256", "HS384", "HS512"),
    "rsa": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "p256": ("ES256",),
    "p384": ("ES384",),
    "p521": ("ES512",),
    "ed25519": ("EdDSA", "Ed25519"),
}
"""The names of keys, and the algorithms of each."""


@cache
def secret_key(name: str) -> Any:
    """A key that signs; *name* is one of KEYS, or any other for one more of that kind."""
    kind = name.partition("-")[0]
    if kind == "hs":
        return jwk.OctKey.import_key(b"0123456789abcdef" * 4, {"kid": name})
    if kind == "rsa":
        return jwk.RSAKey.generate_key(2048, {"kid": name})
    if kind == "ed25519":
        return jwk.OKPKey.generate_key("Ed25519", {"kid": name})
    return jwk.ECKey.generate_key(f"P-{kind[1:]}", {"kid": name})


def public(name: str, **more: object) -> dict[str, Any]:
    """The JWK that verifies what the key *name* signs."""
    key = secret_key(name)
    return {**key.as_dict(private=name.startswith("hs")), **more}


def jwks(*names: str) -> str:
    """The JWK set with the keys *names*."""
    return json.dumps({"keys": [public(name) for name in names]})


def part(value: object) -> str:
    """One part of a token."""
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def signed(
    key: str = "p256",
    algorithm: str | None = None,
    claims: Mapping[str, object] | None = None,
    header: Mapping[str, object] | None = None,
    *,
    payload: str | bytes | None = None,
) -> str:
    """A JWT of ``ann`` that expires in an hour, with other *claims* and *header*.

    A claim or a member of the header that is None is left out. The signature is right,
    whatever they say.
    """
    algorithm = algorithm or KEYS[key.partition("-")[0]][0]
    about = {"alg": algorithm, "kid": key, **(header or {})}
    says = {"sub": "ann", "exp": int(NOW) + 3600, **(claims or {})}
    first = part({n: v for n, v in about.items() if v is not None})
    if payload is None:
        payload = json.dumps({n: v for n, v in says.items() if v is not None})
    second = part(payload.encode() if isinstance(payload, str) else payload)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = jws.JWSRegistry(algorithms=[algorithm]).get_alg(algorithm)
    signature = model.sign(f"{first}.{second}".encode(), secret_key(key))
    return f"{first}.{second}.{part(signature)}"
