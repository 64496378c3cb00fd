"""A browser, as far as CORS goes: it asks first, and shows a page what it may see.

After the Fetch standard, sections 3.2 and 4.8: what a page may do without asking is not
of use here, so it asks before every request, on a connection of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tests.server.harness import Reply, SocketService
from trioresume import Fields

SAFELISTED = {
    "cache-control",
    "content-language",
    "content-length",
    "content-type",
    "expires",
    "last-modified",
    "pragma",
}
"""What a page sees without permission (Fetch, "CORS-safelisted response-header name")."""

HIDDEN = {
    "access-control-allow-credentials",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "connection",
    "content-security-policy",
    "transfer-encoding",
    "vary",
    "x-content-type-options",
}
"""What is for the browser alone; every other field should be exposed."""


class Blocked(Exception):
    """The browser does not let the page do, or see, this."""


@dataclass
class Page:
    """A page of *origin* in a browser."""

    service: SocketService
    origin: str

    async def preflight(self, method: str, target: str, names: list[str]) -> Reply:
        """Ask whether a request may be sent; :class:`Blocked` if not."""
        fields = {
            "Origin": self.origin,
            "Access-Control-Request-Method": method,
            "Access-Control-Request-Headers": ",".join(sorted(map(str.lower, names))),
        }
        async with self.service.connect() as client:
            reply = await client.request("OPTIONS", target, fields)
        if not 200 <= reply.status < 300:
            raise Blocked(f"the preflight got {reply.status}")
        self._check(reply)
        if method not in _members(reply, "access-control-allow-methods"):
            raise Blocked(f"{method} is not allowed")
        allowed = {m.lower() for m in _members(reply, "access-control-allow-headers")}
        if missing := {name.lower() for name in names} - allowed:
            raise Blocked(f"{missing} may not be sent")
        return reply

    async def fetch(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str] | None = None,
        body: bytes | None = None,
    ) -> Reply:
        """Ask, send, and give back what the page sees of the answer."""
        fields = dict(fields or {})
        await self.preflight(method, target, list(fields))
        async with self.service.connect() as client:
            reply = await client.request(
                method, target, {**fields, "Origin": self.origin}, body
            )
        self._check(reply)
        exposed = _members(reply, "access-control-expose-headers")
        seen = SAFELISTED | {name.lower() for name in exposed}
        unseen = {name for name, _ in reply.fields} - seen - HIDDEN
        assert not unseen, f"{unseen} should be exposed"
        visible = Fields((n, v) for n, v in reply.fields if n in seen)
        return replace(reply, fields=visible, interims=[])

    def _check(self, reply: Reply) -> None:
        allowed = reply.fields.get_all("access-control-allow-origin")
        if allowed not in ([self.origin], ["*"]):
            raise Blocked(f"the answer allows {allowed}")


def _members(reply: Reply, name: str) -> list[str]:
    return (reply.get(name) or "").replace(" ", "").split(",")
