"""The values that a caller of the client gets: responses and progress."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trioresume.protocol.heads import Fields

__all__ = ["ClientResponse", "Progress"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientResponse:
    """The final response to a request, over any number of connections."""

    status: int
    headers: Fields
    body: bytes
    """The content; empty if it went to a file (see *saved_to*)."""
    saved_to: Path | None = None
    """The file with the content, if the caller asked for it and the status is 2xx."""
    url: str
    """The request's URL. ``Location`` is relative to it."""
    attempts: int
    """How often the client began or continued to send the content; 1 if nothing failed."""
    bytes_resent: int
    """Content bytes that were sent more than once."""
    protocol: str = "plain"
    """The upload's protocol: ``seed``, ``rufh`` or ``tus``; ``plain`` without a way to resume."""

    @property
    def ok(self) -> bool:
        """Whether the status means success: 200 to 299."""
        return 200 <= self.status <= 299


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
