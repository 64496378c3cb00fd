"""The client over TLS: whom it trusts, what it says when it does not, and cuts."""

from __future__ import annotations

import datetime as dt
import logging
import os
import random
import socket
import ssl
import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trustme

from tests.client.test_sockets import MIB, PATIENT, file_of, serving
from tests.client.tls import CA, ServerTls, context_for, pem_of, relaying, speaking
from trioresume import CallerError, Client, ClientTls, TransferFailed
from trioresume.client.http.tls_stream import TlsStream
from trioresume.testing import ChaosProxy, random_faults


def url_of(address: tuple[str, int], host: str = "127.0.0.1") -> str:
    return f"https://{host}:{address[1]}/"


@pytest.fixture
def trusting(tmp_path: Path) -> ClientTls:
    """Settings that trust the authority of the tests."""
    return ClientTls(cacert=pem_of(tmp_path))


async def test_file_goes_through_tls_that_is_cut_at_random(
    tmp_path: Path, trusting: ClientTls
) -> None:
    """FIN and RST within TLS records: every request is processed once."""
    path, data = file_of(tmp_path, 3 * MIB)

    async def once(number: int, url: str) -> None:
        async with Client(
            retry=PATIENT, random=random.Random(number), tls=trusting
        ) as client:
            response = await client.request("POST", url, body=path)
        assert response.status == 201
        assert response.body == data[::-1][:5000]

    async with serving() as service, relaying(service.address) as address:
        faults = random_faults(5, mean_bytes=MIB // 2, limit=30)
        async with ChaosProxy(address, faults) as proxy:
            async with trio.open_nursery() as nursery:
                for number in range(3):
                    nursery.start_soon(once, number, url_of(proxy.address))
            assert proxy.totals.cuts > 5
    assert service.contents == [data] * 3


async def test_connection_is_used_again(trusting: ClientTls) -> None:
    """A second request to the same origin makes no second handshake."""
    async with serving() as service, relaying(service.address) as address:
        async with ChaosProxy(address) as proxy:
            async with Client(tls=trusting) as client:
                for _ in range(3):
                    await client.request("POST", url_of(proxy.address), body=b"x")
            assert len(proxy.connections) == 1


async def test_context_of_the_caller_is_used() -> None:
    """A program may bring a context of its own."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    async with serving() as service, relaying(service.address) as address:
        async with Client(tls=context) as client:
            response = await client.request("POST", url_of(address), body=b"abc")
    assert response.status == 201


async def test_insecure_client_says_so_each_time(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Any certificate is accepted, and each client warns of that."""
    async with serving() as service, relaying(service.address) as address:
        for _ in range(2):
            async with Client(tls=ClientTls(insecure=True)) as client:
                response = await client.request("POST", url_of(address), body=b"abc")
            assert response.status == 201
    told = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert len(told) == 2
    assert "is not checked" in told[0].getMessage()


def _expired() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    past = dt.datetime.now(dt.UTC) - dt.timedelta(days=1)
    CA.issue_cert("127.0.0.1", not_after=past).configure_cert(context)
    return context


def _premature() -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    begin = dt.datetime.now(dt.UTC) + dt.timedelta(days=1)
    CA.issue_cert("127.0.0.1", not_before=begin).configure_cert(context)
    return context


def _old() -> ssl.SSLContext:
    context = context_for()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("DEFAULT:@SECLEVEL=0")
    return context


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (_expired, "has expired: the server needs a new one"),
        (_premature, "is not valid yet: is the clock"),
        (lambda: context_for("other.example"), "is for another host"),
        (
            lambda: context_for("127.0.0.1", issuer=trustme.CA()),
            r"does not know\. If you trust the server.*--cacert",
        ),
        (_old, "the server needs TLS 1.2 or 1.3"),
    ],
    ids=["expired", "premature", "wrong host", "unknown authority", "old"],
)
async def test_server_that_cannot_be_trusted_is_named_and_not_tried_again(
    trusting: ClientTls, context: Callable[[], ssl.SSLContext], said: str
) -> None:
    """The message has the host and what to do; nothing is sent."""
    async with serving() as service, relaying(service.address, context()) as address:
        async with ChaosProxy(address) as proxy:
            url = url_of(proxy.address)
            with pytest.raises(TransferFailed, match=said) as caught:
                async with Client(tls=trusting, retry=PATIENT) as client:
                    await client.request("POST", url, body=b"abc")
            assert f"127.0.0.1:{proxy.address[1]}" in str(caught.value)
            assert not caught.value.resumable
            assert len(proxy.connections) == 1
    assert service.contents == []


async def test_plain_server_is_recognised(trusting: ClientTls) -> None:
    """A server without TLS at an https URL is no reason to try again."""
    async with serving() as service:
        with pytest.raises(TransferFailed, match="does not answer in TLS"):
            async with Client(tls=trusting, retry=PATIENT) as client:
                url = url_of(service.address)
                await client.request("POST", url, body=b"abc")


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_certificate_of_the_client_is_shown(
    tmp_path: Path, trusting: ClientTls, version: ssl.TLSVersion
) -> None:
    """With it the server takes the request; without it the message asks for it."""
    wanting = context_for()
    wanting.verify_mode = ssl.CERT_REQUIRED
    wanting.minimum_version = wanting.maximum_version = version
    CA.configure_trust(wanting)
    issued = CA.issue_cert("somebody@example.org")
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    issued.cert_chain_pems[0].write_to_path(str(cert))
    issued.private_key_pem.write_to_path(str(key))
    known = ClientTls(cacert=trusting.cacert, cert=cert, key=key)
    async with serving() as service, relaying(service.address, wanting) as address:
        async with Client(tls=known) as client:
            response = await client.request("POST", url_of(address), body=b"abc")
        assert response.status == 201
        with pytest.raises(TransferFailed, match="--cert") as caught:
            async with Client(tls=trusting, retry=PATIENT) as client:
                await client.request("POST", url_of(address), body=b"abc")
    assert not caught.value.resumable


async def test_certificate_that_the_server_refuses_is_not_shown_again(
    tmp_path: Path, trusting: ClientTls
) -> None:
    """The server's reason is the message."""
    wanting = context_for()
    wanting.verify_mode = ssl.CERT_REQUIRED
    CA.configure_trust(wanting)
    both = tmp_path / "both.pem"
    stranger = trustme.CA().issue_cert("somebody@example.org")
    stranger.private_key_and_cert_chain_pem.write_to_path(str(both))
    settings = ClientTls(cacert=trusting.cacert, cert=both)
    async with serving() as service, relaying(service.address, wanting) as address:
        with pytest.raises(TransferFailed, match="does not accept this client's cert"):
            async with Client(tls=settings, retry=PATIENT) as client:
                await client.request("POST", url_of(address), body=b"abc")


RESPONSE = b'HTTP/1.1 200 OK\r\nConnection: close\r\nETag: W/"a"\r\n\r\n'  # fmt: skip


@pytest.mark.parametrize("politely", [True, False])
async def test_end_without_the_close_of_tls_is_a_cut(
    trusting: ClientTls, *, politely: bool
) -> None:
    """Content of unknown length ends with TLS's own close, and with nothing else."""
    begun = 0

    async def answer(stream: ServerTls) -> None:
        nonlocal begun
        begun += 1
        await stream.receive_some()
        await stream.send_all(RESPONSE + b"all of ")
        if begun == 1 and not politely:
            stream.cut()
            return
        await stream.send_all(b"it")
        await stream.aclose()

    async with speaking(answer) as address:
        async with Client(tls=trusting, retry=PATIENT) as client:
            response = await client.request("GET", url_of(address))
    assert response.body == b"all of it"
    assert begun == (1 if politely else 2)


async def test_answer_is_received_after_sending_failed() -> None:
    """R10: a server may refuse the content, answer, close, and read no more."""
    context = ssl.create_default_context()
    CA.configure_trust(context)
    async with speaking(lambda stream: stream.send_all(b"too large")) as address:
        plain = await trio.open_tcp_stream(*address)
        async with TlsStream(plain, context, "127.0.0.1") as stream:
            await stream.do_handshake()
            with socket.socket(fileno=os.dup(stream.socket.fileno())) as same:
                same.shutdown(socket.SHUT_WR)
            with pytest.raises(trio.BrokenResourceError):
                await stream.send_all(b"more content")
            assert await stream.receive_some() == b"too large"


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"key": "k.pem"}, "needs the certificate"),
        ({"insecure": True, "cacert": "ca.pem"}, "two things"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    settings: dict[str, str], said: str
) -> None:
    """Before anything is connected."""
    with pytest.raises(CallerError, match=said):
        ClientTls(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("cacert", None, "cannot be read: No such file"),
        ("cacert", b"not PEM", "does not have what is needed, in PEM"),
        ("cert", b"not PEM", "does not have what is needed, in PEM"),
    ],
)
def test_file_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, content: bytes | None, said: str
) -> None:
    """Each file with its path."""
    path = tmp_path / "file.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CallerError, match=said) as caught:
        ClientTls(**{name: path}).context()  # type: ignore[arg-type]
    assert str(path) in str(caught.value)
