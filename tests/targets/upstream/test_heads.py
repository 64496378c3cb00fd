"""The rules for the fields that go to a backend and come back: a proxy's checklist."""

from __future__ import annotations

import pytest

from trioresume.errors import CallerError
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.targets.upstream.endpoints import Route, parse_endpoint
from trioresume.targets.upstream.heads import (
    ForwardedWith,
    conveyed_fields,
    is_upgrade,
    public_fields,
    with_sender,
)


def head(*lines: tuple[str, str], peer: str = "192.0.2.7:4711") -> RequestHead:
    fields = Fields([("host", "files.example"), *lines])
    return RequestHead(
        method="POST",
        target="/",
        fields=fields,
        http_version="1.1",
        peer=peer,
        origin="https://files.example",
    )


def conveyed(
    *lines: tuple[str, str],
    family: ForwardedWith = "x-forwarded",
    is_recorded: bool = True,
) -> dict[str, str]:
    fields = conveyed_fields(with_sender(head(*lines), family), is_recorded=is_recorded)
    names = [name for name, _ in fields]
    assert len(names) == len(set(names)), names
    return dict(fields)


SENT = {
    "x-forwarded-for": "192.0.2.7",
    "x-forwarded-proto": "https",
    "x-forwarded-host": "files.example",
    "via": "1.1 trioresume",
}


def test_end_to_end_fields_go_on_and_the_sender_is_told() -> None:
    """RFC 9110, section 7.6: and Host and the framing are written anew."""
    lines = (
        ("content-type", "text/plain"),
        ("cookie", "a=b"),
        ("authorization", "Basic x"),
        ("traceparent", "00-0af7-b7ad-01"),
        ("x-own_field", "kept"),
        ("repr-digest", "sha-256=:AA==:"),
    )
    assert conveyed(*lines) == dict(lines) | SENT


@pytest.mark.parametrize(
    "line",
    [
        ("connection", "close"),
        ("keep-alive", "timeout=5"),
        ("proxy-authenticate", "Basic"),
        ("proxy-authorization", "Basic x"),
        ("proxy-connection", "keep-alive"),
        ("te", "trailers"),
        ("trailer", "x-sum"),
        ("transfer-encoding", "chunked"),
        ("upgrade", "websocket"),
        ("content-length", "5"),
        ("content_length", "7"),
        ("transfer_encoding", "chunked"),
        ("expect", "100-continue"),
        ("prefer", "resume"),
        ("prefer", "resume=save-incomplete, acknowledge"),
        ("upload-complete", "?1"),
        ("upload-offset", "0"),
        ("upload_offset", "0"),
        ("upload-length", "5"),
        ("upload-draft-interop-version", "10"),
        ("tus-resumable", "1.0.0"),
        ("upload-metadata", "filename eA=="),
        ("x-forwarded-for", "203.0.113.9"),
        ("x_forwarded_for", "203.0.113.9"),
        ("x-forwarded_proto", "http"),
        ("forwarded", "for=203.0.113.9"),
        ("x-real-ip", "203.0.113.9"),
        ("x-original-uri", "/admin"),
    ],
)
def test_what_belongs_to_one_hop_or_may_be_forged_stays_here(
    line: tuple[str, str],
) -> None:
    """In every spelling under which an application may see it."""
    assert conveyed(line) == SENT


def test_connection_names_fields_that_stay_here() -> None:
    """RFC 9110, section 7.6.1."""
    lines = (("x-private", "1"), ("cookie", "a=b"), ("connection", "X-Private, close"))
    assert conveyed(*lines) == {"cookie": "a=b"} | SENT


def test_connection_cannot_remove_what_this_server_writes() -> None:
    """A known trick: the backend would take the request for one from inside."""
    named = "X-Forwarded-For, X-Forwarded-Proto, X-Forwarded-Host, Via"
    assert conveyed(("connection", named)) == SENT


def test_other_preferences_go_on() -> None:
    """They are the backend's to respect."""
    lines = ("prefer", "return=minimal, resume, wait=10")
    assert conveyed(lines) == {"prefer": "return=minimal, wait=10"} | SENT


def test_via_names_every_hop() -> None:
    """RFC 9110, section 7.6.3."""
    assert conveyed(("via", "1.0 old"))["via"] == "1.0 old, 1.1 trioresume"


def test_forwarded_is_the_other_family() -> None:
    """RFC 7239, quoted where its grammar wants that."""
    plain = conveyed(family="forwarded")
    assert plain["forwarded"] == "for=192.0.2.7;proto=https;host=files.example"
    six = with_sender(head(peer="[2001:db8::1]:5"), "forwarded")
    assert six.get("forwarded") == (
        'for="[2001:db8::1]";proto=https;host=files.example'
    )
    assert "forwarded" not in conveyed(family="none")
    assert "x-forwarded-for" not in conveyed(family="none")


def test_fields_of_uploads_are_a_backends_own_if_the_request_streams_through() -> None:
    """Nothing of a protocol for uploads was used."""
    line = ("upload-offset", "5")
    assert conveyed(line, is_recorded=False) == {"upload-offset": "5"} | SENT


def test_digest_of_a_piece_is_not_told_of_the_whole() -> None:
    """``Content-Digest`` is about one message; ``Repr-Digest`` is about the whole."""
    lines = (("content-digest", "sha-256=:AA==:"), ("upload-complete", "?0"))
    assert conveyed(*lines) == SENT


@pytest.mark.parametrize(
    ("location", "public"),
    [
        ("http://10.0.0.1:8000/made?x=1#y", "/made?x=1#y"),
        ("http://10.0.0.1:8000", "/"),
        ("/made", "/made"),
        ("made", "made"),
        ("https://10.0.0.1:8000/made", "https://10.0.0.1:8000/made"),
        ("http://10.0.0.1:8001/made", "http://10.0.0.1:8001/made"),
        ("http://elsewhere.example/x", "http://elsewhere.example/x"),
        ("http://u@10.0.0.1:8000/x", "http://u@10.0.0.1:8000/x"),
        ("http://10.0.0.1:8000//evil.example/", "http://10.0.0.1:8000//evil.example/"),
        ("http://[bad", "http://[bad"),
        ("//10.0.0.1:8000/made", "/made"),
    ],
)
def test_location_of_the_backend_becomes_the_public_one(
    location: str, public: str
) -> None:
    """As nginx's ``proxy_redirect`` does it by default."""
    endpoint = parse_endpoint("http://10.0.0.1:8000")
    for name in ("location", "content-location"):
        assert public_fields(Fields({name: location}), endpoint, "").get(name) == public


def test_location_below_a_base_path_loses_it() -> None:
    """And gets the part that precedes every location of this server."""
    endpoint = parse_endpoint("http://10.0.0.1:8000/app/")

    def public(location: str, root: str = "") -> str | None:
        return public_fields(Fields({"location": location}), endpoint, root).get(
            "location"
        )

    assert public("/app/made") == "/made"
    assert public("http://10.0.0.1:8000/app/made") == "/made"
    assert public("http://10.0.0.1:8000/app?x") == "?x" or public("/app?x")
    assert public("/application/x") == "/application/x"
    assert public("http://10.0.0.1:8000/other") == "http://10.0.0.1:8000/other"
    assert public("/app/made", "https://files.example/up") == (
        "https://files.example/up/made"
    )


def test_upgrade_needs_both_fields() -> None:
    """RFC 9110, section 7.8."""
    both = Fields({"connection": "keep-alive, Upgrade", "upgrade": "websocket"})
    assert is_upgrade(both)
    assert not is_upgrade(both.without("upgrade"))
    assert not is_upgrade(both.without("connection"))


def test_routes_compare_whole_segments() -> None:
    """``/api`` is not the beginning of ``/apiary``."""
    route = Route("/api", [parse_endpoint("unix:/run/app.sock")])
    assert route.covers("/api")
    assert route.covers("/api/x")
    assert not route.covers("/apiary")
    assert Route("/", route.endpoints).covers("/anything")


@pytest.mark.parametrize(
    "url", ["ftp://x", "unix:relative", "http://", "http://x/?q=1", "http://u:p@x", "x"]
)
def test_url_that_names_no_backend_is_refused(url: str) -> None:
    """At the start, and not with the first request."""
    with pytest.raises(CallerError):
        parse_endpoint(url)
