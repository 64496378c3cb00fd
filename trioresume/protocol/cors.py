"""CORS: which pages of other origins may read the answers (the Fetch standard, 3.2).

A browser lets a page read an answer of another origin only if the answer allows it.
A plain HTML form can send some requests without asking. A resumable upload is not one
of them: the browser first asks for permission with a *preflight*. That is an
``OPTIONS`` with ``Access-Control-Request-Method`` and without credentials.

The allowed origins are a closed list. The answer repeats the list's entry, never the
request's field (G15). If several answers are possible, each answer depends on
``Origin``. It says so in ``Vary``, also if the request has no ``Origin``.

The tables list, by dialect, which response fields a page may read and which request
fields it may send.

Statement numbers such as G15 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import TOKEN, split_list
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead

__all__ = ["ANY_ORIGIN", "EXPOSED", "METHODS", "SENDABLE", "CrossOrigin"]

ANY_ORIGIN = "*"

METHODS = ("DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT")

EXPOSED: Mapping[str, tuple[str, ...]] = {
    "http": (
        "Accept-Patch",
        "Accept-Ranges",
        "Allow",
        "Content-Disposition",
        "Content-Encoding",
        "Content-Range",
        "Date",
        "ETag",
        "Location",
        "Retry-After",
        "WWW-Authenticate",
    ),
    "seed": (
        "Content-Location",
        "Preference-Applied",
        "Request-Content-Location",
        "Response-Message-Location",
    ),
    "rufh": (
        "Content-Digest",
        "Repr-Digest",
        "Upload-Complete",
        "Upload-Draft-Interop-Version",
        "Upload-Incomplete",
        "Upload-Length",
        "Upload-Limit",
        "Upload-Offset",
        "Want-Content-Digest",
        "Want-Repr-Digest",
    ),
    "tus": (
        "Tus-Checksum-Algorithm",
        "Tus-Extension",
        "Tus-Max-Size",
        "Tus-Resumable",
        "Tus-Version",
        "Upload-Concat",
        "Upload-Defer-Length",
        "Upload-Expires",
        "Upload-Length",
        "Upload-Metadata",
        "Upload-Offset",
    ),
}
"""The response fields that a page may read, by dialect.

``Cache-Control``, ``Content-Language``, ``Content-Length``, ``Content-Type``,
``Expires``, ``Last-Modified`` and ``Pragma`` need no permission, so they are not here.
"""

SENDABLE: Mapping[str, tuple[str, ...]] = {
    "http": (
        "Authorization",
        "Cache-Control",
        "Content-Disposition",
        "Content-Encoding",
        "Content-Language",
        "Content-Type",
        "If-Match",
        "If-Modified-Since",
        "If-None-Match",
        "If-Range",
        "If-Unmodified-Since",
        "Incremental",
        "Range",
        "X-Request-ID",
        "X-Requested-With",
    ),
    "seed": ("Content-Range", "Prefer"),
    "rufh": (
        "Content-Digest",
        "Repr-Digest",
        "Upload-Complete",
        "Upload-Draft-Interop-Version",
        "Upload-Incomplete",
        "Upload-Length",
        "Upload-Offset",
        "Want-Content-Digest",
        "Want-Repr-Digest",
    ),
    "tus": (
        "Tus-Resumable",
        "Upload-Checksum",
        "Upload-Concat",
        "Upload-Defer-Length",
        "Upload-Length",
        "Upload-Metadata",
        "Upload-Offset",
        "X-HTTP-Method-Override",
    ),
}
"""The request fields that a page may send, by dialect."""

_ALLOWED = "access-control-allow-origin"
_OURS = (
    _ALLOWED,
    "access-control-allow-credentials",
    "access-control-expose-headers",
)
_PREFLIGHT = ("origin", "access-control-request-method")

_NAME = re.compile(TOKEN)
# As a browser writes it: scheme, host in lower case, port if it is not the default.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class CrossOrigin:
    """The rules for pages of other origins.

    *origins* are the origins of the pages, such as ``https://app.example``, or ``*``
    alone for any. With *credentials*, the browser may send cookies and certificates
    along; this cannot be combined with ``*``. *max_age* is for how many seconds a
    browser may remember the answer to a preflight. *request_fields* and
    *response_fields* are added to :data:`SENDABLE` and :data:`EXPOSED`.

    Raises :class:`ValueError` for values that make no sense.
    """

    def __init__(
        self,
        origins: Iterable[str],
        *,
        credentials: bool = False,
        max_age: float = 0.0,
        request_fields: Iterable[str] = (),
        response_fields: Iterable[str] = (),
    ) -> None:
        self._origins = frozenset(map(_checked_origin, origins))
        self._any = ANY_ORIGIN in self._origins
        if self._any and len(self._origins) > 1:
            raise ValueError("'*' already is any origin: it must be the only one")
        if self._any and credentials:
            raise ValueError("'*' and credentials exclude each other (G15)")
        self._granted = {
            "access-control-expose-headers": _joined(EXPOSED, response_fields)
        }
        if credentials:
            self._granted["access-control-allow-credentials"] = "true"
        self._asked = Fields(
            {
                "access-control-allow-methods": ", ".join(METHODS),
                "access-control-allow-headers": _joined(SENDABLE, request_fields),
                "access-control-max-age": str(int(max_age)),
            }
        )

    def preflight(self, head: RequestHead) -> Fields | None:
        """Return the fields of the answer to a preflight *head*; None if it is none.

        They still have to be :meth:`marked`.

        Raises :class:`PeerError` (403) if the origin is not allowed.
        """
        if head.method != "OPTIONS" or not all(n in head.fields for n in _PREFLIGHT):
            return None
        if self._origin(head) is None:
            raise PeerError(
                ProblemCode.FORBIDDEN, "pages of this origin may not use this server"
            )
        return self._asked

    def marked(self, head: RequestHead, fields: Fields) -> Fields:
        """Return *fields* of a response to *head* with the CORS fields for its sender.

        They replace CORS fields that a handler has set itself.
        """
        fields = fields.without(*_OURS)
        origin = self._origin(head)
        if origin is not None:
            fields = fields.plus({_ALLOWED: origin, **self._granted})
        return fields if self._any else _varying(fields)

    def _origin(self, head: RequestHead) -> str | None:
        """Return the list's entry for the sender's origin; None if it is not allowed."""
        said = head.fields.get_all("origin")
        if len(said) != 1:
            return None
        if self._any:
            return ANY_ORIGIN
        return said[0] if said[0] in self._origins else None


def _varying(fields: Fields) -> Fields:
    varies = split_list(fields.get("vary") or "")
    if "*" in varies or "origin" in map(str.lower, varies):
        return fields
    return fields.without("vary").plus({"vary": ", ".join([*varies, "Origin"])})


def _checked_origin(text: str) -> str:
    """Return *text* as browsers write it. Raises ValueError unless it is an origin."""
    if text == ANY_ORIGIN:
        return text
    match = _ORIGIN.fullmatch(text.lower())
    if match is None:
        raise ValueError(f"{text!r} is no origin such as 'https://app.example'")
    port = match["port"]
    if port is None or port == _DEFAULT_PORTS.get(match["scheme"]):
        return f"{match['scheme']}://{match['host']}"
    return match[0]


def _joined(table: Mapping[str, tuple[str, ...]], further: Iterable[str]) -> str:
    names: dict[str, str] = {}
    for name in (*(n for row in table.values() for n in row), *further):
        if _NAME.fullmatch(name) is None:
            raise ValueError(f"{name!r} is no field name")
        names.setdefault(name.lower(), name)
    return ", ".join(sorted(names.values(), key=str.lower))
