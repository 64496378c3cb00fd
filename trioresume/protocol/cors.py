"""Which pages of other origins may read the answers: CORS (the Fetch standard, 3.2).

A browser lets a page of one origin read what another origin answers only where that
answer says so. Before a request that a plain form could not send, and every resumable
upload is one, it asks whether it may: a *preflight*, an ``OPTIONS`` with
``Access-Control-Request-Method`` and no credentials.

Which origins there are is a closed list, and what is sent back is the list's entry and
never the request's field (G15). With more than one possible answer each answer depends
on ``Origin``, and says so in ``Vary``, also to those who sent none.

What a page may see of an answer, and say in a request, is listed here, by dialect.
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
"""What a page may see of a response, by dialect; beside what it always may.

``Cache-Control``, ``Content-Language``, ``Content-Length``, ``Content-Type``,
``Expires``, ``Last-Modified`` and ``Pragma`` need no permission.
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
"""What a page may say in a request, by dialect."""

_ALLOWED = "access-control-allow-origin"
_OURS = (
    _ALLOWED,
    "access-control-allow-credentials",
    "access-control-expose-headers",
)
_PREFLIGHT = ("origin", "access-control-request-method")

_NAME = re.compile(TOKEN)
# As a browser writes it: scheme, host in lower case, port unless it is the scheme's.
_ORIGIN = re.compile(
    r"(?P<scheme>[a-z][a-z0-9+.-]*)://"
    r"(?P<host>[a-z0-9._~-]+|\[[0-9a-f:.]+\])(?::(?P<port>[0-9]{1,5}))?"
)
_DEFAULT_PORTS = {"http": "80", "https": "443"}


class CrossOrigin:
    """What pages of other origins may do.

    *origins* are those of the pages: ``https://app.example``, or ``*`` alone for any.
    With *credentials* a page may have the browser send cookies and certificates along,
    which cannot be had for any origin. *max_age* is for how many seconds a browser may
    remember the answer to a preflight. *request_fields* and *response_fields* come on
    top of :data:`SENDABLE` and :data:`EXPOSED`.

    Raises :class:`ValueError` for what does not make sense.
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
        """What to answer to *head*, before it is :meth:`marked`; None if it is no preflight.

        Raises :class:`PeerError` (403) for one of an origin that is not allowed.
        """
        if head.method != "OPTIONS" or not all(n in head.fields for n in _PREFLIGHT):
            return None
        if self._origin(head) is None:
            raise PeerError(ProblemCode.FORBIDDEN, "pages of this origin may not ask")
        return self._asked

    def marked(self, head: RequestHead, fields: Fields) -> Fields:
        """*fields* of a response to *head*, with what lets a page read it, or does not.

        What a handler might have said about that itself is replaced.
        """
        fields = fields.without(*_OURS)
        origin = self._origin(head)
        if origin is not None:
            fields = fields.plus({_ALLOWED: origin, **self._granted})
        return fields if self._any else _varying(fields)

    def _origin(self, head: RequestHead) -> str | None:
        """The entry of the list that the sender's origin is, None if it is none."""
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
    """*text* as browsers write it; raises ValueError unless it is an origin."""
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
