"""The receive memory: bounded, aligned, shared in order."""

from __future__ import annotations

import ctypes
import itertools

import pytest
import trio
import trio.lowlevel
import trio.testing

from trioresume.server.async_store.receive_memory import (
    LOW_WATER_SUM,
    PAGE_SIZE,
    PIECE_SIZE,
    SMALL,
    Piece,
    ReceiveMemory,
)


def take_all(memory: ReceiveMemory) -> list[Piece]:
    pieces: list[Piece] = []
    while (piece := memory.take_nowait()) is not None:
        pieces.append(piece)
    return pieces


@pytest.mark.parametrize(
    ("size", "count", "piece_size"),
    [
        (16 * PIECE_SIZE, 16, PIECE_SIZE),
        (2 * PIECE_SIZE + 1, 2, PIECE_SIZE),
        (100_000, 1, 98_304),
        (1, 1, PAGE_SIZE),
    ],
)
def test_there_is_as_much_as_the_setting_says(
    size: int, count: int, piece_size: int
) -> None:
    memory = ReceiveMemory(size)
    pieces = take_all(memory)
    assert [len(piece.view) for piece in pieces] == [piece_size] * count
    assert memory.piece_size == piece_size


def test_pieces_begin_on_pages_and_do_not_overlap() -> None:
    pieces = take_all(ReceiveMemory(4 * PIECE_SIZE))
    starts = [
        ctypes.addressof(ctypes.c_char.from_buffer(piece.view)) for piece in pieces
    ]
    assert all(start % PAGE_SIZE == 0 for start in starts)
    assert len({start // PIECE_SIZE for start in starts}) == 4
    for number, piece in enumerate(pieces):
        piece.view[:] = bytes([number]) * PIECE_SIZE
    for number, piece in enumerate(pieces):
        assert piece.view == bytes([number]) * PIECE_SIZE


def test_a_piece_is_free_when_everybody_let_go() -> None:
    memory = ReceiveMemory(PIECE_SIZE)
    piece = memory.take_nowait()
    assert piece is not None
    piece.hold()
    piece.release()
    assert memory.take_nowait() is None
    piece.release()
    assert memory.take_nowait() is piece


async def test_who_came_first_is_served_first() -> None:
    memory = ReceiveMemory(PIECE_SIZE)
    served: list[int] = []

    async def use(number: int) -> None:
        piece = await memory.take()
        served.append(number)
        await trio.lowlevel.checkpoint()
        piece.release()

    async with trio.open_nursery() as nursery:
        for number in range(20):
            nursery.start_soon(use, number)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(5):
            while len(served) < 20:
                await trio.lowlevel.checkpoint()
    assert served == list(range(20))
    assert len(take_all(memory)) == 1


async def test_a_cancelled_one_in_line_loses_no_piece() -> None:
    """Neither one that waits, nor one that was just served."""
    memory = ReceiveMemory(PIECE_SIZE)
    held = memory.take_nowait()
    assert held is not None
    scopes = [trio.CancelScope() for _ in range(2)]

    async def wait(scope: trio.CancelScope) -> None:
        with scope:
            await memory.take()

    async with trio.open_nursery() as nursery:
        for scope in scopes:
            nursery.start_soon(wait, scope)
            await trio.testing.wait_all_tasks_blocked()
        scopes[1].cancel()
        held.release()  # goes to the first one,
        scopes[0].cancel()  # which is cancelled before it runs
    assert len(take_all(memory)) <= 1
    assert [scope.cancelled_caught for scope in scopes][1]


@pytest.mark.parametrize(
    ("uploads", "mark"),
    [(0, 2048), (1, 2048), (64, 2048), (128, 1024), (256, 1024), (1024, 256)],
)
def test_few_uploads_are_woken_for_more(uploads: int, mark: int) -> None:
    """In KiB: all their marks together bound what may wait in the kernel."""
    memory = ReceiveMemory(32 * 1024 * 1024)
    memory.uploads = uploads
    assert memory.low_water == mark * 1024
    assert uploads * memory.low_water <= LOW_WATER_SUM


def test_a_mark_is_no_more_than_a_piece() -> None:
    """Or a task would be woken for what it cannot read at once."""
    memory = ReceiveMemory(256 * 1024)
    assert memory.low_water == memory.piece_size == 256 * 1024


def test_what_is_small_shares_a_piece() -> None:
    """Each begins on a page of its own; it is free when the last one let go."""
    memory = ReceiveMemory(2 * PIECE_SIZE)
    places: list[tuple[Piece, int]] = []
    for offset in (0, 10_000, 4095):
        piece = memory.take_nowait(1000)
        assert piece is not None
        start = piece.start(offset)
        assert start % PAGE_SIZE == offset % PAGE_SIZE
        places.append((piece, start))
        memory.share(piece, start + 1000)
    assert len({id(piece) for piece, _ in places}) == 1
    starts = [start for _, start in places]
    assert all(b - a >= 1000 for a, b in itertools.pairwise(starts))  # no overlap
    large = memory.take_nowait(SMALL + 1)
    assert large is not places[0][0]
    assert memory.take_nowait() is None
    for piece, _ in places:
        piece.release()
    assert memory.take_nowait(1000) is places[0][0]
    assert places[0][0].used == 0


def test_a_piece_is_shared_as_long_as_there_is_room() -> None:
    memory = ReceiveMemory(2 * PIECE_SIZE)
    first = memory.take_nowait(SMALL)
    assert first is not None
    memory.share(first, PIECE_SIZE - SMALL)
    assert memory.take_nowait(SMALL) is not first


def test_only_one_at_a_time_fills_a_shared_piece() -> None:
    memory = ReceiveMemory(3 * PIECE_SIZE)
    first = memory.take_nowait(1)
    assert first is not None
    memory.share(first, 1)
    assert memory.take_nowait(1) is first
    assert memory.take_nowait(1) is not first


def test_who_expects_little_waits_in_line_as_well() -> None:
    memory = ReceiveMemory(PIECE_SIZE)
    piece = memory.take_nowait(1)
    assert piece is not None
    memory.share(piece, 1)
    assert memory.take_nowait(1) is None
