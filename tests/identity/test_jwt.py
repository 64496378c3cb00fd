"""JWTs: what is taken is understood whole, and everything else is a 401 that says why."""

from __future__ import annotations

import hashlib
import hmac
import json
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
from joserfc.jwk import RSAKey

from tests.identity.heads import bearer, head
from tests.identity.tokens import KEYS, NOW, jwks, part, public, secret_key, signed
from trioresume import CallerError, JsonWebTokens, Principal, Rejection
from trioresume.identity import jwk_sets, jwt

ALL = jwks(*KEYS)


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys.json", ALL)


async def verdict(known: JsonWebTokens, token: str) -> Principal | Rejection:
    return await known(head(fields=bearer(token)))


async def refusal(known: JsonWebTokens, token: str) -> str:
    """Why *token* is refused: 401, with RFC 6750's code and the same words twice."""
    found = await verdict(known, token)
    assert isinstance(found, Rejection), found
    assert found.status == 401
    assert found.headers.get("www-authenticate") == (
        f'Bearer realm="trioresume", error="invalid_token",'
        f' error_description="{found.detail}"'
    )
    assert found.detail.isascii()
    return found.detail


@pytest.mark.parametrize(
    ("key", "algorithm"), [(key, alg) for key, algs in KEYS.items() for alg in algs]
)
async def test_every_algorithm_names_the_sender(
    key: str, algorithm: str, keys: Path
) -> None:
    """With a kid and without one. Of any other algorithm the key verifies nothing."""
    known = JsonWebTokens(keys)
    assert await verdict(known, signed(key, algorithm)) == Principal("ann")
    unnamed = signed(key, algorithm, header={"kid": None})
    assert await verdict(known, unnamed) == Principal("ann")
    only = JsonWebTokens(keys, algorithms=[algorithm])
    assert await verdict(only, signed(key, algorithm)) == Principal("ann")
    others = {alg for algs in KEYS.values() for alg in algs} - {algorithm}
    never = JsonWebTokens(keys, algorithms=others)
    assert "not allowed" in await refusal(never, signed(key, algorithm))


RFC7515_CLAIMS = (
    "eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFt"
    "cGxlLmNvbS9pc19yb290Ijp0cnVlfQ"
)


@pytest.mark.parametrize(
    ("key", "header", "signature"),
    [
        (
            {
                "kty": "oct",
                "k": "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75"
                "aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
            },
            "eyJ0eXAiOiJKV1QiLA0KICJhbGciOiJIUzI1NiJ9",
            "dBjftJeZ4CVP-mB92K27uhbUJU1p1r_wW1gFWFOEjXk",
        ),
        (
            {
                "kty": "EC",
                "crv": "P-256",
                "x": "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU",
                "y": "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0",
            },
            "eyJhbGciOiJFUzI1NiJ9",
            (
                "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSA"
                "pmWQxfKTUJqPP3-Kg6NU1Q"
            ),
        ),
    ],
    ids=["A.1", "A.3"],
)
async def test_examples_of_the_rfc(
    key: dict[str, str], header: str, signature: str, tmp_path: Path
) -> None:
    """RFC 7515, appendix A: made by somebody else. After their expiry they are refused."""
    path = write(tmp_path / "key", json.dumps(key))
    now = 1300819000.0
    known = JsonWebTokens(path, principal_claim="iss", clock=lambda: now)
    token = f"{header}.{RFC7515_CLAIMS}.{signature}"
    assert await verdict(known, token) == Principal("joe")
    now = 1300819380.0 + 29
    assert await verdict(known, token) == Principal("joe")
    now += 1
    assert "expired" in await refusal(known, token)


@pytest.mark.parametrize("name", ["rsa", "p256", "ed25519"])
async def test_public_key_may_be_pem(name: str, tmp_path: Path) -> None:
    """It has no kid, and so fits every one."""
    pem = secret_key(name).as_pem(private=False)
    path = write(tmp_path / "key.pem", pem.decode())
    assert await verdict(JsonWebTokens(path), signed(name)) == Principal("ann")


async def test_public_key_is_no_secret_of_an_hmac(tmp_path: Path) -> None:
    """RFC 8725, section 2.1: everybody knows that "secret"."""
    pem = secret_key("rsa").as_pem(private=False)
    path = write(tmp_path / "key.pem", pem.decode())
    first, second = part({"alg": "HS256"}), signed("rsa").split(".")[1]
    mac = hmac.digest(pem, f"{first}.{second}".encode(), hashlib.sha256)
    token = f"{first}.{second}.{part(mac)}"
    assert "no key fits" in await refusal(JsonWebTokens(path), token)


@pytest.mark.parametrize(
    ("token", "message"),
    [
        (signed(header={"crit": ["exp"], "exp": 1}), "extension"),
        (signed(header={"b64": False}), "extension"),
        (signed(header={"cty": "JWT"}), "token within a token"),
        (signed(header={"typ": "secevent+jwt"}), "another type"),
        (signed(header={"typ": 5}), "another type"),
        (signed(header={"kid": 5}), "not a string"),
        (signed(header={"kid": ["p256"]}), "not a string"),
        (signed(header={"kid": "p384"}), "no key fits"),
        (signed(header={"kid": "nobody's"}), "no key fits"),
        (signed("p256-other", header={"kid": "p256"}), "signature"),
        (signed("p256-other", header={"kid": None}), "signature"),
        (signed("p256-other", header={"jwk": public("p256-other")}), "no key fits"),
        (signed(claims={"exp": None}), "does not say when it expires"),
        (signed(claims={"exp": NOW - 31}), "expired"),
        (signed(claims={"exp": str(NOW + 60)}), "exp of the token is not a number"),
        (signed(claims={"exp": True}), "not a number"),
        (signed(claims={"exp": [NOW]}), "not a number"),
        (signed(claims={"exp": 1e300}), "not a date"),
        (signed(claims={"exp": 10**400}), "not a date"),
        (signed(payload='{"sub":"ann","exp":NaN}'), "not a date"),
        (signed(payload='{"sub":"ann","exp":Infinity}'), "not a date"),
        (signed(payload='{"sub":"ann","exp":null}'), "not a number"),
        (signed(claims={"exp": NOW + 90_000}), "valid for longer"),
        (signed(claims={"exp": NOW + 60, "iat": NOW - 86_400}), "valid for longer"),
        (signed(claims={"nbf": NOW + 60}), "not valid yet"),
        (signed(claims={"nbf": "now"}), "not a number"),
        (signed(claims={"iat": NOW + 60}), "in the future"),
        (signed(claims={"aud": "others"}), "another audience"),
        (signed(claims={"aud": ["a", 5]}), "for whom"),
        (signed(claims={"aud": {}}), "for whom"),
        (signed(claims={"aud": []}), "another audience"),
        (signed(claims={"sub": None}), "name its sender"),
        (signed(claims={"sub": ""}), "name its sender"),
        (signed(claims={"sub": 7}), "name its sender"),
        (signed(claims={"sub": ["ann"]}), "name its sender"),
        (signed(claims={"sub": "a" * 256}), "name its sender"),
        (signed(claims={"sub": "ann\nbob"}), "cannot be printed"),
        (signed(claims={"sub": "ann\x00"}), "cannot be printed"),
        (signed(payload="[]"), "not a JSON object"),
        (signed(payload="{"), "not JSON"),
        (signed(payload=b"\xff{}"), "not JSON"),
        (signed(payload='{"sub":"ann","sub":"bob","exp":9999999999}'), "not JSON"),
        (signed(payload="[" * 3000), "not JSON"),
        (signed(claims={"x": "a" * 9000}), "too long"),
        (part({"alg": "none"}) + "." + signed().split(".")[1] + ".", "not allowed"),
        (part({"alg": "None"}) + "." + signed().split(".")[1] + ".", "not allowed"),
        (part({"alg": ["ES256"]}) + ".e30.AA", "not allowed"),
        (part({}) + ".e30.AA", "not allowed"),
        (part([]) + ".e30.AA", "not a JSON object"),
        ("!." + signed(), "not a signed JWT"),
        (signed() + ".x", "not a signed JWT"),
        (signed() + ".x.y", "not a signed JWT"),
        ("a.b", "not a signed JWT"),
        ("opaque", "not a signed JWT"),
        ("..", "not JSON"),
        ("a.b.c", "not Base64"),
        (signed().rpartition(".")[0] + ".", "signature"),
        (signed()[:-4] + "AAAA", "signature"),
        (signed("rsa")[:-4] + "AAAA", "signature"),
        (signed("hs")[:-4] + "AAAA", "signature"),
        (signed("ed25519").rpartition(".")[0] + ".AA", "signature"),
        (signed("rsa").rpartition(".")[0] + ".AA", "signature"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
async def test_anything_else_is_refused_with_the_reason(
    token: str, message: str, keys: Path
) -> None:
    """One thing is wrong, and the signature is right unless that is what is wrong."""
    known = JsonWebTokens(keys, clock=lambda: NOW)
    assert message in await refusal(known, token)


@pytest.mark.parametrize(
    "fields",
    [{}, {"Authorization": "Bearer"}, {"Authorization": "Basic YTpi"}],
    ids=str,
)
async def test_without_a_token_one_is_asked_for(
    fields: dict[str, str], keys: Path
) -> None:
    """RFC 6750, section 3: without an error code, because nothing is wrong yet."""
    found = await JsonWebTokens(keys)(head(fields=fields))
    assert isinstance(found, Rejection)
    assert found.headers.get("www-authenticate") == 'Bearer realm="trioresume"'


async def test_claims_are_held_to_the_settings(keys: Path) -> None:
    """Audience, issuer, another claim for the name."""
    known = JsonWebTokens(
        keys, audience=["up", "files"], issuer="https://id", principal_claim="email"
    )
    right = {"aud": ["x", "files"], "iss": "https://id", "email": "ann@a"}
    assert await verdict(known, signed(claims=right)) == Principal("ann@a")
    single = signed(claims={**right, "aud": "up"})
    assert await verdict(known, single) == Principal("ann@a")
    for wrong, message in (
        ({"aud": None}, "for whom"),
        ({"aud": "ups"}, "another audience"),
        ({"iss": None}, "another issuer"),
        ({"iss": ["https://id"]}, "another issuer"),
        ({"iss": "https://id/"}, "another issuer"),
        ({"email": None}, "name its sender"),
    ):
        claims = {n: v for n, v in {**right, **wrong}.items() if v is not None}
        assert message in await refusal(known, signed(claims=claims))


async def test_verified_token_is_remembered_until_it_expires(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request of an upload carries it. What is kept are hashes, a limited number."""
    now = NOW
    known = JsonWebTokens(keys, clock=lambda: now)
    token = signed()
    assert await verdict(known, token) == Principal("ann")
    verified = 0
    genuine = jwk_sets.VerificationKey.verify

    def counted(*args: Any) -> bool:
        nonlocal verified
        verified += 1
        return genuine(*args)

    monkeypatch.setattr(jwk_sets.VerificationKey, "verify", counted)
    for _ in range(5):
        assert await verdict(known, token) == Principal("ann")
    assert verified == 0
    now = NOW + 3629 - 1
    assert await verdict(known, token) == Principal("ann")
    now = NOW + 3631
    assert "expired" in await refusal(known, token)
    assert [len(key) for key in known._verified] == [32]


async def test_number_of_remembered_tokens_is_limited(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest go first."""
    monkeypatch.setattr(jwt, "MOST_REMEMBERED", 3)
    known = JsonWebTokens(keys)
    for number in range(9):
        await verdict(known, signed("hs", claims={"sub": f"n{number}"}))
    assert len(known._verified) == 3


async def test_keys_are_read_again(keys: Path) -> None:
    """A key that was removed verifies nothing more, not even what it had verified."""
    known = JsonWebTokens(keys)
    assert await verdict(known, signed("p256")) == Principal("ann")
    write(keys, jwks("p384"))
    known.reload()
    assert "no key fits" in await refusal(known, signed("p256"))
    assert await verdict(known, signed("p384")) == Principal("ann")
    write(keys, "{}")
    with pytest.raises(CallerError, match=str(keys)):
        known.reload()
    assert await verdict(known, signed("p384")) == Principal("ann")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Expecting value"),
        ("[]", "JSON object"),
        ("{}", "no key for signatures"),
        ('{"keys": 5}', "list of at most"),
        ('{"keys": [5]}', "JSON object"),
        ('{"keys": []}', "no key for signatures"),
        (json.dumps({"keys": [{}] * 65}), "at most 64"),
        (json.dumps(public("p256", use="enc")), "no key for signatures"),
        (json.dumps(public("p256", key_ops=["sign"])), "no key for signatures"),
        (json.dumps(public("p256", alg="RS256")), "does not fit"),
        (json.dumps(public("p256", kid=5)), "kid"),
        (json.dumps(public("p256", x="AA")), "cannot be used"),
        (json.dumps({"kty": "EC", "crv": "P-256"}), "cannot be used"),
        (json.dumps({"kty": "EC", "crv": "secp256k1"}), "no key for signatures"),
        (json.dumps({"kty": "oct", "k": part(b"short")}), "secret has 5 bytes"),
        (json.dumps(secret_key("p256").as_dict(private=True)), "private key"),
        (secret_key("rsa").as_pem(private=True).decode(), "private key"),
        ("-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a"),
        ("[" * 100_000, "recursion"),
        ("x" * 300_000, "more than"),
        ("\xff", "utf-8"),
    ],
    ids=lambda value: value if len(value) < 40 else "",
)
def test_file_that_cannot_be_used_is_refused(
    text: str, message: str, tmp_path: Path
) -> None:
    """With its name and the reason; RSA of 1024 bits and short secrets, too."""
    path = tmp_path / "keys"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(CallerError, match=message) as caught:
        JsonWebTokens(path)
    assert str(path) in str(caught.value)


def test_short_rsa_key_is_refused(tmp_path: Path) -> None:
    """RFC 7518, section 3.3."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        key = RSAKey.generate_key(1024).as_dict(private=False)
    with pytest.raises(CallerError, match="2048 bits"):
        JsonWebTokens(write(tmp_path / "key", json.dumps(key)))


async def test_short_secret_verifies_only_what_it_is_long_enough_for(
    tmp_path: Path,
) -> None:
    """RFC 7518, section 3.2; and a JWK's own ``alg`` narrows it further."""
    key = public("hs")
    key["k"] = part(b"0123456789abcdef" * 2)
    known = JsonWebTokens(write(tmp_path / "a", json.dumps(key)))
    assert "no key fits" in await refusal(known, signed("hs", "HS512"))
    assert "signature" in await refusal(known, signed("hs", "HS256"))
    named = JsonWebTokens(write(tmp_path / "b", json.dumps(public("hs", alg="HS384"))))
    assert await verdict(named, signed("hs", "HS384")) == Principal("ann")
    assert "no key fits" in await refusal(named, signed("hs", "HS256"))


@pytest.mark.parametrize(
    "settings",
    [
        {"algorithms": ["none"]},
        {"algorithms": ["es256"]},
        {"algorithms": "ES256"},
        {"audience": "files"},
        {"leeway": -1},
        {"max_lifetime": 0},
    ],
    ids=str,
)
def test_settings_that_make_no_sense_are_refused(
    settings: dict[str, Any], keys: Path
) -> None:
    """At the start, and not with the first token."""
    with pytest.raises(CallerError):
        JsonWebTokens(keys, **settings)


@pytest.mark.alone
async def test_token_costs_little(keys: Path) -> None:
    """At most 150 microseconds of the processor, and much less if it was seen before."""
    known = JsonWebTokens(keys)
    heads = [
        head(fields=bearer(signed("rsa", claims={"n": number}))) for number in range(10)
    ]

    async def cost(*, is_known: bool) -> float:
        """The least of many tries, in seconds: other processes only make it more."""
        best = float("inf")
        for _ in range(40):
            if not is_known:
                known._verified.clear()
            started = time.thread_time()
            for each in heads:
                await known(each)
            best = min(best, (time.thread_time() - started) / len(heads))
        return best

    assert await cost(is_known=False) < 150e-6
    assert await cost(is_known=True) < 30e-6
