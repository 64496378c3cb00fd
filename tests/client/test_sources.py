"""Every kind of content gives its bytes from any offset, within its memory."""

from __future__ import annotations

import gzip
import io
import os
import random
from collections.abc import AsyncIterator
from contextlib import aclosing
from pathlib import Path
from typing import BinaryIO

import pytest
import trio
import trio.testing

from trioresume.client.content.file_source import (
    BLOCK_BYTES,
    FileSource,
    FileSpan,
    SourceChanged,
)
from trioresume.client.content.sources import (
    BodyInput,
    SeekableSource,
    Source,
    opened,
)
from trioresume.client.content.window import IterableSource
from trioresume.client.http.round_trip import Outgoing
from trioresume.errors import CallerError

DATA = random.Random(1).randbytes(2 * BLOCK_BYTES + 12345)


async def read(source: Source, offset: int) -> bytes:
    received = bytearray()
    async with aclosing(source.pieces(offset)) as pieces:
        async for piece in pieces:
            assert len(piece) <= BLOCK_BYTES
            received += piece.read() if isinstance(piece, FileSpan) else piece
    return bytes(received)


def plain_file(directory: Path) -> Path:
    path = directory / "content"
    path.write_bytes(DATA)
    return path


def opened_file(directory: Path) -> BinaryIO:
    file = plain_file(directory).open("rb")
    file.read(1000)
    return file


def compressed_file(directory: Path) -> gzip.GzipFile:
    path = directory / "content.gz"
    path.write_bytes(gzip.compress(DATA, compresslevel=1))
    return gzip.open(path)


@pytest.mark.parametrize("kind", ["bytes", "bytearray", "memoryview", "path", "str"])
async def test_content_starts_at_any_offset(kind: str, tmp_path: Path) -> None:
    """A resumed upload sends what is missing and nothing else."""
    path = plain_file(tmp_path)
    bodies: dict[str, BodyInput] = {
        "bytes": DATA,
        "bytearray": bytearray(DATA),
        "memoryview": memoryview(DATA),
        "path": path,
        "str": str(path),
    }
    async with opened(bodies[kind], 1) as source:
        assert source.length == len(DATA)
        for offset in (0, 1, BLOCK_BYTES, len(DATA) - 1, len(DATA)):
            assert source.can_start_at(offset)
            assert await read(source, offset) == DATA[offset:]
        assert not source.can_start_at(len(DATA) + 1)


async def test_open_file_is_sent_from_its_position(tmp_path: Path) -> None:
    """And by descriptor where that is what its read() would give."""
    with opened_file(tmp_path) as file:
        async with opened(file, 1) as source:
            assert isinstance(source, FileSource)
            assert source.identity() is None
            assert await read(source, 5) == DATA[1005:]


async def test_file_objects_are_read_not_their_descriptors(tmp_path: Path) -> None:
    """GzipFile.fileno() is that of the compressed file."""
    with compressed_file(tmp_path) as file:
        async with opened(file, 1) as source:  # type: ignore[arg-type]
            assert isinstance(source, SeekableSource)
            assert source.length == len(DATA)
            assert await read(source, 77) == DATA[77:]
    async with opened(io.BytesIO(DATA), 1) as source:
        assert await read(source, 0) == DATA


async def test_pipe_is_read_once(tmp_path: Path) -> None:
    """What cannot be seeked is an iterable with a window."""
    reading, writing = os.pipe()
    os.write(writing, b"through a pipe")
    os.close(writing)
    with os.fdopen(reading, "rb") as file:
        async with opened(file, 100) as source, trio.open_nursery() as nursery:
            assert isinstance(source, IterableSource)
            assert source.window == 100
            nursery.start_soon(source.run)
            assert await read(source, 0) == b"through a pipe"
            assert source.length == 14


async def test_what_is_no_content_is_the_callers_error(tmp_path: Path) -> None:
    """Said before anything is connected."""
    for body in (5, io.StringIO("text")):
        with pytest.raises(CallerError):
            async with opened(body, 1):  # type: ignore[arg-type]
                pass
    with pytest.raises(FileNotFoundError):
        async with opened(tmp_path / "missing", 1):
            pass
    with pytest.raises(IsADirectoryError):
        async with opened(tmp_path, 1):
            pass
    with pytest.raises(CallerError):
        IterableSource(pulled([]), 0)


@pytest.mark.parametrize("change", ["grow", "shrink", "rewrite"])
async def test_changed_file_is_not_sent_on(change: str, tmp_path: Path) -> None:
    """Half of one version and half of another is nobody's content."""
    path = plain_file(tmp_path)
    async with opened(path, 1) as source:
        await read(source, 0)
        if change == "rewrite":
            os.utime(path, ns=(1, 1))
        else:
            os.truncate(path, 2 * len(DATA) if change == "grow" else 5)
        with pytest.raises(SourceChanged) as caught:
            await read(source, 10)
        assert caught.value.resumable
        assert caught.value.useless == (change != "rewrite")


async def test_file_that_shrinks_under_the_sender_is_told(tmp_path: Path) -> None:
    """Not an endless loop of empty reads."""
    path = plain_file(tmp_path)
    async with opened(path, 1) as source:
        async with aclosing(source.pieces(0)) as pieces:
            await anext(pieces)
            span = await anext(pieces)
            os.truncate(path, 5)
            assert isinstance(span, FileSpan)
            with pytest.raises(SourceChanged, match="shorter"):
                span.read()


# What can be read only once.


async def pulled(blocks: list[bytes]) -> AsyncIterator[bytes]:
    for block in blocks:
        yield block


async def test_window_holds_back_the_producer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """No more than the capacity is ever held, however large a block is."""
    source = IterableSource(pulled([bytes(10_000)]), 1000)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        await trio.sleep(100)
        assert source.buffered == 1000
        # Nobody sends, so nobody knows what may be dropped: it waits.
        assert source.can_start_at(0)
        nursery.cancel_scope.cancel()


async def test_acknowledged_bytes_leave_the_window(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R30: with acknowledgements nothing is ever dropped that may be needed."""
    data = random.Random(2).randbytes(20_000)
    source = IterableSource(pulled([data]), 1000)
    received = bytearray()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        async with aclosing(source.pieces(0)) as pieces:
            async for piece in pieces:
                assert isinstance(piece, memoryview)
                received += piece
                assert source.buffered <= 1000
                nursery.start_soon(acknowledge_later, source, len(received))
    assert received == data
    assert source.length == len(data)


async def acknowledge_later(source: IterableSource, offset: int) -> None:
    await trio.sleep(3)
    assert source.can_start_at(offset - 1)
    source.release(offset, acknowledged=True)


async def test_without_acknowledgements_the_oldest_bytes_go(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """Best effort, after a while: the upload goes on, and the last bytes are kept."""
    data = random.Random(3).randbytes(20_000)
    source = IterableSource(pulled([data]), 1000)
    start = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        assert await read(source, 0) == data
    assert trio.current_time() - start == 5.0
    assert not source.can_start_at(0)
    assert source.can_start_at(len(data) - 800)
    assert await read(source, len(data) - 800) == data[-800:]


async def test_sender_that_was_cut_finds_its_bytes_again() -> None:
    """From any offset within the window."""
    source = IterableSource(pulled([b"abc", b"def", b"ghi"]), 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        assert await read(source, 0) == b"abcdefghi"
    assert await read(source, 4) == b"efghi"
    source.release(3, acknowledged=False)
    assert not source.can_start_at(2)
    assert source.can_start_at(3)
    assert source.can_start_at(9)
    assert not source.can_start_at(10)


async def test_content_is_gathered(autojump_clock: trio.testing.MockClock) -> None:
    """As much as is asked for, or the rest; never more than there is room for."""
    source = IterableSource(slowly(list("abcdefgh")), 5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        start = trio.current_time()
        await source.gather(0, 2)
        assert (source.at_hand(0), trio.current_time() - start) == (2, 2)
        await source.gather(0, 100)
        assert source.at_hand(0) == 5
        source.release(4, acknowledged=False)
        await source.gather(4, 100)
        assert source.length == 8
        assert source.at_hand(4) == 4
        nursery.cancel_scope.cancel()


async def test_gathering_raises_what_the_producer_raised() -> None:
    """What came before it is not sent."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise KeyError("mine")

    source = IterableSource(broken(), 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        with pytest.raises(KeyError, match="mine"):
            await source.gather(0, 50)


async def slowly(letters: list[str]) -> AsyncIterator[bytes]:
    for letter in letters:
        await trio.sleep(1)
        yield letter.encode()


async def test_part_of_a_file_is_a_part(tmp_path: Path) -> None:
    """A request that ends before the content does (C13)."""
    data = random.Random(7).randbytes(3_000_000)
    path = tmp_path / "file"
    path.write_bytes(data)
    for body in (path, data):
        async with opened(body, 100) as source:
            for limit in (1, 1_500_000, 3_000_000):
                outgoing = Outgoing(source, 10, b"prefix", limit)
                parts = [
                    piece.read() if isinstance(piece, FileSpan) else bytes(piece)
                    async for piece in outgoing.pieces()
                ]
                assert b"".join(parts) == b"prefix" + data[10 : 10 + limit]


async def test_empty_iterable_has_length_0() -> None:
    """It ends like any other."""
    source = IterableSource(pulled([b"", b""]), 100)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(source.run)
        assert await read(source, 0) == b""
    assert source.length == 0
