"""A new catalog is complete before it has its name."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from trioresume.store.catalog import schema
from trioresume.store.file_system.disk_io import Disk


def test_new_catalog_has_its_tables_before_its_name(tmp_path: Path) -> None:
    """Otherwise a power loss would leave a catalog that is empty and has the right name."""
    path = tmp_path / "catalog.sqlite3"
    found: list[tuple[int, set[str]]] = []

    class Watching(Disk):
        def replace(self, source: str, target: str) -> None:
            with closing(sqlite3.connect(source)) as connection:
                (version,) = connection.execute("PRAGMA user_version").fetchone()
                rows = connection.execute("SELECT name FROM sqlite_schema")
                found.append((version, {name for (name,) in rows}))
            assert not path.exists()
            super().replace(source, target)

    schema.create(str(path), Watching(durable=False))
    ((version, names),) = found
    assert version > 0
    assert {"operations", "store"} <= names
    with closing(sqlite3.connect(path)) as connection:
        schema.migrate(connection)  # has nothing to do
        assert connection.execute("PRAGMA user_version").fetchone() == (version,)


def test_existing_catalog_is_left_alone(tmp_path: Path) -> None:
    """Only a missing one is made."""
    path = tmp_path / "catalog.sqlite3"
    path.write_bytes(b"whatever it is")
    schema.create(str(path), Disk(durable=False))
    assert path.read_bytes() == b"whatever it is"
    assert [p.name for p in tmp_path.iterdir()] == [path.name]
