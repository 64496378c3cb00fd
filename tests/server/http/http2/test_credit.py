"""The line in which the streams of one HTTP/2 connection get credit."""

from __future__ import annotations

from hypothesis import given, strategies as st

from trioresume.server.async_store.receive_memory import ReceiveMemory
from trioresume.server.http.http2.credit import ROUND_TIME, CreditTurns
from trioresume.server.http.http2.engine import INITIAL_WINDOW

MEMORY = 16 << 20
PIECE = 2 << 20


class Stream:
    """Takes what it is given, and notes it."""

    def __init__(self) -> None:
        self.turns: list[tuple[int, bool]] = []

    def take_turn(self, window: int, *, waited: bool) -> int:
        self.turns.append((window, waited))
        return window


def turns_of(streams: int, *, uploads: int | None = None) -> CreditTurns:
    """The line of a connection with so many streams, of so many uploads in all."""
    memory = ReceiveMemory(MEMORY)
    memory.uploads = streams if uploads is None else uploads
    turns = CreditTurns(memory)
    turns.receiving = streams
    return turns


def hurry(turns: CreditTurns, rate: int) -> None:
    """Let the connection receive *rate* bytes a second, for a second."""
    for tenth in range(1, 12):
        turns.note(rate // 10, tenth / 10 + tenth / 1000)


def test_streams_get_turns_in_the_order_in_which_they_ask() -> None:
    """A stream that asks while others wait has to wait, too. The end of a turn serves the next."""
    turns = turns_of(128)
    hurry(turns, 1 << 30)
    streams = [Stream() for _ in range(5)]
    assert [turns.ask(stream) for stream in streams] == [True] * 2 + [False] * 3
    assert [turns.is_waiting(stream) for stream in streams] == [False] * 2 + [True] * 3
    turns.give_back(PIECE)
    assert [len(stream.turns) for stream in streams] == [1, 1, 1, 0, 0]
    assert streams[2].turns == [(PIECE, True)]
    turns.give_back(PIECE)
    assert streams[3].turns == [(PIECE, True)]


def test_stream_that_leaves_the_line_gets_no_turn() -> None:
    """The one behind it gets the turn."""
    turns = turns_of(128)
    hurry(turns, 1 << 30)
    streams = [Stream() for _ in range(4)]
    for stream in streams:
        turns.ask(stream)
    assert turns.leave(streams[2])
    assert not turns.leave(streams[2])
    assert not turns.leave(streams[0])
    turns.give_back(PIECE)
    assert [len(stream.turns) for stream in streams] == [1, 1, 0, 1]


def test_few_streams_need_not_wait() -> None:
    """Two pieces of memory are enough for two streams."""
    turns = turns_of(2)
    hurry(turns, 1 << 30)
    assert all(turns.ask(Stream()) for _ in range(2))


@given(
    streams=st.integers(1, 300),
    others=st.integers(0, 3000),
    rate=st.integers(0, 1 << 31),
)
def test_turns_are_bounded_by_memory_and_by_the_length_of_a_round(
    streams: int, others: int, rate: int
) -> None:
    """Whatever the rate and the number of streams, little more than the share is given."""
    turns = turns_of(streams, uploads=streams + others)
    hurry(turns, rate)
    asking = [Stream() for _ in range(streams)]
    for stream in asking:
        turns.ask(stream)
    given = [window for stream in asking for window, _ in stream.turns]
    window = given[0]
    assert set(given) == {window}
    share = max(INITIAL_WINDOW, MEMORY * streams // (streams + others))
    assert sum(given) < min(2 * PIECE, share) + window
    assert INITIAL_WINDOW <= window <= PIECE
    if window > INITIAL_WINDOW:
        assert window * streams <= 1.01 * rate * ROUND_TIME
