"""Which stream of a connection may send next, and how much.

Many streams that send at once are expensive: each turn of the reader brings a little of each,
and each little costs a job of a worker thread. So the streams of a connection wait in line for
credit, and only as many get it as fill two pieces of the receive memory. Each of them sends a
whole window, and the store gets it in few parts. (docs/benchmarks.md has the figures.)

All streams should get a turn within :data:`ROUND_TIME`. So a window is as large as what the
connection receives in that time, divided by the number of its streams; at most a piece, and at
least the initial window.

Every stream has the initial window in any case, so small requests wait for nobody. A peer that
does not use its turn in time loses the turn, not its credit. From then on it gets a little
credit whenever it asks, and no turns, until it is faster: a stalled stream stalls nobody else.

Sans-IO: the caller passes the time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from trioresume.server.http.http2.engine import INITIAL_WINDOW

if TYPE_CHECKING:
    from trioresume.server.async_store.receive_memory import ReceiveMemory

__all__ = ["CreditTurns", "Receiver"]


ROUND_TIME = 1.0
"""Seconds in which each stream should get a turn."""
RATE_TIME = 0.1
"""Seconds after which the rate of a connection is measured anew."""


class Receiver(Protocol):
    """A stream that wants credit."""

    def take_turn(self, window: int, *, waited: bool) -> int:
        """Let the peer fill *window* bytes; return how many bytes it may send more."""
        ...


class CreditTurns:
    """The line of one connection's streams. *receiving* is how many receive content."""

    def __init__(self, memory: ReceiveMemory) -> None:
        self._memory = memory
        self._line: dict[Receiver, None] = {}
        self._given = 0
        """Bytes of all present turns that were not given back."""
        self._came = 0
        self._since = 0.0
        self._rate = 0.0
        """Bytes that the connection receives in a second."""
        self.receiving = 0

    def note(self, size: int, now: float) -> None:
        """Note that *size* bytes have come."""
        self._came += size
        if now - self._since > RATE_TIME:
            self._rate = self._came / (now - self._since)
            self._came, self._since = 0, now

    def expected(self, seconds: float) -> int:
        """Return how many bytes will come in so much time, and without more credit."""
        return min(int(self._rate * seconds), self._given // 4)

    @property
    def _most(self) -> int:
        """Bytes that all turns together should have: at most a share of the memory."""
        memory = self._memory
        share = memory.size * self.receiving // max(1, memory.uploads)
        return max(INITIAL_WINDOW, min(2 * memory.piece_size, share))

    @property
    def _window(self) -> int:
        window = int(self._rate * ROUND_TIME) // max(1, self.receiving)
        return max(INITIAL_WINDOW, min(self._memory.piece_size, self._most, window))

    def is_waiting(self, receiver: Receiver) -> bool:
        return receiver in self._line

    def ask(self, receiver: Receiver) -> bool:
        """Give *receiver* its turn, now or later. Returns whether it was now."""
        if self._line or self._given >= self._most:
            self._line[receiver] = None
            return False
        self._given += receiver.take_turn(self._window, waited=False)
        return True

    def leave(self, receiver: Receiver) -> bool:
        """Forget *receiver*. Returns whether it was waiting."""
        if receiver not in self._line:
            return False
        del self._line[receiver]
        return True

    def give_back(self, size: int) -> None:
        """Note that *size* bytes of a turn are over. The next in line may get a turn."""
        self._given -= size
        while self._line and self._given < self._most:
            receiver = next(iter(self._line))
            del self._line[receiver]
            self._given += receiver.take_turn(self._window, waited=True)
