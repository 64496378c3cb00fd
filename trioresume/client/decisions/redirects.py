"""Redirects of a request that has not begun an upload yet.

A 307 or a 308 asks for the same request at another URL (RFC 9110, sections 15.4.8 and
15.4.9). The client follows it within the request's own origin, and to origins that its
caller allows. To another origin it sends no credentials. After a 301, a 302 or a 303 a
client may use GET, which sends no content, so they are not followed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.errors import TransferFailed

if TYPE_CHECKING:
    from collections.abc import Collection

    from trioresume.protocol.dialects.client import Answer
    from trioresume.protocol.urls import Origin, Url

__all__ = ["MOST_REDIRECTS", "Redirects"]

MOST_REDIRECTS = 5
"""The most redirects in a row that are followed."""


class Redirects:
    """Where a request goes now. *url* is its own URL, *allowed* are further origins."""

    def __init__(self, url: Url, allowed: Collection[Origin] = ()) -> None:
        self._own = url
        self._allowed = allowed
        self._followed = 0
        self.url = url
        """The URL of the next request."""

    def is_own(self, origin: Origin) -> bool:
        """Whether *origin* is that of the request's own URL, and so gets its credentials."""
        return origin == self._own.origin

    @property
    def moved(self) -> Url | None:
        """The URL to which the request was redirected; None if it was not."""
        return None if self.url == self._own else self.url

    def may_go_to(self, origin: Origin) -> bool:
        """Whether *origin* may get the request."""
        return self.is_own(origin) or origin in self._allowed

    def follow(self, answer: Answer) -> bool:
        """Follow *answer*, if it is a redirect to follow. Return whether it was.

        Raises :class:`TransferFailed` if there are too many in a row.
        """
        reference = answer.fields.get("location")
        if answer.status not in (307, 308) or reference is None:
            return False
        url = self.url.join(reference)
        if url is None or not self.may_go_to(url.origin):
            return False
        self._followed += 1
        if self._followed > MOST_REDIRECTS:
            raise TransferFailed(
                f"the server redirected the request more than {MOST_REDIRECTS} times, the"
                f" last time to {url.shown}"
            )
        self.url = url
        return True

    def resume(self, moved: Url) -> None:
        """Go on at *moved*, where an earlier run began the upload."""
        self.url = moved

    def restart(self) -> None:
        """Begin again at the request's own URL."""
        self.url, self._followed = self._own, 0
