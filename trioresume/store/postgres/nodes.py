"""This process as a node of the cluster: its row, its lease, and what it loses with it.

A node has a row with a *lease*: as long as it says that it is alive, every few seconds and with
each commit, others ask it before they take something from it. A node that was not seen for the
length of its lease is *ended* by any other node. From then on nothing that it sends changes
anything: each commit looks at the row, under a lock. When such a node comes back it finds this
out and begins anew, as a node that owns nothing.

The lease's clock is the database's. The nodes' clocks play no part.
"""

from __future__ import annotations

import os
import platform
import threading
from dataclasses import dataclass

from trioresume.store.postgres.connections import Database, Link

__all__ = ["Membership", "Node"]


@dataclass(frozen=True, slots=True)
class Node:
    """What this process is in the table ``nodes``."""

    number: int
    session: int
    """Counts the times at which the outcome of a commit was looked up: see ``apply``."""


class Membership:
    """Registers this process, and registers it anew when it was taken for dead."""

    def __init__(self, database: Database, lease: float) -> None:
        self._database = database
        self._lease = lease
        self._lock = threading.Lock()
        self._is_listening = False
        self._node = self._register()

    @property
    def node(self) -> Node:
        return self._node

    @property
    def number(self) -> int:
        return self._node.number

    def _register(self) -> Node:
        name = f"{platform.node()}:{os.getpid()}"
        row = self._database.one(
            "INSERT INTO nodes (name, seen, lease, listens) VALUES"
            " (%s, clock_timestamp(), make_interval(secs => %s), %s)"
            " RETURNING node, session",
            name,
            self._lease,
            self._is_listening,
        )
        assert row is not None
        return Node(*row)

    def rejoin(self, lost: Node) -> bool:
        """Register anew in place of *lost*; return False if another thread did it."""
        with self._lock:
            if self._node.number != lost.number:
                return False
            self._node = self._register()
            return True

    def begin_listening(self) -> None:
        """Have others ask this node before they take something from it."""
        with self._lock:
            self._is_listening = True
            self._database.ask(
                "UPDATE nodes SET listens = true WHERE node = %s", self._node.number
            )

    def look_up(self, link: Link) -> tuple[int, object] | None:
        """Return the number and the answer of the last batch that was committed.

        Returns None if this node was ended. A commit that is still on its way, on another
        connection, is waited for, or cannot happen any more afterwards.
        """
        with self._lock:
            rows = link.ask(
                "UPDATE nodes SET session = session + 1 WHERE node = %s AND NOT ended"
                " RETURNING session, batch, answer",
                self._node.number,
            )
            if not rows:
                return None
            session, batch, answer = rows[0]
            self._node = Node(self._node.number, session)
            return int(batch), answer

    def leave(self) -> None:
        """End the node in order: what it owned belongs to nobody."""
        self._database.ask("SELECT end_node(%s)", self._node.number)
