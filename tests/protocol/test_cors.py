"""CORS: what is allowed, what is said, and what is never said (G15)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from hypothesis import given, strategies as st

import trioresume
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.cors import EXPOSED, METHODS, SENDABLE, CrossOrigin
from trioresume.protocol.heads import Fields, RequestHead

APP = "https://app.example"
ALLOWED = "access-control-allow-origin"


def head(method: str = "GET", **fields: str) -> RequestHead:
    lines = {name.replace("_", "-"): value for name, value in fields.items()}
    return RequestHead(
        method=method, target="/", fields=Fields(lines), http_version="1.1"
    )


def preflight(origin: str) -> RequestHead:
    return head("OPTIONS", origin=origin, access_control_request_method="PATCH")


@pytest.mark.parametrize(
    ("configured", "sent"),
    [
        (APP, APP),
        ("HTTPS://App.Example:443", APP),
        ("http://app.example:80", "http://app.example"),
        ("http://localhost:5173", "http://localhost:5173"),
        ("http://[::1]:8000", "http://[::1]:8000"),
        ("capacitor://localhost", "capacitor://localhost"),
    ],
)
def test_origins_are_compared_as_browsers_write_them(
    configured: str, sent: str
) -> None:
    """G15: lower case, without the scheme's own port."""
    fields = CrossOrigin([configured]).marked(head(origin=sent), Fields())
    assert fields.get(ALLOWED) == sent


@given(
    st.sampled_from(
        [
            "http://app.example",
            "https://app.example.evil",
            "https://evil-app.example",
            "https://app.example:8443",
            "https://APP.example",
            "https://app.example/",
            "null",
            "*",
            "",
        ]
    )
    | st.text(max_size=40).filter(lambda text: text != APP)
)
def test_no_other_origin_is_ever_reflected(origin: str) -> None:
    """G15: nothing that resembles an allowed origin is one."""
    policy = CrossOrigin([APP])
    fields = policy.marked(head(origin=origin), Fields())
    assert list(fields) == [("vary", "Origin")]
    with pytest.raises(PeerError) as refused:
        policy.preflight(preflight(origin))
    assert refused.value.problem is ProblemCode.FORBIDDEN


def test_two_origins_are_none() -> None:
    """A repeated field cannot be a browser's."""
    twice = RequestHead(
        method="GET",
        target="/",
        fields=Fields([("origin", APP), ("origin", APP)]),
        http_version="1.1",
    )
    assert ALLOWED not in CrossOrigin([APP]).marked(twice, Fields())


@pytest.mark.parametrize(
    ("present", "expected"),
    [
        ([], "Origin"),
        ([("vary", "Authorization")], "Authorization, Origin"),
        ([("vary", "Accept"), ("vary", "origin")], "Accept, origin"),
        ([("vary", "*")], "*"),
    ],
)
def test_answers_vary_by_origin(present: list[tuple[str, str]], expected: str) -> None:
    """G15: also the answer to a request without one, which a cache may have kept."""
    fields = CrossOrigin([APP]).marked(head(), Fields(present))
    assert fields.get("vary") == expected
    assert ALLOWED not in fields


def test_any_origin_is_a_star_and_never_has_credentials() -> None:
    """G15: then all get the same answer, which depends on nothing."""
    policy = CrossOrigin(["*"])
    fields = policy.marked(head(origin="https://anybody.example"), Fields())
    assert fields.get(ALLOWED) == "*"
    assert "access-control-allow-credentials" not in fields
    assert "vary" not in fields
    with pytest.raises(ValueError, match="G15"):
        CrossOrigin(["*"], credentials=True)


def test_credentials_are_granted_only_when_configured() -> None:
    """They need the origin by its name, which is what is sent."""
    fields = CrossOrigin([APP], credentials=True).marked(head(origin=APP), Fields())
    assert fields.get("access-control-allow-credentials") == "true"
    assert fields.get(ALLOWED) == APP
    fields = CrossOrigin([APP]).marked(head(origin=APP), Fields())
    assert "access-control-allow-credentials" not in fields


def test_preflight_is_told_methods_fields_and_for_how_long() -> None:
    """Every dialect's request fields, and those of the settings."""
    policy = CrossOrigin([APP], max_age=60.5, request_fields=["X-Mine", "prefer"])
    fields = policy.preflight(preflight(APP))
    assert fields is not None
    assert fields.get("access-control-allow-methods") == ", ".join(METHODS)
    assert fields.get("access-control-max-age") == "60"
    said = (fields.get("access-control-allow-headers") or "").split(", ")
    assert {name for row in SENDABLE.values() for name in row} <= set(said)
    assert "X-Mine" in said
    assert len({name.lower() for name in said}) == len(said)


@pytest.mark.parametrize(
    "request_head",
    [
        head("OPTIONS", origin=APP),
        head("OPTIONS", access_control_request_method="PATCH"),
        head("POST", origin=APP, access_control_request_method="PATCH"),
    ],
)
def test_other_requests_are_no_preflights(request_head: RequestHead) -> None:
    """A plain OPTIONS asks about the resource."""
    assert CrossOrigin([APP]).preflight(request_head) is None


def test_what_a_handler_says_is_replaced() -> None:
    """G15: two answers would be none, and a wrong one is worse."""
    said = Fields(
        [
            (ALLOWED, "https://evil.example"),
            ("Access-Control-Allow-Credentials", "true"),
            ("Access-Control-Expose-Headers", "*"),
            ("x-other", "1"),
        ]
    )
    fields = CrossOrigin([APP]).marked(head(origin="https://evil.example"), said)
    assert list(fields) == [("x-other", "1"), ("vary", "Origin")]
    assert CrossOrigin([APP]).marked(head(origin=APP), said).get_all(ALLOWED) == [APP]


@pytest.mark.parametrize(
    "origins",
    [["app.example"], [f"{APP}/"], ["null"], [""], list(APP), ["*", APP], ["a b://c"]],
)
def test_what_is_no_origin_is_refused(origins: list[str]) -> None:
    """At once: an entry that can never match is a mistake."""
    with pytest.raises(ValueError, match="origin"):
        CrossOrigin(origins)


@pytest.mark.parametrize("name", ["", "a b", "a\r\nb", "é"])
def test_what_is_no_field_name_is_refused(name: str) -> None:
    """G4: settings become header fields, too."""
    with pytest.raises(ValueError, match="field name"):
        CrossOrigin([APP], request_fields=[name])
    with pytest.raises(ValueError, match="field name"):
        CrossOrigin([APP], response_fields=[name])


def test_the_tables_have_every_field_that_the_dialects_know() -> None:
    """G15: whoever teaches a dialect a field lets pages use it, too."""
    folder = Path(trioresume.__file__).parent / "protocol" / "dialects"
    known = {
        node.value.lower()
        for path in folder.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant)
        and isinstance(node.value, str)
        and node.value.lower().startswith(
            ("upload-", "tus-", "repr-", "content-digest")
        )
        and " " not in node.value
        and not node.value.endswith("-")  # a prefix, which names no field
    }
    assert {"upload-offset", "tus-resumable"} <= known
    tables = (*EXPOSED.values(), *SENDABLE.values())
    assert known <= {name.lower() for row in tables for name in row}
