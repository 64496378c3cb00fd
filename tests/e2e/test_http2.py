"""HTTP/2 with the real command: h2spec, curl and httpx, which nobody here wrote."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx
import platformdirs
import pytest

from tests.certificates import client_context, write_server_files
from tests.e2e.command import Service
from tests.platforms import needs

H2SPEC = "github.com/summerwind/h2spec/cmd/h2spec@v2.2.1+incompatible"
SIZE = 6_000_000

KNOWN = {
    # On a port that speaks HTTP/1.1, too, a wrong preface is a wrong request line. Its
    # answer is a 400 of HTTP/1.1, and then the connection is closed.
    "h2c": ["Sends invalid connection preface"],
    "h2": [],
}
"""The cases of h2spec that fail, by carrier, and why."""


def h2spec() -> str:
    """Build h2spec, or find the one that an earlier run has built."""
    cache = platformdirs.user_cache_path("trioresume-tests", ensure_exists=True)
    program = cache / "h2spec-2.2.1" / "h2spec"
    if not program.exists():
        with tempfile.TemporaryDirectory(dir=cache) as new:
            subprocess.run(
                ["go", "install", H2SPEC],
                env={**os.environ, "GOBIN": new},
                check=True,
                timeout=240,
                stdin=subprocess.DEVNULL,
            )
            program.parent.mkdir(exist_ok=True)
            shutil.move(Path(new) / "h2spec", program)
    return str(program)


@needs("go")
@pytest.mark.slow
@pytest.mark.parametrize("carrier", ["h2c", "h2"])
def test_h2spec_finds_no_fault(
    carrier: str, tmp_path: Path, make_service: Callable[..., Service]
) -> None:
    """In strict mode every case passes, but those with a reason in KNOWN."""
    if carrier == "h2":
        cert, key = write_server_files(tmp_path)
        arguments = ["--ssl-certfile", str(cert), "--ssl-keyfile", str(key)]
    else:
        arguments = ["--h2c"]
    service = make_service(*arguments)
    secure = carrier == "h2"
    if secure:
        service.root = service.root.replace("http:", "https:")
    service.start()
    ran = subprocess.run(
        [
            h2spec(),
            *("-h", "127.0.0.1", "-p", str(service.port), "-S", "-P", "/"),
            *(("-t", "-k") if secure else ()),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    _, _, failures = ran.stdout.partition("Failures:")
    failed = re.findall(r"\u00d7 \d+: (.*)", failures)
    assert failed == KNOWN[carrier], ran.stdout
    counts = re.search(r"(\d+) tests, (\d+) passed, (\d+) skipped", ran.stdout)
    assert counts is not None, ran.stdout
    total, passed, skipped = map(int, counts.groups())
    assert total >= 146
    assert (passed, skipped) == (total - len(KNOWN[carrier]), 0)


def curl(directory: Path, *options: str) -> tuple[str, str]:
    """Run curl; return what it tells of version and status, and the response heads."""
    heads = directory / "heads"
    ran = subprocess.run(
        [
            *("curl", "-q", "-sS", "--noproxy", "*", "-D", str(heads)),
            *("-o", str(directory / "body"), "-w", "%{http_version} %{response_code}"),
            *options,
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return ran.stdout, heads.read_text() if heads.exists() else ""


@needs("curl")
def test_curl_is_cut_and_resumes_over_http2(
    secured: Service, tmp_path: Path, cacert: str
) -> None:
    """The interim response tells where to go on, and the rest is patched there."""
    content = os.urandom(SIZE)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    whole.write_bytes(content)
    told, heads = curl(
        tmp_path,
        *("--http2", "--cacert", cacert, "-T", str(whole)),
        *("-H", "Expect: 100-continue", "-H", "Prefer: resume"),
        *("--limit-rate", "2M", "--max-time", "1.5"),
        secured.root + "/files/cut.bin",
    )
    assert heads.startswith("HTTP/2 100"), (told, heads)
    found = re.search(r"(?m)^request-content-location: (\S+)", heads)
    assert found is not None, heads
    content_url = secured.root + found[1]
    secured.stop()
    secured.start()
    told, heads = curl(tmp_path, "--http2", "--cacert", cacert, "--head", content_url)
    assert told.startswith("2 2"), heads
    found = re.search(r"(?im)^upload-offset: (\d+)", heads)
    assert found is not None, heads
    offset = int(found[1])
    assert 0 < offset < SIZE
    part = f"Content-Range: bytes {offset}-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
    rest.write_bytes(part + content[offset:])
    told, heads = curl(
        tmp_path,
        *("--http2", "--cacert", cacert, "-X", "PATCH"),
        *("-H", "Content-Type: message/byterange", "--data-binary", f"@{rest}"),
        content_url,
    )
    assert told in ("2 200", "2 201"), heads
    told, _ = curl(
        tmp_path, "--http2", "--cacert", cacert, secured.root + "/files/cut.bin"
    )
    assert told == "2 200"
    stored = hashlib.sha256((tmp_path / "body").read_bytes()).digest()
    assert stored == hashlib.sha256(content).digest()


def test_httpx_uploads_many_files_on_one_connection(secured: Service) -> None:
    """Requests of one connection run side by side, and each file is what was sent."""
    files = {f"/files/{number}.bin": os.urandom(300_000) for number in range(20)}
    with httpx.Client(
        base_url=secured.root, http2=True, verify=client_context(), trust_env=False
    ) as client:
        for path, content in files.items():
            answer = client.put(path, content=content)
            assert (answer.status_code, answer.http_version) == (201, "HTTP/2")
        for path, content in files.items():
            assert client.get(path).content == content


def test_debug_log_tells_no_secrets_of_http2(
    tmp_path: Path, make_service: Callable[..., Service]
) -> None:
    """hpack logs every field of every message, if it is let."""
    cert, key = write_server_files(tmp_path)
    service = make_service(
        *("--ssl-certfile", str(cert), "--ssl-keyfile", str(key)),
        *("--log-level", "debug"),
    )
    service.start()
    with httpx.Client(http2=True, verify=client_context(), trust_env=False) as client:
        fields = {"Authorization": "Bearer open-sesame"}
        answer = client.get(service.root + "/files/none", headers=fields)
    assert (answer.status_code, answer.http_version) == (404, "HTTP/2")
    service.wait_for_log("went away")
    assert "open-sesame" not in service.log.read_text()


@needs("curl")
def test_http2_can_be_switched_off(
    tmp_path: Path, make_service: Callable[..., Service], cacert: str
) -> None:
    """Then the same port speaks HTTP/1.1 only."""
    cert, key = write_server_files(tmp_path)
    service = make_service(
        *("--ssl-certfile", str(cert), "--ssl-keyfile", str(key)),
        *("--http2", "false"),
    )
    service.root = service.root.replace("http:", "https:")
    service.start()
    told, _ = curl(tmp_path, "--http2", "--cacert", cacert, service.root + "/files/")
    assert told.startswith("1.1 ")
