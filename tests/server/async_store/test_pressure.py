"""Receive memory is a bound that all uploads share, and a slow disk is the peer's to feel."""

from __future__ import annotations

import random
import threading
import time
from pathlib import Path

import pytest
import trio

from tests.server.harness import Client, Recorder, head, socket_service
from trioresume import Config, FileService
from trioresume.server.async_store.receive_memory import ReceiveMemory
from trioresume.store.file_system.disk_io import Descriptor, Disk

MIB = 1 << 20


def _largest_buffer(name: str) -> int:
    """The most that the system lets a connection's buffer grow to by itself."""
    try:
        return int(Path("/proc/sys/net/ipv4", name).read_text().split()[2])
    except OSError:
        return 16 * MIB  # not Linux


BUFFERS = _largest_buffer("tcp_rmem") + _largest_buffer("tcp_wmem") + 8 * MIB
"""More than a socket's two buffers and two pieces of content hold together."""
SIZE = 2 * BUFFERS


class Gate:
    """Holds up what worker threads write until it is opened."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        loop = threading.current_thread()
        write_some = Disk.write_some

        def write(disk: Disk, file: Descriptor, view: memoryview, position: int) -> int:
            if threading.current_thread() is not loop:
                self.open.wait(60)
            return write_some(disk, file, view, position)

        monkeypatch.setattr(Disk, "write_some", write)


async def test_a_disk_that_stalls_closes_the_peers_window(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The peer can send what the kernel's buffers hold and no more, until it goes on."""
    gate = Gate(monkeypatch)
    sent = 0
    content = random.Random(1).randbytes(MIB)
    async with (
        socket_service(FileService(), tmp_path, chunk_size=4 * MIB) as service,
        service.connect() as client,
    ):
        try:
            await client.send(head("PUT", "/files/x", length=SIZE))
            with trio.move_on_after(60):
                while sent < SIZE:
                    with trio.move_on_after(1.0) as quiet:
                        await client.send(content)
                        sent += MIB
                    if quiet.cancelled_caught:
                        break
            assert sent < BUFFERS
            # The loop is not held up by it: others are answered meanwhile.
            async with service.connect() as other:
                assert (await other.request("GET", "/files/none")).status == 404
        finally:
            gate.open.set()


async def test_many_slow_uploads_share_the_memory_and_all_arrive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As little as one piece of memory serves them all; none starves, none is mixed up."""
    pieces: list[ReceiveMemory] = []
    make = ReceiveMemory.__init__

    def note(memory: ReceiveMemory, size: int) -> None:
        make(memory, size)
        pieces.append(memory)

    monkeypatch.setattr(ReceiveMemory, "__init__", note)
    handler = Recorder()
    contents = [random.Random(n).randbytes(300_000) for n in range(100)]
    finished: list[float] = []

    async def upload(content: bytes) -> None:
        stream = await trio.open_tcp_stream(*service.address)
        async with stream:
            client = Client(stream)
            await client.send(head("POST", "/", length=len(content)))
            for at in range(0, len(content), 100_000):
                await client.send(content[at : at + 100_000])
                await trio.sleep(0.01)
            assert (await client.reply("POST")).status == 200
            finished.append(time.monotonic())

    async with socket_service(handler, tmp_path, receive_memory=128 * 1024) as service:
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for content in contents:
                    nursery.start_soon(upload, content)
    (memory,) = pieces
    assert len(finished) == len(contents)
    assert sorted(handler.bodies) == sorted(contents)
    assert memory.piece_size == 128 * 1024
    assert memory.take_nowait() is not None  # it came back,
    assert memory.take_nowait() is None  # and there was no other


def test_a_piece_is_no_larger_than_the_setting() -> None:
    """What the setting says is all there is, in whole pages."""
    for size in (4096, 100_000, Config().receive_memory):
        memory = ReceiveMemory(size)
        held = 0
        while (piece := memory.take_nowait()) is not None:
            held += len(piece.view)
        assert held <= max(size, 4096)
