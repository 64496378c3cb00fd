"""The form of signed addresses: what was signed is what is understood."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from typing import Any

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.signed_address import (
    Claims,
    kid_of,
    mac_of,
    parse_claims,
    split_target,
    without_signature,
)

NEEDED: dict[str, Any] = {"kid": "a", "exp": 5, "method": "PUT", "path": "/x/"}


def b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def encoded(**claims: object) -> str:
    return b64(json.dumps({**NEEDED, **claims}).encode())


def test_form_is_the_one_of_the_docs() -> None:
    """So that others can sign, too: written here once more, from the page."""
    claims = b64(b'{"kid":"k","exp":7,"method":"POST","path":"/files/","max_size":0}')
    assert Claims(
        kid="k", expires_at=7, method="POST", path="/files/", max_size=0
    ).encode() == (claims)
    mac = hmac.new(b"s" * 32, b"trioresume-signed-1." + claims.encode(), hashlib.sha256)
    assert mac_of(b"s" * 32, claims) == b64(mac.digest())


@given(
    st.builds(
        Claims,
        kid=st.text(max_size=9),
        expires_at=st.integers(0, 2**40),
        method=st.sampled_from(["GET", "POST"]),
        path=st.text(max_size=30),
        is_prefix=st.booleans(),
        query=st.text(max_size=9),
        max_size=st.none() | st.integers(0, 2**50),
        media_type=st.none() | st.text(max_size=9),
        principal=st.text(max_size=9),
    )
)
def test_claims_come_back(claims: Claims) -> None:
    """Whatever they say."""
    text = claims.encode()
    assert parse_claims(text) == claims
    assert kid_of(text) == claims.kid


@pytest.mark.parametrize(
    "claims",
    [
        {"kid": None},
        {"kid": 5},
        {"exp": "5"},
        {"exp": True},
        {"exp": 5.5},
        {"method": ["PUT"]},
        {"path": None},
        {"prefix": 1},
        {"query": 5},
        {"max_size": "5"},
        {"max_size": True},
        {"type": 5},
        {"sub": 5},
        {"once": True},
        {"": 5},
    ],
    ids=str,
)
def test_claims_that_are_not_understood_are_worthless(claims: dict[str, Any]) -> None:
    """Even if they are signed: an unknown one may be a limit."""
    with pytest.raises(ValueError):
        parse_claims(encoded(**claims))


@pytest.mark.parametrize(
    "text", ["", "!", "e30", b64(b"[]"), b64(b"\xff"), b64(b"[" * 3000), "a" * 5]
)
def test_what_is_no_claims_names_no_key(text: str) -> None:
    """It is read before anybody has verified it."""
    assert kid_of(text) is None


@pytest.mark.parametrize(
    ("target", "rest", "values"),
    [
        ("/a", "/a", []),
        ("/a?b=c", "/a?b=c", []),
        ("/a?signed=x", "/a", ["x"]),
        ("/a?b=c&signed=x", "/a?b=c", ["x"]),
        ("/a?signed=x&b=c&d", "/a?b=c&d", ["x"]),
        ("/a?signed=x&signed=y", "/a", ["x", "y"]),
        ("/a?signed=", "/a", [""]),
        ("/a?signed", "/a?signed", []),
        ("/a?designed=x", "/a?designed=x", []),
        ("/a?b=signed=x", "/a?b=signed=x", []),
        ("/signed=x", "/signed=x", []),
        ("https://h/a?b&signed=x", "https://h/a?b", ["x"]),
        ("*", "*", []),
    ],
)
def test_parameter_is_taken_out_of_the_query(
    target: str, rest: str, values: list[str]
) -> None:
    """And nothing else of it changes."""
    assert split_target(target) == (rest, values)
    assert without_signature(target) == rest


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    [
        ("/x/", True),
        ("/x/a", True),
        ("/x/a/b%20c", True),
        ("/x/...", True),
        ("/x", False),
        ("/y/a", False),
        ("/x/../y", False),
        ("/x/./a", False),
        ("/x/%2e%2E/y", False),
        ("/x/.%2e", False),
        ("/x/a%2fb", False),
        ("/x/a%5c..", False),
        ("/x/a\\b", False),
        ("/x/..;/y", False),
        ("/x/.%2e;a=b/y", False),
        ("/x/..%3B/y", False),
        ("/x//y", False),
        ("/x/%00", False),
        ("/x/%c0%ae%c0%ae/y", False),
    ],
)
def test_prefix_is_not_climbed_out_of(path: str, is_allowed: bool) -> None:
    """Whatever a backend makes of dots and encoded separators."""
    assert parse_claims(encoded(prefix=True)).allows_path(path) is is_allowed


@pytest.mark.parametrize(
    ("signed", "allowed"),
    [("GET", {"GET", "HEAD"}), ("PUT", {"PUT"}), ("POST", {"POST"})],
)
def test_method_is_the_signed_one(signed: str, allowed: set[str]) -> None:
    """HEAD tells less than GET."""
    claims = parse_claims(encoded(method=signed))
    methods = ("GET", "HEAD", "PUT", "POST", "PATCH", "DELETE", "OPTIONS", "get")
    assert {m for m in methods if claims.allows_method(m)} == allowed
