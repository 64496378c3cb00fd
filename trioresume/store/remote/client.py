"""The worker's end of the socket: many questions and submissions at a time, from any thread.

A message is sent by the thread that has it, without waiting: if the socket takes no more, the
rest is left to a thread that waits for it. So the event loop may call :meth:`Connection.post`.
Small messages that nobody waits for are kept until the next one that somebody waits for
(``hasty=False``), and share its frame.

If the connection ends in any way, every call raises from then on. There is no second
connection: the keeper has given away what this process owned, so the process has to end. What
happened to a submission that was not answered is not known then, and does not matter, because
nothing was announced.
"""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any

from trioresume.errors import CallerError, StorageConflict, StorageError
from trioresume.protocol.operation import OperationState
from trioresume.store.catalog.chunk_lists import ContentRow
from trioresume.store.port import (
    MOST_TOLD,
    Abandoned,
    Changed,
    Claimed,
    Collected,
    Content,
    ContentKey,
    EventRecord,
    FileRecord,
    Missed,
    Mutation,
    Notice,
    OperationId,
    OperationRecord,
    SealChunk,
    Told,
    Usage,
    Wanted,
)
from trioresume.store.port.recipes import AnyRecipe, Digest
from trioresume.store.remote.wire import (
    Answer,
    Applied,
    Apply,
    Ask,
    Failed,
    Follow,
    FrameReader,
    Goodbye,
    Greeting,
    Listen,
    Malformed,
    Message,
    Opened,
    Refuse,
    Release,
    Tell,
    Unfollow,
    Want,
    error_from,
    frames,
    greeting_frame,
    pack,
    question,
)

__all__ = ["Connection", "RemoteCatalog", "RemoteSharing"]

logger = logging.getLogger("trioresume.store")

_READ_SIZE = 256 * 1024
_MOST_WAITING = 1024 * 1024
"""Bytes waiting to be sent above which what an owner tells is dropped."""
_MOST_UNHURRIED = 64
"""Messages that are kept for the next one that somebody waits for."""
_GREETING_TIMEOUT = 10.0
"""Seconds for the keeper's greeting. Later answers may take as long as a disk does."""

_LOST = "the keeper of the store is gone, so this process must end"

_NOTICES = (Claimed, Wanted, Changed, Told, Abandoned, Missed)


class _Call:
    """A message whose answer is waited for."""

    __slots__ = ("answer", "ended")

    def __init__(self) -> None:
        self.ended = threading.Lock()
        self.ended.acquire()
        self.answer: Message | None = None
        """The answer; None if the connection was lost."""


class Connection:
    """A greeted connection to a keeper, over *sock*, which it closes in the end.

    *take* is called in the reading thread with messages that answer nothing, except notices;
    it must not block. *on_lost* is called once, in that thread, when the connection has ended
    without :meth:`close`.
    """

    def __init__(
        self,
        sock: socket.socket,
        pid: int,
        *,
        take: Callable[[Message], None],
        on_lost: Callable[[], None],
    ) -> None:
        self._sock = sock
        self._take = take
        self._on_lost = on_lost
        self._reader = FrameReader()
        self._early: list[Message | Greeting] = []
        self._lock = threading.Lock()
        self._unhurried: list[bytes] = []
        self._waiting = bytearray()
        """Bytes that the socket did not take yet."""
        self._drains = threading.Event()
        """Set while bytes wait, for the thread that sends them."""
        self._is_idle = threading.Event()
        self._is_idle.set()
        self._calls: dict[int, _Call] = {}
        self._number = 0
        self._notices: SimpleQueue[Notice | None] = SimpleQueue()
        self.is_lost = False
        self._is_closing = False
        sock.settimeout(_GREETING_TIMEOUT)
        self.greeting = self._greet(pid)
        sock.settimeout(None)
        self._threads = [
            threading.Thread(target=run, name=f"trioresume-{name}", daemon=True)
            for name, run in (("keeper", self._read), ("to-keeper", self._drain))
        ]
        self._deliverer: threading.Thread | None = None

    @property
    def has_ended(self) -> bool:
        """Whether the connection was lost or closed."""
        return self.is_lost or self._is_closing

    def start(self) -> None:
        """Begin to read. Call this once, when *take* can be called."""
        for thread in self._threads:
            thread.start()

    def _greet(self, pid: int) -> Greeting:
        try:
            self._sock.sendall(greeting_frame(Greeting(pid=pid)))
            while not self._early:
                data = self._sock.recv(_READ_SIZE)
                if not data:
                    raise StorageError("the keeper of the store ended the connection")
                self._early = self._reader.feed(data)
        except OSError as exc:
            self._sock.close()
            raise StorageError(f"the keeper of the store: {exc}") from exc
        except StorageError:
            self._sock.close()
            raise
        greeting = self._early.pop(0)
        assert isinstance(greeting, Greeting)
        if greeting.refusal:
            self._sock.close()
            raise StorageError(greeting.refusal)
        return greeting

    # Sending.

    def post(self, message: Message, *, hasty: bool = True) -> None:
        """Send *message*, which has no answer. Never blocks; does nothing when it is lost."""
        packed = pack(message)
        with self._lock:
            self._unhurried.append(packed)
            if hasty or len(self._unhurried) >= _MOST_UNHURRIED:
                self._send()

    def tell(self, message: Tell) -> None:
        """Send *message*, unless too many bytes wait already."""
        if len(self._waiting) < _MOST_WAITING:
            self.post(message)

    def begin(self, make: Callable[[int], Message]) -> _Call:
        """Send the message that *make* returns for its number; see :meth:`wait`."""
        call = _Call()
        with self._lock:
            self._number += 1
            number = self._number
        packed = pack(make(number))
        with self._lock:
            if self.has_ended:
                raise StorageError(_LOST)
            self._calls[number] = call
            self._unhurried.append(packed)
            self._send()
        return call

    def wait(self, call: _Call) -> Message:
        """Return the answer. Raises :class:`StorageError` if the connection was lost."""
        with call.ended:
            if call.answer is None:
                raise StorageError(_LOST)
            return call.answer

    def _send(self) -> None:
        """Send what is packed, as far as the socket takes it. Called under the lock."""
        packed, self._unhurried = self._unhurried, []
        if self.is_lost:
            return
        data = b"".join(frames(packed))
        if self._waiting:
            self._waiting += data
            return
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        except OSError:
            return  # the reading thread finds the connection lost
        if sent < len(data):
            self._waiting += data[sent:]
            self._is_idle.clear()
            self._drains.set()

    def _drain(self) -> None:
        """Send what the socket did not take at once, whenever there is something."""
        while True:
            self._drains.wait()
            with self._lock:
                part = bytes(self._waiting[:_READ_SIZE])
                if not part:
                    self._drains.clear()
                    self._is_idle.set()
            if self.is_lost or (self._is_closing and not part):
                return
            try:
                sent = self._sock.send(part) if part else 0
            except OSError:
                return  # the reading thread finds the connection lost
            with self._lock:
                del self._waiting[:sent]

    # Receiving.

    def _read(self) -> None:
        why = "it ended the connection"
        try:
            for message in self._early:
                self._receive(message)
            while data := self._sock.recv(_READ_SIZE):
                for message in self._reader.feed(data):
                    self._receive(message)
        except (OSError, ValueError, Malformed) as exc:
            why = str(exc)
        except Exception:
            logger.exception("a bug in the connection to the keeper")
        self._lose(why)

    def _receive(self, message: Message | Greeting) -> None:
        if isinstance(message, Answer | Applied | Failed):
            call = self._calls.pop(message.number, None)
            if call is not None:
                call.answer = message
                call.ended.release()
        elif isinstance(message, _NOTICES):
            self._notices.put(message)
        elif isinstance(message, Greeting):
            raise Malformed("a second greeting")
        else:
            self._take(message)

    def _lose(self, why: str) -> None:
        with self._lock:
            self.is_lost = True
            calls = list(self._calls.values())
            self._calls.clear()
            self._waiting.clear()
        self._drains.set()
        self._is_idle.set()
        if not self._is_closing:
            logger.error("the keeper of the store is gone: %s", why)
            self._on_lost()
        for call in calls:
            call.ended.release()
        self._notices.put(None)

    def listen(self, take: Callable[[Notice], None]) -> None:
        """Call *take* with each notice from now on, in a thread of its own."""
        if self._deliverer is not None:
            raise CallerError("this process listens already")
        deliverer = threading.Thread(
            target=self._deliver, args=(take,), name="trioresume-notices", daemon=True
        )
        deliverer.start()  # before another thread that cuts may join it
        self._deliverer = deliverer
        self.post(Listen())

    def _deliver(self, take: Callable[[Notice], None]) -> None:
        while (notice := self._notices.get()) is not None:
            try:
                take(notice)
            except Exception:
                # Nobody else can handle it, and the next notices must come.
                logger.exception("a bug in taking a notice")

    # The end.

    def close(self) -> None:
        """Say goodbye, and end the connection. Idempotent."""
        if not self._is_closing:
            self._is_closing = True
            self.post(Goodbye())
            self._is_idle.wait(_GREETING_TIMEOUT)  # or the keeper is gone, or stopped
        self.cut()

    def cut(self) -> None:
        """End the connection without a word, as the end of the process does."""
        self._is_closing = True
        try:
            self._sock.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the other side was first
        self._drains.set()
        for thread in self._threads:
            if thread.is_alive() and thread is not threading.current_thread():
                thread.join()
        self._sock.close()
        deliverer = self._deliverer
        if deliverer is not None and deliverer is not threading.current_thread():
            deliverer.join()


class RemoteSharing:
    """How a worker shares the store: see :class:`~trioresume.store.port.Sharing`.

    *let_go* is called before the worker releases an operation.
    """

    def __init__(
        self,
        connection: Connection,
        ask: Callable[..., Any],
        let_go: Callable[[OperationId], None],
    ) -> None:
        self._connection = connection
        self._ask = ask
        self._let_go = let_go

    def listen(self, take: Callable[[Notice], None]) -> None:
        self._connection.listen(take)

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        granted: bool = self._ask("claim", id, ends)
        return granted

    def release(self, id: OperationId) -> None:
        self._let_go(id)
        self._connection.post(Release(id))

    def refuse(self, id: OperationId) -> None:
        self._connection.post(Refuse(id))

    def want(self, id: OperationId, *, ends: bool = False) -> None:
        self._connection.post(Want(id, ends))

    def follow(self, id: OperationId) -> None:
        self._connection.post(Follow(id))

    def unfollow(self, id: OperationId) -> None:
        self._connection.post(Unfollow(id))

    def tell(self, id: OperationId, message: bytes) -> None:
        if len(message) > MOST_TOLD:
            raise CallerError(f"a message has at most {MOST_TOLD} bytes")
        self._connection.tell(Tell(id, message))


class RemoteCatalog:
    """The questions of the port's Catalog, and those of the store on disk, asked over the wire.

    Every method blocks until the keeper has answered. Each raises what the method of the same
    name raises in the keeper, and :class:`StorageError` when the keeper is gone.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def ask(self, name: str, *arguments: object) -> Any:
        """Ask the question *name* of :class:`~.wire.Questions`."""
        connection = self._connection
        call = connection.begin(lambda number: Ask(number, name, arguments))
        answer = connection.wait(call)
        if isinstance(answer, Failed):
            raise error_from(answer.error)
        if not isinstance(answer, Answer):
            raise Malformed("a question was answered as a submission")
        return question(name).answer(answer.value)

    def opened(self, key: ContentKey) -> Callable[[], None]:
        """Tell the keeper of a new key; return what waits until it knows. Never blocks."""
        call = self._connection.begin(lambda number: Opened(number, key))

        def wait() -> None:
            answer = self._connection.wait(call)
            if isinstance(answer, Failed):
                raise error_from(answer.error)

        return wait

    def apply(
        self, batch: Sequence[Sequence[Mutation]]
    ) -> Sequence[StorageError | None]:
        """Have the keeper apply *batch*, in one commit with what others send.

        So a submission may fail by itself, and not only by a conflict. If all have failed, the
        error of the first one is raised, as the store in the keeper does.
        """
        submissions = tuple(map(tuple, batch))
        connection = self._connection
        call = connection.begin(lambda number: Apply(number, submissions))
        answer = connection.wait(call)
        if isinstance(answer, Failed):
            raise error_from(answer.error)
        if not isinstance(answer, Applied) or len(answer.results) != len(submissions):
            raise Malformed("a submission was not answered as one")
        results: list[StorageError | None] = []
        for result in answer.results:
            error = None if result is None else error_from(result)
            if error is not None and not isinstance(error, StorageError):
                raise error
            results.append(error)
        if results and not any(
            error is None or isinstance(error, StorageConflict) for error in results
        ):
            assert results[0] is not None
            raise results[0]
        return results

    # The port's questions.

    def operation(self, id: OperationId) -> OperationRecord | None:
        found: OperationRecord | None = self.ask("operation", id)
        return found

    def operation_owned_by(
        self, id: OperationId, principal: str | None
    ) -> OperationRecord | None:
        found: OperationRecord | None = self.ask("operation_owned_by", id, principal)
        return found

    def operations_in(
        self, states: Sequence[OperationState], limit: int, after: OperationId | None
    ) -> list[OperationRecord]:
        found: list[OperationRecord] = self.ask("operations_in", states, limit, after)
        return found

    def count_operations(self) -> Mapping[OperationState, int]:
        found: Mapping[OperationState, int] = self.ask("count_operations")
        return found

    def expiring(self, limit: int) -> list[tuple[float, str]]:
        found: list[tuple[float, str]] = self.ask("expiring", limit)
        return found

    def expire_file(self, token: str, now: float) -> Sequence[Mutation]:
        found: Sequence[Mutation] = self.ask("expire_file", token, now)
        return found

    def file(self, owner: str | None, name: str) -> FileRecord | None:
        found: FileRecord | None = self.ask("file", owner, name)
        return found

    def meta(self, name: str) -> str | None:
        found: str | None = self.ask("meta", name)
        return found

    def due_events(
        self, now: float, limit: int, *, tasks: bool = False
    ) -> tuple[list[EventRecord], float | None]:
        found: tuple[list[EventRecord], float | None]
        found = self.ask("due_events", now, limit, tasks)
        return found

    def events(
        self, *, dead: bool, after: int, limit: int, tasks: bool = False
    ) -> list[EventRecord]:
        found: list[EventRecord] = self.ask("events", dead, after, limit, tasks)
        return found

    def event_count(self) -> int:
        found: int = self.ask("event_count")
        return found

    def usage(self, principal: str | None) -> Usage:
        found: Usage = self.ask("usage", principal)
        return found

    def total_usage(self) -> Usage:
        found: Usage = self.ask("total_usage")
        return found

    def sealed_content(
        self, key: ContentKey, seals: Sequence[SealChunk] = ()
    ) -> Content:
        found: Content = self.ask("sealed_content", key, seals)
        return found

    def parts_of(self, content: Content) -> tuple[Content, ...]:
        found: tuple[Content, ...] = self.ask("parts_of", content)
        return found

    def collect(self, limit: int) -> Collected:
        found: Collected = self.ask("collect", limit)
        return found

    def sweep(self) -> None:
        self.ask("sweep")

    # Questions of the code that reads chunks.

    def content(self, key: ContentKey) -> ContentRow | None:
        found: ContentRow | None = self.ask("content", key)
        return found

    def piece(self, key: ContentKey, index: int) -> Digest | None:
        found: Digest | None = self.ask("piece", key, index)
        return found

    def recipe(self, digest: Digest) -> AnyRecipe | None:
        found: AnyRecipe | None = self.ask("recipe", digest)
        return found

    def has_unsynced_before(self, epoch: int) -> bool:
        found: bool = self.ask("has_unsynced_before", epoch)
        return found

    def is_unsynced_before(self, digest: Digest, epoch: int) -> bool:
        found: bool = self.ask("is_unsynced_before", digest, epoch)
        return found
