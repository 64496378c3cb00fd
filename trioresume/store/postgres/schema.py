"""The catalog's schema in PostgreSQL: its tables, their version, and how it is migrated.

============= ==================================================================
nodes         one row per process that uses the catalog, with its lease
operations    one row per operation, tombstones included, with its owner and generation
contents      content under construction; ``tail`` has the parts of its tail, as
              ``[name, offset, length]``
pieces, parts, recipes   as in :mod:`trioresume.store.catalog.schema`
chunks        every chunk that is named or held, and the number of its object
holds         the chunks that a node is about to name
condemned     objects of chunks that are to be deleted, and the node that does it
dropped_parts objects of tails that are to be deleted
pins          the recipes that a node reads
files, events, dead_events, meta   as in SQLite; an event has the node that sends it
accounts      what each principal uses, in a row for each of 16 shards of nodes: so
              nodes do not wait for each other. ``*`` is everybody together
kept          which finished contents a principal is charged for
followers     which nodes are told of changes of an operation
============= ==================================================================

The functions are in ``sql/functions.sql``: one call performs a batch of submissions. A
migration replaces all of them.
"""

from __future__ import annotations

from importlib.resources import files

from psycopg import errors as pg, sql

from trioresume.errors import FormatVersionUnsupported, StorageError
from trioresume.store.postgres.connections import Database, Link

__all__ = ["VERSION", "migrate"]

VERSION = 1
LEAST_SERVER = 130000
"""PostgreSQL 13: the oldest one with which the tests are known to pass is in the docs."""

_SQL = files("trioresume.store.postgres") / "sql"

# Entry n migrates a catalog from version n to version n + 1.
_MIGRATIONS = ("tables.sql",)


def migrate(database: Database) -> None:
    """Make or migrate the schema. Nodes that start at the same time wait for each other.

    Raises :class:`FormatVersionUnsupported` if it is from a later trioresume, and
    :class:`StorageError` if the server is not one that can hold it.
    """
    database.retried(lambda link: _migrate(link, database.schema))


def _migrate(link: Link, schema: str) -> None:
    _check_server(link)
    version = _version(link)
    if version == VERSION:
        return
    with link.transaction():
        link.execute("SELECT pg_advisory_xact_lock(hashtextextended(%s, 0))", (schema,))
        version = _version(link)
        if version is None:
            try:
                with link.transaction():
                    link.execute(
                        sql.SQL("CREATE SCHEMA IF NOT EXISTS {}").format(
                            sql.Identifier(schema)
                        )
                    )
            except pg.InsufficientPrivilege as exc:
                if not link.execute(
                    "SELECT 1 FROM pg_namespace WHERE nspname = %s", (schema,)
                ).fetchone():
                    raise StorageError(
                        f"the schema {schema} does not exist, and this user may not make"
                        f" it: GRANT CREATE ON DATABASE, or CREATE SCHEMA {schema}"
                        " AUTHORIZATION for this user"
                    ) from exc
            link.execute("CREATE TABLE schema_version (version integer NOT NULL)")
            link.execute("INSERT INTO schema_version VALUES (0)")
            version = 0
        if version > VERSION:
            raise FormatVersionUnsupported(
                f"the catalog has version {version}: it needs a newer trioresume"
            )
        for name in _MIGRATIONS[version:]:
            _run(link, name)
        _drop_functions(link)
        _run(link, "functions.sql")
        link.execute("UPDATE schema_version SET version = %s", (VERSION,))


def _check_server(link: Link) -> None:
    if link.info.server_version < LEAST_SERVER:
        raise StorageError(
            f"the catalog needs PostgreSQL {LEAST_SERVER // 10000} or newer"
        )
    row = link.execute("SHOW server_encoding").fetchone()
    if row is None or row[0] != "UTF8":
        raise StorageError(
            "the catalog's database must have the encoding UTF8: CREATE DATABASE …"
            " ENCODING 'UTF8' TEMPLATE template0"
        )


def _version(link: Link) -> int | None:
    """Return the schema's version; None if it is not there. Raises if it is too new."""
    try:
        with link.transaction():
            row = link.execute("SELECT version FROM schema_version").fetchone()
    except (pg.UndefinedTable, pg.InvalidSchemaName):
        return None
    version = 0 if row is None else int(row[0])
    if version > VERSION:
        raise FormatVersionUnsupported(
            f"the catalog has version {version}: it needs a newer trioresume"
        )
    return version


def _run(link: Link, name: str) -> None:
    script = (_SQL / name).read_text("utf-8")
    # Without values psycopg sends the script as it is: many statements in one message.
    link.execute(script.encode())


def _drop_functions(link: Link) -> None:
    found = link.execute(
        "SELECT p.oid::regprocedure::text FROM pg_proc p"
        " WHERE p.pronamespace = current_schema()::regnamespace"
    ).fetchall()
    for (signature,) in found:
        link.execute(f"DROP FUNCTION {signature} CASCADE".encode())
