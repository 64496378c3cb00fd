"""Whatever a request offers: it is refused, and nothing fails."""

from __future__ import annotations

import base64
import json
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import bcrypt
import trio
from hypothesis import given, settings, strategies as st

from tests.identity.heads import head
from tests.identity.tokens import KEYS, jwks, part
from trioresume import (
    AnyOf,
    JsonWebTokens,
    PasswordFile,
    Rejection,
    SignedAddresses,
    SigningKey,
    bearer_tokens,
    new_token,
)


@cache
def everybody() -> AnyOf:
    """All authenticators; nobody knows their credentials."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "tokens").write_text(new_token("ann")[1])
        (folder / "jwks").write_text(jwks(*KEYS))
        (folder / "keys").write_text(SigningKey.new("k").line)
        hashed = bcrypt.hashpw(b"secret", bcrypt.gensalt(4)).decode()
        (folder / "users").write_text(f"bob:{hashed}")
        return AnyOf(
            SignedAddresses(folder / "keys"),
            bearer_tokens(folder / "tokens"),
            JsonWebTokens(folder / "jwks"),
            PasswordFile(folder / "users"),
        )


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["alg", "kid", "crit", "typ", "sub", "exp", "aud", "x"]),
            inner,
            max_size=6,
        )
    ),
    max_leaves=9,
)
parts = values.map(part) | st.text("AZaz09-_=", max_size=30)
headers = st.fixed_dictionaries(
    {"alg": st.sampled_from([name for names in KEYS.values() for name in names])},
    optional={"kid": st.sampled_from([*KEYS]) | values, "typ": values},
).map(part)
tokens = st.builds(".".join, st.lists(parts, max_size=6)) | st.builds(
    lambda *all_parts: ".".join(all_parts), headers, parts, parts
)
latin = st.text(st.characters(max_codepoint=255), max_size=60)
fields = (
    tokens.map(lambda token: f"Bearer {token}")
    | st.binary(max_size=40).map(lambda b: f"Basic {base64.b64encode(b).decode()}")
    | latin
    | latin.map(lambda text: f"Basic {text}")
)
queries = (
    st.just("")
    | latin
    | st.builds(
        lambda claims, mac: f"signed={part(json.dumps(claims).encode())}.{mac}",
        values | st.fixed_dictionaries({"kid": st.just("k")}),
        latin,
    )
)


@settings(max_examples=40, deadline=None)
@given(field=fields, query=queries)
def test_any_credentials_are_refused(field: str, query: str) -> None:
    """401 or 403, with text that can be a field of an answer."""
    asked = head("POST", f"/files/?{query}", {"Authorization": field})
    verdict = trio.run(everybody(), asked)
    assert isinstance(verdict, Rejection)
    assert verdict.status in (401, 403)
    for _, value in verdict.headers:
        assert value.isascii()
        assert value.isprintable()
