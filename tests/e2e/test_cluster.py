"""docs/howto/cluster.md, word for word: two servers, PostgreSQL, an object store, HAProxy."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from tests import postgres
from tests.e2e.cluster_soak import soak
from tests.e2e.command import Service, free_port
from tests.platforms import needs
from tests.processes import SOURCE
from tests.s3_servers import S3Server, find, running

pytestmark = [needs("curl"), needs("haproxy")]

PAGE = (SOURCE / "docs/howto/cluster.md").read_text("utf-8")


def block(language: str, containing: str) -> str:
    """The block of code on the page that has these words."""
    blocks = re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    (found,) = [each for each in blocks if containing in each]
    return str(found)


def options(line: str) -> list[str]:
    """The options of the page's ``trioresume serve`` that have nothing to do with places."""
    words = re.sub(r"\\\n", " ", line).split()
    return [word for word in words if word.startswith("--")]


@pytest.fixture(scope="module")
def database() -> Iterator[postgres.PostgresServer]:
    reason = postgres.why_not()
    if reason is not None:
        pytest.skip(reason)
    server = postgres.PostgresServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def objects(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running("versitygw", tmp_path_factory.mktemp("objects")) as server:
        yield server


class Cluster:
    """Two services of one database and one bucket."""

    def __init__(
        self, database: postgres.PostgresServer, objects: S3Server, path: Path
    ) -> None:
        self.database, self.objects = database, objects
        name = f"uploads_{time.monotonic_ns()}"
        with psycopg.connect(database.url, autocommit=True) as connection:
            connection.execute(
                f"CREATE DATABASE {name} ENCODING 'UTF8' TEMPLATE template0".encode()
            )
        self.catalog = database.url.replace("/postgres", f"/{name}")
        self.nodes = [self.new_node(path / f"data-{at}") for at in range(2)]
        for node in self.nodes:
            node.start()

    def new_node(self, data_dir: Path) -> Service:
        arguments = [
            *("serve", "--catalog", self.catalog),
            *("--objects", self.objects.url("service")),
        ]
        return Service(data_dir, arguments, environment=self.objects.environment)

    def close(self) -> None:
        for node in self.nodes:
            node.close()


@pytest.fixture
def cluster(
    database: postgres.PostgresServer, objects: S3Server, tmp_path: Path
) -> Iterator[Cluster]:
    cluster = Cluster(database, objects, tmp_path)
    yield cluster
    cluster.close()
    for node in cluster.nodes:
        node.check_log()


@pytest.fixture
def balancer(cluster: Cluster, tmp_path: Path) -> Iterator[str]:
    """The page's HAProxy, with the ports of here."""
    port = free_port()
    config = block("text", "frontend uploads").replace("bind :80", f"bind :{port}")
    for number, node in enumerate(cluster.nodes, 1):
        config = config.replace(f"10.0.0.{number}:8080", f"127.0.0.1:{node.port}")
    (tmp_path / "haproxy.cfg").write_text(config)
    process = subprocess.Popen(
        ["haproxy", "-db", "-f", str(tmp_path / "haproxy.cfg")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    yield f"127.0.0.1:{port}"
    process.terminate()
    process.wait()


def shell(script: str, directory: Path) -> str:
    """Run a script of the page."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_options_of_the_page_are_those_of_the_test() -> None:
    """The places differ: ports, directories, hosts."""
    assert options(block("text", "trioresume serve")) == [
        *("--bind", "--data-dir", "--catalog", "--objects")
    ]
    assert "--encoding=UTF8 --template=template0" in block("text", "createdb")


def test_upload_that_is_cut_on_one_node_is_finished_on_the_other(
    cluster: Cluster, balancer: str, tmp_path: Path
) -> None:
    """The commands of "Try it", and what they print."""
    one, two = (f"127.0.0.1:{node.port}" for node in cluster.nodes)
    script = block("text", "head -c 20000000")
    script = script.replace("10.0.0.1:8080", one).replace("10.0.0.2:8080", two)
    script = script.replace("http://balancer", f"http://{balancer}")
    lines = shell(script, tmp_path).splitlines()
    assert lines == ["12345678 bytes are there", "big.bin is stored"]


def test_killed_node_loses_nothing_that_was_announced(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The other one has every byte, and finishes the upload."""
    one, two = cluster.nodes
    data = os.urandom(10_000_000)
    (tmp_path / "data").write_bytes(data)
    tus = "-H 'Tus-Resumable: 1.0.0'"
    location = shell(
        f"curl -si -X POST {one.root}/files/ {tus} -H 'Upload-Length: {len(data)}'"
        " | tr -d '\\r' | sed -n 's/^[Ll]ocation: //p'",
        tmp_path,
    ).strip()
    path = "/" + location.split("/", 3)[3]
    patch = (
        f"curl -sS -X PATCH {tus} -H 'Content-Type: application/offset+octet-stream'"
        " --data-binary @-"
    )
    shell(
        f"head -c 9000000 data | {patch} -H 'Upload-Offset: 0' {one.root}{path}",
        tmp_path,
    )
    one.kill()
    offset = shell(
        f"curl -sI {tus} {two.root}{path} | tr -d '\\r'"
        " | sed -n 's/^[Uu]pload-[Oo]ffset: //p'",
        tmp_path,
    ).strip()
    assert offset == "9000000"
    shell(
        f"tail -c +9000001 data | {patch} -H 'Upload-Offset: 9000000' {two.root}{path}",
        tmp_path,
    )
    shell(f"curl -sS {two.root}{path} | cmp - data", tmp_path)


def test_faults_lose_nothing() -> None:
    """The soak for a moment: nodes die and stop, connections are cut, the database restarts."""
    reason = postgres.why_not() or find("versitygw") is None
    if reason:
        pytest.skip("PostgreSQL and versitygw are needed")
    run = soak(5.0, nodes=2, clients=2)
    # A node that has nothing else to release may delete such parts much later.
    late = "parts of tails to delete"
    assert [failure for failure in run.failures if late not in failure] == []
    assert run.counts["uploads"] > 0


def test_workers_are_refused_in_a_cluster() -> None:
    """And so is a password that others could see, and half a cluster."""
    for arguments, reason in (
        ("--workers 2 --catalog postgresql://h/x --objects s3://bucket/x", "--workers"),
        ("--catalog postgresql://a:secret@h/x --objects s3://bucket/x", "PGPASSFILE"),
        ("--catalog postgresql://h/x?password=y --objects s3://bucket/x", "PGPASSFILE"),
        ("--catalog postgresql://h/x", "--objects"),
        ("--catalog h/x --objects s3://bucket/x", "postgresql://"),
        ("--catalog postgresql://h/x --objects bucket", "s3://"),
    ):
        done = subprocess.run(
            [sys.executable, "-m", "trioresume", "serve", *arguments.split()],
            capture_output=True,
            text=True,
            env={**os.environ, "PYTHONPATH": str(SOURCE)},
            check=False,
        )
        assert done.returncode == 2, arguments
        assert reason in done.stderr
        assert "secret" not in done.stderr
