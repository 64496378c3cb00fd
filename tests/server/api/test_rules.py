"""Rules as values, and the book that finds the one for a request."""

from __future__ import annotations

import math
from typing import Any

import pytest

from trioresume import (
    CallerError,
    Config,
    Fields,
    PeerError,
    Principal,
    RequestHead,
    Rule,
)
from trioresume.server.api.rulebook import Rulebook


async def _somebody(head: RequestHead) -> Principal:
    return Principal("somebody")


def book(*rules: Rule, **settings: Any) -> Rulebook:
    config = Config(rules=rules, authenticate=_somebody, **settings)
    return Rulebook(config, serves_files=True)


def request(
    method: str,
    target: str,
    fields: dict[str, str] | None = None,
    length: int | None = 0,
) -> RequestHead:
    return RequestHead(
        method=method,
        target=target,
        fields=Fields(fields or {}),
        http_version="1.1",
        length=length,
    )


def refusal(
    rules: Rulebook, head: RequestHead, principal: str | None = None, **how: bool
) -> tuple[int, dict[str, str]]:
    with pytest.raises(PeerError) as caught:
        rules.check(head, principal, **how)
    return caught.value.problem.status, dict(caught.value.fields)


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        ({"path": "files/"}, "path"),
        ({"path": ()}, "path"),
        ({"principal": ""}, "principal"),
        ({"principal": ()}, "principal"),
        ({"methods": "get"}, "methods"),
        ({"methods": ("GET", "BAD METHOD")}, "methods"),
        ({"media_types": "image"}, "media_types"),
        ({"media_types": "Image/PNG"}, "media_types"),
        ({"access": "write"}, "access"),
        ({"max_upload_size": 0}, "max_upload_size"),
        ({"file_lifetime": math.inf}, "file_lifetime"),
        ({"incomplete_lifetime": -1.0}, "incomplete_lifetime"),
        ({"public_download": True}, "public_download"),
        ({"public_download": True, "principal": "a*"}, "public_download"),
        ({"public_download": True, "principal": ("a", "b")}, "public_download"),
        (
            {"public_download": True, "principal": "a", "access": "write-only"},
            "public_download",
        ),
        (
            {"public_download": True, "principal": "a", "methods": "POST"},
            "public_download",
        ),
    ],
)
def test_wrong_value_names_its_field(wrong: dict[str, Any], key: str) -> None:
    """The command turns it into the key in the file."""
    with pytest.raises(CallerError, match=f"^{key}: "):
        Rule(**wrong)


def test_rules_that_contradict_the_settings_are_refused() -> None:
    """They would look as if they did something."""
    public = Rule(principal="alice", public_download=True)
    with pytest.raises(CallerError, match=r"^rule 2: public_download: "):
        Config(rules=[Rule(), public])
    with pytest.raises(CallerError, match=r"^rule 1: public_download: only the file"):
        Rulebook(Config(rules=[public], authenticate=_somebody), serves_files=False)
    with pytest.raises(CallerError, match=r"^rule 1: incomplete_lifetime: "):
        Config(rules=[Rule(incomplete_lifetime=700_000.0)])


def test_first_rule_that_matches_decides_alone() -> None:
    """What it does not set is as the service has it, not as a later rule does."""
    rules = book(
        Rule(path="/files/vip/", principal="boss", max_upload_size=100),
        Rule(path="/files/vip/", methods=["POST", "PUT"], access="none"),
        Rule(path="/files/", max_upload_size=10, file_lifetime=60.0),
        max_upload_size=50,
        file_lifetime=3600.0,
    )

    def sizes(method: str, path: str, principal: str | None) -> tuple[Any, Any]:
        terms = rules.terms(method, path, principal)
        assert terms.limits.max_size == terms.config.max_upload_size
        return terms.config.max_upload_size, terms.config.file_lifetime

    assert sizes("PUT", "/files/vip/a", "boss") == (100, 3600.0)
    assert sizes("PUT", "/files/vip/a", "clerk") == (50, 3600.0)
    assert sizes("GET", "/files/vip/a", "clerk") == (10, 60.0)
    assert sizes("PUT", "/files/a", None) == (10, 60.0)
    assert sizes("PUT", "/other", None) == (50, 3600.0)


@pytest.mark.parametrize(
    ("access", "status", "refused", "allowed"),
    [
        ("read-only", 405, "POST PUT DELETE PATCH TRACE", "GET, HEAD, OPTIONS"),
        ("write-only", 405, "GET HEAD", "DELETE, OPTIONS, PATCH, POST, PUT"),
        ("none", 403, "GET HEAD POST PUT DELETE PATCH", None),
    ],
)
def test_access_is_refused_by_method(
    access: Any, status: int, refused: str, allowed: str | None
) -> None:
    """405 with Allow, or 403; OPTIONS is never refused."""
    rules = book(Rule(access=access))
    rules.check(request("OPTIONS", "/files/"), None)
    methods = {"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "TRACE"}
    for method in refused.split():
        methods.discard(method)
        answer = refusal(rules, request(method, "/files/a"))
        assert answer == (status, {} if allowed is None else {"allow": allowed})
    for method in methods - {"TRACE"}:
        rules.check(request(method, "/files/a"), None)


def test_override_of_the_method_does_not_avoid_a_rule() -> None:
    """A backend may obey the field, so both methods have to be allowed."""
    rules = book(Rule(methods="DELETE", access="none"))
    rules.check(request("POST", "/a"), None)
    for name in ("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"):
        assert refusal(rules, request("POST", "/a", {name: "delete "}))[0] == 403
        for several in ("DELETE, POST", "post,delete", "PUT ,, DELETE"):
            assert refusal(rules, request("POST", "/a", {name: several}))[0] == 403


def test_media_type_is_compared_without_parameters_and_case() -> None:
    """415 names the types that are taken; a part of a later upload has none yet."""
    rules = book(Rule(media_types=["image/*", "text/plain"]))
    for said in ("image/png", "IMAGE/JPEG; q=1", "text/plain;charset=utf-8"):
        rules.check(request("POST", "/a", {"content-type": said}, 5), None)
    for said in ("text/html", "imagex/png", "nonsense", ""):
        head = request("POST", "/a", {"content-type": said}, 5)
        assert refusal(rules, head) == (415, {"accept": "image/*, text/plain"})
        rules.check(head, None, is_partial=True)
    assert refusal(rules, request("PUT", "/a"))[0] == 415
    rules.check(request("GET", "/a"), None)
    rules.check(request("DELETE", "/a"), None)


def test_ambiguous_path_is_refused() -> None:
    """400: otherwise ``/public/%2e%2e/secret`` would be under the rule of ``/public/``."""
    rules = book(Rule(path="/secret/", access="none"))
    for path in ("/public/%2e%2e/secret/x", "//secret/x", "/secret%2fx"):
        assert refusal(rules, request("GET", path))[0] == 400
        assert rules.terms_of_upload("GET", path, None).rule is None
    assert refusal(rules, request("GET", "/%73ecret/x?/public/"))[0] == 403


def test_principals_are_names_with_stars() -> None:
    """A sender without a name is meant only by a rule for everybody."""
    rules = book(
        Rule(principal=["team-*", "DNS:?.example"], access="none"),
        Rule(principal="*", access="read-only"),
    )
    for name, status in (("team-a", 403), ("DNS:a.example", 403), ("Team-a", 405)):
        assert refusal(rules, request("PUT", "/a"), name)[0] == status
    rules.check(request("PUT", "/a"), None)


def test_rules_are_replaced_as_a_whole_or_not_at_all() -> None:
    """A fault keeps the old ones."""
    rules = book(Rule(access="none"))
    with pytest.raises(CallerError, match="rule 2"):
        rules.replace([Rule(), Rule(incomplete_lifetime=700_000.0)])
    assert refusal(rules, request("GET", "/a"))[0] == 403
    rules.replace([])
    rules.check(request("GET", "/a"), None)


def test_long_requests_are_not_kept() -> None:
    """Whatever of them is long: a thousand are kept, so each one has to be short."""
    rules = book(Rule(access="read-only"))
    long = "A" * 300
    for method, path, name in (
        (long, "/a", "n"),
        ("GET", f"/{long}", "n"),
        ("GET", "/a", long),
    ):
        rules.terms(method, path, name)
    assert not rules._found
    rules.terms("GET", "/a", "n")
    assert len(rules._found) == 1


async def test_public_download_is_the_owners_request() -> None:
    """Only GET and HEAD, only there, and never an upload's resources."""
    config = Config(
        rules=[Rule(path="/", principal="alice", public_download=True)],
        authenticate=_somebody,
    )
    rules = Rulebook(config, serves_files=True)
    authenticate = rules.with_public_downloads(config).authenticate
    assert authenticate is not None
    for method, path, name in (
        ("GET", "/files/a", "alice"),
        ("HEAD", "/files/a", "alice"),
        ("PUT", "/files/a", "somebody"),
        ("DELETE", "/files/a", "somebody"),
        ("OPTIONS", "/files/a", "somebody"),
        ("GET", "/files/../a", "somebody"),
        ("GET", "/operations/a/content", "somebody"),
    ):
        assert await authenticate(request(method, path)) == Principal(name)


async def test_earlier_rule_keeps_a_download_from_being_public() -> None:
    """The first rule that matches the owner's request decides, also about this."""
    config = Config(
        rules=[
            Rule(path="/files/private/"),
            Rule(path="/files/own", principal="alice"),
            Rule(path="/files/other", principal="bob"),
            Rule(path="/files/written", methods="PUT"),
            Rule(path="/files/b/", principal="bob", public_download=True),
            Rule(path="/files/", principal="alice", public_download=True),
        ],
        authenticate=_somebody,
    )
    rules = Rulebook(config, serves_files=True)
    authenticate = rules.with_public_downloads(config).authenticate
    assert authenticate is not None
    for path, name in (
        ("/files/private/a", "somebody"),
        ("/files/%70rivate/a", "somebody"),
        ("/files/own", "somebody"),
        ("/files/other", "alice"),
        ("/files/written", "alice"),
        ("/files/b/a", "bob"),
        ("/files/a", "alice"),
    ):
        assert await authenticate(request("GET", path)) == Principal(name), path
