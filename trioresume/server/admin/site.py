"""The admin page and its data, below ``/admin/`` on the second listener.

The listener asks for no credentials, so a browser of somebody who may connect to it must not be
turned against it by a page from elsewhere:

* A change needs a token that only the page itself has read, and comes in a header field that
  no other origin may send. ``Sec-Fetch-Site`` must not name another site.
* A name in the DNS can be made to point here, and then a page of that name would be of the
  same origin. So the host of a request must be an IP address, ``localhost``, or a name that
  the settings list.
* Its policy lets the page run its own script and talk to its own server, and nothing else.
"""

from __future__ import annotations

import ipaddress
import json
import secrets
import time
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, urlsplit

import trio

from trioresume.errors import CallerError, PeerError, ProblemCode, StorageError
from trioresume.protocol.heads import Fields
from trioresume.server.admin.figures import figures
from trioresume.server.admin.rows import Rows
from trioresume.ui.page import load_admin_page

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trioresume.server.admin.changes import Changes
    from trioresume.server.admin.recent import RecentErrors
    from trioresume.server.http.exchange import Exchange
    from trioresume.server.watch.view import View

__all__ = ["ADMIN_PATH", "AdminSite"]

ADMIN_PATH = "/admin/"
_API = f"{ADMIN_PATH}api/"
TOKEN_FIELD = "csrf-token"
CHANGE_FIELD = "change"
"""The field with a change: the listener accepts no content."""
MOST_SEARCH = 200
"""Characters of a search."""
LOOKS = 2
"""Looks into the catalog at a time, so that they leave the service its threads."""

_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
_SAFE = {
    "content-security-policy": _POLICY,
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}
_FILE = Fields({**_SAFE, "cache-control": "no-cache"})
_JSON = Fields(
    {**_SAFE, "cache-control": "no-store", "content-type": "application/json"}
)


class AdminSite:
    """Answers requests below ``/admin/``.

    *rows* is None if the store is not a data directory, *changes* is None if the page may
    only read. Raises :class:`CallerError` if the page was not built.
    """

    def __init__(
        self,
        view: View,
        errors: RecentErrors,
        rows: Rows | None,
        changes: Changes | None,
        names: Sequence[str],
    ) -> None:
        self._view = view
        self._errors = errors
        self._rows = rows
        self._changes = changes
        self._names = frozenset(name.lower() for name in names)
        self._token = secrets.token_urlsafe(24)
        self._began = time.monotonic()
        self._limiter = trio.CapacityLimiter(LOOKS)
        self._files = load_admin_page(self._token, may_change=changes is not None)

    def has(self, path: str) -> bool:
        """Whether it answers requests for *path*."""
        return path.startswith(ADMIN_PATH) or path in ("/", ADMIN_PATH[:-1])

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request. Raises :class:`PeerError`."""
        head = exchange.head
        self._check_host(head.fields.get("host") or "")
        if head.path == f"{_API}change":
            await self._change(exchange)
            return
        if head.method not in ("GET", "HEAD"):
            allowed = (("allow", "GET, HEAD"),)
            raise PeerError(ProblemCode.METHOD_NOT_ALLOWED, fields=allowed, close=True)
        if not head.path.startswith(ADMIN_PATH):
            # Relative, because a proxy may have taken something off the path.
            await exchange.respond(308, Fields({"location": ADMIN_PATH[1:]}))
        elif head.path.startswith(_API):
            answer = await self._look(head.path.removeprefix(_API), head.query)
            await exchange.respond(200, _JSON, json.dumps(answer).encode())
        else:
            file = self._files.get(head.path.removeprefix(ADMIN_PATH))
            if file is None:
                raise PeerError(ProblemCode.NOT_FOUND)
            described = {"content-type": file.content_type}
            await exchange.respond(200, _FILE.plus(described), file.content)

    def _check_host(self, host: str) -> None:
        if not _is_safe(host, self._names):
            raise PeerError(
                ProblemCode.FORBIDDEN,
                "the admin page may not be asked by this name: see --admin-name",
                close=True,
            )

    # What it shows.

    async def _look(self, what: str, query: str) -> Any:
        asked = {name: values[-1] for name, values in parse_qs(query).items()}
        if what == "now":
            return await figures(self._view, self._errors, self._began)
        if what == "errors":
            entries = self._errors.newest()
            return {
                "rows": [
                    {
                        "number": entry.number,
                        "at": entry.at,
                        "level": entry.level,
                        "logger": entry.logger,
                        "text": entry.text,
                    }
                    for entry in entries
                ],
                "next": None,
            }
        if self._rows is None:
            raise PeerError(
                ProblemCode.NOT_FOUND, "this service keeps its data elsewhere"
            )
        read = self._reading(self._rows, what, asked)
        if read is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        return await trio.to_thread.run_sync(read, limiter=self._limiter)

    def _reading(
        self, rows: Rows, what: str, asked: dict[str, str]
    ) -> Callable[[], object] | None:
        """Return what reads a page of *what*; None if there is no such table."""
        place = _number(asked.get("place"))
        search = asked.get("search", "")[:MOST_SEARCH]
        if what == "uploads":
            return partial(rows.uploads, search, place, ended="ended" in asked)
        if what == "files":
            return partial(rows.files, search, place)
        if what == "quotas":
            return partial(rows.quotas, place or 0)
        if what == "events":
            return partial(rows.events, place or 0, dead="dead" in asked)
        return None

    # What it changes.

    async def _change(self, exchange: Exchange) -> None:
        head = exchange.head
        if head.method != "POST":
            allowed = (("allow", "POST"),)
            raise PeerError(ProblemCode.METHOD_NOT_ALLOWED, fields=allowed, close=True)
        if self._changes is None:
            raise PeerError(
                ProblemCode.FORBIDDEN, "the admin page may only read", close=True
            )
        token = head.fields.get(TOKEN_FIELD) or ""
        site = head.fields.get("sec-fetch-site") or "same-origin"
        is_own = token.isascii() and secrets.compare_digest(token, self._token)
        if not is_own or site != "same-origin":
            raise PeerError(
                ProblemCode.FORBIDDEN, "reload the page, and try again", close=True
            )
        try:
            wish = json.loads(head.fields.get(CHANGE_FIELD) or "")
        except (ValueError, RecursionError):
            wish = None
        if not isinstance(wish, dict):
            raise PeerError(ProblemCode.MALFORMED_REQUEST, "the change is no object")
        try:
            answer = {"done": await self._changes.make(wish)}
        except (CallerError, StorageError) as exc:
            answer = {"error": str(exc)}
        await exchange.respond(200, _JSON, json.dumps(answer).encode())


def _is_safe(host: str, names: frozenset[str]) -> bool:
    """Whether no stranger can have made the host of a request, ``NAME:PORT``, point here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    if name == "localhost" or name in names:
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _number(text: str | None) -> int | None:
    """Return a place in a table. Raises :class:`PeerError` for anything else."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        raise PeerError(ProblemCode.MALFORMED_REQUEST, "place is no number")
    return int(text)
