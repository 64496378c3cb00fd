"""Decodes the chunked transfer coding (RFC 9112, section 7.1) as the bytes come.

h11 has a reader too. It accepts chunk sizes of up to 20 hexadecimal digits, which no
body here can have (G6), white space after them, and bare line feeds in the trailer
section (G2). A proxy between client and server may read those bytes in another way. So
this module reads the body as strictly as the head::

    chunk  = 1*15HEXDIG [ *WSP ";" extension ] CRLF size OCTETs CRLF
    body   = *chunk 1*"0" [ … ] CRLF *( field-line CRLF ) CRLF

Extensions mean nothing to this server, which drops them. Their size is bounded.
Otherwise a peer could send a kilobyte of them for each byte of content.

Every fault has ``close`` set: nobody knows where the next request begins.

Statement numbers such as G6 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from enum import Enum, auto

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.fields import MAX_DIGITS
from trioresume.protocol.framing import (
    HeadLimits,
    find_block_end,
    parse_field_block,
)
from trioresume.protocol.heads import Fields

__all__ = ["ChunkedReader"]

LONGEST_LINE = 4096
"""The most bytes of one size line: size, extensions and line end."""
EXTENSIONS = 16 * 1024
"""By how many bytes all extensions of a body may exceed its content."""
LARGEST_CHUNK = 10**MAX_DIGITS - 1
COPIED = 1024
"""Content of at most this many bytes is copied, which costs less than a view."""

_SIZE_LINE = re.compile(
    rb"([0-9A-Fa-f]{1,%d})((?:[ \t]*;[\t\x20-\x7e\x80-\xff]*)?)\r\n" % MAX_DIGITS
)


class _Expects(Enum):
    SIZE = auto()
    CONTENT = auto()
    CONTENT_END = auto()
    TRAILERS = auto()
    NOTHING = auto()


class ChunkedReader:
    """Reads one chunked body. Any split of its bytes gives the same content."""

    def __init__(self, limits: HeadLimits) -> None:
        self.trailers = Fields()
        """The trailer section. It is kept apart from the head's fields (RFC 9110, 6.5.1)."""
        self.excess = b""
        """The bytes after the body's end: the beginning of the next request."""
        self.fault: PeerError | None = None
        """Why the rest of the body cannot be read: 400, or 431 for too many trailers."""
        self.work = 0
        """How many chunks were read."""
        self._limits = limits
        self._expects = _Expects.SIZE
        self._left = 0
        self._partial = bytearray()
        """The beginning of a size line, of a chunk's end or of the trailer section."""
        self._spare = EXTENSIONS

    @property
    def finished(self) -> bool:
        """Whether the body's end has come."""
        return self._expects is _Expects.NOTHING

    def feed(self, data: memoryview) -> memoryview:
        """Return the content in *data* as one piece, which may be a part of *data*.

        If *data* is malformed, set :attr:`fault` and return the content before the
        fault.
        """
        if self._expects is _Expects.CONTENT and len(data) < self._left:
            self._left -= len(data)
            self._spare += len(data)
            return data
        raw = bytes(data)
        pieces: list[bytes | memoryview] = []
        try:
            self.excess = raw[self._read(raw, pieces) :]
        except PeerError as exc:
            # The traceback would hold this reader and its callers in a reference cycle.
            self.fault = exc.with_traceback(None)
        # The store gets one piece: ten thousand writes of tiny chunks would cost as
        # much as ten thousand uploads.
        return memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))

    def _read(self, raw: bytes, pieces: list[bytes | memoryview]) -> int:
        at = 0
        while at < len(raw) and not self.finished:
            match self._expects:
                case _Expects.CONTENT:
                    piece = memoryview(raw)[at : at + self._left]
                    pieces.append(piece)
                    at += len(piece)
                    self._left -= len(piece)
                    self._spare += len(piece)
                    if self._left == 0:
                        self._expects = _Expects.CONTENT_END
                case _Expects.SIZE:
                    if not self._partial:
                        at = self._read_whole_chunks(raw, at, pieces)
                    if at < len(raw):
                        at = self._read_size(raw, at)
                case _Expects.CONTENT_END:
                    at = self._read_content_end(raw, at)
                case _:
                    at = self._read_trailers(raw, at)
        return at

    def _read_whole_chunks(
        self, raw: bytes, at: int, pieces: list[bytes | memoryview]
    ) -> int:
        """Read the chunks that are whole in *raw*, from *at* on.

        A peer may send thousands of one-byte chunks in a single packet. This method
        stops at a fault and at the last chunk; the methods of one step each read those.
        """
        chunks, spare = 0, self._spare
        while (line := _SIZE_LINE.match(raw, at)) is not None:
            size, extensions = int(line[1], 16), len(line[2])
            start = line.end()
            end = start + size
            if (
                not 0 < size <= LARGEST_CHUNK
                or raw[end : end + 2] != b"\r\n"
                or start - at > LONGEST_LINE
                or extensions > spare
            ):
                break
            whole = raw[start:end] if size <= COPIED else memoryview(raw)[start:end]
            pieces.append(whole)
            spare += size - extensions
            chunks += 1
            at = end + 2
        self._spare = spare
        self.work += chunks
        return at

    def _read_size(self, raw: bytes, at: int) -> int:
        end = raw.find(b"\n", at) + 1
        self._partial += raw[at : end or len(raw)]
        if len(self._partial) > LONGEST_LINE:
            raise _refusal("the line of a chunk's size is too long")
        if not end:
            return len(raw)
        line, self._partial = bytes(self._partial), bytearray()
        match = _SIZE_LINE.fullmatch(line)
        if match is None:
            raise _refusal("the size of a chunk is malformed")
        self._spare -= len(match[2])
        if self._spare < 0:
            raise _refusal("the chunks' extensions are too long")
        self.work += 1
        self._left = int(match[1], 16)
        if self._left > LARGEST_CHUNK:
            raise _refusal(f"a chunk has more than {LARGEST_CHUNK} bytes")
        self._expects = _Expects.CONTENT if self._left else _Expects.TRAILERS
        return end

    def _read_content_end(self, raw: bytes, at: int) -> int:
        end = at + 2 - len(self._partial)
        self._partial += raw[at:end]
        if not b"\r\n".startswith(self._partial):
            raise _refusal("a chunk does not end where it should")
        if len(self._partial) == 2:
            self._partial.clear()
            self._expects = _Expects.SIZE
        return min(end, len(raw))

    def _read_trailers(self, raw: bytes, at: int) -> int:
        # The section begins with the line end of the last chunk's size. So an empty
        # section ends with an empty line, like any other.
        if not self._partial:
            self._partial += b"\r\n"
        held = len(self._partial)
        self._partial += raw[at:]
        end = find_block_end(self._partial, max(0, held - 3))
        if (len(self._partial) if end < 0 else end) > self._limits.max_size + 2:
            raise _refusal(
                "the trailer section is too large", ProblemCode.HEADER_TOO_LARGE
            )
        if end < 0:
            return len(raw)
        section = bytes(self._partial[2:end])
        self.trailers = parse_field_block(section, self._limits.max_fields)
        self._partial.clear()
        self._expects = _Expects.NOTHING
        return at + end - held


def _refusal(
    detail: str, problem: ProblemCode = ProblemCode.MALFORMED_REQUEST
) -> PeerError:
    return PeerError(problem, detail, close=True)
