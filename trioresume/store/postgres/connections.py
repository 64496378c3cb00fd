"""Connections to PostgreSQL: each call on one takes a bounded time.

A database can be away for a while: it restarts, fails over to another machine, or the network
is cut. A *question* is asked again on a new connection until :attr:`Bounds.patience` has
passed. Then :class:`~trioresume.errors.StorageUnavailable` is raised, which a client gets as a
503. How a commit is tried again is told in :mod:`.catalog`, because a commit must not happen
twice.

A server that is gone may not even refuse: a network that drops packets leaves a call waiting
for minutes. So a :class:`Link` gives an answer :attr:`Bounds.answer` seconds, and is closed
when they have passed. The server ends a statement a little earlier by itself.
"""

from __future__ import annotations

import select
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import psycopg
from psycopg import errors as pg, sql
from psycopg.conninfo import conninfo_to_dict, make_conninfo

from trioresume.errors import (
    CallerError,
    StorageError,
    StorageFull,
    StorageUnavailable,
)

__all__ = ["Bounds", "Database", "Link", "Row", "is_transient", "storage_error"]

Row = tuple[Any, ...]
T = TypeVar("T")

_READY = {select.POLLIN: 1, select.POLLOUT: 2}
_FIRST_PAUSE = 0.02
_LONGEST_PAUSE = 0.5
"""Seconds between two attempts to reach the database: from the first to the second."""


@dataclass(frozen=True, slots=True)
class Bounds:
    """How long calls wait, in seconds."""

    answer: float = 5.0
    """For one answer, or one connection. The server ends a statement after four fifths."""
    patience: float = 10.0
    """For a call with all its attempts."""


class Link(psycopg.Connection[Row]):
    """A connection whose calls end in time. One thread at a time uses it."""

    bound = 5.0

    def wait(self, gen: Any, *args: Any, **options: Any) -> Any:
        """Run psycopg's generator *gen*, for ``bound`` seconds at most."""
        deadline = time.monotonic() + self.bound
        poll = select.poll()
        try:
            wanted = next(gen)
            number = self.fileno()
            while True:
                events = (wanted & 1 and select.POLLIN) | (
                    wanted & 2 and select.POLLOUT
                )
                poll.register(number, events)
                found = poll.poll(max(0.0, deadline - time.monotonic()) * 1000)
                if not found:
                    break
                event = found[0][1]
                if event & ~(select.POLLIN | select.POLLOUT):
                    event |= events  # an error or the end: the generator finds out
                wanted = gen.send(
                    (event & select.POLLIN and 1) | (event & select.POLLOUT and 2)
                )
        except StopIteration as end:
            return end.value
        self.close()
        raise pg.OperationalError("no answer in time")

    def ask(self, statement: str, *values: object) -> list[Row]:
        """Execute *statement*, in its own transaction, and return its rows."""
        # Prepared at once: the catalog has few statements, and asks each of them often.
        cursor = self.execute(statement.encode(), values, prepare=True)
        return cursor.fetchall() if cursor.description is not None else []


class Database:
    """Opens connections to one schema of a database, and keeps a few for questions."""

    def __init__(
        self,
        url: str,
        *,
        schema: str = "trioresume",
        bounds: Bounds | None = None,
        most: int = 8,
    ) -> None:
        try:
            given = conninfo_to_dict(url)
        except psycopg.Error as exc:
            # The message of libpq may quote the URL, and with it a password.
            raise CallerError(
                "the URL of the catalog is not one that PostgreSQL's libpq takes"
            ) from exc.with_traceback(None)
        self.bounds = bounds or Bounds()
        self.schema = schema
        self._given = given
        self._bounded: Mapping[str, Any] = {
            "connect_timeout": max(2, round(self.bounds.answer)),
            "application_name": "trioresume",
            "keepalives_idle": 10,
            "keepalives_interval": 3,
            "keepalives_count": 3,
            "tcp_user_timeout": round(self.bounds.answer * 1000),
        }
        self._idle: list[Link] = []
        self._free = threading.Semaphore(most)
        self._lock = threading.Lock()
        self._closed = False

    @property
    def name(self) -> str:
        """The database for messages: without any password."""
        shown: dict[str, Any] = {
            key: self._given[key]
            for key in ("host", "port", "dbname", "user")
            if self._given.get(key)
        }
        return make_conninfo(**shown) or "the default database"

    def open(self, kind: type[psycopg.Connection[Row]] = Link) -> Any:
        """Open a connection. Raises :class:`psycopg.Error`."""
        options: dict[str, Any] = {**self._bounded, **self._given}
        if "," in str(options.get("host", "")):
            # Of several hosts, the one that takes writes: after a failover that is another.
            options.setdefault("target_session_attrs", "read-write")
        link = kind.connect(**options, autocommit=True)
        try:
            if isinstance(link, Link):
                link.bound = self.bounds.answer
            limit = round(self.bounds.answer * 800)
            link.execute(
                sql.SQL(
                    "SET search_path = {}; SET client_encoding = 'UTF8';"
                    " SET statement_timeout = {}; SET lock_timeout = {};"
                    " SET idle_in_transaction_session_timeout = {};"
                    " SET default_transaction_isolation = 'read committed';"
                    " SET synchronous_commit = {}"
                ).format(
                    sql.Identifier(self.schema),
                    sql.Literal(limit),
                    sql.Literal(limit),
                    sql.Literal(limit),
                    sql.Literal("on"),
                )
            )
        except BaseException:
            link.close()
            raise
        return link

    @contextmanager
    def _borrowed(self, deadline: float) -> Iterator[Link]:
        if not self._free.acquire(timeout=max(0.0, deadline - time.monotonic())):
            raise StorageUnavailable(
                "the catalog is not reached: all connections are busy"
            )
        try:
            with self._lock:
                link = self._idle.pop() if self._idle else None
            if link is None:
                link = self.open()
            try:
                yield link
            except BaseException:
                if not isinstance(link, Link) or link.closed or link.broken:
                    link.close()
                    link = None
                raise
            finally:
                if link is not None:
                    with self._lock:
                        if not self._closed:
                            self._idle.append(link)
                            link = None
                    if link is not None:
                        link.close()
        finally:
            self._free.release()

    def ask(self, statement: str, *values: object) -> list[Row]:
        """Ask a question, which changes nothing if it is asked twice; return the rows."""
        return self.retried(lambda link: link.ask(statement, *values))

    def one(self, statement: str, *values: object) -> Row | None:
        rows = self.ask(statement, *values)
        return rows[0] if rows else None

    def retried(self, call: Callable[[Link], T]) -> T:
        """Call *call* with a connection, again if the connection was lost.

        Raises :class:`StorageUnavailable` once there is no patience left.
        """
        deadline = time.monotonic() + self.bounds.patience
        pause = _FIRST_PAUSE
        while True:
            try:
                with self._borrowed(deadline) as link:
                    return call(link)
            except psycopg.Error as exc:
                if self._closed or not is_transient(exc):
                    raise storage_error(exc) from exc
                if time.monotonic() + pause > deadline:
                    raise StorageUnavailable(
                        f"the catalog is not reached ({self.name}): {_words(exc)}"
                    ) from exc
                self.drop_idle()
            time.sleep(pause)
            pause = min(_LONGEST_PAUSE, pause * 2)

    def drop_idle(self) -> None:
        """Close the idle connections: what ended one has probably ended all."""
        with self._lock:
            idle, self._idle = self._idle, []
        for link in idle:
            link.close()

    def close(self) -> None:
        """Close all connections that nobody uses now. No more are opened for questions."""
        self._closed = True
        self.drop_idle()


_TRANSIENT = (
    pg.OperationalError,  # includes 08…, 53…, 57P0…, 40…, 55P03 and a lost connection
    pg.InterfaceError,
    pg.QueryCanceled,
    pg.ReadOnlySqlTransaction,
    pg.IdleInTransactionSessionTimeout,
)
_PERMANENT = (
    pg.DiskFull,
    pg.InvalidPassword,
    pg.InvalidAuthorizationSpecification,
)


def is_transient(exc: psycopg.Error) -> bool:
    """Return whether the same statement may succeed a little later."""
    return isinstance(exc, _TRANSIENT) and not isinstance(exc, _PERMANENT)


def storage_error(exc: psycopg.Error) -> StorageError:
    """Return the storage error for *exc*."""
    if isinstance(exc, pg.DiskFull):
        return StorageFull("the disk of the catalog's server is full")
    return StorageError(f"the catalog failed: {_words(exc)}")


def _words(exc: psycopg.Error) -> str:
    """The first line of the error, which has no password: libpq never repeats one."""
    return (str(exc).strip().splitlines() or [type(exc).__name__])[0]
