"""``multipart/byteranges`` as a patch: several ranges, all or nothing (B8).

The syntax is RFC 2046, section 5.1.1, without a preamble and without an epilogue,
because a patch has no room for text that nobody reads. Only empty lines may stand
before the first boundary, as RFC 9110, section 14.6, allows.

Finding the delimiter
=====================

Content ends at CRLF, two hyphens and the boundary. No boundary contains a CR, so the
delimiter has exactly one CR, its first byte. When input runs out, at most one beginning
of a delimiter can be pending: the one at the last CR. It is stored as a count
(``_matched``), not as bytes, because its bytes equal the delimiter's. If the next input
does not continue it, no shorter match can hide within the pending bytes. The search
looks at each byte once, and the comparison at most once more. So the work is linear,
whatever the content.

The delimiter's line end may be the end of the header section, or the beginning of the
body. Both count as two matched bytes that are not content (``_virtual``).

Statement numbers such as B8 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.parts import (
    PartEnd,
    PatchCut,
    PatchEnd,
    PatchEvent,
    PatchLimits,
    PatchReader,
    Steps,
    bad_patch,
)

__all__ = ["MultipartReader"]

# RFC 2046, section 5.1.1: bcharsnospace, and a space anywhere but at the end.
_BOUNDARY = re.compile(r"[0-9A-Za-z'()+_,\-./:=?\x20]{0,69}[0-9A-Za-z'()+_,\-./:=?]")
_AFTER_DELIMITER = re.compile(rb"(?P<closing>--)|[ \t]*+\r\n")
_AFTER_DELIMITER_SO_FAR = re.compile(rb"-|[ \t]*+\r?")
_EPILOGUE_SO_FAR = re.compile(rb"[ \t]*+(?:\r\n?)?")
# More padding than any client sends. It only bounds the padding.
_MAX_PADDING = 128
_MAX_EMPTY_LINES = 4


class MultipartReader(PatchReader):
    """Reads the parts between boundaries. Raises a 400 at once if *boundary* is invalid."""

    atomic = True

    def __init__(
        self, limits: PatchLimits, boundary: str | None, *, lenient_unit: bool = False
    ) -> None:
        super().__init__(limits, lenient_unit=lenient_unit)
        if boundary is None or _BOUNDARY.fullmatch(boundary) is None:
            raise PeerError(
                ProblemCode.BAD_PATCH, "the boundary is missing or malformed"
            )
        self._delimiter = f"\r\n--{boundary}".encode("ascii")
        self._pattern = re.compile(re.escape(self._delimiter))
        self._matched = self._virtual = 2
        self._closed = False

    # ------------------------------------------------------------ the grammar

    def _parse(self) -> Steps[None]:
        yield from self._preamble()
        while not (yield from self._is_closing()):
            fields, _ = yield from self._header_section()
            self._matched = self._virtual = 2
            yield self._begin(fields, None)
            yield from self._part_content()
            self.plain = 0
            if self._is_short():
                yield PatchCut()
                return
            yield PartEnd()
        if not self._parts:
            raise bad_patch("the patch has no part")
        self._closed = True
        yield from self._epilogue()

    def _preamble(self) -> Steps[None]:
        before = bytearray()
        found = False
        while not found:
            pieces, found = self._split((yield from self._available()))
            for piece in pieces:
                before += piece[: 2 * _MAX_EMPTY_LINES + 1]
                if len(before) > 2 * _MAX_EMPTY_LINES or before.strip(b"\r\n"):
                    raise bad_patch("the patch does not begin with its boundary")

    def _is_closing(self) -> Steps[bool]:
        """Take the rest of a boundary's line. Return whether two hyphens end the patch."""
        self.work += 1
        line = b""
        while True:
            available = yield from self._available()
            before = len(line)
            line += bytes(available[: _MAX_PADDING + 1 - before])
            match = _AFTER_DELIMITER.match(line)
            taken = len(line) if match is None else match.end()
            self._input = available[taken - before :]
            if match is not None:
                return match["closing"] is not None
            partial = _AFTER_DELIMITER_SO_FAR.fullmatch(line) is not None
            if not partial or len(line) > _MAX_PADDING:
                raise bad_patch("a boundary is not alone on its line")

    def _part_content(self) -> Steps[None]:
        found = False
        while not found:
            pieces, found = self._split((yield from self._available()))
            for piece in pieces:
                yield from self._content(piece)
            # Content ends only at the delimiter, and searching for that is quick.
            self.plain = 0 if self._room is None else self._room - self._received

    def _epilogue(self) -> Steps[None]:
        rest = bytearray()
        while True:
            rest += yield from self._some(_MAX_PADDING + 1 - len(rest))
            allowed = _EPILOGUE_SO_FAR.fullmatch(rest) is not None
            if not allowed or len(rest) > _MAX_PADDING:
                raise bad_patch("there is content after the last boundary")

    def _finish(self) -> Iterator[PatchEvent]:
        if self._closed:
            yield PatchEnd()
        elif not self._parts:
            raise bad_patch("the patch ends before its first part")
        else:
            yield PatchCut()

    # ------------------------------------------------------------ the delimiter

    def _split(self, available: memoryview) -> tuple[list[memoryview], bool]:
        """Take content up to and including the delimiter, or all input there is.

        Returns the content, in at most two pieces, and whether the delimiter came.
        """
        pieces: list[memoryview] = []
        if self._matched:
            rest = self._delimiter[self._matched :]
            size = min(len(rest), len(available))
            if available[:size] == rest[:size]:
                self._input = available[size:]
                self._matched += size
                found = size == len(rest)
                if found:
                    self._matched = self._virtual = 0
                return [], found
            # The pending bytes were content, except for a line end that was none.
            held = self._delimiter[self._virtual : self._matched]
            pieces.append(memoryview(held))
            self._matched = self._virtual = 0
        start, end = self._find(available)
        if start < 0:
            self._matched = self._begun(available)
            start = end = len(available)
            content = available[: start - self._matched]
        else:
            content = available[:start]
        self._input = available[end:]
        pieces.append(content)
        return pieces, self._matched == 0 and start != end

    def _find(self, data: memoryview) -> tuple[int, int]:
        match = self._pattern.search(data)
        return (-1, -1) if match is None else match.span()

    def _begun(self, data: memoryview) -> int:
        """Return how many of the last bytes may begin a delimiter."""
        tail = bytes(data[-(len(self._delimiter) - 1) :])
        candidate = tail[tail.rfind(b"\r") :] if b"\r" in tail else b""
        return len(candidate) if self._delimiter.startswith(candidate) else 0
