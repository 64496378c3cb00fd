"""The keeper: it serves one store's catalog to workers, over a socket to each of them.

Submissions of all workers go into the one group commit of the keeper's
:class:`~trioresume.server.async_store.storage.Storage`. Questions run in its threads. Who owns
which operation is in the :class:`~trioresume.store.remote.ownership.Ownership` of the store.

*A slow worker stalls itself only.* The keeper reads no further message from a worker that has
:data:`MOST_BUSY` answers to come. Notices for a worker that does not read are dropped once
:data:`MOST_WAITING` bytes wait for it, and it is told so later (:class:`Missed`).

*The end of a connection.* A worker that says goodbye has closed its writers. Any other end is
taken for the death of the worker, and the keeper makes sure of it (*end_process*) before it
gives away what the worker owned: a process that has lost its connection could still write its
tails. What the worker had sent is done first.

*A claim* is answered by the owner (see ``port/sharing.py``). An owner that does not answer
within *takeover_timeout* seconds is ended in the same way.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from itertools import count
from queue import SimpleQueue
from weakref import WeakValueDictionary

import trio

from trioresume.errors import CallerError, StorageError
from trioresume.server.async_store.storage import Storage, Submission
from trioresume.server.workers.desk import Desk
from trioresume.store.disk.tail_files import Sealing
from trioresume.store.port import (
    MOST_TOLD,
    ContentKey,
    Missed,
    Notice,
    OperationId,
    Told,
    operation_of,
)
from trioresume.store.remote import wire
from trioresume.store.remote.ownership import KEEPER, Claim, Delivery, Ownership, Sent
from trioresume.store.remote.wire import (
    Answer,
    Applied,
    Apply,
    Ask,
    Error,
    Failed,
    FrameReader,
    Greeting,
    Malformed,
    Message,
    error_of,
    frames,
    greeting_frame,
    pack,
    question,
)
from trioresume.store.shared_disk_store import MisusedStore, SharedDiskStore

__all__ = ["MOST_BUSY", "MOST_WAITING", "TAKEOVER_TIMEOUT", "Keeper"]

logger = logging.getLogger("trioresume.operations")

TAKEOVER_TIMEOUT = 5.0
"""Seconds that an owner has to answer a claim: well above a slow disk's sync."""

MOST_BUSY = 256
"""Answers that a worker may wait for before the keeper reads its next message."""

MOST_WAITING = 4 * 1024 * 1024
"""Bytes for one worker above which it gets no notices."""

_GREETING_TIMEOUT = 10.0
_READ_SIZE = 256 * 1024

EndProcess = Callable[[int], Awaitable[None]]
"""Ends the process with this number for sure: when it returns, that process runs no more."""


class _Process:
    """A worker's process, which can be ended for sure.

    A number could belong to another process by then, so this holds a descriptor of the
    process, where the system has these (Linux 5.3).
    """

    def __init__(self, pid: int, end: EndProcess | None) -> None:
        self.pid = pid
        self._end = end
        self._descriptor = -1
        self._has_ended = False
        self._ending = trio.Lock()
        if end is None and hasattr(os, "pidfd_open"):
            try:
                self._descriptor = os.pidfd_open(pid)
            except OSError:
                self._has_ended = True

    async def end(self) -> None:
        """Kill it, and return when it has ended. A checkpoint."""
        async with self._ending:
            if not self._has_ended:
                await self._kill()
                self._has_ended = True

    async def _kill(self) -> None:
        if self._end is not None:
            await self._end(self.pid)
        elif self._descriptor >= 0:
            try:
                signal.pidfd_send_signal(self._descriptor, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself
            await trio.lowlevel.wait_readable(self._descriptor)
        else:
            # The end of the connection shows when it has ended.
            try:
                os.kill(self.pid, signal.SIGKILL)
            except ProcessLookupError:
                pass  # it has ended by itself

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)


class Keeper:
    """Serves *store*, which *storage* runs, to workers. See the module.

    *takeover_timeout* is in seconds. *end_process* ends a worker's process, given its number; by
    default the process is killed.
    """

    def __init__(
        self,
        storage: Storage,
        store: SharedDiskStore,
        *,
        takeover_timeout: float = TAKEOVER_TIMEOUT,
        end_process: EndProcess | None = None,
    ) -> None:
        if storage.store is not store:
            raise CallerError("the keeper's storage runs another store")
        self.storage = storage
        self.store = store
        self.takeover_timeout = takeover_timeout
        self._end_process = end_process
        self._numbers = count(KEEPER + 1)
        self._workers: dict[int, _Worker] = {}
        self._space = store.space
        self._local = _LocalSharing(self)
        self._token: trio.lowlevel.TrioToken | None = None

    @property
    def ownership(self) -> Ownership:
        """Who owns what."""
        return self.store.ownership

    @property
    def workers(self) -> Sequence[int]:
        """The numbers of the processes of the workers that are connected."""
        return [worker.pid for worker in self._workers.values()]

    async def run(
        self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Share the store until cancelled. The store's ``sharing`` is there when this started."""
        self._token = trio.lowlevel.current_trio_token()
        self.store.deliver = self.deliver_soon
        self.store.on_epoch_end = self._tell_epoch_soon
        self.store.share(self._local)
        try:
            task_status.started()
            await trio.sleep_forever()
        finally:
            self._local.close()

    # Notices.

    def deliver(self, deliveries: Sequence[Delivery]) -> None:
        """Deliver notices. Called in the event loop."""
        for number, notice in deliveries:
            if number == KEEPER:
                self._local.notify(notice)
            else:
                worker = self._workers.get(number)
                if worker is not None:
                    worker.notify(notice)

    def deliver_soon(self, deliveries: Sequence[Delivery]) -> None:
        """Do the same, from any thread."""
        if deliveries:
            self.call_soon(partial(self.deliver, deliveries))

    def call_soon(self, function: Callable[[], None]) -> None:
        """Call *function* in the event loop, from any thread."""
        assert self._token is not None
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            pass  # the service has ended, and its workers with it

    def _tell_epoch_soon(self) -> None:
        self.call_soon(self._tell_epoch)

    def _tell_epoch(self) -> None:
        packed = pack(wire.EpochEnded(self.store.epoch))
        for worker in self._workers.values():
            worker.post(packed)

    def tell_space(self) -> None:
        """Tell the workers if the reserve was spent or made again."""
        if self.store.space != self._space:
            self._space = self.store.space
            packed = pack(wire.Space(*self._space))
            for worker in self._workers.values():
                worker.post(packed)

    # Claims.

    async def claim(self, claimant: int, id: OperationId, ends: bool) -> bool:
        """Claim *id* for the process *claimant*. A checkpoint.

        Raises :class:`StorageError` if the owner does not answer and cannot be ended.
        """
        settled = trio.Event()
        outcome: list[bool] = []

        def settle(granted: bool) -> None:
            outcome.append(granted)
            self.call_soon(settled.set)

        before = self.ownership.owner(id)
        claim = Claim(id, claimant, ends, settle)
        self.deliver(self.ownership.claim(claim))
        try:
            while not outcome:
                owner = self.ownership.owner(id)
                with trio.move_on_after(self.takeover_timeout):
                    await settled.wait()
                if outcome or owner is None or self.ownership.owner(id) != owner:
                    continue  # there is another owner, which has its own time to answer
                await self._end_owner(owner, id)
                with trio.move_on_after(self.takeover_timeout):
                    await settled.wait()
                if not outcome and self.ownership.owner(id) == owner:
                    raise StorageError("the owner of the upload does not answer")
        finally:
            if not outcome:
                self.deliver(self.ownership.withdraw(claim))
        if outcome[0] and before not in (None, claimant):
            # The commit that runs may still have a submission of the last owner.
            await self.storage.commit()
        return outcome[0]

    async def _end_owner(self, number: int, id: OperationId) -> None:
        """End the worker *number*, which does not answer a claim."""
        worker = self._workers.get(number)
        if worker is not None:
            logger.error(
                "worker process %d did not give up an upload in %g seconds: it is ended",
                worker.pid,
                self.takeover_timeout,
            )
            await worker.process.end()

    # Workers.

    async def serve(self, sock: socket.socket, pid: int | None = None) -> None:
        """Serve the worker at the other end of *sock*, which this closes, until it ends.

        *pid* is the worker's process, and by default what it says in its greeting. If this is
        cancelled, the worker owns nothing any more, and its process is not ended.
        """
        sock.setblocking(False)
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(sock))
        reader = FrameReader()
        async with stream:
            greeting, early = await self._greet(stream, reader)
            if greeting is None:
                return
            number = next(self._numbers)
            process = _Process(greeting.pid if pid is None else pid, self._end_process)
            worker = _Worker(self, stream, number, process)
            self.ownership.join(number)
            self._workers[number] = worker
            try:
                await stream.send_all(greeting_frame(self.store.welcome(number)))
                await worker.run(reader, early)
            except trio.BrokenResourceError:
                await self._end(worker)  # it ended before it was greeted
            except BaseException:
                self._forget(worker)
                raise
            else:
                await self._end(worker)
            finally:
                process.close()

    async def _greet(
        self, stream: trio.SocketStream, reader: FrameReader
    ) -> tuple[Greeting | None, list[Message | Greeting]]:
        """Return the worker's greeting, and the messages that came with it."""
        with trio.move_on_after(_GREETING_TIMEOUT):
            try:
                while data := await stream.receive_some(_READ_SIZE):
                    messages = reader.feed(data)
                    if messages:
                        greeting = messages.pop(0)
                        assert isinstance(greeting, Greeting)
                        return greeting, messages
            except Malformed as exc:
                logger.error("a worker was refused: %s", exc)
                refusal = greeting_frame(Greeting(refusal=str(exc)))
                try:
                    await stream.send_all(refusal)
                except trio.BrokenResourceError:
                    pass  # it did not wait for the reason
            except trio.BrokenResourceError:
                pass  # it ended before it has greeted
        return None, []

    async def _end(self, worker: _Worker) -> None:
        """Give away what a worker owned that has ended or lost its connection."""
        if not worker.said_goodbye:
            await worker.process.end()
            try:
                self.store.remove_probe(worker.pid)
            except StorageError as exc:
                # The disk fails, and that must not end the service: it may only read now.
                logger.error("a file of a dead worker stays: %s", exc)
        await worker.settle()
        owned = self.ownership.owned_by(worker.number)
        if not worker.said_goodbye:
            await self.storage.run(self.store.orphan, owned)
        self._forget(worker)
        try:
            calls = await self.storage.run(self.store.calls_among, owned)
        except StorageError as exc:
            # They are found at the next start.
            logger.error("calls of a dead worker are not taken up: %s", exc)
        else:
            self.deliver(self.ownership.abandon(calls))

    def _forget(self, worker: _Worker) -> None:
        worker.desk.close()
        self._workers.pop(worker.number, None)
        self.deliver(self.ownership.leave(worker.number))


class _Worker:
    """The keeper's end of the connection to one worker. Used in the event loop only."""

    def __init__(
        self, keeper: Keeper, stream: trio.SocketStream, number: int, process: _Process
    ) -> None:
        self.number = number
        self.process = process
        self.pid = process.pid
        self.said_goodbye = False
        self.desk = Desk(keeper.store, number)
        self._keeper = keeper
        self._stream = stream
        self._outbox: list[bytes] = []
        self._size = 0
        """Bytes in the outbox and in the frame that is being sent."""
        self._posted = trio.Event()
        self._misses = False
        """Whether notices were dropped, and the worker does not know it yet."""
        self._busy = 0
        """Answers that are to come."""
        self._answered = trio.Event()
        self._sealings: WeakValueDictionary[int, Sealing] = WeakValueDictionary()
        """By the worker's numbers. A sealing ends when the store drops it."""

    # Sending.

    def post(self, packed: bytes) -> None:
        """Have a packed message sent."""
        self._outbox.append(packed)
        self._size += len(packed)
        self._posted.set()

    def notify(self, notice: Notice) -> None:
        """Have *notice* sent, unless too many bytes wait."""
        if self._size < MOST_WAITING:
            self.post(pack(notice))
        elif not isinstance(notice, Told):
            self._misses = True

    async def _send(self) -> None:
        while True:
            if not self._outbox:
                self._posted = trio.Event()
                await self._posted.wait()
            packed, self._outbox = self._outbox, []
            for frame in frames(packed):
                await self._stream.send_all(frame)
            self._size = sum(map(len, self._outbox))
            if self._misses:
                self._misses = False
                self.post(pack(Missed()))
                self._keeper.deliver(self._ownership.waiting_claims(self.number))

    # Receiving.

    async def run(self, reader: FrameReader, early: list[Message | Greeting]) -> None:
        """Serve the worker until its connection ends, or it says goodbye."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._sending, nursery)
            try:
                await self._receive(reader, early, nursery)
            except trio.BrokenResourceError:
                pass  # the worker has ended
            except Malformed as exc:
                logger.error("worker process %d: %s", self.pid, exc)
            nursery.cancel_scope.cancel()

    async def _sending(self, nursery: trio.Nursery) -> None:
        try:
            await self._send()
        except trio.BrokenResourceError:
            pass  # the receiving task finds the end, after what the worker had sent

    async def _receive(
        self,
        reader: FrameReader,
        messages: list[Message | Greeting],
        nursery: trio.Nursery,
    ) -> None:
        while True:
            for message in messages:
                self._take(message, nursery)
                if self.said_goodbye:
                    return
                while self._busy >= MOST_BUSY:
                    self._answered = trio.Event()
                    await self._answered.wait()
            data = await self._stream.receive_some(_READ_SIZE)
            if not data:
                return
            messages = reader.feed(data)

    def _take(self, message: Message | Greeting, nursery: trio.Nursery) -> None:
        number, ownership = self.number, self._ownership
        deliver = self._keeper.deliver
        match message:
            case Apply():
                self._apply(message)
            case Ask(question="claim"):
                self._busy += 1
                nursery.start_soon(self._claim, message)
            case Ask():
                if message.question == "distrust":
                    # Now, before the next message, and then durably.
                    (key,) = question("distrust").unpack(message.arguments)
                    self._keeper.store.suspect(key)
                self._busy += 1
                answer = partial(self._answer, message)
                self._keeper.storage.callers.submit(answer, self._post_answer)
            case wire.Began(sealing, key, index, length):
                begun = self._keeper.store.begin_sealing(number, key, index, length)
                if begun is not None:
                    self._sealings[sealing] = begun
            case wire.Sealed(sealing, digest):
                known = self._sealings.pop(sealing, None)
                if known is not None:
                    known.note(digest)
            case wire.Opened(asked, key):
                self._open(asked, key)
            case wire.Unpin(digest):
                self.desk.unpin(digest)
            case wire.FullDisk():
                self._keeper.store.note_full_disk()
                self._keeper.tell_space()
            case wire.Listen():
                deliver(ownership.listen(number))
            case wire.Release(id):
                deliver(ownership.release(id, number))
            case wire.Refuse(id):
                deliver(ownership.refuse(id, number))
            case wire.Want(id, ends):
                deliver(ownership.want(id, ends))
            case wire.Follow(id):
                ownership.follow(id, number)
            case wire.Unfollow(id):
                ownership.unfollow(id, number)
            case wire.Tell(id, told):
                if len(told) > MOST_TOLD:
                    raise Malformed("a message with too many bytes was told")
                deliver(ownership.tell(id, number, told))
            case wire.Goodbye():
                self.said_goodbye = True
            case _:
                raise Malformed(f"a worker sent {type(message).__name__}")

    @property
    def _ownership(self) -> Ownership:
        return self._keeper.ownership

    def _open(self, asked: int, key: ContentKey) -> None:
        if self._ownership.begin_new(operation_of(key), self.number):
            self.post(pack(Answer(asked, None)))
        else:
            taken = StorageError("another process has an upload of this id")
            self.post(pack(Failed(asked, error_of(taken))))

    # Answers.

    def _apply(self, message: Apply) -> None:
        self._busy += 1
        storage = self._keeper.storage
        waiting = len(message.submissions)
        submissions: list[Submission] = []

        def end() -> None:
            nonlocal waiting
            waiting -= 1
            if not waiting:
                results = tuple(map(_error, submissions))
                self.post(pack(Applied(message.number, results)))
                self._keeper.tell_space()
                self._end_answer()

        if not waiting:
            waiting = 1
            end()
        for mutations in message.submissions:
            submission = storage.put(Sent(self.number, mutations))
            submission.then = end
            submissions.append(submission)

    def _answer(self, ask: Ask) -> bytes:
        """Answer a question, in a thread; return the packed answer."""
        try:
            asked = question(ask.question)
            method = getattr(self.desk, ask.question)
            answer = method(*asked.unpack(ask.arguments))
            return pack(Answer(ask.number, answer))
        except (StorageError, CallerError) as exc:
            return pack(Failed(ask.number, error_of(exc)))
        except Exception as exc:
            logger.exception("a bug in answering a worker's question")
            return pack(Failed(ask.number, error_of(exc)))

    def _post_answer(self, packed: object, error: Exception | None) -> None:
        assert isinstance(packed, bytes)
        self.post(packed)
        self._end_answer()

    async def _claim(self, ask: Ask) -> None:
        answer: Message
        try:
            operation, ends = question(ask.question).unpack(ask.arguments)
            granted = await self._keeper.claim(self.number, operation, ends)
            answer = Answer(ask.number, granted)
        except StorageError as exc:
            answer = Failed(ask.number, error_of(exc))
        finally:
            self._end_answer()
        self.post(pack(answer))

    def _end_answer(self) -> None:
        self._busy -= 1
        self._answered.set()

    async def settle(self) -> None:
        """Return when everything is done that the worker has asked for. A checkpoint."""
        await trio.lowlevel.checkpoint()
        while self._busy:
            self._answered = trio.Event()
            await self._answered.wait()


def _error(submission: Submission) -> Error | None:
    error = submission.error
    if error is None:
        return None
    if isinstance(error, MisusedStore) and isinstance(error.__cause__, CallerError):
        return error_of(error.__cause__)
    return error_of(error)


class _LocalSharing:
    """How the keeper's own process shares the store: see the port's Sharing."""

    def __init__(self, keeper: Keeper) -> None:
        self._keeper = keeper
        self._notices: SimpleQueue[Notice | None] = SimpleQueue()
        self._thread: threading.Thread | None = None

    @property
    def _ownership(self) -> Ownership:
        return self._keeper.ownership

    def notify(self, notice: Notice) -> None:
        """Have *notice* delivered, if somebody listens."""
        if self._thread is not None:
            self._notices.put(notice)

    def listen(self, take: Callable[[Notice], None]) -> None:
        if self._thread is not None:
            raise CallerError("this process listens already")
        self._thread = threading.Thread(
            target=self._deliver, args=(take,), name="trioresume-notices", daemon=True
        )
        self._thread.start()
        self._keeper.deliver_soon(self._ownership.listen(KEEPER))

    def _deliver(self, take: Callable[[Notice], None]) -> None:
        while (notice := self._notices.get()) is not None:
            try:
                take(notice)
            except Exception:
                # Nobody else can handle it, and the next notices must come.
                logger.exception("a bug in taking a notice")

    def claim(self, id: OperationId, *, ends: bool = False) -> bool:
        try:
            return trio.from_thread.run(
                self._keeper.claim, KEEPER, id, ends, trio_token=self._keeper._token
            )
        except (trio.RunFinishedError, trio.Cancelled) as exc:
            raise StorageError("the service has ended") from exc

    def release(self, id: OperationId) -> None:
        self._keeper.store.let_go(id)
        self._keeper.deliver_soon(self._ownership.release(id, KEEPER))

    def refuse(self, id: OperationId) -> None:
        self._keeper.deliver_soon(self._ownership.refuse(id, KEEPER))

    def want(self, id: OperationId, *, ends: bool = False) -> None:
        self._keeper.deliver_soon(self._ownership.want(id, ends))

    def follow(self, id: OperationId) -> None:
        self._ownership.follow(id, KEEPER)

    def unfollow(self, id: OperationId) -> None:
        self._ownership.unfollow(id, KEEPER)

    def tell(self, id: OperationId, message: bytes) -> None:
        if len(message) > MOST_TOLD:
            raise CallerError(f"a message has at most {MOST_TOLD} bytes")
        self._keeper.deliver_soon(self._ownership.tell(id, KEEPER, message))

    def close(self) -> None:
        self._notices.put(None)
