"""Reaching a database, and what is said when it cannot be reached."""

from __future__ import annotations

import time

import pytest

from trioresume.errors import CallerError, StorageError, StorageUnavailable
from trioresume.store.postgres.connections import Bounds, Database

SECRET = "open-sesame"


def test_malformed_url_is_refused_without_its_password() -> None:
    """libpq's message would quote it."""
    with pytest.raises(CallerError) as caught:
        Database(f"postgresql://a:{SECRET}@[::1/x")
    assert SECRET not in str(caught.value)


def test_server_that_is_not_there_is_said_without_the_password() -> None:
    """Where it was looked for is said."""
    bounds = Bounds(answer=0.3, patience=0.3)
    database = Database(f"postgresql://a:{SECRET}@127.0.0.1:1/x", bounds=bounds)
    began = time.monotonic()
    with pytest.raises(StorageUnavailable) as caught:
        database.ask("SELECT 1")
    assert time.monotonic() - began < 5
    assert SECRET not in str(caught.value)
    assert "127.0.0.1" in str(caught.value)


def test_wrong_question_is_not_asked_again(postgres_url: str) -> None:
    """Only what may succeed later is tried again."""
    database = Database(postgres_url)
    began = time.monotonic()
    with pytest.raises(StorageError, match="nowhere"):
        database.ask("SELECT * FROM nowhere")
    assert time.monotonic() - began < 5
    database.close()


def test_statement_ends_in_time(postgres_url: str) -> None:
    """By the server itself, and the connection can be used again."""
    bounds = Bounds(answer=0.5, patience=0.6)
    database = Database(postgres_url, bounds=bounds)
    with pytest.raises(StorageUnavailable):
        database.ask("SELECT pg_sleep(30)")
    assert database.ask("SELECT 1") == [(1,)]
    database.close()


def test_busy_connections_are_waited_for(postgres_url: str) -> None:
    """For a bounded time."""
    bounds = Bounds(answer=0.5, patience=0.3)
    database = Database(postgres_url, bounds=bounds, most=1)
    with database._borrowed(time.monotonic() + 5):
        with pytest.raises(StorageUnavailable, match="busy"):
            database.ask("SELECT 1")
    assert database.ask("SELECT 1") == [(1,)]
    database.close()


@pytest.mark.parametrize(
    "url", ["postgresql:///x?options=-csearch_path%3Delsewhere", "dbname=x"]
)
def test_urls_and_pairs_are_taken(url: str) -> None:
    """As libpq does."""
    assert "dbname=x" in Database(url).name
