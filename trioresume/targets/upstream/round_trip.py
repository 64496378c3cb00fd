"""One request to a backend, and its response: at most once, honestly.

What may have happened depends on how far the request came, and is decided here:

=====================================  ==================================================
no byte of the request has left        nothing happened: the next backend is tried, and at
                                       last :class:`~trioresume.TargetUnavailable` says so
the connection is lost afterwards,     the request is sent again, if its method is
before the response is whole           idempotent or its key is respected; else nobody
                                       knows what happened: 502 ``indeterminate``
no progress for ``timeout``            504; nobody knows what happened
the response is no HTTP                502; the request may have taken effect
=====================================  ==================================================
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.errors import PeerError, ProblemCode, TargetUnavailable
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.server.http.transport import Transport
    from trioresume.targets.upstream.connections import Connection, Pool
    from trioresume.targets.upstream.endpoints import Endpoint

__all__ = ["SAFE", "Answer", "AnswerBody", "Outgoing", "RoundTrips", "send_in_time"]

logger = logging.getLogger("trioresume.upstream")

SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
"""Methods that change nothing (RFC 9110, section 9.2.1)."""
MOST_AT_ONCE = 64 * 1024
"""A response that has come whole, and is no larger, is handed on as bytes."""
LAST_WORDS = 5.0
"""Seconds for a backend that stops reading to say why, in a response."""
MOST_INTERIMS = 1000
"""Interim responses to one request; more are taken for an attack."""

SendContent = Callable[["Connection", bytes], Awaitable[None]]
"""Sends the head that it is given, and the content after it."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A request to a backend."""

    method: str
    target: str
    fields: Fields
    may_repeat: bool
    """Whether it does no harm to send it twice."""
    send: SendContent | None = None
    """None if there is no content."""
    waits: bool = False
    """Whether the request waits if it cannot be sent, because all of it is recorded."""
    can_repeat: bool = True
    """Whether the content is still there after it was sent."""
    on_interim: Callable[[int, Fields], None] | None = None


class Lost(Exception):
    """The connection was lost before the head of a response; *sent*: a byte had left."""

    def __init__(self, reason: str, *, sent: bool) -> None:
        super().__init__(reason)
        self.sent = sent


class AnswerBody:
    """The content of a response, as it comes. An iterator, which owns the connection.

    Raises *failure* if the content is cut, or makes no progress for *timeout*.
    """

    def __init__(
        self,
        connection: Connection,
        pool: Pool,
        timeout: float,
        failure: PeerError,
        begun: list[bytes],
    ) -> None:
        self._connection: Connection | None = connection
        self._pool = pool
        self._timeout = timeout
        self._failure = failure
        self._begun = begun

    def __aiter__(self) -> AnswerBody:
        return self

    async def __anext__(self) -> bytes:
        if self._begun:
            return self._begun.pop(0)
        connection = self._connection
        if connection is None:
            raise StopAsyncIteration
        try:
            with trio.fail_after(self._timeout):
                while (event := connection.parser.next_event()) is h11.NEED_DATA:
                    await connection.receive()
        except (trio.BrokenResourceError, trio.TooSlowError) as exc:
            self._drop()
            raise self._failure from exc
        except h11.RemoteProtocolError as exc:
            self._drop()
            raise self._failure from exc
        except BaseException:
            self._drop()
            raise
        if isinstance(event, h11.Data):
            return bytes(event.data)
        assert isinstance(event, h11.EndOfMessage), event
        self._connection = None
        self._pool.give_back(connection)
        raise StopAsyncIteration

    async def aclose(self) -> None:
        """Close the connection, if the content has not ended."""
        self._drop()

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


@dataclass(frozen=True, slots=True)
class Answer:
    """The response of *endpoint*."""

    status: int
    fields: Fields
    body: bytes | AnswerBody
    endpoint: Endpoint
    switched: Connection | None = None
    """The connection, which speaks another protocol after a 101."""


class RoundTrips:
    """Sends requests to backends. Nothing may take longer than *timeout* without progress."""

    def __init__(self, pool: Pool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout
        self._turns = 0

    async def run(self, outgoing: Outgoing, endpoints: Sequence[Endpoint]) -> Answer:
        """Send *outgoing* to one of *endpoints*; return the response, once its head is there.

        Raises :class:`TargetUnavailable` if nothing has happened, and :class:`PeerError` 502
        or 504. When cancelled, the connection is closed.
        """
        self._turns += 1
        first = self._turns % len(endpoints)
        lost: Lost | None = None
        for endpoint in (*endpoints[first:], *endpoints[:first]):
            for reuse in (True, False):
                connection = await self._connection(outgoing, endpoint, reuse=reuse)
                if connection is None:
                    continue
                try:
                    return await self._send(outgoing, connection)
                except Lost as exc:
                    logger.warning("%s: %s", endpoint, exc)
                    if exc.sent and not (outgoing.may_repeat and outgoing.can_repeat):
                        raise PeerError(
                            ProblemCode.OUTCOME_UNKNOWN, "the connection was lost"
                        ) from exc
                    lost = exc if exc.sent else lost
                    if not reuse:
                        break
            else:
                lost = None  # it cannot even be reached any more: later, perhaps
        if lost is not None:
            problem = (
                ProblemCode.BAD_GATEWAY  # nothing took effect
                if outgoing.method in SAFE
                else ProblemCode.OUTCOME_UNKNOWN
            )
            raise PeerError(problem, "every try lost its connection") from lost
        raise TargetUnavailable("no server behind this one can be reached")

    async def _connection(
        self, outgoing: Outgoing, endpoint: Endpoint, *, reuse: bool
    ) -> Connection | None:
        if reuse:
            if not (outgoing.may_repeat and outgoing.can_repeat):
                return None
            return self._pool.take_idle(endpoint)
        try:
            return await self._pool.connect(endpoint)
        except OSError as exc:
            logger.warning("%s cannot be reached: %s", endpoint, exc)
            return None
        except BaseException as exc:
            if not outgoing.waits or not _is_cancellation(exc):
                raise
            # The service ends before a byte was sent. The caller submits that the request
            # waits, and meets the cancellation at its next checkpoint. Otherwise the next
            # start would have to say that the outcome is not known.
            raise TargetUnavailable("the service ends") from exc

    async def _send(self, outgoing: Outgoing, connection: Connection) -> Answer:
        try:
            return await self._exchange(outgoing, connection)
        except BaseException:
            connection.close()
            raise

    async def _exchange(self, outgoing: Outgoing, connection: Connection) -> Answer:
        request = h11.Request(
            method=outgoing.method,
            target=connection.endpoint.base + outgoing.target,
            headers=outgoing.fields.to_wire(),
        )
        head = connection.parser.send(request)
        waiting = trio.CancelScope()
        event: h11.Response | h11.InformationalResponse | None = None
        if outgoing.send is None:
            connection.parser.send(h11.EndOfMessage())
            await _send_head(connection, head, self._timeout)
            waiting.deadline = trio.current_time() + self._timeout
            with waiting:
                event = await _read_head(outgoing, connection)
        else:
            event = await self._exchange_content(
                outgoing, connection, outgoing.send, head, waiting
            )
        if event is None:
            raise PeerError(
                ProblemCode.GATEWAY_TIMEOUT,
                f"it made no progress for {self._timeout:g} s",
            )
        return self._begin(event, connection)

    async def _exchange_content(
        self,
        outgoing: Outgoing,
        connection: Connection,
        send: SendContent,
        head: bytes,
        waiting: trio.CancelScope,
    ) -> h11.Response | h11.InformationalResponse | None:
        """Send the content, and listen meanwhile: the response may come before its end."""
        failures: list[Exception] = []
        event: h11.Response | h11.InformationalResponse | None = None
        connection.is_sending = True

        async def send_all() -> None:
            try:
                await send(connection, head)
            except trio.BrokenResourceError:
                # It may have said why it does not read on.
                waiting.deadline = trio.current_time() + min(LAST_WORDS, self._timeout)
            except Exception as exc:  # noqa: BLE001 - raised below
                failures.append(exc)
                waiting.cancel()
            else:
                connection.is_sending = False
                waiting.deadline = trio.current_time() + self._timeout

        # Nothing may be done with the connection before the sender has left it: a thread
        # may be sending from a file.
        async with trio.open_nursery() as nursery:
            nursery.start_soon(send_all)
            try:
                with waiting:
                    event = await _read_head(outgoing, connection)
            except (Lost, PeerError) as exc:
                failures.append(exc)
            # A response before the end of the content is the answer (RFC 9112, section 9.3).
            nursery.cancel_scope.cancel()
        if failures:
            raise failures[0]
        return event

    def _begin(
        self, event: h11.Response | h11.InformationalResponse, connection: Connection
    ) -> Answer:
        """Make the answer of a head, and of what came with it."""
        fields = Fields.from_wire(event.headers)
        status, endpoint = event.status_code, connection.endpoint
        if isinstance(event, h11.InformationalResponse):
            return Answer(status, fields, b"", endpoint, connection)
        if status > 599:
            raise _garbled(f"the status {status}")
        failure = PeerError(ProblemCode.OUTCOME_UNKNOWN, "the response was cut")
        begun: list[bytes] = []
        size = 0
        while size <= MOST_AT_ONCE:
            try:
                part = connection.parser.next_event()
            except h11.RemoteProtocolError as exc:
                raise failure from exc
            if isinstance(part, h11.Data):
                begun.append(bytes(part.data))
                size += len(begun[-1])
            elif isinstance(part, h11.EndOfMessage):
                self._pool.give_back(connection)
                return Answer(status, fields, b"".join(begun), endpoint)
            else:
                break
        # An empty first block: a client need not wait for content to see the head.
        body = AnswerBody(
            connection, self._pool, self._timeout, failure, begun or [b""]
        )
        return Answer(status, fields, body, endpoint)


async def _read_head(
    outgoing: Outgoing, connection: Connection
) -> h11.Response | h11.InformationalResponse:
    """Read up to the head of the final response, or of a 101.

    Raises :class:`Lost`, and :class:`PeerError` if what comes is no response.
    """
    parser = connection.parser
    interims = 0
    try:
        while True:
            event = parser.next_event()
            if event is h11.NEED_DATA:
                await connection.receive()
            elif isinstance(event, h11.InformationalResponse):
                if event.status_code == 101:
                    return event
                interims += 1
                if interims > MOST_INTERIMS:
                    raise _garbled("interim responses without end")
                if outgoing.on_interim is not None and event.status_code != 100:
                    fields = Fields.from_wire(event.headers)
                    outgoing.on_interim(event.status_code, fields)
            elif isinstance(event, h11.Response):
                return event
            else:
                raise Lost("it closed the connection", sent=True)
    except trio.BrokenResourceError as exc:
        raise Lost(str(exc), sent=True) from exc
    except h11.RemoteProtocolError as exc:
        if parser.trailing_data[1]:
            raise Lost("it closed the connection", sent=True) from exc
        raise _garbled(str(exc)) from exc


def _is_cancellation(exc: BaseException) -> bool:
    """Whether *exc* is a cancellation, or a group that has nothing else."""
    if isinstance(exc, BaseExceptionGroup):
        return exc.split(trio.Cancelled)[1] is None
    return isinstance(exc, trio.Cancelled)


def _garbled(reason: str) -> PeerError:
    logger.error("a response cannot be read: %s", reason)
    return PeerError(ProblemCode.OUTCOME_UNKNOWN, "its response is malformed")


async def send_in_time(
    transport: Transport, data: bytes | memoryview, seconds: float
) -> None:
    """Send *data*. Raises :class:`trio.BrokenResourceError`, also if it takes too long."""
    with trio.move_on_after(seconds) as scope:
        await transport.send_all(data)
    if scope.cancelled_caught:
        raise trio.BrokenResourceError("the backend takes no content")


async def _send_head(connection: Connection, head: bytes, seconds: float) -> None:
    """Send a request that is a head alone. Raises :class:`Lost`."""
    sent = connection.transport.send_some_nowait(head)
    if sent is None:
        raise Lost("it closed the connection", sent=False)
    try:
        if sent < len(head):
            with trio.fail_after(seconds):
                await connection.transport.send_all(memoryview(head)[sent:])
    except (trio.BrokenResourceError, trio.TooSlowError) as exc:
        raise Lost(str(exc), sent=True) from exc
