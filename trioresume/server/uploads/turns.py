"""The writer's turn: at most one request writes an upload, the newest (R21).

A request receives inside the cancel scope of its *turn*. A newcomer takes a number, its
*place*, cancels the scope and waits until the old writer has left it. The receive loop's only
checkpoints are waits for the network or for room. So the writer leaves at once, even if the
old connection is silent and open; at most two pieces are still being written then. Of
several newcomers the last one gets the turn. The loop hands bytes on without a checkpoint
after reading, and it leaves the turn when they are written. So a cancelled writer has either
written what it read, or not read it; nothing of it arrives later. (The store guards the same
with its own generations.)

R21 is in docs/supported-protocols.md.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Protocol

import trio

from trioresume.errors import PeerError, ProblemCode, StaleWriter
from trioresume.server.event_loop import Signal

if TYPE_CHECKING:
    from types import TracebackType

    from trioresume.server.async_store.threads import Lane

__all__ = ["Turn", "Turns"]


class Turns:
    """Who may write one upload, and who comes next. *lane* writes for the one who may."""

    __slots__ = ("_is_surrendered", "_lane", "_places", "_turn", "ended")

    def __init__(self, lane: Lane) -> None:
        self.ended = False
        """Whether the content has ended, so that nobody gets the turn any more."""
        self._lane = lane
        self._turn: Turn | None = None
        self._places = 0
        self._is_surrendered = False

    @property
    def has_writer(self) -> bool:
        """Whether a request holds the turn."""
        return self._turn is not None

    async def end_writer(self) -> int:
        """End a running writer; on return it has left and writes no more.

        Returns the caller's place among the newcomers.
        """
        self._places += 1
        place = self._places
        # Several waiters wake together: a newer request may have taken the turn already.
        while self._turn is not None and self._turn.place < place:
            await self._end(self._turn)
        return place

    async def end_writers(self) -> None:
        """End any writer, however new it is. The caller has set :attr:`ended`.

        On return nobody writes, and nobody will.
        """
        while self._turn is not None:
            await self._end(self._turn)

    def surrender(self) -> None:
        """End the running writer, and give nobody the turn: another process writes from now on."""
        self._is_surrendered = True
        if self._turn is not None:
            self._turn.end()
            self._lane.hasten()

    def take_back(self) -> None:
        """End :meth:`surrender`: this process is the one that writes, after all."""
        self._is_surrendered = False

    async def left(self) -> None:
        """Wait until nobody writes, after :meth:`surrender`."""
        while self._turn is not None:
            await self._turn.left.wait()

    def follow(self, earlier: Turns) -> None:
        """Let no place that *earlier* has given be valid here."""
        self._places = earlier._places + 1

    async def _end(self, turn: Turn) -> None:
        turn.end()
        self._lane.hasten()  # otherwise it might wait behind hundreds of other lanes
        await turn.left.wait()

    def begin(self, turn: Turn) -> None:
        """Give *turn* to its holder. Raises :class:`PeerError` if it has lost it already."""
        if self._turn is not None or self.ended or self.is_stale(turn):
            raise self.refusal()
        self._turn = turn

    async def leave(self, turn: Turn) -> None:
        """End *turn*, once everything that its holder has handed on is written."""
        if self._lane.pending:
            with trio.CancelScope(shield=True):
                await self._lane.until(0)
        self._turn = None
        turn.left.fire()

    def is_stale(self, turn: Turn) -> bool:
        """Whether a newer request wants the turn. After the end there is no turn to want."""
        is_late = self._places != turn.place or self._is_surrendered
        return is_late and not self.ended

    def refusal(self) -> PeerError:
        """Return the reason why a request loses the turn or does not get it."""
        if self.ended:
            return PeerError(ProblemCode.GONE, close=True)
        return self.superseded()

    @staticmethod
    def superseded() -> PeerError:
        """Return the answer to a request whose place a newer one has taken."""
        return PeerError(
            ProblemCode.SUPERSEDED,
            "a newer request for this upload arrived",
            close=True,
        )


class Written(Protocol):
    """The content that the holder of a turn writes."""

    turns: Turns

    async def open_writer(self) -> object:
        """Open the writer, at the beginning of the turn."""
        ...

    def hurry(self) -> None:
        """Note that the turn has ended, and no more content comes soon."""
        ...


class Turn:
    """A writer's turn, held in the block, with its place and a signal of its end.

    (A class, not a generator, to save memory: each silent upload has one.)
    """

    __slots__ = ("_content", "_scope", "left", "place")

    def __init__(self, content: Written, place: int) -> None:
        self.place = place
        self.left = Signal()
        self._content = content
        self._scope = trio.CancelScope()

    def end(self) -> None:
        """End the turn, because a newer request wants it."""
        self._scope.cancel()

    async def __aenter__(self) -> None:
        self._content.turns.begin(self)
        self._scope.__enter__()
        try:
            await self._content.open_writer()
        except BaseException:
            await self.__aexit__(*sys.exc_info())
            raise

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        turns = self._content.turns
        try:
            caught = self._scope.__exit__(kind, error, trace)
            if (caught or error is None) and (
                self._scope.cancelled_caught or turns.is_stale(self)
            ):
                raise turns.refusal()
            if isinstance(error, StaleWriter):  # another process has taken over
                raise turns.refusal() from error
            return caught
        finally:
            await turns.leave(self)
            self._content.hurry()
