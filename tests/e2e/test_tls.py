"""The real command over TLS: new certificates at SIGHUP, and an upload that is cut and resumed."""

from __future__ import annotations

import os
import re
import shutil
import signal
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.certificates import authority, write_server_files
from tests.e2e.command import Service


def shown_certificate(service: Service) -> str:
    """The certificate that a new connection gets."""
    return ssl.get_server_certificate(service.address)


@pytest.fixture
def secured(make_service: Callable[..., Service], tmp_path: Path) -> Service:
    """A running service with a certificate in ``server.pem`` and ``server.key``."""
    certfile, keyfile = write_server_files(tmp_path)
    service = make_service(
        "--ssl-certfile", str(certfile), "--ssl-keyfile", str(keyfile)
    )
    service.root = f"https://127.0.0.1:{service.port}"
    service.start()
    return service


def test_hangup_reads_the_certificates_again(secured: Service, tmp_path: Path) -> None:
    """A new one is shown to new connections; a broken one is logged and changes nothing."""
    old = shown_certificate(secured)
    leaf = authority().issue_cert("127.0.0.1")
    (tmp_path / "server.pem").write_bytes(leaf.cert_chain_pems[0].bytes())
    (tmp_path / "server.key").write_bytes(leaf.private_key_pem.bytes())
    os.kill(secured.pid, signal.SIGHUP)
    secured.wait_for_log("the certificates were read again")
    new = shown_certificate(secured)
    assert new != old
    (tmp_path / "server.pem").write_text("broken\n")
    os.kill(secured.pid, signal.SIGHUP)
    secured.wait_for_log("the certificates stay as they were")
    assert shown_certificate(secured) == new
    secured.stop()


def test_upload_that_curl_was_cut_in_goes_on_after_a_kill(
    secured: Service, tmp_path: Path
) -> None:
    """An offset announced over TLS survives ``kill -9``."""
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    ca = tmp_path / "ca.pem"
    authority().cert_pem.write_to_path(ca)
    body = os.urandom(6_000_000)
    (tmp_path / "body").write_bytes(body)

    def run(*arguments: str, code: int = 0) -> bytes:
        done = subprocess.run(
            [curl, "-sS", "--http1.1", "--cacert", str(ca), *arguments],
            capture_output=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == code, done.stderr
        return done.stdout

    heads = tmp_path / "heads"
    name = f"{secured.root}/files/body"
    sent = ("-T", str(tmp_path / "body"), "-H", "Prefer: resume")
    run(
        *sent,
        "-D",
        str(heads),
        "--limit-rate",
        "2M",
        "--max-time",
        "1.5",
        name,
        code=28,
    )
    found = re.search(rb"(?im)^request-content-location: (\S+)", heads.read_bytes())
    assert found is not None
    content = secured.root + found[1].decode()
    secured.kill()
    secured.start()
    shown = re.search(rb"(?im)^upload-offset: (\d+)", run("-I", content))
    assert shown is not None
    offset = int(shown[1])
    assert 0 < offset < len(body)
    patch = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (
        offset,
        len(body) - 1,
        len(body),
    )
    (tmp_path / "patch").write_bytes(patch + body[offset:])
    kind = ("-X", "PATCH", "-H", "Content-Type: message/byterange")
    run(*kind, "-T", str(tmp_path / "patch"), content)
    assert run(name) == body
    secured.stop()
