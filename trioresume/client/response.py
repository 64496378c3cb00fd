"""The final response, as a caller of the client gets it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from trioresume.protocol.heads import Fields

__all__ = ["ClientResponse"]


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

    parts: int = 1
    """In how many parts the content was sent, each as an upload of its own."""

    sha256: str | None = None
    """The SHA-256 of the content that was sent, if the caller asked for it."""
    is_confirmed: bool = False
    """Whether the server reported the same digest, so that it stored what was sent."""

    @property
    def ok(self) -> bool:
        """Whether the status means success: 200 to 299."""
        return 200 <= self.status <= 299
