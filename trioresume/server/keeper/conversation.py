"""One connection of the control socket: lines of JSON, and descriptors of open files.

Both ends use this class. A line may carry one descriptor (``SCM_RIGHTS``), so that a command
can hand over a file that the service itself has no right to open.
"""

from __future__ import annotations

import array
import json
import os
import socket
from collections import deque
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

import trio

__all__ = ["CLIENT_TIMEOUT", "MAX_LINE", "Conversation", "Message"]

Message = Mapping[str, Any]

MAX_LINE = 4096
"""The most bytes of a line. Only an import sends longer ones: see :mod:`.intake`."""
CLIENT_TIMEOUT = 10.0
"""Seconds for a client to send its line, or to take a line."""
_MOST_DESCRIPTORS = 4
"""Descriptors that one read may bring; the system closes any others."""


class Conversation:
    """One end of a connection. Use it in an ``async with`` statement, which closes it."""

    def __init__(
        self, connection: trio.socket.SocketType, patience: float = CLIENT_TIMEOUT
    ) -> None:
        self._socket = connection
        self._stream = trio.SocketStream(connection)
        self._patience = patience
        self._lines: deque[bytes] = deque()
        self._rest = b""
        self._descriptors: deque[int] = deque()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        while self._descriptors:
            os.close(self._descriptors.popleft())
        await self._stream.aclose()

    async def say(self, message: Message, descriptor: int | None = None) -> None:
        """Send *message*, and the open file *descriptor* with it.

        Raises :class:`trio.BrokenResourceError` if the other end is gone, and
        :class:`trio.TooSlowError` if it takes nothing.
        """
        line = json.dumps(message).encode() + b"\n"
        with trio.fail_after(self._patience):
            if descriptor is not None:
                rights = array.array("i", [descriptor])
                carried = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)]
                try:
                    sent = await self._socket.sendmsg([line], carried)
                except OSError as exc:
                    raise trio.BrokenResourceError from exc
                line = line[sent:]
            await self._stream.send_all(line)

    async def hear(self, most: int = MAX_LINE) -> Message | None:
        """Return the next line's object; None at the end. Waits as long as it takes.

        Something that is no object, or has more than *most* bytes, is an empty object.
        """
        while not self._lines:
            if len(self._rest) >= most:
                self._rest = b""
                return {}
            data = await self._receive(most)
            if not data:
                return None
            *lines, self._rest = (self._rest + data).split(b"\n")
            self._lines.extend(lines)
        line = self._lines.popleft()
        try:
            message = json.loads(line) if len(line) <= most else None
        except ValueError:
            message = None
        return message if isinstance(message, dict) else {}

    async def _receive(self, most: int) -> bytes:
        try:
            data, carried, _, _ = await self._socket.recvmsg(
                most, socket.CMSG_SPACE(_MOST_DESCRIPTORS * array.array("i").itemsize)
            )
        except OSError as exc:
            raise trio.BrokenResourceError from exc
        for level, kind, packed in carried:
            if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                numbers = array.array("i")
                numbers.frombytes(packed[: len(packed) // 4 * 4])
                for number in numbers:
                    os.set_inheritable(number, False)
                    self._descriptors.append(number)
        return data

    def take_descriptor(self) -> int | None:
        """Return the descriptor that came first; the caller closes it. None without one."""
        return self._descriptors.popleft() if self._descriptors else None

    async def until_gone(self, scope: trio.CancelScope) -> None:
        """Cancel *scope* when the other end goes away; ignore whatever else it sends."""
        try:
            while await self.hear() is not None:
                pass
        except trio.BrokenResourceError:
            pass  # it is gone, too
        scope.cancel()
