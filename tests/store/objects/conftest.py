"""A real object store for the tests of this folder; one server for each process of pytest."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest

from tests.s3_servers import S3Server, running
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket

_prefixes = itertools.count()


@pytest.fixture(scope="session")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running("versitygw", tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture
def credentials(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def bucket(s3: S3Server, credentials: None) -> S3Bucket:
    """A bucket with a prefix of its own."""
    return S3Bucket(parse_address(s3.url(f"p{next(_prefixes)}/x")))
