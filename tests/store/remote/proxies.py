"""What can be between a worker and its keeper: delays, odd pieces, and a cut at any frame."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Callable

__all__ = ["Cutting", "delayed"]

_LONGEST_DELAY = 0.0005
"""Seconds. Other connections overtake this one within that time."""


def _recv_frame(sock: socket.socket) -> bytes:
    """Return the next frame with its length, or what there is of it at the end."""
    frame = b""
    size = 4
    while len(frame) < size:
        try:
            data = sock.recv(size - len(frame))
        except OSError:
            break
        if not data:
            break
        frame += data
        if size == 4 and len(frame) == 4:
            size += int.from_bytes(frame)
    return frame


class _Proxy:
    """Passes frames on, in both directions, by *send*; returns the worker's end."""

    def __init__(self, keeper: socket.socket) -> None:
        self.keeper = keeper
        self.worker, self.end = socket.socketpair()
        self._ended = 0
        self._ending = threading.Lock()
        for source, target in ((self.worker, keeper), (keeper, self.worker)):
            threading.Thread(
                target=self._pass, args=(source, target), daemon=True
            ).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        while frame := _recv_frame(source):
            try:
                self.send(target, frame)
            except OSError:
                break
        for sock in (source, target):
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # the other direction was first
        with self._ending:
            self._ended += 1
            if self._ended == 2:
                self.worker.close()
                self.keeper.close()

    def send(self, target: socket.socket, frame: bytes) -> None:
        target.sendall(frame)


class _Delaying(_Proxy):
    def __init__(self, keeper: socket.socket, draw: random.Random) -> None:
        self._draw = draw
        super().__init__(keeper)

    def send(self, target: socket.socket, frame: bytes) -> None:
        time.sleep(self._draw.random() * _LONGEST_DELAY)
        at = self._draw.randrange(len(frame) + 1)
        target.sendall(frame[:at])
        target.sendall(frame[at:])


def delayed(draw: random.Random) -> Callable[[socket.socket], socket.socket]:
    """Return what delays each frame for another time, and passes it on in two pieces."""
    return lambda keeper: _Delaying(keeper, draw).end


class Cutting(_Proxy):
    """Ends both connections within frame *number*, counted over both directions from 0.

    With *whole* that frame still passes.
    """

    def __init__(self, keeper: socket.socket, number: int, *, whole: bool) -> None:
        self._number = number
        self._whole = whole
        self._lock = threading.Lock()
        self._count = 0
        self.has_cut = False
        super().__init__(keeper)

    def send(self, target: socket.socket, frame: bytes) -> None:
        with self._lock:
            number, self._count = self._count, self._count + 1
            if self.has_cut:
                raise OSError("the connection was cut")
            if number != self._number:
                target.sendall(frame)
                return
            self.has_cut = True
            target.sendall(frame if self._whole else frame[: len(frame) // 2])
            raise OSError("the connection is cut")
