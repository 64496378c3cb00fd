"""The channel between the parent and one worker: lines of JSON in both directions.

The parent says ``do``: ``lead``, ``stop``, ``drain``, ``end``, ``ping``, ``report`` or
``retry``. With a number as ``n`` the parent wants an answer, which has the same number.
The worker says ``ready`` once it listens, ``failed`` if it cannot start, and ``recovered``
when it has taken up again what an earlier process left. If the channel closes, the parent
ends the worker, and the worker ends itself.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator

import trio

from trioresume.errors import StorageError
from trioresume.server.keeper.conversation import Conversation, Message

__all__ = ["Channel"]

LONGEST_LINE = 8 * 1024 * 1024
"""A report of all metrics has some ten thousand bytes."""


class Channel:
    """One end of the channel. Use it in an ``async with`` statement of :attr:`talk`.

    *patience* is how many seconds the other end may take no line.
    """

    def __init__(self, sock: socket.socket, patience: float) -> None:
        sock.setblocking(False)
        self.talk = Conversation(trio.socket.from_stdlib_socket(sock), patience)
        self._sending = trio.Lock()
        self._number = 0
        self._asked: dict[int, tuple[trio.Event, list[Message]]] = {}

    async def say(self, message: Message) -> None:
        """Send *message*, if the other end is still there."""
        async with self._sending:
            try:
                await self.talk.say(message)
            except (
                trio.BrokenResourceError,
                trio.ClosedResourceError,
                trio.TooSlowError,
            ):
                pass  # who reads from the channel learns of it

    async def ask(self, message: Message, patience: float) -> Message:
        """Send *message*, and return the answer.

        Raises :class:`StorageError` if none comes within *patience* seconds.
        """
        self._number += 1
        number, answered = self._number, trio.Event()
        answers: list[Message] = []
        self._asked[number] = answered, answers
        try:
            with trio.move_on_after(patience):
                await self.say({**message, "n": number})
                await answered.wait()
        finally:
            del self._asked[number]
        if not answers:
            raise StorageError("the worker process does not answer")
        return answers[0]

    async def lines(self) -> AsyncIterator[Message]:
        """Yield what the other end says, but for the answers, until it is gone."""
        while True:
            try:
                message = await self.talk.hear(LONGEST_LINE)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                message = None
            if message is None:
                break
            asked = self._asked.get(message.get("answers", -1))
            if asked is None:
                yield message
            else:
                asked[1].append(message)
                asked[0].set()
        for answered, _ in self._asked.values():
            answered.set()
