"""Sending files to a backend: a thread waits for one that reads, and for no other."""

from __future__ import annotations

import select
import socket
import tempfile
from collections.abc import Iterator
from contextlib import suppress

import pytest
import trio

from trioresume.server.http.transport import SocketTransport
from trioresume.targets.upstream.connections import Connection, PatientSender
from trioresume.targets.upstream.endpoints import parse_endpoint

needs_poll = pytest.mark.skipif(
    not hasattr(select, "poll"), reason="this system has no poll"
)


class Files:
    """A sender with these *results*, one for each call."""

    def __init__(self, *results: int | None) -> None:
        self.results = list(results)

    async def wait_writable(self) -> None:
        await trio.lowlevel.checkpoint()

    def send_file_nowait(self, descriptor: int, offset: int, size: int) -> int | None:
        return self.results.pop(0)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected and do not block."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)
        theirs.setblocking(False)
        yield ours, theirs


def fill(sock: socket.socket) -> None:
    with suppress(BlockingIOError):
        while True:
            sock.send(bytes(65536))


@needs_poll
def test_sender_goes_on_once_the_backend_has_read(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    ours, theirs = pair
    fill(ours)
    with suppress(BlockingIOError):
        while theirs.recv(1 << 20):
            pass
    files = Files(None, 7)
    assert PatientSender(files, ours.fileno()).send_file_nowait(0, 0, 7) == 7


@needs_poll
def test_sender_leaves_a_backend_that_does_not_read_to_its_task(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    fill(pair[0])
    files = Files(None, 7)
    assert PatientSender(files, pair[0].fileno()).send_file_nowait(0, 0, 7) is None
    assert files.results == [7]


@needs_poll
@pytest.mark.parametrize("sent", [0, 5])
def test_sender_waits_for_nothing_if_something_was_sent(
    sent: int, pair: tuple[socket.socket, socket.socket]
) -> None:
    """And 0 is the end of the file."""
    fill(pair[0])
    files = Files(sent)
    assert PatientSender(files, pair[0].fileno()).send_file_nowait(0, 0, 7) == sent


async def test_content_is_sent_from_its_file() -> None:
    """Over a real connection, which has room for all of it."""
    data = bytes(range(256)) * 64
    ours, theirs = trio.socket.socketpair()
    connection = Connection(SocketTransport(ours), parse_endpoint("unix:/x"))
    with theirs, tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        files = connection.files
        assert files is not None
        await files.wait_writable()
        assert files.send_file_nowait(file.fileno(), 256, 5000) == 5000
        assert await theirs.recv(1 << 16) == data[256:5256]
        connection.close()
