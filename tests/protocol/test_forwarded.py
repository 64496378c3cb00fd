"""What proxies say of a request, and which of it is believed (G13)."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.protocol.forwarded import (
    FORWARDED_FAMILIES,
    ForwardedFamily,
    Hop,
    Proxies,
    host_of,
)
from trioresume.protocol.heads import Fields, origin_from

TRUSTED = ("127.0.0.1", "10.0.0.0/8", "fd00::/8")


def first_hop(family: ForwardedFamily, *lines: tuple[str, str]) -> Hop:
    return Proxies(TRUSTED, family).first_hop(Fields(lines))


@pytest.mark.parametrize(
    ("value", "hop"),
    [
        ("for=192.0.2.1", Hop("192.0.2.1")),
        ("FOR=192.0.2.1;Proto=HTTPS", Hop("192.0.2.1", "https")),
        ('for=192.0.2.1;host="up.example:81"', Hop("192.0.2.1", "", "up.example:81")),
        ("for=192.0.2.1;host=up.example:81", Hop()),
        ('for="192.0.2.1:4711";proto=http', Hop("192.0.2.1", "http")),
        ('for="[2001:DB8::17]:4711"', Hop("2001:db8::17")),
        ("for=_hidden", Hop("_hidden")),
        ("for=unknown;proto=https", Hop("", "https")),
        ("proto=https;host=up.example", Hop("", "https", "up.example")),
        # Each proxy appends: the last is the nearest, and is asked whom it had it from.
        ("for=192.0.2.9, for=192.0.2.1", Hop("192.0.2.1")),
        ("for=192.0.2.9, for=192.0.2.1, for=10.1.2.3", Hop("192.0.2.1")),
        ("for=10.9.9.9;proto=https, for=10.1.2.3", Hop("10.9.9.9", "https")),
        ('for=192.0.2.1, for="[fd00::1]"', Hop("192.0.2.1")),
        # What cannot be read ends the chain before it.
        ('for="192.0.2.9, for=192.0.2.1', Hop()),
        ("for=192.0.2.9;for=192.0.2.8, for=10.0.0.1", Hop("10.0.0.1")),
        # … and what stands before it is the client's own invention.
        ("for=6.6.6.6, for=1;for=2", Hop()),
        ("for=6.6.6.6, for=1;for=2, for=10.0.0.1", Hop("10.0.0.1")),
        ("for=6.6.6.6, nonsense", Hop()),
        ("for=6.6.6.6, =1", Hop()),
        ("for=6.6.6.6, for=<script>", Hop()),
        ('for=192.0.2.1;proto=ftp;host="a/b"', Hop("192.0.2.1")),
        ("for=<script>;host=a b", Hop()),
        ("", Hop()),
    ],
)
def test_forwarded_is_read_from_its_end(value: str, hop: Hop) -> None:
    """RFC 7239, section 7.4: up to the first sender that is no trusted proxy."""
    assert first_hop("forwarded", ("Forwarded", value)) == hop


def test_lines_are_read_one_by_one() -> None:
    """A quotation that a client left open cannot swallow what a proxy wrote."""
    hop = first_hop(
        "forwarded",
        ("Forwarded", 'for="192.0.2.9'),
        ("Forwarded", "for=192.0.2.1;proto=https"),
        ("Forwarded", "for=10.0.0.1;proto=http"),
    )
    assert hop == Hop("192.0.2.1", "https")


@pytest.mark.parametrize("unreadable", ["for=1;for=2", "nonsense", "for"])
def test_line_that_cannot_be_read_hides_those_before_it(unreadable: str) -> None:
    """They may be the client's: nobody can tell who wrote the one that follows."""
    lines = [("Forwarded", "for=6.6.6.6"), ("Forwarded", unreadable)]
    assert first_hop("forwarded", *lines) == Hop()
    lines.append(("Forwarded", "for=10.0.0.1"))
    assert first_hop("forwarded", *lines) == Hop("10.0.0.1")


@pytest.mark.parametrize(
    ("clients", "schemes", "hosts", "hop"),
    [
        ("192.0.2.1", "https", "up.example", Hop("192.0.2.1", "https", "up.example")),
        ("192.0.2.9, 192.0.2.1", "https", "", Hop("192.0.2.1", "https")),
        ("6.6.6.6, <script>", "", "", Hop()),
        ("6.6.6.6, <script>, 10.0.0.1", "", "", Hop()),
        ("192.0.2.1, 10.0.0.1", "https, http", "", Hop("192.0.2.1", "https")),
        ("192.0.2.1, 10.0.0.1", "https", "a, b", Hop("192.0.2.1", "https", "a")),
        # The client made up the first of each; the only proxy appended the second.
        ("192.0.2.9, 192.0.2.1", "http, https", "a, b", Hop("192.0.2.1", "https", "b")),
        ("", "https", "up.example", Hop("", "https", "up.example")),
        ("192.0.2.1:81", "HTTPS", "[::1]:80", Hop("192.0.2.1", "https", "[::1]:80")),
        ("2001:db8::1", "gopher", "a b", Hop("2001:db8::1")),
        ("::ffff:192.0.2.1", "", "", Hop("192.0.2.1")),
        ("nonsense", "", "", Hop()),
        ('"192.0.2.9, 192.0.2.1', "", "", Hop("192.0.2.1")),
        ("", "", "", Hop()),
    ],
)
def test_older_fields_are_read_from_their_end(
    clients: str, schemes: str, hosts: str, hop: Hop
) -> None:
    """Each is a list of its own, and may be shorter than the others."""
    said = {"For": clients, "Proto": schemes, "Host": hosts}
    lines = [(f"X-Forwarded-{name}", value) for name, value in said.items() if value]
    assert first_hop("x-forwarded", *lines) == hop


@pytest.mark.parametrize(
    ("ports", "port"),
    [
        ("8443", "8443"),
        ("08443", "8443"),
        ("6666, 8443", "8443"),
        ("8443, 9000", "9000"),
        # The scheme implies one of these, and contradicts the other.
        ("80", ""),
        ("443", ""),
        ("0443", ""),
        ("0", ""),
        ("65535", "65535"),
        ("65536", ""),
        ("-1", ""),
        ("\u0664\u0664", ""),
        ("8443/../x", ""),
        ("", ""),
    ],
)
def test_port_of_its_own_field_is_one_that_tells_something(
    ports: str, port: str
) -> None:
    """A default port and a malformed one count as not said."""
    said = ("X-Forwarded-For", "192.0.2.1"), ("X-Forwarded-Port", ports)
    assert first_hop("x-forwarded", *said) == Hop("192.0.2.1", port=port)
    assert first_hop("x-forwarded", said[1]) == Hop(port=port)
    assert first_hop("forwarded", *said) == Hop()


@pytest.mark.parametrize(
    ("authority", "host", "whole"),
    [
        ("up.example", "test", "up.example:8443"),
        ("", "test", "test:8443"),
        ("up.example:81", "test", "up.example:81"),
        ("", "test:81", "test:81"),
        ("up.example:", "test", "up.example:"),
        ("[::1]", "test", "[::1]:8443"),
        ("[::1]:81", "test", "[::1]:81"),
        ("", "", ""),
    ],
)
def test_port_counts_only_where_the_host_names_none(
    authority: str, host: str, whole: str
) -> None:
    """The host is what the client wrote; the port is what the proxy listens on."""
    assert Hop(authority=authority, port="8443").authority_or(host) == whole
    assert Hop(authority=authority).authority_or(host) == (authority or host)


@pytest.mark.parametrize("family", FORWARDED_FAMILIES)
def test_the_other_family_is_the_clients_own_word(family: ForwardedFamily) -> None:
    """G13: a proxy hands on what it does not know, so only what it writes counts."""
    lies = {
        "forwarded": [("X-Forwarded-For", "192.0.2.9"), ("X-Forwarded-Host", "evil")],
        "x-forwarded": [("Forwarded", "for=192.0.2.9;host=evil;proto=https")],
    }
    assert first_hop(family, *lies[family]) == Hop()


@given(
    st.sampled_from(FORWARDED_FAMILIES),
    st.lists(
        st.text(st.characters(max_codepoint=255, exclude_categories=["Cc"]))
        | st.sampled_from(['"', ",", ";", "for=10.0.0.1", "for=", "10.0.0.1,", "\\"])
    ),
)
def test_what_a_client_sent_never_hides_what_the_proxy_wrote(
    family: ForwardedFamily, garbage: list[str]
) -> None:
    """G13: whatever stands in the lines before, the nearest proxy's line is the truth."""
    names = ["x-forwarded-for", "forwarded"]
    lines = [(name, value) for value in garbage for name in names]
    if family == "forwarded":
        lines.append(("forwarded", "for=192.0.2.1;proto=https;host=up.example"))
    else:
        lines.append(("x-forwarded-for", "192.0.2.1"))
    assert first_hop(family, *lines).client == "192.0.2.1"


@pytest.mark.parametrize(
    ("address", "is_trusted"),
    [
        ("127.0.0.1", True),
        ("127.0.0.2", False),
        ("10.255.0.1", True),
        ("::ffff:10.0.0.1", True),
        ("fd12::1", True),
        ("fe80::1%eth0", False),
        ("::1", False),
        ("", False),
        ("_hidden", False),
    ],
)
def test_trust_is_by_address(address: str, is_trusted: bool) -> None:
    """An address, a network, an IPv4 address in IPv6's clothes."""
    assert Proxies(TRUSTED, "forwarded").trusts(address) is is_trusted
    assert not Proxies((), "forwarded").trusts(address)


def test_host_of_a_peer_is_without_its_port() -> None:
    """As transports describe their peers, and for a Unix socket's path nothing."""
    assert host_of("192.0.2.1:80") == "192.0.2.1"
    assert host_of("::1:80") == "::1"
    assert host_of("/run/socket") == ""


@pytest.mark.parametrize(
    ("scheme", "authority", "origin"),
    [
        ("https", "up.example", "https://up.example"),
        ("https", "up.example:443", "https://up.example"),
        ("http", "up.example:80", "http://up.example"),
        ("http", "up.example:", "http://up.example"),
        ("http", "up.example:8080", "http://up.example:8080"),
        ("https", "up.example:80", "https://up.example:80"),
        ("http", "[::1]", "http://[::1]"),
        ("http", "[fe80::80]", "http://[fe80::80]"),
        ("http", "[::1]:80", "http://[::1]"),
        ("http", "[::1]:81", "http://[::1]:81"),
    ],
)
def test_origin_has_no_port_that_its_scheme_implies(
    scheme: str, authority: str, origin: str
) -> None:
    """RFC 9110, section 4.2.3."""
    assert origin_from(scheme, authority) == origin
