"""``trioresume bench proxy`` through real proxies, configured well and badly."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trio

from tests.e2e import proxies
from tests.e2e.command import Service, free_port
from tests.e2e.test_proxies import UNSET
from trioresume import CallerError
from trioresume.bench import Finding, ProxyChecks, Verdict, check_proxy

NGINX = proxies.snippet("nginx", "a name of its own")
SILENCE = 4.0
COMMAND = [sys.executable, "-m", "trioresume"]

Verdicts = dict[str, str]


def checked(url: str, *, silence: float = 0.5) -> tuple[int, dict[str, Finding]]:
    """The exit code of the real command, and what each check found."""
    done = subprocess.run(
        [*COMMAND, "bench", "proxy", "--json", "--silence", f"{silence}s", url],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.stderr == ""
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return done.returncode, {
        line["check"]: Finding(
            name=line["check"],
            verdict=Verdict(line["verdict"]),
            seen=line["seen"],
            cure=line.get("cure", ""),
        )
        for line in lines
    }


def odd(found: dict[str, Finding]) -> Verdicts:
    """The checks that did not pass."""
    return {
        name: finding.verdict.value
        for name, finding in found.items()
        if finding.verdict is not Verdict.PASSED
    }


@contextmanager
def serving(folder: Path, options: Sequence[str]) -> Iterator[Service]:
    service = Service(folder / "data", ("serve", *options))
    service.start()
    try:
        yield service
    finally:
        service.close()
        assert "Traceback" not in service.log.read_text()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "options", "expected"),
    [
        ("haproxy", None, None, {}),
        (
            "nginx",
            None,
            None,
            {"interim responses": "limited", "many interim responses": "skipped"},
        ),
        (
            "nginx",
            UNSET["nginx"],
            (),
            {
                "streaming": "failed",
                "unknown length": "limited",
                "cut": "failed",
                "size": "failed",
                "interim responses": "limited",
                "many interim responses": "skipped",
            },
        ),
        (
            "nginx",
            NGINX,
            (),
            {"interim responses": "failed", "many interim responses": "skipped"},
        ),
        (
            "nginx",
            NGINX.replace("listen 80;", "listen 80; client_body_timeout 3s;"),
            None,
            {
                "pause": "failed",
                "interim responses": "limited",
                "many interim responses": "skipped",
            },
        ),
        (
            "nginx",
            proxies.snippet("nginx", "a path of a name"),
            None,
            {
                "address": "failed",
                "interim responses": "limited",
                "many interim responses": "skipped",
            },
        ),
    ],
    ids=["haproxy", "nginx", "nginx-unset", "interims", "timeout", "path"],
)
def test_verdicts_are_those_of_the_configuration(
    name: str,
    block: str | None,
    options: Sequence[str] | None,
    expected: Verdicts,
    tmp_path: Path,
) -> None:
    """Each wrong setting is found by its check, and each of the page's by none."""
    block = proxies.snippet(name, "a name of its own") if block is None else block
    options = proxies.options(name) if options is None else options
    silence = SILENCE if expected.get("pause") else 0.5
    folder = tmp_path / "proxy"
    folder.mkdir()
    with (
        serving(tmp_path, options) as service,
        proxies.run(name, block, service.port, folder) as proxy,
    ):
        path = "/up/files/" if "/up/" in block else "/files/"
        code, found = checked(proxy.root + path, silence=silence)
        left = subprocess.run(
            [*COMMAND, "ls", "--json", "--data-dir", str(service.data_dir)],
            capture_output=True,
            text=True,
            timeout=60,
            check=True,
        )
    if expected.get("address"):
        # Nothing else can be tried without the address of an upload.
        assert odd(found)["address"] == "failed"
        assert "--root-path" in found["address"].cure
    else:
        assert odd(found) == expected
        assert left.stdout == ""
    assert code == (1 if "failed" in odd(found).values() else 0)
    for finding in found.values():
        good = finding.verdict in (Verdict.PASSED, Verdict.SKIPPED)
        assert good == (not finding.cure), finding


def test_caddy_that_breaks_off_is_told_from_one_that_does_not(tmp_path: Path) -> None:
    """Caddy 2.6 accepts five interim responses in a request, later versions any number."""
    folder = tmp_path / "proxy"
    folder.mkdir()
    with (
        serving(tmp_path, ()) as service,
        proxies.run("caddy", UNSET["caddy"], service.port, folder) as proxy,
    ):
        code, found = checked(f"{proxy.root}/files/")
    old = tuple(map(int, proxy.version.split("."))) < (2, 7, 0)
    assert odd(found) == ({"many interim responses": "failed"} if old else {})
    assert code == (1 if old else 0)


def test_server_that_believes_to_be_elsewhere_is_found(tmp_path: Path) -> None:
    """The other checks go on at the address that was given."""
    with serving(tmp_path, ["--public-url", "https://wrong.example"]) as service:
        code, found = checked(f"{service.root}/files/")
    assert (code, odd(found)) == (1, {"address": "failed"})
    assert "https://wrong.example" in found["address"].seen
    assert "--public-url" in found["address"].cure


def test_limit_of_the_server_itself_is_no_fault_of_the_proxy(tmp_path: Path) -> None:
    with serving(tmp_path, ["--max-upload-size", "100MiB"]) as service:
        code, found = checked(f"{service.root}/files/")
    assert (code, odd(found)) == (0, {})
    assert found["size"].seen.startswith(
        "A request may have 2 MiB. No upload of 128 MiB could be made"
    )


def test_nobody_there_is_the_only_finding() -> None:
    code, found = checked(f"http://127.0.0.1:{free_port()}/files/")
    assert (code, odd(found)) == (1, {"reached": "failed"})
    assert "no connection to 127.0.0.1" in found["reached"].seen


class _Other(BaseHTTPRequestHandler):
    """A server that speaks no protocol, and one that answers with no HTTP at all."""

    def do_OPTIONS(self) -> None:
        if self.path == "/noise/":
            self.wfile.write(b"\x00\x01\x02 no HTTP\r\n\r\n")
            self.close_connection = True
            return
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format: str, *args: object) -> None:
        """Not wanted."""


@pytest.fixture
def other() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), _Other) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("path", "words"),
    [("/", "no server that speaks tus"), ("/noise/", "the answer cannot be read")],
)
def test_other_server_is_told(other: str, path: str, words: str) -> None:
    """What it is not is said; nothing is sent to it but one question."""
    found = trio.run(check_proxy, ProxyChecks(url=other + path))
    assert [(f.name, f.verdict) for f in found] == [("reached", Verdict.FAILED)]
    assert words in found[0].seen
    assert found[0].cure


def test_url_that_cannot_be_used_is_refused() -> None:
    with pytest.raises(CallerError, match="TLS"):
        ProxyChecks(url="https://up.example/files/")
    with pytest.raises(CallerError, match="pause"):
        ProxyChecks(url="http://up.example/files/", silence=0)
    with pytest.raises(CallerError, match="absolute"):
        ProxyChecks(url="up.example")
