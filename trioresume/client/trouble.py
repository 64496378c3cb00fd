"""Says in a few words what went wrong with an attempt, for progress reports."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterator
from typing import TYPE_CHECKING

import h11
import trio

if TYPE_CHECKING:
    from trioresume.client.steps import Outcome

__all__ = ["trouble_of"]

_WORDS = {
    errno.ECONNREFUSED: "connection refused",
    errno.ECONNRESET: "connection lost",
    errno.ECONNABORTED: "connection lost",
    errno.EPIPE: "connection lost",
    errno.ETIMEDOUT: "connection timed out",
    errno.EHOSTUNREACH: "no route to the server",
    errno.ENETUNREACH: "network unreachable",
    errno.ENETDOWN: "network down",
}


def trouble_of(outcome: Outcome) -> str | None:
    """Return why *outcome* has to be tried again; None if nothing is wrong.

    A successful answer that only means waiting, such as a 202, is no trouble.
    """
    if outcome.cause is not None:
        return _words_for(outcome.cause)
    if outcome.answer is not None and not outcome.answer.ok:
        return f"the server answered {outcome.answer.status}"
    return None if outcome.answer is not None else "no answer"


def _words_for(cause: BaseException) -> str:
    for exc in _behind(cause):
        if isinstance(exc, socket.gaierror):
            return f"the server's name cannot be resolved: {exc.strerror}"
        if isinstance(exc, OSError) and exc.errno is not None:
            return _WORDS.get(exc.errno) or os.strerror(exc.errno)
    if isinstance(cause, trio.BrokenResourceError):
        return "connection lost"
    if isinstance(cause, h11.RemoteProtocolError):
        return "the server's answer cannot be read"
    return str(cause) or type(cause).__name__


def _behind(exc: BaseException) -> Iterator[BaseException]:
    """Yield *exc* and its causes; of a group also its members."""
    yield exc
    if isinstance(exc, BaseExceptionGroup):
        for member in exc.exceptions:
            yield from _behind(member)
    elif exc.__cause__ is not None:
        yield from _behind(exc.__cause__)
