"""Sharing over PostgreSQL: claims by statements, notices by NOTIFY.

Three threads serve a node. The *receiver* listens on the node's channel. The *teller* sends
what the methods have queued, says that the node is alive, and looks for nodes that are not. The
*dispatcher* hands the notices to the server, one at a time.

A notification is lost only with the receiver's connection. When that was lost, the receiver
connects again and then says :class:`~trioresume.store.port.Missed`. Notifications are words:

=============================== ===================================================
``claimed ID NODE ENDS``        the node asks for the operation
``released ID``, ``refused ID`` the answers to it
``lost ID``                     another node has taken the operation
``wanted ID ENDS``              the owner is asked for its offset
``changed ID``, ``told N ID M`` for followers; M is base64, and N makes it unlike others
=============================== ===================================================
"""

from __future__ import annotations

import logging
import threading
import time
from base64 import b64decode, b64encode
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from queue import SimpleQueue
from typing import TYPE_CHECKING

import psycopg

from trioresume.errors import CallerError, StorageError, StorageUnavailable
from trioresume.store.port import (
    MOST_TOLD,
    Abandoned,
    Changed,
    Claimed,
    Missed,
    Notice,
    OperationId,
    Told,
    Wanted,
)
from trioresume.store.postgres.connections import is_transient

if TYPE_CHECKING:
    from trioresume.store.postgres.connections import Database
    from trioresume.store.postgres.nodes import Membership, Node

__all__ = ["PostgresSharing"]

logger = logging.getLogger("trioresume.store")

MOST_QUEUED = 10_000
"""Messages that wait for the teller. Beyond it, what owners tell is dropped."""
LOOK_AGAIN = 0.25
"""Seconds after which a claim looks at the catalog itself, should a notice be lost."""
MOST_ABANDONED = 100
"""Operations of dead nodes that are taken over in one step."""


class PostgresSharing:
    """See :class:`trioresume.store.port.Sharing`."""

    def __init__(
        self,
        database: Database,
        membership: Membership,
        *,
        lease: float,
        takeover_timeout: float,
        on_lost: Callable[[OperationId | None], None],
        on_beat: Callable[[], None],
    ) -> None:
        self._database = database
        self._membership = membership
        self._interval = lease / 4
        self._takeover_timeout = takeover_timeout
        self._on_lost = on_lost
        self._on_beat = on_beat
        self._take: Callable[[Notice], None] | None = None
        self._notices: SimpleQueue[Notice | None] = SimpleQueue()
        self._lock = threading.Lock()
        self._queue: deque[tuple[str, tuple[object, ...]]] = deque()
        self._queued = threading.Condition(self._lock)
        self._sent = threading.Condition(self._lock)
        self._owned: set[OperationId] = set()
        self._claimants: defaultdict[OperationId, set[int]] = defaultdict(set)
        self._followed: set[OperationId] = set()
        self._unsettled: Counter[OperationId] = Counter()
        """How many changes of an operation's followers and owner wait for the teller."""
        self._answers: dict[OperationId, list[_Answer]] = {}
        self._told = 0
        self._closing = False
        self.last_beat = time.monotonic()
        """When the database was last reached."""
        self._answered = time.monotonic()
        """When the receiver's connection was last known to work."""
        self._listening = threading.Event()
        self._receiver_link: psycopg.Connection[tuple[object, ...]] | None = None
        self._threads = [
            threading.Thread(target=run, name=f"catalog {name}", daemon=True)
            for name, run in (
                ("receiver", self._receive),
                ("teller", self._tell_all),
                ("dispatcher", self._dispatch),
            )
        ]
        for thread in self._threads:
            thread.start()
        if not self._listening.wait(database.bounds.patience):
            self.close()
            raise StorageUnavailable(f"the catalog is not reached ({database.name})")

    # Called by the catalog.

    def note_owned(self, id: OperationId) -> None:
        """This process has created the operation."""
        self._owned.add(id)

    def note_forgotten(self, id: OperationId) -> None:
        self._owned.discard(id)

    def owns(self, id: OperationId) -> bool:
        """Return whether this process owns the operation, as far as it knows."""
        return id in self._owned

    def settle(self, id: OperationId) -> None:
        """Wait until the database knows what this process follows and has released."""
        if id not in self._unsettled:
            return
        deadline = time.monotonic() + self._database.bounds.patience
        with self._lock:
            while id in self._unsettled and not self._closing:
                if not self._sent.wait(deadline - time.monotonic()):
                    raise StorageUnavailable("the catalog is not reached")

    def begin_anew(self, lost: Node) -> None:
        """This process was taken for dead: it goes on as a node that owns nothing."""
        if not self._membership.rejoin(lost):
            return
        logger.error(
            "this node was not seen in time, and others took it for dead: what it was doing"
            " for its clients is ended"
        )
        with self._lock:
            self._owned.clear()
            self._claimants.clear()
            for operation in self._followed:
                self._unsettled[operation] += 1
                self._put("follow", operation)
        self._on_lost(None)
        self._end_receiving()  # it listens on the old node's channel

    # Sharing.

    def listen(self, take: Callable[[Notice], None]) -> None:
        if self._take is not None:
            raise CallerError("this process listens already")
        self._take = take
        self._membership.begin_listening()

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        # A release of this process that is still queued would come after the claim, and undo
        # it: the database would say "yours" now, and "nobody's" a moment later.
        self.settle(id)
        deadline = time.monotonic() + self._takeover_timeout
        answer = _Answer()
        with self._lock:
            self._answers.setdefault(id, []).append(answer)
        try:
            while True:
                by_force = time.monotonic() >= deadline
                answer.clear()
                if self._ask_for(id, ends=ends, by_force=by_force):
                    return True
                until = min(deadline, time.monotonic() + LOOK_AGAIN)
                while not answer.wait(until - time.monotonic()):
                    if time.monotonic() >= deadline or not self._is_elsewhere(id):
                        break
                    until = min(deadline, time.monotonic() + LOOK_AGAIN)
                if answer.is_refusal:
                    return False
        finally:
            with self._lock:
                self._answers[id].remove(answer)
                if not self._answers[id]:
                    del self._answers[id]

    def _ask_for(self, id: OperationId, *, ends: bool, by_force: bool) -> bool:
        node = self._membership.node
        try:
            row = self._database.one(
                "SELECT claim(%s, %s, %s, %s)", node.number, id, ends, by_force
            )
        except StorageError as exc:
            if getattr(exc.__cause__, "sqlstate", None) == "TR003":
                self.begin_anew(node)
                raise StorageUnavailable("this node was taken for dead") from exc
            raise
        if row is None or row[0] != "owner":
            return False
        self._owned.add(id)
        return True

    def _is_elsewhere(self, id: OperationId) -> bool:
        row = self._database.one(
            "SELECT owner <> %s AND is_alive(owner) FROM operations WHERE id = %s",
            self._membership.number,
            id,
        )
        return row is not None and bool(row[0])

    def release(self, id: OperationId) -> None:
        with self._lock:
            self._owned.discard(id)
            waiting = sorted(self._claimants.pop(id, ()))
            self._unsettled[id] += 1
            self._put("release", id, waiting)
        self._on_lost(id)

    def refuse(self, id: OperationId) -> None:
        with self._lock:
            for node in self._claimants.pop(id, ()):
                self._put("note", node, f"refused {id}")

    def want(self, id: OperationId, *, ends: bool = False) -> None:
        with self._lock:
            self._put("want", id, ends)

    def follow(self, id: OperationId) -> None:
        with self._lock:
            self._followed.add(id)
            self._unsettled[id] += 1
            self._put("follow", id)

    def unfollow(self, id: OperationId) -> None:
        with self._lock:
            self._followed.discard(id)
            self._put("unfollow", id)

    def tell(self, id: OperationId, message: bytes) -> None:
        if len(message) > MOST_TOLD:
            raise CallerError(f"a message has at most {MOST_TOLD} bytes")
        with self._lock:
            if id in self._owned and len(self._queue) < MOST_QUEUED:
                self._told += 1
                text = b64encode(message).decode()
                self._put("tell", id, f"told {self._told} {id} {text}")

    def close(self) -> None:
        """End the threads, once what was queued is sent. Idempotent."""
        with self._lock:
            self._closing = True
            self._queued.notify_all()
            self._sent.notify_all()
        self._end_receiving()
        self._notices.put(None)
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(self._database.bounds.answer)

    # The teller.

    def _put(self, kind: str, *values: object) -> None:
        self._queue.append((kind, values))
        self._queued.notify()

    def _tell_all(self) -> None:
        next_beat = time.monotonic()
        while True:
            with self._lock:
                while not self._queue and not self._closing:
                    left = next_beat - time.monotonic()
                    if left <= 0:
                        break
                    self._queued.wait(left)
                item = self._queue[0] if self._queue else None
                if item is None and self._closing:
                    return
            try:
                if item is not None:
                    self._send(*item)
                    with self._lock:
                        self._queue.popleft()
                        if item[0] in ("follow", "release"):
                            self._settled(OperationId(str(item[1][0])))
                        self._sent.notify_all()
                if time.monotonic() >= next_beat:
                    self._beat()
                    next_beat = time.monotonic() + self._interval
            except StorageError as exc:
                if self._closing:
                    return
                logger.warning("the other nodes are told later: %s", exc)
                with self._lock:
                    self._queued.wait(min(1.0, self._interval))

    def _settled(self, id: OperationId) -> None:
        self._unsettled[id] -= 1
        if not self._unsettled[id]:
            del self._unsettled[id]

    def _send(self, kind: str, values: tuple[object, ...]) -> None:
        me, ask = self._membership.number, self._database.ask
        match kind:
            case "release":
                ask("SELECT release(%s, %s, %s::bigint[])", me, *values)
            case "note":
                ask("SELECT note(%s, %s)", *values)
            case "want":
                operation, ends = values
                ask(
                    "SELECT note(owner, %s) FROM operations"
                    " WHERE id = %s AND owner <> %s AND is_alive(owner)",
                    f"wanted {operation} {int(bool(ends))}",
                    operation,
                    me,
                )
            case "follow":
                ask("SELECT follow(%s, %s)", me, *values)
            case "unfollow":
                ask(
                    "DELETE FROM followers WHERE node = %s AND operation = %s",
                    me,
                    *values,
                )
            case "tell":
                operation, text = values
                ask(
                    "SELECT note(f.node, %s) FROM followers f JOIN operations o"
                    " ON o.id = f.operation WHERE o.id = %s AND o.owner = %s"
                    " AND f.node <> %s",
                    text,
                    operation,
                    me,
                    me,
                )

    def _beat(self) -> None:
        node = self._membership.node
        row = self._database.one("SELECT beat(%s)", node.number)
        self.last_beat = now = time.monotonic()
        if row is None or not row[0]:
            self.begin_anew(node)
            return
        silence = now - self._answered
        if silence > 2 * self._interval + self._database.bounds.answer:
            self._end_receiving()
        lost = self._database.one("SELECT end_lost_nodes(%s)", node.number)
        if lost is not None and lost[0]:
            logger.warning(
                "%d nodes were not seen in time: they are taken for dead", lost[0]
            )
            # What they would have done now, such as expiring, is for the others to do.
            self._notices.put(Missed())
        if self._take is not None:
            for (name,) in self._database.ask(
                "SELECT take_abandoned(%s, %s)", node.number, MOST_ABANDONED
            ):
                operation = OperationId(name)
                self._owned.add(operation)
                self._notices.put(Abandoned(operation))
        self._on_beat()

    # The receiver.

    def _receive(self) -> None:
        pause = 0.02
        missed = False
        while not self._closing:
            try:
                with self._database.open(psycopg.Connection) as link:
                    self._receiver_link = link
                    node = self._membership.number
                    link.execute(
                        psycopg.sql.SQL("LISTEN {}").format(
                            psycopg.sql.Identifier(f"{self._database.schema}:{node}")
                        )
                    )
                    if node != self._membership.number:
                        continue
                    self._answered = time.monotonic()
                    self._listening.set()
                    if missed:
                        self._notices.put(Missed())
                    missed, pause = True, 0.02
                    while not self._closing:
                        for notification in link.notifies(timeout=self._interval):
                            self._hear(notification.payload)
                        if link.closed:
                            break
                        # A network that drops everything is found out only by asking.
                        # The teller ends the connection if no answer comes.
                        link.execute("SELECT 1")
                        self._answered = time.monotonic()
            except psycopg.Error as exc:
                if not is_transient(exc) and not self._listening.is_set():
                    logger.error("the catalog refuses: %s", type(exc).__name__)
                time.sleep(pause)
                pause = min(1.0, pause * 2)

    def _hear(self, text: str) -> None:
        word, *rest = text.split(" ")
        operation = OperationId(rest[1] if word == "told" else rest[0])
        match word:
            case "claimed":
                claimant = int(rest[1])
                with self._lock:
                    if operation not in self._owned:
                        self._put("note", claimant, f"released {operation}")
                        return
                    self._claimants[operation].add(claimant)
                self._notices.put(Claimed(operation, ends=rest[2] == "1"))
            case "released" | "refused":
                with self._lock:
                    for answer in self._answers.get(operation, ()):
                        answer.give(is_refusal=word == "refused")
            case "lost":
                with self._lock:
                    self._owned.discard(operation)
                    self._claimants.pop(operation, None)
                self._on_lost(operation)
            case "wanted":
                self._notices.put(Wanted(operation, ends=rest[1] == "1"))
            case "changed" if operation in self._followed:
                self._notices.put(Changed(operation))
            case "told" if operation in self._followed:
                self._notices.put(Told(operation, b64decode(rest[2])))

    def _end_receiving(self) -> None:
        """Close the receiver's connection, from another thread; it opens one again."""
        link = self._receiver_link
        if link is not None:
            link.close()

    def _dispatch(self) -> None:
        while (notice := self._notices.get()) is not None:
            take = self._take
            if take is None:
                continue
            try:
                take(notice)
            except Exception:
                logger.exception("a notice of another node was not taken")


class _Answer:
    """The answer to a claim that waits."""

    def __init__(self) -> None:
        self._given = threading.Event()
        self.is_refusal = False

    def clear(self) -> None:
        self.is_refusal = False
        self._given.clear()

    def give(self, *, is_refusal: bool) -> None:
        self.is_refusal = is_refusal
        self._given.set()

    def wait(self, seconds: float) -> bool:
        return self._given.wait(max(0.0, seconds))
