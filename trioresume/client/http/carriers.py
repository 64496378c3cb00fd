"""Which version of HTTP a client speaks with an origin."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.errors import CallerError

if TYPE_CHECKING:
    from trioresume.protocol.urls import Origin

__all__ = ["CarrierChoice"]


class CarrierChoice:
    """What the caller allows, and which servers refused HTTP/2.

    With *http2* None the server chooses, over TLS (ALPN). True insists on HTTP/2, False
    forbids it. *h2c* is for ``http://``: HTTP/2 without asking (RFC 9113, section 3.3).
    """

    def __init__(self, http2: bool | None = None, *, h2c: bool = False) -> None:
        if h2c and http2 is False:
            raise CallerError("h2c is HTTP/2, which is forbidden: leave one out")
        self._http2 = http2
        self._h2c = h2c
        self._refused: set[Origin] = set()
        """Bounded by the origins of the caller's requests."""

    def may_be_http2(self, origin: Origin) -> bool:
        """Whether a connection to *origin* may turn out to be HTTP/2."""
        if origin.scheme == "http":
            return self._h2c
        return self._http2 is not False and origin not in self._refused

    def knows_http2(self, origin: Origin) -> bool:
        """Whether HTTP/2 is spoken without asking.

        Raises :class:`CallerError` if it must be spoken and cannot.
        """
        if origin.scheme == "http" and self._http2 and not self._h2c:
            raise CallerError(
                f"HTTP/2 with http://{origin.authority} needs h2c (--h2c): without TLS"
                " the server cannot be asked whether it speaks HTTP/2"
            )
        return origin.scheme == "http" and self._h2c

    def alpn(self, origin: Origin) -> tuple[str, ...]:
        """Return the protocols to offer in TLS, the best first."""
        if not self.may_be_http2(origin):
            return ("http/1.1",)
        return ("h2",) if self._http2 else ("h2", "http/1.1")

    @property
    def insists(self) -> bool:
        return bool(self._http2)

    def note_refusal(self, origin: Origin) -> None:
        """Note that the server at *origin* wants HTTP/1.1."""
        if not self.insists:
            self._refused.add(origin)
