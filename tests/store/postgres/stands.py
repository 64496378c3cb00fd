"""Stands for the catalog in PostgreSQL, each in a schema of its own."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from typing import Any

import psycopg
from psycopg import sql

from tests.store.helpers import CHUNK
from tests.store.shared import TAKEOVER_TIMEOUT
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.scratch import Scratch
from trioresume.store.port import Notice, Store
from trioresume.store.postgres.catalog import PostgresCatalog
from trioresume.store.postgres.sharing import PostgresSharing
from trioresume.testing.memory_catalog import MemoryBucket

__all__ = ["PostgresSharedStand", "PostgresStand", "new_schema"]

_numbers = itertools.count()
_idle: list[tuple[str, str]] = []


def new_schema() -> str:
    """The name of a schema that is not there."""
    return f"test_{os.getpid()}_{next(_numbers)}"


def borrow_schema(url: str) -> str:
    """The name of an empty schema, which may have its tables already."""
    for pair in _idle:
        if pair[0] == url:
            _idle.remove(pair)
            return pair[1]
    return new_schema()


def give_back(url: str, schema: str) -> None:
    """Empty a schema: to make its tables anew would take most of the time of a test."""
    with psycopg.connect(url, autocommit=True) as connection:
        tables = connection.execute(
            "SELECT tablename FROM pg_tables"
            " WHERE schemaname = %s AND tablename <> 'schema_version'",
            (schema,),
        ).fetchall()
        connection.execute(
            sql.SQL("TRUNCATE {} RESTART IDENTITY").format(
                sql.SQL(", ").join(sql.Identifier(schema, table) for (table,) in tables)
            )
        )
    _idle.append((url, schema))


class PostgresStand:
    """One node. To kill it is to go on with another one, which claims what the first one had."""

    survives_kill = False
    """What was never announced is on the node alone."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.schema = borrow_schema(url)
        self.bucket = MemoryBucket()
        self.store = self._open(CHUNK)

    def _open(self, chunk_size: int) -> ClusterStore:
        self.catalog = PostgresCatalog(
            self._url, schema=self.schema, chunk_size=chunk_size
        )
        self.scratch = Scratch(None, memory=1 << 20)
        return ClusterStore(
            self.catalog, self.bucket, self.scratch, chunk_size=chunk_size
        )

    def restart(
        self, *, power_loss: bool = False, chunk_size: int = CHUNK
    ) -> ClusterStore:
        number = self.catalog.node
        self.catalog.close()
        self.store = self._open(chunk_size)
        for (operation,) in self.catalog._ask(
            "SELECT id FROM operations WHERE owner = %s", number
        ):
            assert self.catalog.sharing.claim(operation)
        return self.store

    def set_space(self, space: int | None) -> None:
        self.scratch.most_bytes = None if space is None else self.scratch.used + space

    def fail_next_sync(self) -> None:
        self.bucket.fail_next_put = True

    def fail_no_sync(self) -> None:
        self.bucket.fail_next_put = False

    def stored_bytes(self) -> int:
        return self.scratch.used + sum(map(len, self.bucket.objects.values()))

    def close(self) -> None:
        self.store.close()
        give_back(self._url, self.schema)


class _Stoppable:
    """A catalog's sharing whose notices wait while the process is stopped."""

    def __init__(self, inner: PostgresSharing) -> None:
        self._inner = inner
        self.goes_on = threading.Event()
        self.goes_on.set()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)

    def listen(self, take: Callable[[Notice], None]) -> None:
        def take_later(notice: Notice) -> None:
            self.goes_on.wait()
            take(notice)

        self._inner.listen(take_later)


class _StoppableCatalog(PostgresCatalog):
    """A catalog whose process can be stopped."""

    _stoppable: _Stoppable | None = None

    @property
    def stoppable(self) -> _Stoppable:
        if self._stoppable is None:
            self._stoppable = _Stoppable(super().sharing)
        return self._stoppable

    @property
    def sharing(self) -> Any:
        return self.stoppable


class PostgresSharedStand:
    """Several nodes of one database, each with its own connections."""

    def __init__(self, url: str, lease: float = 0.6) -> None:
        self._url = url
        self._lease = lease
        self.schema = borrow_schema(url)
        self.bucket = MemoryBucket()
        self._nodes: list[tuple[Store, _StoppableCatalog]] = []

    def join(self) -> Store:
        catalog = _StoppableCatalog(
            self._url,
            schema=self.schema,
            chunk_size=CHUNK,
            lease=self._lease,
            takeover_timeout=TAKEOVER_TIMEOUT,
        )
        scratch = Scratch(None, memory=1 << 20)
        store = ClusterStore(catalog, self.bucket, scratch, chunk_size=CHUNK)
        self._nodes.append((store, catalog))
        return store

    def _catalog(self, store: Store) -> _StoppableCatalog:
        return next(catalog for each, catalog in self._nodes if each is store)

    def stop(self, store: Store) -> None:
        self._catalog(store).stoppable.goes_on.clear()

    def go_on(self, store: Store) -> None:
        self._catalog(store).stoppable.goes_on.set()

    def kill(self, store: Store) -> None:
        catalog = self._catalog(store)
        catalog.stoppable.goes_on.set()
        catalog.abandon()
        self._nodes.remove((store, catalog))

    def close(self) -> None:
        for store, catalog in self._nodes:
            catalog.stoppable.goes_on.set()
            store.close()
        give_back(self._url, self.schema)
