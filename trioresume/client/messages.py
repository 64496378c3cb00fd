"""What a caller of the client sees: responses and progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trioresume.protocol.heads import Fields

__all__ = ["ClientResponse", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResponse:
    """The final response to a request, on whichever way it came in the end."""

    status: int
    headers: Fields
    body: bytes
    """The content; empty when it went to a file (see *saved_to*)."""
    saved_to: Path | None = None
    """Where the content was saved, if that was asked for and the status is 2xx."""
    url: str
    """The request's URL, against which ``Location`` resolves."""
    attempts: int
    """How often the content was sent, or sent on after a cut; 1 if nothing went wrong."""
    bytes_resent: int
    """Content bytes that were sent more than once."""
    protocol: str = "plain"
    """What the upload was made in: ``seed``, ``rufh`` or ``tus``; ``plain`` if the server
    offered no way to resume."""

    @property
    def ok(self) -> bool:
        """Whether the status is one of success, 200 to 299."""
        return 200 <= self.status <= 299


@dataclass(frozen=True, slots=True)
class Progress:
    """How far an upload is."""

    sent: int
    """Where in the content the current attempt is, in bytes; falls when it must resend."""
    acknowledged: int
    """Bytes that the server said it has, safely."""
    total: int | None
    """Length of the content; None while it is not known."""
    attempt: int
    """Counts from 1; rises each time the content is sent on after a cut."""
    transferred: int = 0
    """Content bytes handed to the connection by this call, those that were sent again
    included, and without what an earlier run had sent: a rate is made of these."""
    trouble: str | None = None
    """Why nothing gets through at present, such as ``connection refused``; else None."""
    retry_in: float | None = None
    """Seconds until the next try, if it waits for one."""
