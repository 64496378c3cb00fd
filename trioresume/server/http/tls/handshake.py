"""Handshakes: what a connection begins with, for how long, and how many at a time.

A handshake costs memory (some 100 KiB until it ends) and the event loop's time (up to a
millisecond for a signature). So there are three bounds (G5 in docs/supported-protocols.md):

* From the first byte that could come to the end of the handshake a client has
  ``header_timeout``. A connection that has not said anything costs no OpenSSL object yet, and
  counts as idle: at the limit of connections it makes room.
* Only so many handshakes run at once. Others wait in line. If one of those that run has taken
  longer than its share of patience, it ends for the next in line. So clients that stop in the
  middle cannot keep others out. The next in line is a client of the address with the fewest
  running handshakes. So one address that begins thousands makes others wait no longer than
  that patience.
* Handshakes begin a few in a round of the event loop, as requests with content do.

The first byte tells whether a client speaks TLS at all: each connection begins with a
handshake record, 22 (RFC 8446, section 5.1). A method of HTTP begins with a letter.
"""

from __future__ import annotations

import logging
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import trio

from trioresume.errors import PeerError, ProblemCode
from trioresume.server.event_loop import Signal
from trioresume.server.http.tls.transport import TLSTransport

if TYPE_CHECKING:
    from trioresume.server.http.front import Admission
    from trioresume.server.http.transport import SocketTransport

__all__ = ["Arrival", "Handshakes"]

logger = logging.getLogger("trioresume.connection")

MOST = 256
"""Handshakes that run at once."""
PATIENCE = 2.0
"""Seconds that each of them has while others wait in line."""
_HANDSHAKE_RECORD = b"\x16"

_NO_AGREEMENT = frozenset(
    {
        "NO_SHARED_CIPHER",
        "TLSV1_ALERT_PROTOCOL_VERSION",
        "UNSUPPORTED_PROTOCOL",
        "VERSION_TOO_LOW",
        "WRONG_SSL_VERSION",
    }
)
"""OpenSSL's reasons that mean: client and server have no version or cipher in common."""
_NO_CERTIFICATE = frozenset(
    {"CERTIFICATE_VERIFY_FAILED", "PEER_DID_NOT_RETURN_A_CERTIFICATE"}
)
"""OpenSSL's reasons that mean: the client has no certificate that the server accepts."""


class Arrival:
    """A connection before its handshake is over, as admission sees it."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._scope: trio.CancelScope | None = None

    def dismiss(self) -> None:
        if self._scope is not None:
            self._scope.cancel()

    async def first_byte(self, plain: SocketTransport, admission: Admission) -> bytes:
        """Wait for the first byte. Returns b"" if none comes, or if the place is needed."""
        admission.note_idle(self)
        with trio.CancelScope() as self._scope:
            await plain.wait_readable()
        dismissed, self._scope = self._scope.cancel_called, None
        admission.note_busy(self)
        return b"" if dismissed else plain.peek() or b""


class Handshakes:
    """The handshakes of all listeners, within the bounds."""

    def __init__(
        self,
        admission: Admission,
        timeout: float,
        *,
        most: int = MOST,
        patience: float = PATIENCE,
    ) -> None:
        self._admission = admission
        self._timeout = timeout
        self._most = most
        self._patience = patience
        self._running: dict[trio.CancelScope, tuple[float, object]] = {}
        """When each running handshake began, and its client; the first one first."""
        self._numbers: Counter[object] = Counter()
        """How many handshakes of each client run. A client is an address; without one, each
        handshake stands for a client of its own."""
        self._line: dict[object, dict[trio.CancelScope, Signal]] = {}
        """Those that wait, by client. If there are any, all places are taken."""
        self._all: set[trio.CancelScope] = set()
        self._stopped = False

    def stop(self) -> None:
        """End every connection that has no handshake yet: it will bring no request."""
        self._stopped = True
        for scope in self._all:
            scope.cancel()

    async def secure(
        self, plain: SocketTransport, context: ssl.SSLContext, arrival: Arrival
    ) -> TLSTransport:
        """Return the connection of *plain* after a handshake. *plain* is used up.

        Raises :class:`PeerError` if the client sends a plain request; *plain* can carry the
        answer then. Raises :class:`trio.BrokenResourceError` if the handshake fails or takes
        too long; the connection is closed then, as it is on cancellation.
        """
        scope = trio.move_on_after(self._timeout)
        self._all.add(scope)
        if self._stopped:
            scope.cancel()
        try:
            with scope:
                first = await arrival.first_byte(plain, self._admission)
                if first == _HANDSHAKE_RECORD:
                    async with self._place(arrival.address):
                        return await self._shake_hands(plain, context)
                    raise trio.BrokenResourceError("another handshake got the place")
                if first.isalpha() and first.isupper():
                    raise PeerError(ProblemCode.TLS_NEEDED, close=True)
                raise trio.BrokenResourceError("no handshake came")
        except PeerError:
            raise
        except BaseException:
            await plain.aclose()
            raise
        finally:
            self._all.discard(scope)
        await plain.aclose()
        raise trio.BrokenResourceError("the handshake took too long")

    async def _shake_hands(
        self, plain: SocketTransport, context: ssl.SSLContext
    ) -> TLSTransport:
        await self._admission.starts.wait()
        transport: TLSTransport | None = None
        try:
            transport = TLSTransport(_wrap(plain.detach(), context), plain.peer)
            await transport.handshake()
        # A ValueError: the client's certificate cannot be decoded.
        except (OSError, ValueError) as exc:
            is_explained = _log(plain.peer, exc)
            if transport is not None:
                try:
                    if is_explained:
                        await transport.let_read_the_alert()
                finally:
                    await transport.aclose()
            raise trio.BrokenResourceError("the handshake failed") from exc
        except BaseException:
            if transport is not None:
                await transport.aclose()
            raise
        return transport

    @asynccontextmanager
    async def _place(self, address: str) -> AsyncIterator[None]:
        """Have one of the places for the block; the block may be cancelled for others."""
        scope = trio.CancelScope()
        client: object = address or scope
        if len(self._running) < self._most:
            self._begin(scope, client)
        else:
            await self._wait(scope, client)
        try:
            with scope:
                yield
        finally:
            self._end(scope)

    def _begin(self, scope: trio.CancelScope, client: object) -> None:
        self._running[scope] = trio.current_time(), client
        self._numbers[client] += 1

    def _end(self, scope: trio.CancelScope) -> None:
        """Give the place of *scope*, if it has one, to the next in line."""
        if scope not in self._running:
            return
        _, client = self._running.pop(scope)
        self._numbers[client] -= 1
        if not self._numbers[client]:
            del self._numbers[client]
        if self._line:
            following = self._next()
            waiting = self._line.pop(following)
            first = next(iter(waiting))
            signal = waiting.pop(first)
            if waiting:
                self._line[following] = (
                    waiting  # at the end: its next one waits for others
                )
            self._begin(first, following)
            signal.fire()

    def _next(self) -> object:
        """Return the client in line with the fewest running handshakes.

        No more clients have a running one than there are places, so this looks at few.
        """
        best: object = None
        fewest = self._most + 1
        for client in self._line:
            number = self._numbers[client]
            if number < fewest:
                best, fewest = client, number
            if not number:
                break
        return best

    async def _wait(self, scope: trio.CancelScope, client: object) -> None:
        """Wait until the handshake of *scope* has a place."""
        signal = Signal()
        self._line.setdefault(client, {})[scope] = signal
        try:
            while scope in self._line.get(client, ()):
                longest, (begun, _) = next(iter(self._running.items()))
                left = begun + self._patience - trio.current_time()
                if left <= 0:
                    self._end(longest)
                    longest.cancel()
                    continue
                with trio.move_on_after(left):
                    await signal.wait()
        except BaseException:
            waiting = self._line.get(client, {})
            if waiting.pop(scope, None) is not None and not waiting:
                del self._line[client]
            self._end(scope)  # it may have got a place in the same moment
            raise


def _wrap(sock: socket.socket, context: ssl.SSLContext) -> ssl.SSLSocket:
    """Return *sock* as a socket of TLS. The handshake is still to come.

    Raises :class:`OSError` if the client has gone, and closes *sock*. If the client left bytes
    behind, Python refuses them with an :class:`ssl.SSLError`.
    """
    try:
        return context.wrap_socket(
            sock,
            server_side=True,
            do_handshake_on_connect=False,
            suppress_ragged_eofs=False,
        )
    except BaseException:
        sock.close()
        raise


def _log(peer: str, error: Exception) -> bool:
    """Log why a handshake failed: where a setting may be wrong, so that operators see it.

    Returns whether it is such a case. Then the client's user should be able to see it, too.
    """
    # An SSLError that Python itself makes may have no reason.
    reason = getattr(error, "reason", None) if isinstance(error, OSError) else None
    if reason in _NO_AGREEMENT:
        words = "client and server have no version or cipher of TLS in common"
    elif reason in _NO_CERTIFICATE:
        words = "the client has no certificate that is accepted"
    else:
        logger.debug("no handshake with %s: %s", peer, error)
        return False
    logger.info("no handshake with %s: %s (%s)", peer, words, error)
    return True
