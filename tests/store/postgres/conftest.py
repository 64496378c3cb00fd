"""What the tests of the catalog in PostgreSQL share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests import postgres
from tests.store.postgres.cutting_proxy import CuttingProxy
from tests.store.postgres.stands import borrow_schema, give_back
from trioresume.store.postgres.catalog import PostgresCatalog
from trioresume.store.postgres.connections import Bounds

Join = Callable[..., PostgresCatalog]

BOUNDS = Bounds(answer=2.0, patience=6.0)


@pytest.fixture
def schema(postgres_url: str) -> Iterator[str]:
    name = borrow_schema(postgres_url)
    yield name
    give_back(postgres_url, name)


@pytest.fixture
def join(postgres_url: str, schema: str) -> Iterator[Join]:
    """Has one more node join; its URL may lead through a proxy."""
    with ExitStack() as stack:

        def open_catalog(url: str = postgres_url, **options: Any) -> PostgresCatalog:
            given: dict[str, Any] = {
                "chunk_size": 8,
                "bounds": BOUNDS,
                "lease": 5.0,
            } | options
            catalog = PostgresCatalog(url, schema=schema, **given)
            stack.callback(catalog.close)
            return catalog

        yield open_catalog


@pytest.fixture
def proxy(postgres_server: postgres.PostgresServer) -> Iterator[CuttingProxy]:
    proxy = CuttingProxy(postgres_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def own_server() -> Iterator[postgres.PostgresServer]:
    """A server that the test may restart."""
    reason = postgres.why_not()
    if reason is not None:
        pytest.skip(reason)
    server = postgres.PostgresServer()
    yield server
    server.close()
