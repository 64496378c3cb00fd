"""Proxies: which one the environment names, and the way through it."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.client.http_proxy import HttpProxy
from tests.client.test_sockets import MIB, PATIENT, file_of, serving
from tests.client.tls import pem_of, relaying
from trioresume import CallerError, Client, ClientTls, RetryPolicy, TransferFailed
from trioresume.client.http.proxies import Proxies
from trioresume.protocol.urls import Url

SHORT = RetryPolicy(attempts=2, first_delay=0.01, longest_delay=0.01)


def chosen(url: str, **environ: str) -> str | None:
    """The proxy for *url*, as text."""
    proxy = Proxies(environ).proxy_for(Url.parse(url).origin)
    return None if proxy is None else str(proxy)


@pytest.mark.parametrize(
    ("url", "environ", "expected"),
    [
        ("http://a/", {"http_proxy": "http://p:3128"}, "http://p:3128"),
        ("http://a/", {"http_proxy": "p:3128"}, "http://p:3128"),
        ("http://a/", {"http_proxy": "http://p"}, "http://p:80"),
        ("http://a/", {"HTTP_PROXY": "http://p"}, None),
        ("http://a/", {"https_proxy": "http://p"}, None),
        ("https://a/", {"https_proxy": "https://p"}, "https://p:443"),
        ("https://a/", {"HTTPS_PROXY": "http://p"}, "http://p:80"),
        ("https://a/", {"HTTPS_PROXY": "http://q", "https_proxy": "p"}, "http://p:80"),
        ("https://a/", {"https_proxy": " "}, None),
        ("https://a/", {"ALL_PROXY": "http://p"}, "http://p:80"),
        ("http://a/", {"all_proxy": "http://p"}, "http://p:80"),
        ("http://a/", {"all_proxy": "http://q", "http_proxy": "p"}, "http://p:80"),
    ],
)
def test_variables_are_read_as_curl_does(
    url: str, environ: dict[str, str], expected: str | None
) -> None:
    """By scheme, lower case first, and no HTTP_PROXY, which a request could set."""
    assert chosen(url, **environ) == expected


@pytest.mark.parametrize(
    ("host", "no_proxy", "exempt"),
    [
        ("example.com", "example.com", True),
        ("a.example.com", "example.com", True),
        ("a.example.com", ".example.com", True),
        ("example.com", ".example.com", True),
        ("badexample.com", "example.com", False),
        ("example.com", "a.example.com", False),
        ("Example.com", "EXAMPLE.com", True),
        ("example.com", "other.org, example.com", True),
        ("example.com", "other.org example.com", True),
        ("example.com", "*", True),
        ("example.com", ",,", False),
        ("127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.0/8", True),
        ("128.0.0.1", "127.0.0.0/8", False),
        ("[::1]", "::1", True),
        ("[fd00::1]", "[fd00::1]", True),
        ("example.com", "127.0.0.0/8", False),
    ],
)
def test_hosts_in_no_proxy_are_reached_directly(
    host: str, no_proxy: str, *, exempt: bool
) -> None:
    """A name means the names below it too; an address may be a network."""
    expected = None if exempt else "http://p:80"
    assert chosen(f"http://{host}/", http_proxy="p", no_proxy=no_proxy) == expected
    assert chosen(f"http://{host}/", http_proxy="p", NO_PROXY=no_proxy) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ("socks5://p:1080", "SOCKS.*remove it, or name the host in no_proxy"),
        ("socks5h://name:secret@p", "SOCKS"),
        ("ftp://p", "not a proxy's URL"),
        ("http://p:port", "not a proxy's URL"),
        ("http://name:secret@", "not a proxy's URL"),
    ],
)
def test_proxy_that_cannot_be_used_is_refused(value: str, said: str) -> None:
    """The variable is named, and its value, which may have a password, is not."""
    with pytest.raises(CallerError, match=said) as caught:
        chosen("http://a/", all_proxy=value)
    assert "all_proxy" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_credentials_are_not_in_the_text_of_a_proxy() -> None:
    """They are percent-decoded for the field, and shown nowhere."""
    origin = Url.parse("http://a/").origin
    proxy = Proxies({"http_proxy": "http://me:p%40ss@p"}).proxy_for(origin)
    assert proxy is not None
    assert str(proxy) == "http://p:80"
    assert proxy.fields == [("Proxy-Authorization", "Basic bWU6cEBzcw==")]


async def test_request_goes_through_the_proxy(tmp_path: Path) -> None:
    """The whole URL is the target, with the proxy's credentials."""
    path, data = file_of(tmp_path, MIB)
    async with serving() as service, HttpProxy("me:secret").serving() as proxy:
        named = {"http_proxy": proxy.url.replace("//", "//me:secret@")}
        async with Client(proxies=named) as client:
            response = await client.request("POST", service.url, body=path)
    assert response.protocol == "seed"
    assert service.contents == [data]
    assert proxy.requests == [f"POST {service.url}/"]


async def test_tunnel_leads_to_https(tmp_path: Path) -> None:
    """The proxy sees the host, and not the request."""
    path, data = file_of(tmp_path, MIB)
    tls = ClientTls(cacert=pem_of(tmp_path))
    async with serving() as service, relaying(service.address) as (host, port):
        async with HttpProxy("me:secret").serving() as proxy:
            named = {"https_proxy": proxy.url.replace("//", "//me:secret@")}
            async with Client(proxies=named, tls=tls) as client:
                url = f"https://{host}:{port}/"
                response = await client.request("POST", url, body=path)
    assert response.protocol == "seed"
    assert service.contents == [data]
    assert proxy.requests == [f"CONNECT {host}:{port}"]


async def test_tunnel_through_a_proxy_that_speaks_tls(tmp_path: Path) -> None:
    """TLS with the server is within the TLS with the proxy."""
    tls = ClientTls(cacert=pem_of(tmp_path))
    async with serving() as service, relaying(service.address) as (host, port):
        async with HttpProxy().serving() as proxy:
            address = Url.parse(proxy.url).origin
            async with relaying((address.host, address.port)) as secured:
                named = {"https_proxy": f"https://{secured[0]}:{secured[1]}"}
                async with Client(proxies=named, tls=tls) as client:
                    url = f"https://{host}:{port}/"
                    response = await client.request("POST", url, body=bytes(MIB))
    assert response.status == 201
    assert service.contents == [bytes(MIB)]


async def test_proxy_that_wants_a_login_is_not_asked_again(tmp_path: Path) -> None:
    """The message names the proxy and what to write."""
    async with HttpProxy("me:secret").serving() as proxy:
        with pytest.raises(TransferFailed, match="wants a login") as caught:
            async with Client(proxies={"https_proxy": proxy.url}) as client:
                await client.request("POST", "https://a.example/", body=b"x")
    assert proxy.url in str(caught.value)
    assert not caught.value.resumable
    assert len(proxy.requests) == 1


async def test_proxy_that_refuses_is_not_asked_again() -> None:
    """A 403 to CONNECT stays one."""
    async with HttpProxy(refusals=(403, 403)).serving() as proxy:
        with pytest.raises(TransferFailed, match=r"a\.example:443: it answered 403"):
            async with Client(proxies={"https_proxy": proxy.url}) as client:
                await client.request("POST", "https://a.example/", body=b"x")
    assert len(proxy.requests) == 1


async def test_proxy_in_trouble_is_asked_again(tmp_path: Path) -> None:
    """A 502 to CONNECT may be over soon."""
    tls = ClientTls(cacert=pem_of(tmp_path))
    async with serving() as service, relaying(service.address) as (host, port):
        async with HttpProxy(refusals=(502, 503)).serving() as proxy:
            named = {"https_proxy": proxy.url}
            async with Client(proxies=named, tls=tls, retry=PATIENT) as client:
                url = f"https://{host}:{port}/"
                response = await client.request("POST", url, body=b"x")
    assert response.status == 201
    assert len(proxy.requests) == 3


async def test_unknown_proxy_is_named() -> None:
    """A mistyped name of a proxy does not look like one of the server."""
    named = {"http_proxy": "http://proxy.invalid:1"}
    with pytest.raises(TransferFailed, match=r"proxy http://proxy\.invalid:1 cannot"):
        async with Client(proxies=named, retry=SHORT) as client:
            await client.request("POST", "http://127.0.0.1:1/", body=b"x")
