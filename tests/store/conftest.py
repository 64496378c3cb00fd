"""One fixture, ``stand``, for every implementation of the store's port."""

from __future__ import annotations

import itertools
import os
import random
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres
from tests.s3_servers import S3Server, running
from tests.store.cluster_stand import ClusterStand, S3Stand
from tests.store.crashes.sqlite_calls import is_possible
from tests.store.helpers import DiskStand, MemoryStand, Stand
from tests.store.postgres.stands import PostgresStand
from tests.store.remote.proxies import delayed
from tests.store.remote.stands import RemoteStand
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket

_prefixes = itertools.count()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    kind = os.environ.get("TRIORESUME_S3_SERVER", "versitygw")
    with running(kind, tmp_path_factory.mktemp(kind)) as server:
        yield server


@pytest.fixture
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3Server, credentials: None) -> S3Bucket:
    """A bucket with a prefix of its own."""
    return S3Bucket(parse_address(s3.url(f"p{next(_prefixes)}/x")))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[postgres.PostgresServer]:
    """A PostgreSQL of these tests; skips where there can be none."""
    reason = postgres.why_not()
    if reason is not None:
        pytest.skip(reason)
    server = postgres.PostgresServer()
    yield server
    server.close()


@pytest.fixture
def postgres_url(postgres_server: postgres.PostgresServer) -> str:
    return postgres_server.socket_url


@pytest.fixture
def disk_stand(tmp_path: Path) -> Iterator[DiskStand]:
    stand = DiskStand(tmp_path)
    yield stand
    stand.close()


@pytest.fixture(params=["disk", "memory", "remote", "cluster", "s3", "postgres"])
def stand(
    request: pytest.FixtureRequest, tmp_path: Path, draw: random.Random
) -> Iterator[Stand]:
    if request.param == "disk":
        yield request.getfixturevalue("disk_stand")
    elif request.param == "remote":
        remote = RemoteStand(tmp_path, delayed(draw))
        yield remote
        remote.close()
    elif request.param == "s3":
        objects = S3Stand(request.getfixturevalue("bucket"))
        yield objects
        objects.close()
    elif request.param == "postgres":
        there = PostgresStand(request.getfixturevalue("postgres_url"))
        yield there
        there.close()
    elif request.param == "cluster":
        cluster = ClusterStand()
        yield cluster
        cluster.close()
    else:
        memory = MemoryStand()
        yield memory
        memory.close()


@pytest.fixture
def watched_sqlite() -> None:
    """What SQLite does to its files can be seen, so that a power loss can take it."""
    if not is_possible():
        pytest.skip("Python's sqlite3 is not linked so that SQLite can be watched")


@pytest.fixture
def ram(watched_sqlite: None) -> Iterator[Path]:
    """A directory in memory where there is one: thousands of crashes need no disk."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(
        prefix="trioresume-", dir=memory if os.access(memory, os.W_OK) else None
    ) as path:
        yield Path(path)


@pytest.fixture
def draw() -> random.Random:
    """Other choices each time; shown when a test fails. TRIORESUME_SEED fixes them."""
    seed = int(os.environ.get("TRIORESUME_SEED") or int.from_bytes(os.urandom(4)))
    print(f"TRIORESUME_SEED={seed}")  # noqa: T201 - pytest shows it on failure
    return random.Random(seed)
