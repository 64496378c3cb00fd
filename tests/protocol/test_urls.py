"""URLs, origins, and which locations are followed."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.errors import CallerError
from trioresume.protocol.dialects.seed.client import offered_locations
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

BASE = Url.parse("http://host.test:8080/a/b?q")


@pytest.mark.parametrize(
    ("text", "authority", "target"),
    [
        ("http://h", "h", "/"),
        ("http://h:80/x", "h", "/x"),
        ("https://h:443/x", "h", "/x"),
        ("http://h:8080/x?y=z#f", "h:8080", "/x?y=z"),
        ("HTTP://H.Example/x", "h.example", "/x"),
        ("http://[::1]:8080/", "[::1]:8080", "/"),
        ("http://h/a b/ü?ö=%20", "h", "/a%20b/%C3%BC?%C3%B6=%20"),
        ("http://bücher.test/", "xn--bcher-kva.test", "/"),
    ],
)
def test_url_is_split_as_a_request_needs_it(
    text: str, authority: str, target: str
) -> None:
    """RFC 9110, section 7.2; RFC 9112, section 3.2.1."""
    url = Url.parse(text)
    assert (url.origin.authority, url.target) == (authority, target)
    assert Url.parse(str(url)) == url


@pytest.mark.parametrize(
    "text",
    ["", "/x", "h:80", "ftp://h/", "http:///x", "http://h:99999/", "http://u@h/"],
)
def test_what_is_no_http_url_is_the_callers_error(text: str) -> None:
    """Credentials in a URL would end in logs and journals."""
    with pytest.raises(CallerError):
        Url.parse(text)


@pytest.mark.parametrize(
    ("reference", "target"),
    [
        ("/op/1", "/op/1"),
        ("op", "/a/op"),
        ("?x", "/a/b?x"),
        ("http://host.test:8080/y", "/y"),
        ("//host.test:8080/y", "/y"),
        ("HTTP://HOST.TEST:8080/y", "/y"),
    ],
)
def test_references_resolve_within_the_origin(reference: str, target: str) -> None:
    """R4."""
    url = BASE.resolve(reference)
    assert url is not None
    assert url.target == target
    assert url.origin == BASE.origin


@pytest.mark.parametrize(
    "reference",
    [
        "http://evil.test/y",
        "//evil.test/y",
        "https://host.test:8080/y",
        "http://host.test/y",
        "http://host.test:8081/y",
        "http://user@host.test:8080/y",
        "file:///etc/passwd",
        "http://[/",
        "javascript:x",
    ],
)
def test_references_to_other_origins_are_not_followed(reference: str) -> None:
    """They would carry the caller's credentials to somebody else."""
    assert BASE.resolve(reference) is None


@given(st.text(max_size=40))
def test_any_reference_stays_or_is_dropped(reference: str) -> None:
    """Whatever a server sends."""
    url = BASE.resolve(reference)
    assert url is None or url.origin == BASE.origin


def test_offer_needs_a_way_to_resume() -> None:
    """R1: Content-Location alone says nothing; anyone may send it."""
    assert offered_locations(BASE, Fields({"content-location": "/x"})) is None
    assert offered_locations(BASE, Fields()) is None
    offer = offered_locations(
        BASE,
        Fields(
            {
                "request-content-location": "/c",
                "response-message-location": "//evil.test/m",
                "content-location": "r",
            }
        ),
    )
    assert offer is not None
    assert str(offer.content) == "http://host.test:8080/c"
    assert offer.message is None
    assert str(offer.result) == "http://host.test:8080/a/r"
