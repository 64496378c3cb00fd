"""Makes the request that performs an action.

Statement numbers such as R35 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import h11

from trioresume.client.content.sources import Source
from trioresume.client.decisions.actions import (
    Append,
    AskOffset,
    Confirm,
    Contrast,
    Create,
    Discover,
    FetchMessage,
    FetchResult,
    Send,
    WireAction,
)
from trioresume.client.http.round_trip import Outgoing
from trioresume.errors import CallerError
from trioresume.protocol.dialects.seed.client import PLAIN
from trioresume.protocol.heads import Fields
from trioresume.protocol.urls import Url

if TYPE_CHECKING:
    from trioresume.client.decisions.protocol_choice import ProtocolChoice
    from trioresume.client.decisions.redirects import Redirects
    from trioresume.protocol.dialects.client import ClientDialect

__all__ = ["HeaderInput", "RequestBuilder", "WireRequest"]

HeaderInput = Fields | Mapping[str, str] | Iterable[tuple[str, str]]

# These fields change the framing, for which the client is responsible.
_RESERVED = (
    "connection",
    "content-length",
    "expect",
    "host",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)

# Credentials also go to the operation's resources (R35).
_CREDENTIALS = ("authorization", "cookie")

# RFC 10036: a proxy forwards the content as it comes, instead of collecting it first.
# Otherwise nothing of an upload that is cut reaches the server.
_INCREMENTAL = {"incremental": "?1"}

# The fields that go to another origin, too. They describe the content, or say what the
# client can take.
_ABOUT = re.compile(
    r"(?:accept|content|if|repr|tus|upload|want)-|(?:accept|date|digest|expect"
    r"|incremental|prefer|range|tus-resumable|transfer-encoding|user-agent)\Z"
)

# With these methods a request without content says so (RFC 9110, section 8.6).
_METHODS_WITH_CONTENT = ("PATCH", "POST", "PUT")


@dataclass(frozen=True, slots=True)
class WireRequest:
    """A request in the form in which it is sent."""

    url: Url
    head: h11.Request
    outgoing: Outgoing | None = None


class RequestBuilder:
    """Makes all requests of one transfer.

    *redirects* has the URL, *choice* the dialect. *headers* are the fields of the request itself. *standing*
    are fields of every request, also of those to the operation's resources. *wait* is
    the ``Prefer: wait`` of requests for the response message, in seconds. With *follow*
    the server is asked to tell how far the processing is (B10). Raises
    :class:`CallerError` for fields that cannot be sent or that the client sets itself.
    """

    def __init__(
        self,
        method: str,
        redirects: Redirects,
        source: Source,
        choice: ProtocolChoice,
        *,
        headers: HeaderInput,
        standing: Fields,
        wait: int,
        follow: bool = False,
    ) -> None:
        self._method = method
        self._redirects = redirects
        self._source = source
        self._choice = choice
        self._wait = wait
        self._follow = follow
        own = Fields(headers)
        for name in _RESERVED:
            if name in own or name in standing:
                raise CallerError(f"the field {name!r} is set by the client itself")
        # A field of the request replaces the standing field of that name. In the
        # request itself a name may have several lines.
        self._own = own.plus(standing.without(*(name for name, _ in own)))
        credentials = [line for line in own if line[0] in _CREDENTIALS]
        self._standing = standing.without(*_CREDENTIALS).plus(credentials)
        if not credentials:
            self._standing = standing

    @property
    def _url(self) -> Url:
        return self._redirects.url

    def build(self, action: WireAction) -> WireRequest:
        """Return the request that performs *action*."""
        match action:
            case Send():
                return self._send(action)
            case Create():
                return self._create()
            case Discover():
                return self._resource("OPTIONS", self._url, {})
            case Confirm():
                return self._resource("HEAD", self._url, {})
            case Contrast():
                return self._resource("HEAD", self._url.beside(_unused_name()), {})
            case Append():
                return self._append(action)
            case AskOffset(url):
                return self._resource("HEAD", url, self._choice.dialect.query())
            case FetchMessage(url):
                wish = {"accept": "message/http", "prefer": f"wait={self._wait}"}
                return self._resource("GET", url, self._followed(Fields(wish)))
            case FetchResult(url, start, if_range):
                wish = {"range": f"bytes={start}-"}
                if if_range is not None:
                    wish["if-range"] = if_range
                return self._resource("GET", url, wish)

    def cancel(self, url: Url, dialect: ClientDialect | None = None) -> WireRequest:
        """Return the ``DELETE`` of an upload that cannot become whole any more (R25, C14, D7)."""
        words = (dialect or self._choice.dialect).query()
        return self._resource("DELETE", url, words)

    def release(self, url: Url) -> WireRequest:
        """Return the ``DELETE`` of a response message that was read (R29)."""
        return self._resource("DELETE", url, {})

    def look(self, url: Url) -> WireRequest:
        """Return the ``HEAD`` that asks for the digest of what is stored at *url*."""
        return self._resource("HEAD", url, {"want-repr-digest": "sha-256=10"})

    def _resource(
        self, method: str, url: Url, fields: Fields | Mapping[str, str]
    ) -> WireRequest:
        return WireRequest(url, self._head(method, url, self._standing.plus(fields)))

    @property
    def _acknowledge(self) -> bool:
        # Acknowledgements only help with content that cannot be read twice, and each
        # costs the server a sync.
        return self._source.window is not None

    def _begin(self, *, whole: bool) -> Fields:
        own = self._own
        if self._source.length != 0 and "want-repr-digest" not in own:
            # With the digest the client can check that the server stored what was sent.
            own = own.plus({"want-repr-digest": "sha-256=10"})
        return self._choice.dialect.begin(
            own, self._source.length, whole=whole, acknowledge=self._acknowledge
        )

    def _followed(self, fields: Fields) -> Fields:
        """Return *fields* with the wish to be told how far the processing is (B10).

        The wish has a line of its own: all lines of ``Prefer`` count (RFC 7240, section 2).
        """
        if not (self._follow and self._choice.dialect.tells_processing):
            return fields
        return fields.plus({"prefer": "processing"})

    def _incremental(self, fields: Fields) -> Fields:
        """Return *fields* of a request with content, with the wish that proxies forward
        it as it comes.
        """
        dialect = self._choice.dialect
        if dialect is PLAIN or not self._choice.incremental or "incremental" in fields:
            return fields
        return fields.plus(_INCREMENTAL)

    def _send(self, action: Send) -> WireRequest:
        length = self._source.length
        fields = self._followed(self._begin(whole=True))
        if length == 0:
            if self._method in _METHODS_WITH_CONTENT:
                fields = fields.plus({"content-length": "0"})
            return WireRequest(self._url, self._head(self._method, self._url, fields))
        if action.expect:
            fields = fields.plus({"expect": "100-continue"})
        fields = self._incremental(fields).plus(_framing(length))
        head = self._head(self._method, self._url, fields)
        return WireRequest(self._url, head, Outgoing(self._source))

    def _create(self) -> WireRequest:
        fields = self._begin(whole=False).plus({"content-length": "0"})
        return WireRequest(self._url, self._head(self._method, self._url, fields))

    def _append(self, action: Append) -> WireRequest:
        range_ = action.range
        words = self._choice.dialect.append(
            range_,
            completes=action.completes,
            declares=action.declares,
            acknowledge=self._acknowledge,
        )
        size = range_.length
        fields = self._standing.plus(words.fields)
        if action.completes:
            fields = self._followed(fields)
        if size != 0:
            fields = self._incremental(fields)
        prefix = words.prefix
        fields = fields.plus(_framing(None if size is None else len(prefix) + size))
        # The last append reads the source to its end, because FileSource.pieces()
        # checks there that the file did not change.
        limit = None if action.completes else size
        head = self._head("PATCH", action.url, fields)
        outgoing = Outgoing(self._source, range_.start, prefix, limit)
        return WireRequest(action.url, head, outgoing)

    def _head(self, method: str, url: Url, fields: Fields) -> h11.Request:
        if not self._redirects.is_own(url.origin):
            # Any other field may be a credential of the server that redirects.
            fields = Fields(line for line in fields if _ABOUT.match(line[0]))
        lines = Fields({"host": url.origin.authority}).plus(fields)
        try:
            return h11.Request(
                method=method.encode("ascii"),
                target=url.target.encode("ascii"),
                headers=lines.to_wire(),
            )
        except (h11.LocalProtocolError, UnicodeEncodeError) as exc:
            raise CallerError(f"this request cannot be sent: {exc}") from exc


def _unused_name() -> str:
    return f"trioresume-{secrets.token_hex(16)}"


def _framing(length: int | None) -> dict[str, str]:
    if length is None:
        return {"transfer-encoding": "chunked"}
    return {"content-length": str(length)}
