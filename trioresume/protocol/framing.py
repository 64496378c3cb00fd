"""Judges request heads, and writes response heads.

h11 accepts too much (h11 0.16), so it does not judge what a client sends.

If two servers read one byte stream differently, an attacker can play them off against
each other (request smuggling). h11 is lenient where RFC 9112 permits it. It accepts a
bare LF as a line end, unfolds obs-fold, merges equal ``Content-Length`` lines and
accepts ``Content-Length`` beside ``Transfer-Encoding``. The event that it returns shows
none of that, so this module judges the raw bytes of a head::

    end = find_head_end(buffer, searched)        # -1: read more
    head = parse_head(bytes(buffer[head_start(buffer) : end]))

h11 gets the same bytes afterwards only if it has to frame the answer. The tests compare both:
what passes here, h11 reads alike. HTTP/2 has no such bytes, so it begins with
:func:`request_head`.

:func:`response_head` writes the heads that need no framing, which are most of them, in 4 µs. h11
took 49 µs to read a request's head and to write the answer's.

Every :class:`PeerError` raised here has ``close`` set. Once the framing is in doubt,
the rest of the connection cannot be trusted (RFC 9112, section 11.2).

Statement numbers such as G3 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache, lru_cache

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import MAX_DIGITS, split_list
from trioresume.protocol.heads import (
    Fields,
    RequestHead,
    has_content,
    reason_phrase,
)

__all__ = [
    "HeadLimits",
    "check_field",
    "check_lists",
    "expects_continue",
    "find_block_end",
    "find_head_end",
    "head_start",
    "parse_field_block",
    "parse_head",
    "request_head",
    "response_head",
]


@dataclass(frozen=True, slots=True)
class HeadLimits:
    """How large a head may be, in bytes and in field lines (G3)."""

    max_size: int = 16 * 1024
    max_fields: int = 100
    max_target: int = 8 * 1024


DEFAULT_LIMITS = HeadLimits()

# RFC 9112, section 2.2: ignore at least one empty line before a request, because old
# clients send one after a body. More than a few are no accident.
_MAX_EMPTY_LINES = 4

_TCHAR = rb"!#$%&'*+\-.^_`|~0-9A-Za-z"
# The end of the head, or a wrong line end: a bare LF or a bare CR. Finding a wrong one
# early gives the client its 400 at once, instead of a timeout.
_HEAD_END = re.compile(rb"\r\n\r\n|(?<!\r)\n|\r[^\n]")
_REQUEST_LINE = re.compile(rb"([%b]++) ([^ ]++) HTTP/([0-9]\.[0-9])" % _TCHAR)
_VERSION = re.compile(rb"HTTP/[0-9]+\.[0-9]+\Z")
# A target is a URI reference without a fragment (RFC 9112, section 3.2). It has no raw
# non-ASCII characters, no control characters and no "#".
_TARGET = re.compile(rb"[\x21\x22\x24-\x7e]++")
# Field names and values: RFC 9110, section 5.5, with obs-text kept as it is.
_NAME = re.compile(rb"[%b]++" % _TCHAR)
_VALUE = re.compile(rb"[\t\x20-\x7e\x80-\xff]*+")
_FIELD_LINE = re.compile(rb"(%b):[ \t]*+(%b)" % (_NAME.pattern, _VALUE.pattern))
_NAME_BEFORE_SPACE = re.compile(rb"[%b]++[ \t]++:" % _TCHAR)
_CONTENT_LENGTH = re.compile(rf"[0-9]{{1,{MAX_DIGITS}}}")


def _refusal(
    detail: str, problem: ProblemCode = ProblemCode.MALFORMED_REQUEST
) -> PeerError:
    return PeerError(problem, detail, close=True)


# ---------------------------------------------------------------- finding the head


def head_start(buffer: bytes | bytearray | memoryview) -> int:
    """Return how many bytes of empty lines stand before the request line.

    Raises :class:`PeerError` (400) if there are too many of them.
    """
    start = 0
    while buffer[start : start + 2] == b"\r\n":
        start += 2
    if start > 2 * _MAX_EMPTY_LINES:
        raise _refusal("too many empty lines before the request")
    return start


def find_head_end(
    buffer: bytes | bytearray | memoryview,
    searched: int = 0,
    limits: HeadLimits = DEFAULT_LIMITS,
) -> int:
    """Return the index after the first blank line, or -1 if it has not arrived yet.

    *searched* is how many bytes an earlier call has already seen. It makes the whole
    search linear. Empty lines before the request line are skipped (see
    :func:`head_start`). Raises :class:`PeerError` as soon as the bytes cannot become a
    head: 400 for a bad line end, 414 or 431 if it grows too large.
    """
    start = head_start(buffer)
    if buffer[start : start + 1] == b"\r" and len(buffer) == start + 1:
        return -1  # half of another empty line
    end = find_block_end(buffer, max(start, searched - 3))
    if (len(buffer) if end < 0 else end) - start > limits.max_size:
        raise _too_large(bytes(buffer[start : start + limits.max_size]), limits)
    return end


def find_block_end(buffer: bytes | bytearray | memoryview, start: int) -> int:
    """Return the index after the first blank line at or after *start*, or -1.

    Raises :class:`PeerError` (400) at the first line end that is not CRLF.
    """
    match = _HEAD_END.search(buffer, start)
    if match is None:
        return -1
    # A match object exports the buffer, and its owner cannot resize an exported buffer.
    # Delete it, because an exception's traceback would keep it alive.
    end, found = match.end(), match.group()
    del match
    if found != b"\r\n\r\n":
        raise _refusal("a line of the head does not end in CRLF")
    return end


def _too_large(beginning: bytes, limits: HeadLimits) -> PeerError:
    if len(beginning.partition(b"\r\n")[0]) > limits.max_target:
        return _refusal(
            "the request line is too long", problem=ProblemCode.URI_TOO_LONG
        )
    return _refusal(
        f"the head is larger than {limits.max_size} bytes",
        problem=ProblemCode.HEADER_TOO_LARGE,
    )


# ---------------------------------------------------------------- judging its bytes


def parse_head(
    raw: bytes, limits: HeadLimits = DEFAULT_LIMITS, *, peer: str = ""
) -> RequestHead:
    """Judge a head's bytes, request line to blank line, and return what they say.

    Raises as :func:`request_head` does (G1, G2, G3, G6).
    """
    if len(raw) > limits.max_size:
        raise _too_large(raw, limits)
    request_line, _, rest = raw.partition(b"\r\n")
    match = _REQUEST_LINE.fullmatch(request_line)
    if match is None:
        versioned = _VERSION.search(request_line) is not None
        if versioned and not request_line.endswith((b"HTTP/1.1", b"HTTP/1.0")):
            raise _bad_version()
        raise _refusal("the request line is malformed")
    lines = _field_lines(rest, limits.max_fields)
    if len(raw) > MAX_MEMBERS:  # a shorter one has no room for so many
        check_lists(lines)
    method, target, version = match.groups()
    fields = Fields.from_wire(lines)
    return request_head(method, target, fields, version, peer=peer, limits=limits)


def _bad_version() -> PeerError:
    return _refusal("", problem=ProblemCode.VERSION_NOT_SUPPORTED)


def _field_lines(block: bytes, max_fields: int) -> list[tuple[bytes, bytes]]:
    """The lines of a header block that ends with its blank line."""
    # Split on CRLF alone, so that a bare CR or LF stays within its line and fails
    # there. The last two pieces are empty: one is the blank line, one follows it.
    lines = block.split(b"\r\n", max_fields + 2)
    if len(lines) > max_fields + 2:
        raise _refusal(
            f"there are more than {max_fields} fields",
            problem=ProblemCode.HEADER_TOO_LARGE,
        )
    if lines[-2:] != [b"", b""] and lines != [b"", b""]:
        raise _refusal("the header section does not end with an empty line")
    pairs = []
    for line in lines[:-2]:
        match = _FIELD_LINE.fullmatch(line)
        if match is None:
            raise _bad_line(line)
        pairs.append((match[1], match[2].rstrip(b" \t")))
    return pairs


def _bad_line(line: bytes) -> PeerError:
    if line[:1] in (b" ", b"\t"):
        return _refusal("a field is folded over several lines")
    if _NAME_BEFORE_SPACE.match(line) is not None:
        # RFC 9112, section 5.1, requires a refusal, because proxies disagree on such a name.
        return _refusal("there is a space between a field's name and its colon")
    if b"\r" in line or b"\n" in line:
        return _refusal("a line of the head does not end in CRLF")
    return _refusal("a field line is malformed")


def parse_field_block(
    block: bytes, max_fields: int = DEFAULT_LIMITS.max_fields
) -> Fields:
    """Read field lines and their blank line, each with CRLF, as strictly as in a head.

    It is for header sections within content, such as those of a patch's parts (G3).
    Raises :class:`PeerError`.
    """
    return Fields.from_wire(_field_lines(block, max_fields))


def check_field(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """Check a field of a binary format, which has no line of its own.

    Raises :class:`PeerError` if it could not stand in a head.
    """
    if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
        raise _refusal("a field is malformed")
    return name, value.strip(b" \t")


MAX_MEMBERS = 1024
"""The most members that a list in a request's head may have."""

# The fields that the server reads as lists, parameters or references. Other fields may
# have any number of commas. Structured fields have a bound of their own.
_LISTS = frozenset(
    {
        b"access-control-request-headers",
        b"connection",
        b"content-disposition",
        b"content-encoding",
        b"content-type",
        b"expect",
        b"forwarded",
        b"if-match",
        b"if-none-match",
        b"prefer",
        b"range",
        b"trailer",
        b"transfer-encoding",
        b"upload-concat",
        b"upload-metadata",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
    }
)


def check_lists(lines: list[tuple[bytes, bytes]]) -> None:
    """Refuse a list that would occupy the event loop for long.

    RFC 9110, section 5.4, requires a 4xx for a field that is larger than the server
    wants to process, so such a list is not ignored. Quoted separators count too.
    """
    members: dict[bytes, int] = {}
    for line, value in lines:
        name = line.lower()
        if name in _LISTS:
            separators = value.count(b",") + value.count(b";")
            if name == b"upload-concat":
                separators = value.count(b" ")
            members[name] = members.get(name, 0) + 1 + separators
    for name, count in members.items():
        if count > MAX_MEMBERS:
            raise _refusal(
                f"{name.decode('ascii')} has more than {MAX_MEMBERS} members",
                problem=ProblemCode.HEADER_TOO_LARGE,
            )


# ---------------------------------------------------------------- judging its meaning


def request_head(
    method: bytes,
    target: bytes,
    fields: Fields,
    http_version: bytes,
    *,
    peer: str = "",
    limits: HeadLimits = DEFAULT_LIMITS,
) -> RequestHead:
    """Judge the parts of a head and return them as a :class:`RequestHead`.

    The target of the result is in origin form, except for ``OPTIONS *``. Raises
    :class:`PeerError`: 400, 414, 501 or 505 (G1, G2, G6).
    """
    if http_version not in (b"1.0", b"1.1"):
        raise _bad_version()
    if len(target) > limits.max_target:
        raise _refusal(
            f"the target is longer than {limits.max_target} bytes",
            problem=ProblemCode.URI_TOO_LONG,
        )
    if _TARGET.fullmatch(target) is None:
        raise _refusal("the target has a character that is not allowed in a URI")
    if method == b"CONNECT":
        raise _refusal("", problem=ProblemCode.NOT_IMPLEMENTED)
    _check_host(fields, http_version)
    return RequestHead(
        method=method.decode("latin-1"),
        target=_origin_form(target.decode("ascii"), method),
        fields=fields,
        http_version=http_version.decode("ascii"),
        length=_content_length(fields, http_version),
        peer=peer,
    )


_ABSOLUTE_FORM = re.compile(r"https?://[^/?]+(?P<rest>[/?].*)?", re.IGNORECASE)
_HOST = re.compile(r"[0-9A-Za-z\-._~%!$&'()*+,;=:\[\]]*+")


def _origin_form(target: str, method: bytes) -> str:
    """Return *target* in origin form; servers must accept absolute form (RFC 9112, 3.2)."""
    if target.startswith("/"):
        return target
    if target == "*" and method == b"OPTIONS":
        return target
    match = _ABSOLUTE_FORM.fullmatch(target)
    if match is None:
        raise _refusal("the form of the target does not fit the method")
    rest: str = match["rest"] or ""
    # "An empty path is equivalent to an absolute path of "/"" (RFC 9110, section
    # 4.2.3), but for OPTIONS it stands for the server itself (RFC 9112, 3.2.4).
    if not rest and method == b"OPTIONS":
        return "*"
    return rest if rest.startswith("/") else f"/{rest}"


def _check_host(fields: Fields, http_version: bytes) -> None:
    """Check ``Host`` (RFC 9112, section 3.2). The server does not believe its value (G13)."""
    hosts = fields.get_all("host")
    if len(hosts) > 1:
        raise _refusal("Host is repeated")
    if not hosts and http_version == b"1.1":
        raise _refusal("Host is missing")
    if hosts and _HOST.fullmatch(hosts[0]) is None:
        raise _refusal("Host is malformed")


def _content_length(fields: Fields, http_version: bytes) -> int | None:
    """Return the length that *fields* state (G1, G6); None if it is not known."""
    lengths = fields.get_all("content-length")
    if len(lengths) > 1:
        raise _refusal("Content-Length is repeated")
    if lengths and _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
        raise _refusal(
            f"Content-Length is not a whole number of at most {MAX_DIGITS} digits"
        )
    codings = fields.get_all("transfer-encoding")
    if lengths and codings:
        raise _refusal("Content-Length and Transfer-Encoding exclude each other")
    if codings:
        if http_version == b"1.0":
            raise _refusal("HTTP/1.0 has no Transfer-Encoding")
        if [coding.strip().lower() for coding in codings] != ["chunked"]:
            raise _refusal(
                "the only supported transfer coding is chunked",
                problem=ProblemCode.NOT_IMPLEMENTED,
            )
        return None
    return int(lengths[0]) if lengths else 0


def expects_continue(head: RequestHead) -> bool:
    """Whether the server must send a 100, because ``Expect: 100-continue`` asks for it.

    False on HTTP/1.0, where the server ignores the field (R7). Raises
    :class:`PeerError` (417) for any other expectation (R8), because h11 lets those
    pass.
    """
    if head.http_version == "1.0":
        return False
    members = split_list(head.fields.get("expect") or "")
    if any(member.lower() != "100-continue" for member in members):
        # Nobody knows whether the content follows, so the connection is closed.
        raise _refusal("", problem=ProblemCode.EXPECTATION_FAILED)
    return bool(members)


# ---------------------------------------------------------------- writing a response's

# Field lines as h11 lets them out: no name but a token, and a value without a line end, a null
# byte, or space at either end. Control characters are left to h11 as well.
_LINES = re.compile(
    rb"(?:[%b]++: (?:[!-~\x80-\xff]++(?:[ \t]++[!-~\x80-\xff]++)*+)?+\r\n)*+" % _TCHAR
)


def response_head(status: int, fields: Fields) -> bytes | None:
    """Return the head of a response as h11 writes it; None if h11 has to write or refuse it.

    It has to if the content's length is unknown, or if a field is not fit for a head: a target
    could put a line end into a value. An interim response has no length.
    """
    if status >= 200:
        lengths = fields.get_all("content-length")
        if len(lengths) != 1 and (lengths or has_content(status)):
            return None
        if lengths and _CONTENT_LENGTH.fullmatch(lengths[0]) is None:
            return None
        if "transfer-encoding" in fields:
            return None
    elif "content-length" in fields or "transfer-encoding" in fields:
        return None
    lines = "".join([f"{_title(name)}: {value}\r\n" for name, value in fields])
    block = lines.encode("latin-1")
    if not 100 <= status <= 999 or _LINES.fullmatch(block) is None:
        return None
    if block.count(b"\n") != len(fields):
        return None  # a value has a whole line in it
    return b"%b%b\r\n" % (_status_line(status), block)


@lru_cache(maxsize=256)
def _title(name: str) -> str:
    """Return *name* in the usual capitalisation; empty if it is no token."""
    return name.title() if _NAME.fullmatch(name.encode("latin-1")) else ""


@cache
def _status_line(status: int) -> bytes:
    return f"HTTP/1.1 {status} {reason_phrase(status)}\r\n".encode("ascii")
