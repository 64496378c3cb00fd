"""A worker reads its seat from its channel."""

from __future__ import annotations

import json
import os
import socket
from typing import Any

import pytest

from trioresume.errors import CallerError
from trioresume.server.workers.seat import MAX_LINE, Seat, take_seat


def seat(**changes: Any) -> Seat:
    told: dict[str, Any] = {
        "number": 3,
        "workers": 4,
        "bind": ["http://fd:7", "https://fd:8"],
        "slot": 5,
        "counts": 0,
        "catalog": 0,
        "lock": 0,
        "data_dir": "/srv/ø",
        "durability": "process",
        "parent": 17,
    }
    return Seat(**(told | changes))


def test_seat_is_read_and_nothing_beyond_it() -> None:
    """The rest of the channel is for the worker's event loop."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        files = [os.dup(theirs.fileno()) for _ in range(3)]
        for file in (theirs.fileno(), *files):
            os.set_inheritable(file, True)
        counts, catalog, lock = files
        told = seat(counts=counts, catalog=catalog, lock=lock)
        ours.sendall(told.line() + b'{"do": "ping"}\n')
        taken = take_seat(theirs.fileno())
        assert taken == seat(
            counts=counts, catalog=catalog, lock=lock, channel=theirs.fileno()
        )
        assert theirs.recv(100) == b'{"do": "ping"}\n'
        for file in (theirs.fileno(), *files):
            assert not os.get_inheritable(file)
        for file in files:
            os.close(file)


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        (b"", "no parent process"),
        (b"hello\n", "no parent process"),
        (b"[1]\n", "another version"),
        (b"{}\n", "another version"),
        (json.dumps({"version": 2}).encode() + b"\n", "another version"),
        (json.dumps({"version": 1}).encode() + b"\n", "tells no seat"),
        (seat().line().replace(b'"slot"', b'"seat"'), "tells no seat"),
        (b"x" * MAX_LINE, "no parent process"),
    ],
)
def test_what_is_no_seat_is_refused(line: bytes, fault: str) -> None:
    """A worker that somebody starts by hand, or of another version, does not run."""
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2 * MAX_LINE)
        ours.sendall(line)
        ours.close()
        with pytest.raises(CallerError, match=fault):
            take_seat(theirs.fileno())


def test_descriptor_that_is_no_socket_is_refused() -> None:
    """Also one that is not open."""
    reading, writing = os.pipe()
    for descriptor in (reading, 9999):
        with pytest.raises(CallerError, match="no parent process"):
            take_seat(descriptor)
    os.close(reading)
    os.close(writing)
