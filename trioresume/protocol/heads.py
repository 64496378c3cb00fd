"""Header fields and request heads as values, and what a response's head means.

``Fields`` keeps the order and the repetition of field lines. It compares names without
case (RFC 9110, section 5.1). Values are decoded as latin-1, which maps each byte to the
character with the same number, so nothing is lost.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http import HTTPStatus

from trioresume.protocol.fields import parse_media_type, split_list
from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.protocol.tls_facts import TLSFacts

__all__ = [
    "UPLOAD_RESUMPTION_SUPPORTED",
    "Fields",
    "RequestHead",
    "end_to_end_fields",
    "has_content",
    "origin_from",
    "reason_phrase",
]

UPLOAD_RESUMPTION_SUPPORTED = 104
"""The interim status of Resumable Uploads for HTTP, in its drafts since 2022."""

_UNREGISTERED = {
    UPLOAD_RESUMPTION_SUPPORTED: "Upload Resumption Supported",
    460: "Checksum Mismatch",  # tus 1.0.0, checksum extension
}

# RFC 9110, section 7.6.1, and older fields that only concern one connection.
_HOP_BY_HOP = (
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authentication-info",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
)


class Fields:
    """An immutable list of field lines: ``(lower-case name, value)`` pairs."""

    __slots__ = ("_lines",)

    def __init__(
        self, lines: Mapping[str, str] | Iterable[tuple[str, str]] = ()
    ) -> None:
        pairs = lines.items() if isinstance(lines, Mapping) else lines
        # There are few names, and each upload keeps them, so equal names share one
        # object. A list costs half as much as a generator, and this runs for each
        # request.
        self._lines = tuple(
            [(sys.intern(name.lower()), value) for name, value in pairs]
        )

    @classmethod
    def from_wire(cls, lines: Iterable[tuple[bytes, bytes]]) -> Fields:
        """Make fields from byte pairs as h11 gives them."""
        return cls([(n.decode("latin-1"), v.decode("latin-1")) for n, v in lines])

    def to_wire(self) -> list[tuple[bytes, bytes]]:
        """Return byte pairs for h11, with names in the usual capitalisation."""
        return [
            (name.title().encode("latin-1"), value.encode("latin-1"))
            for name, value in self._lines
        ]

    def get(self, name: str, default: str | None = None) -> str | None:
        """Return all values of *name*, joined by commas (RFC 9110, section 5.3)."""
        wanted = name.lower()
        joined: str | None = None
        # This runs a dozen times for each request, so it makes no list.
        for line, value in self._lines:
            if line == wanted:
                joined = value if joined is None else f"{joined}, {value}"
        return default if joined is None else joined

    def get_all(self, name: str) -> list[str]:
        """Return the values of all lines called *name*, in order."""
        wanted = name.lower()
        return [value for line, value in self._lines if line == wanted]

    def without(self, *names: str) -> Fields:
        """Return a copy without the lines called one of *names*."""
        unwanted = {name.lower() for name in names}
        lines = [line for line in self._lines if line[0] not in unwanted]
        return self if len(lines) == len(self._lines) else Fields._of(tuple(lines))

    def plus(self, lines: Mapping[str, str] | Iterable[tuple[str, str]]) -> Fields:
        """Return a copy with *lines* appended."""
        more = lines if isinstance(lines, Fields) else Fields(lines)
        if not self._lines or not more._lines:
            return more if more._lines else self
        return Fields._of(self._lines + more._lines)

    @classmethod
    def _of(cls, lines: tuple[tuple[str, str], ...]) -> Fields:
        """Make fields from lines in this class's own form, which is cheap."""
        fields = cls.__new__(cls)
        fields._lines = lines
        return fields

    def __contains__(self, name: object) -> bool:
        if not isinstance(name, str):
            return False
        wanted = name.lower()
        for line, _ in self._lines:  # noqa: SIM110 - any() costs more than twice as much
            if line == wanted:
                return True
        return False

    def __getitem__(self, index: int) -> tuple[str, str]:
        return self._lines[index]

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return iter(self._lines)

    def __len__(self) -> int:
        return len(self._lines)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fields) and self._lines == other._lines

    def __hash__(self) -> int:
        return hash(self._lines)

    def __repr__(self) -> str:
        return f"Fields({list(self._lines)!r})"


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestHead:
    """A request without its content, unchanged but validated.

    ``target`` is the request target in origin form as it was sent; ``path`` and
    ``query`` are its two sides of the first ``?``, still percent-encoded.
    ``length`` is the content's length in bytes: ``None`` if it is chunked and so
    unknown, 0 if there is no content. ``peer`` is the sender's address, for logs and
    limits: the connection's other end as ``HOST:PORT``, or the client that a trusted proxy
    names, without a port. ``origin`` makes a path absolute for this sender: ``https://host``, or "" if
    the server cannot tell. It proves nothing to others. ``tls`` is None if the connection
    has no TLS; behind a proxy it is the proxy's connection.
    """

    method: str
    target: str
    fields: Fields
    http_version: str
    length: int | None = 0
    peer: str = ""
    origin: str = ""
    tls: TLSFacts | None = None

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def query(self) -> str:
        return self.target.partition("?")[2]

    @property
    def media_type(self) -> str:
        """``type/subtype`` of the content, in lower case; "" if none is stated."""
        media_type = parse_media_type(self.fields.get("content-type") or "")
        return "" if media_type is None else media_type.essence

    @property
    def filename(self) -> str | None:
        """The file name that the request suggests, made safe; None without one.

        It comes from ``Content-Disposition``. It is a suggestion, not a path.
        """
        disposition = self.fields.get("content-disposition")
        if disposition is None:
            return None
        return parse_content_disposition_filename(disposition)

    @property
    def methods_meant(self) -> list[str]:
        """The methods as which fields ask a backend to treat the request instead of its own.

        Of several, one backend takes the first and another one the last.
        """
        return [
            method.upper()
            for field in _OVERRIDES
            for method in split_list(self.fields.get(field) or "")
            if method.upper() != self.method
        ]

    @property
    def has_content(self) -> bool:
        """Whether content follows; a chunked body counts even if it proves empty."""
        return self.length is None or self.length > 0


_OVERRIDES = ("x-http-method-override", "x-http-method", "x-method-override")

_PORT = re.compile(r"(?P<host>.+?):(?P<port>[0-9]*)")
_DEFAULT_PORTS = {"http": 80, "https": 443}


def origin_from(scheme: str, authority: str) -> str:
    """Return ``scheme://authority``, without the default port of *scheme*.

    The origin is the same with and without that port (RFC 9110, section 4.2.3). But
    browsers and clients compare strings, and a proxy may have added a port that the
    client did not write.
    """
    match = _PORT.fullmatch(authority)
    if match is not None and not authority.endswith("]"):
        port = match["port"]
        if not port or int(port) == _DEFAULT_PORTS.get(scheme):
            authority = match["host"]
    return f"{scheme}://{authority}"


# Responses.


def has_content(status: int) -> bool:
    """Whether a final response with this status has content (RFC 9112, section 6.3)."""
    return status not in (HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED)


def end_to_end_fields(fields: Fields) -> Fields:
    """Return *fields* without hop-by-hop ones and those that ``Connection`` names."""
    named = split_list(fields.get("connection") or "")
    return fields.without(*_HOP_BY_HOP, *named)


def reason_phrase(status: int) -> str:
    """Return the usual words for *status*; empty if it is not registered."""
    if status in _UNREGISTERED:
        return _UNREGISTERED[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""
