"""Programs that operators have read what the service says of itself."""

from __future__ import annotations

import json
import re
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Service, free_port
from tests.processes import SOURCE, environment_of, run
from tests.sockets import wait_until_read

PAGES = SOURCE / "docs/howto/metrics"
DASHBOARD = json.loads((PAGES / "dashboard.json").read_text("utf-8"))
SECONDS = 60.0
SIZE = 300_000

pytestmark = pytest.mark.xdist_group("metrics")  # they share a service

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus is not installed",
)
needs_goaccess = pytest.mark.skipif(
    shutil.which("goaccess") is None, reason="goaccess is not installed"
)


def _promtool(*arguments: str | Path, given: str = "") -> str:
    done = subprocess.run(
        ["promtool", *arguments],
        input=given,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


def _get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        text: str = response.read().decode()
        return text


class Watched:
    """A service with a second listener and a log, after requests of all kinds."""

    def __init__(self, service: Service, admin: str, log: Path) -> None:
        self.service = service
        self.admin = admin
        self.log = log

    def use(self, folder: Path) -> None:
        """Upload, cut, resume, take over, fail and end, so that everything was counted."""
        file = folder / "file"
        file.write_bytes(bytes(range(256)) * (SIZE // 256))
        root = f"{self.service.root}/files/"
        for protocol in ("seed", "tus", "rufh"):
            command = ["trioresume", "upload", "--quiet", "--protocol", protocol]
            done = run(
                [*command, str(file), root],
                environment=environment_of(folder),
                timeout=SECONDS,
            )
            assert done.returncode == 0, done.stderr
        location = self._cut(file.read_bytes())
        with self._begin(location, SIZE // 2, 100_000):
            self._ask("HEAD", location, 200)  # takes it over
        self._ask("GET", root + "missing", 404)
        self._ask("DELETE", location, 204)

    def logged(self, least: int) -> list[str]:
        """The lines of the log, as soon as there are so many."""
        deadline = time.monotonic() + SECONDS
        while len(lines := self.log.read_text("ascii").splitlines()) < least:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        return lines

    def _ask(self, method: str, url: str, status: int) -> None:
        fields = {"Tus-Resumable": "1.0.0"} if "operations" in url else {}
        request = urllib.request.Request(url, method=method, headers=fields)
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as response:
                answered = response.status
        except urllib.error.HTTPError as error:
            with error:
                answered = error.code
        assert answered == status

    def _cut(self, content: bytes) -> str:
        """Create an upload by tus, and cut its connection in the middle of its content."""
        fields = {"Tus-Resumable": "1.0.0", "Upload-Length": str(len(content))}
        request = urllib.request.Request(
            f"{self.service.root}/files/", method="POST", headers=fields
        )
        location: str
        with urllib.request.urlopen(request, timeout=SECONDS) as response:
            location = urllib.parse.urljoin(
                self.service.root, response.headers["Location"]
            )
        with self._begin(location, 0, len(content)) as sock:
            sock.sendall(content[: SIZE // 2])
            wait_until_read(sock)
        return location

    def _begin(self, location: str, offset: int, length: int) -> socket.socket:
        """Begin a PATCH at *offset*; return its connection."""
        sock = socket.create_connection(self.service.address, timeout=SECONDS)
        path = urllib.parse.urlsplit(location).path
        sock.sendall(
            f"PATCH {path} HTTP/1.1\r\nHost: test\r\nTus-Resumable: 1.0.0\r\n"
            f"Content-Type: application/offset+octet-stream\r\nUpload-Offset: {offset}\r\n"
            f"Content-Length: {length}\r\n\r\n".encode()
        )
        wait_until_read(sock)
        return sock


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    folder = tmp_path_factory.mktemp("watched")
    admin, log = f"127.0.0.1:{free_port()}", folder / "access.log"
    arguments = ("serve", "--admin-bind", admin, "--access-log", str(log))
    service = Service(folder / "data", arguments)
    service.start()
    try:
        watched = Watched(service, f"http://{admin}", log)
        watched.use(folder)
        yield watched
        service.stop()
    finally:
        service.close()


class Prometheus:
    """A real Prometheus with the configuration of the docs, which scrapes more often."""

    def __init__(self, folder: Path, target: str) -> None:
        settings = (PAGES / "prometheus.yml").read_text("utf-8")
        settings = settings.replace("127.0.0.1:9180", target.removeprefix("http://"))
        settings = settings.replace(": 15s", ": 200ms")
        (folder / "prometheus.yml").write_text(settings)
        shutil.copy(PAGES / "alerts.yml", folder)
        self._root = f"http://127.0.0.1:{free_port()}"
        self._log = (folder / "log").open("wb")
        self._process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={folder / 'prometheus.yml'}",
                f"--storage.tsdb.path={folder / 'tsdb'}",
                f"--web.listen-address={self._root.removeprefix('http://')}",
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, **parameters: str) -> Any:
        url = f"{self._root}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        return json.loads(_get(url))["data"]

    def query(self, expression: str) -> list[Any]:
        result: list[Any] = self.ask("query", query=expression)["result"]
        return result

    def until(self, fact: Callable[[], bool]) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            try:
                if fact():
                    return
            except (urllib.error.URLError, ConnectionError):
                assert self._process.poll() is None  # it does not listen yet
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(SECONDS)
        self._log.close()


@needs_prometheus
def test_lint_of_prometheus_has_no_finding(watched: Watched) -> None:
    """Names, units, types and help texts are as Prometheus wants them."""
    assert _promtool("check", "metrics", given=_get(f"{watched.admin}/metrics")) == ""


@needs_prometheus
def test_configuration_and_alerts_of_the_docs_are_right() -> None:
    """As Prometheus itself checks them, with every metric that an alert names."""
    assert "SUCCESS" in _promtool("check", "config", PAGES / "prometheus.yml")
    assert "SUCCESS" in _promtool("check", "rules", PAGES / "alerts.yml")


@needs_prometheus
def test_prometheus_scrapes_it_and_each_panel_has_data(
    watched: Watched, tmp_path: Path
) -> None:
    """Each query of the dashboard finds something, and no alert fires or fails."""
    prometheus = Prometheus(tmp_path, watched.admin)
    try:
        count = "count_over_time(trioresume_build_info[1m])"
        prometheus.until(lambda: bool(prometheus.query(f"{count} >= 3")))
        for panel in DASHBOARD["panels"]:
            for target in panel["targets"]:
                # Grafana puts these in.
                expression = target["expr"].replace("$__rate_interval", "1m")
                expression = expression.replace("$instance", ".*")
                assert prometheus.query(expression), (panel["title"], expression)
        prometheus.until(
            lambda: all(
                rule["health"] == "ok"
                for group in prometheus.ask("rules")["groups"]
                for rule in group["rules"]
            )
        )
        assert prometheus.ask("alerts")["alerts"] == []
        total = "sum by (dialect) (trioresume_uploads_created_total)"
        created = {
            each["metric"]["dialect"]: each["value"][1]
            for each in prometheus.query(total)
        }
        assert created == {"seed": "1", "rufh": "1", "tus": "2", "plain": "0"}
        for name in ("cuts", "resumptions", "takeovers"):
            found = prometheus.query(f'trioresume_upload_{name}_total{{dialect="tus"}}')
            assert found[0]["value"][1] == "1", name
    finally:
        prometheus.close()


def test_alerts_and_panels_name_metrics_that_are_there(watched: Watched) -> None:
    """A name that is spelt wrongly would be an empty panel, or an alert that never fires."""
    text = _get(f"{watched.admin}/metrics")
    known = set(re.findall(r"^# TYPE (\w+)", text, re.MULTILINE))
    known |= {"trioresume_stored_bytes_limit"}  # only with --max-stored-bytes
    for name in ("alerts.yml", "dashboard.json"):
        page = (PAGES / name).read_text("utf-8")
        named = set(re.findall(r"trioresume_[a-z_]+", page))
        bare = {re.sub(r"_(bucket|sum|count)$", "", each) for each in named}
        assert bare <= known | {"trioresume_uploads"}, name
    described = (SOURCE / "docs/howto/metrics.md").read_text("utf-8")
    for name in known:
        if name.startswith("trioresume_"):
            assert f"`{name.removeprefix('trioresume_')}`" in described, name


@needs_goaccess
def test_goaccess_reads_every_line(watched: Watched, tmp_path: Path) -> None:
    """A real reader of logs takes the format for that of any web server."""
    report = tmp_path / "report.json"
    lines = watched.logged(10)
    subprocess.run(
        [
            "goaccess",
            str(watched.log),
            "--log-format=COMBINED",
            f"--output={report}",
            "--no-global-config",
        ],
        check=True,
        timeout=SECONDS,
        capture_output=True,
        stdin=subprocess.DEVNULL,
    )
    general = json.loads(report.read_text("utf-8"))["general"]
    assert general["failed_requests"] == 0
    assert general["valid_requests"] == general["total_requests"] == len(lines)
