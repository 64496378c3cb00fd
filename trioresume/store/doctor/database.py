"""Probes of a PostgreSQL database: everything that the catalog relies on.

They read settings, and make temporary tables, which end with the connection.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import psycopg

from trioresume.store.doctor.findings import ProbeResult, Verdict, probed

__all__ = ["examine_database"]

_LEAST_VERSION = 140000
_CHANNEL = "trioresume_doctor"
_SKEW = 2.0
_SLOW = 0.05
_CONNECT_TIMEOUT = 10
_FEW = 40
"""Connections that a few nodes need, and some for an administrator."""
_Row = tuple[Any, ...]


def examine_database(
    url: str, *, now: Callable[[], float] = time.time
) -> Iterator[ProbeResult]:
    """Probe the database at *url*, one thing after the other.

    If it cannot be reached, that is the only finding.
    """
    try:
        connection = psycopg.connect(
            url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT
        )
        other = psycopg.connect(url, autocommit=True, connect_timeout=_CONNECT_TIMEOUT)
    except psycopg.Error as exc:
        yield ProbeResult(
            "database",
            "reach",
            Verdict.FAULT,
            _worded(exc) or "",
            "look at the URL, the password (PGPASSWORD or ~/.pgpass) and pg_hba.conf",
        )
        return
    with connection, other:
        yield ProbeResult(
            "database", "reach", Verdict.GOOD, f"{_place(connection)} can be reached"
        )
        patient = _Examination(connection, other, now)
        yield from probed("database", patient.probes(), _worded)


def _worded(exc: Exception) -> str | None:
    if not isinstance(exc, psycopg.Error):
        return None
    return str(exc).strip().partition("\n")[0]


def _place(connection: psycopg.Connection[_Row]) -> str:
    info = connection.info
    return f"the database {info.dbname} at {info.host or 'a local socket'}"


def _judged(
    probe: str,
    is_right: bool,
    said: str,
    otherwise: str,
    advice: str,
    verdict: Verdict = Verdict.FAULT,
) -> ProbeResult:
    if is_right:
        return ProbeResult("database", probe, Verdict.GOOD, said)
    return ProbeResult("database", probe, verdict, otherwise, advice)


class _Examination:
    def __init__(
        self,
        connection: psycopg.Connection[_Row],
        other: psycopg.Connection[_Row],
        now: Callable[[], float],
    ) -> None:
        self._connection = connection
        self._other = other
        self._now = now

    def probes(self) -> list[tuple[str, Callable[[], ProbeResult], str]]:
        pooler = "connect to PostgreSQL itself, or have the pooler work by sessions"
        return [
            ("version", self._version, ""),
            ("primary", self._primary, "name the primary server in the URL"),
            ("durability", self._durability, ""),
            ("isolation", self._isolation, ""),
            ("permissions", self._permissions, _GRANT),
            ("locks", self._locks, pooler),
            ("notifications", self._notifications, pooler),
            ("clock", self._clock, ""),
            ("speed", self._speed, ""),
            ("connections", self._connections, ""),
        ]

    def _one(self, statement: str) -> Any:
        row = self._connection.execute(statement.encode()).fetchone()
        assert row is not None
        return row[0]

    def _version(self) -> ProbeResult:
        version = self._connection.info.server_version
        named = f"{version // 10000}.{version % 10000}"
        return _judged(
            "version",
            version >= _LEAST_VERSION,
            f"PostgreSQL {named}",
            f"PostgreSQL {named} is too old",
            f"use PostgreSQL {_LEAST_VERSION // 10000} or newer",
        )

    def _primary(self) -> ProbeResult:
        return _judged(
            "primary",
            not self._one("SELECT pg_is_in_recovery()"),
            "this server takes changes",
            "this server is a replica, which takes no changes",
            "name the primary server in the URL, or all with target_session_attrs=read-write",
        )

    def _durability(self) -> ProbeResult:
        off = [
            name
            for name in ("fsync", "full_page_writes", "synchronous_commit")
            if self._one(f"SHOW {name}") == "off"
        ]
        return _judged(
            "durability",
            not off,
            "a commit survives the power",
            f"a commit may be lost with the power: {', '.join(off)} is off",
            f"turn {' and '.join(off)} on: what was announced to clients would be lost",
        )

    def _isolation(self) -> ProbeResult:
        level = self._one("SHOW default_transaction_isolation")
        return _judged(
            "isolation",
            level == "read committed",
            "transactions read what is committed, as the service asks for each of them",
            f"the default is {level}; the service asks for its own level each time",
            "nothing has to be done",
            Verdict.GOOD,
        )

    def _permissions(self) -> ProbeResult:
        with self._connection.transaction(force_rollback=True):
            self._connection.execute("CREATE TABLE trioresume_doctor (id bigint)")
        return ProbeResult(
            "database", "permissions", Verdict.GOOD, "tables can be made in the schema"
        )

    def _locks(self) -> ProbeResult:
        """SKIP LOCKED: one of two takes the row, and the other one does not wait."""
        name = f"trioresume_doctor_{self._connection.info.backend_pid}"
        self._connection.execute(f"CREATE UNLOGGED TABLE {name} (id int)".encode())
        try:
            self._connection.execute(f"INSERT INTO {name} VALUES (1)".encode())
            look = f"SELECT id FROM {name} FOR UPDATE SKIP LOCKED".encode()
            with self._connection.transaction():
                mine = self._connection.execute(look).fetchall()
                with self._other.transaction():
                    theirs = self._other.execute(look).fetchall()
        finally:
            self._connection.execute(f"DROP TABLE {name}".encode())
        return _judged(
            "locks",
            (len(mine), len(theirs)) == (1, 0),
            "two nodes do not take the same work",
            "FOR UPDATE SKIP LOCKED does not keep two connections apart",
            "use PostgreSQL itself, and not a database that only speaks its protocol",
        )

    def _notifications(self) -> ProbeResult:
        """LISTEN belongs to a session: a pooler that hands sessions about loses it."""
        self._connection.execute(f"LISTEN {_CHANNEL}".encode())
        self._other.execute("SELECT pg_notify(%s, 'x')", (_CHANNEL,))
        found = [
            each.payload for each in self._connection.notifies(timeout=3, stop_after=1)
        ]
        self._connection.execute(f"UNLISTEN {_CHANNEL}".encode())
        return _judged(
            "notifications",
            found == ["x"],
            "a node hears of another one's commits at once",
            "a notification did not arrive within 3 s",
            "connect to PostgreSQL itself, or have the pooler work by sessions (PgBouncer's"
            " pool_mode = session): by transactions, LISTEN is lost",
        )

    def _clock(self) -> ProbeResult:
        before = self._now()
        there = float(self._one("SELECT extract(epoch FROM clock_timestamp())"))
        skew = max(before - there, there - self._now(), 0.0)
        return _judged(
            "clock",
            skew < _SKEW,
            "this clock and the database's agree",
            f"this clock and the database's differ by {skew:.0f} s",
            "have the clocks set by NTP: uploads expire by them",
            Verdict.WARNING,
        )

    def _speed(self) -> ProbeResult:
        times = []
        for _ in range(5):
            start = time.monotonic()
            # The smallest commit that waits for the disk.
            self._connection.execute(
                "SELECT pg_logical_emit_message(true, 'trioresume doctor', '')"
            )
            times.append(time.monotonic() - start)
        median = statistics.median(times)
        return _judged(
            "speed",
            median < _SLOW,
            f"a commit takes {median * 1000:.1f} ms",
            f"a commit takes {median * 1000:.0f} ms",
            "each announced offset waits for a commit: have the database near the nodes",
            Verdict.WARNING,
        )

    def _connections(self) -> ProbeResult:
        most = int(self._one("SELECT current_setting('max_connections')::int"))
        used = int(self._one("SELECT count(*) FROM pg_stat_activity"))
        return _judged(
            "connections",
            most - used >= _FEW,
            f"{most - used} of {most} connections are free",
            f"only {most - used} of {most} connections are free",
            "raise max_connections: a node needs about ten",
            Verdict.WARNING,
        )


_GRANT = "GRANT CREATE, USAGE ON SCHEMA public TO the user of the URL"
