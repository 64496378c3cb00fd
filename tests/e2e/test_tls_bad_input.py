"""Clients that cannot speak TLS with the service: the log and the client each say why."""

from __future__ import annotations

import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from tests.certificates import authority, client_context
from tests.e2e.carriers import HTTP1_TLS
from tests.e2e.command import Service
from tests.platforms import needs

MakeService = Callable[..., Service]


@pytest.fixture
def cacert(tmp_path: Path) -> str:
    path = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(str(path))
    return str(path)


def curl(service: Service, *options: str) -> tuple[int, str]:
    """curl's exit code, and what it says."""
    done = subprocess.run(
        ["curl", "-q", "-sS", "--noproxy", "*", *options, service.root + "/files/none"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def upload(service: Service, folder: Path, *options: str) -> tuple[int, str]:
    """The exit code of ``trioresume upload``, and what it says."""
    path = folder / "content"
    path.write_bytes(b"x")
    command = [sys.executable, "-m", "trioresume", "upload", "--quiet", *options]
    done = subprocess.run(
        [*command, str(path), service.root + "/files/"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return done.returncode, done.stderr


@needs("curl")
def test_no_version_or_cipher_in_common(
    tmp_path: Path, make_service: MakeService, cacert: str
) -> None:
    """The log tells the operator of both; curl tells its user."""
    options = HTTP1_TLS.options(tmp_path)
    strict = make_service(*options, "--ssl-min-version", "1.3")
    strict.start()
    code, said = curl(strict, "--cacert", cacert, "--tls-max", "1.2")
    assert code == 35, said
    assert "protocol version" in said
    strict.wait_for_log("client and server have no version or cipher of TLS in common")
    service = make_service(*options)
    service.start()
    # The server's key is of an elliptic curve; this cipher wants one of RSA.
    few = ("--tls-max", "1.2", "--ciphers", "AES128-GCM-SHA256")
    code, said = curl(service, "--cacert", cacert, *few)
    assert code == 35, said
    assert "handshake failure" in said
    service.wait_for_log("client and server have no version or cipher of TLS in common")


@needs("curl")
def test_certificate_of_the_client_is_missing_or_wrong(
    tmp_path: Path, make_service: MakeService, cacert: str
) -> None:
    """Each side says so."""
    auth = ("--ssl-client-auth", "required", "--ssl-ca-certs", cacert)
    service = make_service(*HTTP1_TLS.options(tmp_path), *auth)
    service.start()
    code, said = curl(service, "--cacert", cacert)
    assert code in (35, 56), said
    assert "certificate required" in said
    service.wait_for_log("the client has no certificate that is accepted")
    code, said = upload(service, tmp_path, "--cacert", cacert)
    assert code == 1, said
    assert "--cert" in said
    stranger = tmp_path / "stranger.pem"
    issued = trustme.CA().issue_cert("somebody@example.org")
    issued.private_key_and_cert_chain_pem.write_to_path(str(stranger))
    code, said = curl(service, "--cacert", cacert, "--cert", str(stranger))
    assert code in (35, 56), said
    assert "unknown ca" in said
    code, said = upload(service, tmp_path, "--cacert", cacert, "--cert", str(stranger))
    assert code == 1, said
    assert "does not accept this client's certificate" in said
    known = tmp_path / "known.pem"
    issued = authority().issue_cert("somebody@example.org")
    issued.private_key_and_cert_chain_pem.write_to_path(str(known))
    code, said = upload(service, tmp_path, "--cacert", cacert, "--cert", str(known))
    assert code == 0, said


@needs("curl")
def test_unknown_host_gets_the_first_certificate(
    tmp_path: Path, make_service: MakeService, cacert: str
) -> None:
    """Its client sees that the certificate is for somebody else."""
    service = make_service(*HTTP1_TLS.options(tmp_path))
    service.start()
    code, said = curl(service, "--cacert", cacert)
    assert code == 0, said
    name = f"unknown.example:{service.port}"
    service.root = f"https://{name}"
    code, said = curl(service, "--cacert", cacert, "--resolve", f"{name}:127.0.0.1")
    assert code == 60, said
    assert "unknown.example" in said


def test_unknown_application_protocol_is_not_chosen(
    tmp_path: Path, make_service: MakeService
) -> None:
    """Such a client is told that nothing was chosen (ALPN), and may speak HTTP/1.1."""
    service = make_service(*HTTP1_TLS.options(tmp_path))
    service.start()
    context = client_context()
    context.set_alpn_protocols(["acme-tls/1"])
    with (
        socket.create_connection(service.address, 20) as sock,
        context.wrap_socket(sock, server_hostname="localhost") as secured,
    ):
        assert secured.selected_alpn_protocol() is None
        secured.sendall(b"HEAD /files/none HTTP/1.1\r\nHost: x\r\n\r\n")
        assert secured.recv(9999).startswith(b"HTTP/1.1 404")


@needs("curl")
def test_tls_at_a_plain_port(
    tmp_path: Path, make_service: MakeService, cacert: str
) -> None:
    """The log says so, and ``trioresume upload`` asks for the right URL."""
    service = make_service()
    service.start()
    plain = service.root
    service.root = plain.replace("http:", "https:")
    code, said = curl(service, "--cacert", cacert)
    assert code == 35, said
    service.wait_for_log("TLS, and this port does not")
    code, said = upload(service, tmp_path)
    assert code == 1, said
    assert "does not answer in TLS: does its URL begin with http://?" in said
    service.root = plain
    assert upload(service, tmp_path)[0] == 0
