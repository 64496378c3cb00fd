"""Certificates for tests of TLS, signed by an authority of the test run's own."""

from __future__ import annotations

import ssl
from functools import cache
from pathlib import Path

import trustme

__all__ = ["authority", "client_context", "server_context", "write_server_files"]


@cache
def authority() -> trustme.CA:
    """The authority that clients in tests trust."""
    return trustme.CA()


@cache
def _for_loopback() -> trustme.LeafCert:
    return authority().issue_cert("127.0.0.1", "localhost")


def write_server_files(folder: Path, *names: str) -> tuple[Path, Path]:
    """A certificate for *names*, or else for the loopback address, and its key, as files."""
    leaf = authority().issue_cert(*names) if names else _for_loopback()
    stem = folder / (names[0] if names else "server").replace("*", "any")
    certfile, keyfile = stem.with_suffix(".pem"), stem.with_suffix(".key")
    certfile.write_bytes(b"".join(blob.bytes() for blob in leaf.cert_chain_pems))
    keyfile.write_bytes(leaf.private_key_pem.bytes())
    return certfile, keyfile


def server_context() -> ssl.SSLContext:
    """A server's context with a certificate for the loopback address."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    _for_loopback().configure_cert(context)
    return context


def client_context(certificate: trustme.LeafCert | None = None) -> ssl.SSLContext:
    """A client's context that trusts the authority."""
    context = ssl.create_default_context()
    context.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF
    authority().configure_trust(context)
    if certificate is not None:
        certificate.configure_cert(context)
    return context
