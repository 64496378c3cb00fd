"""What the benchmark uploads: never the same chunk twice."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise

import pytest
from blake3 import blake3

from bench.content import BUFFER_LENGTH, SLOT, Buffer, Piece, Slots, pieces

MIB = 1 << 20


@pytest.fixture(scope="module")
def buffer() -> Iterator[Buffer]:
    with closing(Buffer(7)) as made:
        yield made


def test_the_buffer_length_is_prime() -> None:
    """Only then do chunks of every size start at ever new places."""
    assert all(BUFFER_LENGTH % divisor for divisor in range(2, 16_384))
    assert BUFFER_LENGTH < 16_384**2


def test_chunks_of_many_uploads_start_at_different_places() -> None:
    """Ten rounds of a thousand and of sixteen uploads share no start in the buffer."""
    slots = Slots()
    starts = [
        (piece.position + chunk) % BUFFER_LENGTH
        for n, size in [(1000, MIB), (16, 64 * MIB)] * 10
        for piece in [slots.take(size) for _ in range(n)]
        for chunk in range(0, size, SLOT)
    ]
    assert len(starts) == len(set(starts))


def test_slots_do_not_overlap() -> None:
    """An upload's bytes are its own, also when its size is not that of a slot."""
    slots = Slots()
    taken = [slots.take(size) for size in (1, SLOT, SLOT + 1, 3 * SLOT - 1, 5)]
    for before, after in pairwise(taken):
        assert before.position + before.length <= after.position
        assert after.position % SLOT == 0


def test_pieces_cover_a_stretch_that_goes_round_the_buffer() -> None:
    """The pieces join up, stay within the buffer and add up to the length."""
    piece = Piece(BUFFER_LENGTH - 10, BUFFER_LENGTH + 30)
    assert list(pieces(piece)) == [
        (BUFFER_LENGTH - 10, 10),
        (0, BUFFER_LENGTH),
        (0, 20),
    ]


def test_digest_is_of_the_bytes_that_are_sent(buffer: Buffer) -> None:
    """The digest equals that of the same bytes read from the descriptor."""
    piece = Piece(BUFFER_LENGTH - 1000, 5000)
    data = os.pread(buffer.fd, 1000, BUFFER_LENGTH - 1000) + os.pread(
        buffer.fd, 4000, 0
    )
    assert buffer.digest(piece) == blake3(data).digest()


def test_the_same_seed_makes_the_same_content(buffer: Buffer) -> None:
    """So that a run can be repeated; another seed makes other content."""
    piece = Piece(12_345, 100_000)
    with closing(Buffer(7)) as same, closing(Buffer(8)) as other:
        assert same.digest(piece) == buffer.digest(piece)
        assert other.digest(piece) != buffer.digest(piece)
