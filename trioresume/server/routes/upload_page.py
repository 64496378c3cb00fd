"""The page for people who upload with a browser, at ``/ui/``.

The page is the same for everybody and tells nothing secret. So it is served without
authentication: a browser cannot send a token when a person types an address. The requests of
the page are authenticated like those of any client.

The page's policy lets it run its own script and talk to its own server, and nothing else. In
browsers that know Trusted Types no text can become markup or code, whatever the name of a
file is.
"""

from __future__ import annotations

from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.conditional import Outcome, evaluate
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import UI_PATH
from trioresume.ui.page import load_page

if TYPE_CHECKING:
    from trioresume.server.api.config import Config
    from trioresume.server.http.exchange import Exchange

__all__ = ["UploadPage"]

_ALLOWED = "GET, HEAD"


class UploadPage:
    """Serves the page that uploads to ``config.ui``.

    Raises :class:`~trioresume.errors.CallerError` if the page was not built.
    """

    def __init__(self, config: Config) -> None:
        assert config.ui is not None
        # A person may type the path without the slash, unless that is the name of a file.
        self._redirects = config.ui != "/"
        # Relative, like all references of the page: a relative one is right even if a proxy
        # removes a prefix of the path.
        endpoint = f"../{config.ui.removeprefix('/')}"
        self._files = load_page(endpoint, config.ui_appearance)
        self._fields = Fields(
            {
                "content-security-policy": _policy(config),
                "cross-origin-opener-policy": "same-origin",
                "referrer-policy": "no-referrer",
                "x-content-type-options": "nosniff",
                # The browser asks each time, and gets a 304 for an unchanged file.
                "cache-control": "no-cache",
            }
        )

    def has(self, path: str) -> bool:
        """Whether the page answers requests for *path*."""
        bare = UI_PATH.removesuffix("/")
        return path.startswith(UI_PATH) or (self._redirects and path == bare)

    async def handle(self, exchange: Exchange) -> None:
        """Answer a request for one of the page's files. Raises :class:`PeerError`."""
        head = exchange.head
        if head.method not in ("GET", "HEAD"):
            raise PeerError(
                ProblemCode.METHOD_NOT_ALLOWED, fields=(("allow", _ALLOWED),)
            )
        if not head.path.startswith(UI_PATH):
            await exchange.respond(308, Fields({"location": UI_PATH[1:]}))
            return
        file = self._files.get(head.path.removeprefix(UI_PATH))
        if file is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        fields = self._fields.plus({"etag": file.etag})
        outcome = evaluate(head.method, head.fields, etag=file.etag)
        if outcome is Outcome.FAILED:
            raise PeerError(ProblemCode.PRECONDITION_FAILED)
        if outcome is Outcome.NOT_MODIFIED:
            await exchange.respond(304, fields)
            return
        described = {"content-type": file.content_type}
        await exchange.respond(200, fields.plus(described), file.content)


def _policy(config: Config) -> str:
    """Return the page's rights as a Content-Security-Policy (level 3)."""
    server = "'self'"
    if config.public_url:
        # The locations that the page is told lead there. The page itself may have been
        # opened under another name.
        public = urlsplit(config.public_url)
        server = f"'self' {public.scheme}://{public.netloc}"
    rules = {
        "default-src": "'none'",
        "script-src": "'self'",
        "style-src": "'self'",
        "img-src": "'self'",
        "connect-src": server,
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
        "require-trusted-types-for": "'script'",
        "trusted-types": "'none'",
    }
    return "; ".join(f"{rule} {value}" for rule, value in rules.items())
