"""Reads the field sections of HTTP/2, as strictly as a head of HTTP/1.1, and writes them.

HPACK has decoded the section to pairs of bytes. Two kinds of fault are told apart:

* A *malformed* request (RFC 9113, section 8.1.1) breaks a rule of HTTP/2, for example with an
  upper-case field name. Only a broken or hostile peer sends one. It raises
  :class:`MalformedRequest`, and its stream is reset.
* Any other fault, for example a target that is too long, would be a fault in HTTP/1.1, too.
  It raises the same :class:`~trioresume.errors.PeerError` and gets the same answer.

A response has only the first kind of fault: :class:`MalformedResponse`.

Statement numbers such as G3 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.framing import HeadLimits, check_lists, request_head
from trioresume.protocol.heads import Fields, RequestHead

__all__ = [
    "FIELD_OVERHEAD",
    "HTTP_VERSION",
    "MalformedRequest",
    "MalformedResponse",
    "read_request_fields",
    "read_response_fields",
    "read_trailers",
    "request_fields",
    "response_fields",
]

HTTP_VERSION = "2"
"""``RequestHead.http_version`` of a request over HTTP/2."""

FIELD_OVERHEAD = 32
"""Bytes that each field counts beside its name and value (RFC 9113, section 6.5.2)."""

Pair = tuple[bytes, bytes]

# A name is a token without upper-case letters (RFC 9113, section 8.2.1).
_NAME = re.compile(rb"[!#$%&'*+\-.^_`|~0-9a-z]++")
# A value has no control characters and no space at its ends.
_VALUE = re.compile(
    rb"(?:[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*+(?<![\t ]))?)?"
)
_PSEUDO = frozenset({b":method", b":scheme", b":authority", b":path"})

# RFC 9113, section 8.2.2: fields about one connection, which HTTP/2 does not have.
_OF_CONNECTION = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"transfer-encoding",
        b"upgrade",
    }
)


# HTTP/2 has no 101 (RFC 9113, section 8.6).
_STATUS = re.compile(rb"(?!101)[1-9][0-9][0-9]")


class MalformedRequest(Exception):
    """A request that breaks a rule of HTTP/2 itself."""


class MalformedResponse(Exception):
    """A response that breaks a rule of HTTP/2 itself."""


def read_request_fields(
    pairs: Sequence[Pair],
    *,
    ends: bool,
    peer: str = "",
    limits: HeadLimits,
) -> RequestHead:
    """Return the head that *pairs* are; *ends* says that no content follows.

    ``:authority`` becomes ``Host``, and the lines of ``Cookie`` become one (RFC 9113,
    sections 8.3.1 and 8.2.3). Raises :class:`MalformedRequest`, and :class:`PeerError`:
    400, 414, 431 or 501 (G1, G2, G3, G6).
    """
    pseudo, rest = _split(pairs)
    method, scheme, target = (pseudo.get(n) for n in (b":method", b":scheme", b":path"))
    if not method or _NAME.fullmatch(method.lower()) is None:
        raise MalformedRequest("there is no usable :method")
    if method == b"CONNECT":
        raise PeerError(ProblemCode.NOT_IMPLEMENTED)
    if scheme is None or scheme.lower() not in (b"http", b"https"):
        raise MalformedRequest("there is no usable :scheme")
    if not target or not (target.startswith(b"/") or target == b"*"):
        raise MalformedRequest("there is no usable :path")
    _check_size(pairs, limits)
    authority = pseudo.get(b":authority")
    hosts = [value for name, value in rest if name == b"host"]
    if authority is not None:
        if any(host != authority for host in hosts):
            raise MalformedRequest("Host differs from :authority")
        rest = [(b"host", authority), *(p for p in rest if p[0] != b"host")]
    if len(pairs) > 1:
        check_lists(rest)
    head = request_head(
        method,
        target,
        Fields.from_wire(_with_one_cookie(rest)),
        b"1.1",
        peer=peer,
        limits=limits,
    )
    length = head.length if "content-length" in head.fields else None
    if ends:
        if length:
            raise MalformedRequest("Content-Length promises content, none follows")
        length = 0
    return replace(head, http_version=HTTP_VERSION, length=length)


def _split(pairs: Iterable[Pair]) -> tuple[dict[bytes, bytes], list[Pair]]:
    """Return the pseudo-header fields, and the other fields."""
    pseudo: dict[bytes, bytes] = {}
    rest: list[Pair] = []
    for name, value in pairs:
        if name[:1] != b":":
            _check_pair(name, value)
            rest.append((name, value))
        elif rest or name in pseudo or name not in _PSEUDO:
            raise MalformedRequest(f"{name!r} is unknown, repeated or out of place")
        elif _VALUE.fullmatch(value) is None:
            raise MalformedRequest(f"the value of {name!r} is malformed")
        else:
            pseudo[name] = value
    return pseudo, rest


def _check_pair(name: bytes, value: bytes) -> None:
    if _NAME.fullmatch(name) is None:
        raise MalformedRequest("the name of a field is malformed")
    if _VALUE.fullmatch(value) is None:
        raise MalformedRequest("the value of a field is malformed")
    if name in _OF_CONNECTION or (name == b"te" and value.lower() != b"trailers"):
        raise MalformedRequest(f"HTTP/2 has no field {name.decode('ascii')}")


def _check_size(pairs: Sequence[Pair], limits: HeadLimits) -> None:
    if len(pairs) > limits.max_fields + len(_PSEUDO):
        raise PeerError(
            ProblemCode.HEADER_TOO_LARGE,
            f"there are more than {limits.max_fields} fields",
        )
    # Without the overhead, so that a head is too large here only if it is in HTTP/1.1.
    if sum(len(name) + len(value) for name, value in pairs) > limits.max_size:
        raise PeerError(
            ProblemCode.HEADER_TOO_LARGE,
            f"the head is larger than {limits.max_size} bytes",
        )


def _with_one_cookie(pairs: Iterable[Pair]) -> list[Pair]:
    cookies: list[bytes] = []
    others: list[Pair] = []
    for name, value in pairs:
        if name == b"cookie":
            cookies.append(value)
        else:
            others.append((name, value))
    if cookies:
        others.append((b"cookie", b"; ".join(cookies)))
    return others


def read_trailers(pairs: Sequence[Pair], limits: HeadLimits) -> Fields:
    """Return the trailers that *pairs* are. Raises :class:`MalformedRequest`."""
    pseudo, rest = _split(pairs)
    if pseudo:
        raise MalformedRequest("trailers hold a pseudo-header field")
    if len(rest) > limits.max_fields:
        raise MalformedRequest(f"there are more than {limits.max_fields} trailers")
    return Fields.from_wire(rest)


def response_fields(status: int, fields: Fields) -> list[Pair]:
    """Return what HPACK encodes for a response: no field about the connection is left.

    Raises :class:`CallerError` for a field that HTTP cannot carry (G4).
    """
    pairs = [(b":status", b"%d" % status)]
    for name, value in fields:
        try:
            pair = _field_name(name), value.strip(" \t").encode("latin-1")
        except UnicodeEncodeError:
            raise CallerError(f"the field {name!r} cannot be sent") from None
        if _VALUE.fullmatch(pair[1]) is None:
            raise CallerError(f"the field {name!r} cannot be sent")
        if pair[0] not in _OF_CONNECTION:
            pairs.append(pair)
    return pairs


@functools.lru_cache(maxsize=128)
def _field_name(name: str) -> bytes:
    """Return *name* as it is sent. The tables of all connections hold the same object.

    Raises :class:`CallerError` if it is no name, or :class:`UnicodeEncodeError`.
    """
    encoded = name.encode("ascii")
    if _NAME.fullmatch(encoded) is None:
        raise CallerError(f"the field {name!r} cannot be sent")
    return encoded


def request_fields(
    method: bytes, scheme: bytes, target: bytes, pairs: Iterable[Pair]
) -> list[Pair]:
    """Return what HPACK encodes for a request whose fields in HTTP/1.1 are *pairs*.

    ``Host`` becomes ``:authority``, and no field about the connection is left. The names
    are in lower case.
    """
    pairs = list(pairs)
    authority = next((value for name, value in pairs if name == b"host"), b"")
    return [
        (b":method", method),
        (b":scheme", scheme),
        (b":authority", authority),
        (b":path", target),
        *(p for p in pairs if p[0] != b"host" and p[0] not in _OF_CONNECTION),
    ]


def read_response_fields(pairs: Sequence[Pair]) -> tuple[int, Fields]:
    """Return the status and the fields that *pairs* are. Raises :class:`MalformedResponse`."""
    if not pairs or pairs[0][0] != b":status" or not _STATUS.fullmatch(pairs[0][1]):
        raise MalformedResponse("there is no usable :status")
    for name, value in pairs[1:]:
        if _NAME.fullmatch(name) is None:
            raise MalformedResponse("the name of a field is malformed")
        if _VALUE.fullmatch(value) is None:
            raise MalformedResponse("the value of a field is malformed")
        if name in _OF_CONNECTION:
            raise MalformedResponse(f"HTTP/2 has no field {name.decode('ascii')}")
    return int(pairs[0][1]), Fields.from_wire(pairs[1:])
