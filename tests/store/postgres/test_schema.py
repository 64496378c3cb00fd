"""The versions of the schema, and what is refused before anything is changed."""

from __future__ import annotations

from collections.abc import Iterator

import psycopg
import pytest

from tests.store.postgres.stands import new_schema
from trioresume.errors import FormatVersionUnsupported, StorageError
from trioresume.store.postgres.catalog import PostgresCatalog
from trioresume.store.postgres.schema import VERSION


@pytest.fixture
def empty(postgres_url: str) -> Iterator[str]:
    name = new_schema()
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA IF EXISTS {name} CASCADE".encode())


def execute(url: str, statement: str) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(statement.encode())


def test_newer_schema_is_refused(postgres_url: str, empty: str) -> None:
    """And stays as it is."""
    PostgresCatalog(postgres_url, schema=empty).close()
    execute(postgres_url, f"UPDATE {empty}.schema_version SET version = {VERSION + 1}")
    with pytest.raises(FormatVersionUnsupported, match="newer trioresume"):
        PostgresCatalog(postgres_url, schema=empty)


def test_schema_that_was_made_for_the_user_is_taken(
    postgres_url: str, empty: str
) -> None:
    """An administrator makes it, and the user may make no other one."""
    execute(postgres_url, f"CREATE ROLE {empty} LOGIN")
    url = postgres_url.replace("trioresume@", f"{empty}@")
    with pytest.raises(StorageError, match="GRANT CREATE ON DATABASE"):
        PostgresCatalog(url, schema=empty)
    execute(postgres_url, f"CREATE SCHEMA {empty} AUTHORIZATION {empty}")
    PostgresCatalog(url, schema=empty).close()
    execute(postgres_url, f"DROP OWNED BY {empty} CASCADE; DROP ROLE {empty}")


def test_other_encoding_is_refused(postgres_url: str) -> None:
    """A file's name would be another one when it comes back."""
    execute(
        postgres_url,
        "CREATE DATABASE latin ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0",
    )
    url = postgres_url.replace("/postgres?", "/latin?")
    with pytest.raises(StorageError, match="UTF8"):
        PostgresCatalog(url)
    execute(postgres_url, "DROP DATABASE latin")
