"""The progress of an upload, as a caller of the client gets it, and what goes wrong in words."""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11
import trio

from trioresume.protocol.progress import ProcessingProgress

if TYPE_CHECKING:
    from trioresume.client.decisions.actions import Outcome

__all__ = ["ProcessingProgress", "Progress", "trouble_of", "words_for"]


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is."""

    sent: int
    """The current attempt's position in the content, in bytes. It falls when bytes are
    sent again.
    """
    acknowledged: int
    """How many bytes the server has, durably, by its own statement."""
    total: int | None
    """The length of the content in bytes; None while it is not known."""
    attempt: int
    """The number of the attempt, from 1 on. It rises each time sending continues after a cut."""
    transferred: int = 0
    """The content bytes that this call handed to the connection, with repeated ones and
    without those of an earlier run. Compute a rate from these.
    """
    trouble: str | None = None
    """Why nothing gets through now, such as ``connection refused``; None if all is well."""
    retry_in: float | None = None
    """Seconds until the next attempt, if the client waits for it."""
    processing: ProcessingProgress | None = None
    """How far the server is with processing, once all content is there; None if it does not
    tell that.
    """


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
        return words_for(outcome.cause)
    if outcome.answer is not None and not outcome.answer.ok:
        return f"the server answered {outcome.answer.status}"
    return None if outcome.answer is not None else "no answer"


def words_for(cause: BaseException) -> str:
    """Return what went wrong, in words for a person."""
    for exc in _behind(cause):
        if isinstance(exc, socket.gaierror):
            return f"the server's name cannot be resolved: {exc.strerror}"
        if isinstance(exc, ssl.SSLError):
            # Its errno is a number of OpenSSL.
            cut = isinstance(exc, ssl.SSLEOFError)
            return "connection lost" if cut else f"TLS failed: {exc.strerror}"
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
