"""What is fuzzed: functions of bytes that fail if a parser does what it must not.

Each asserts two things of any input: nothing but :class:`PeerError` is raised, where
anything may be; and what comes out does not depend on how the bytes were split, or
agrees with what another parser makes of the same bytes.

The first byte chooses how the rest is split, and a variant where there are some.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import h11

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.byteranges import patch_reader
from trioresume.protocol.chunked import ChunkedReader
from trioresume.protocol.dialects.seed.server import (
    parse_preferences,
    preference_applied,
)
from trioresume.protocol.fields import (
    MAX_DIGITS,
    header_safe,
    parse_entity_tags,
    parse_http_date,
    parse_media_type,
    split_list,
)
from trioresume.protocol.framing import (
    HeadLimits,
    find_head_end,
    head_start,
    parse_head,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.parts import (
    PartData,
    PartStart,
    PatchCut,
    PatchEnd,
    PatchReader,
)
from trioresume.protocol.ranges import parse_content_range
from trioresume.protocol.structured import (
    boolean_item,
    byte_sequences,
    format_dictionary,
    integer_item,
    integer_members,
)

__all__ = ["TARGETS"]

LARGEST = 10**MAX_DIGITS - 1


def _pieces(data: bytes, step: int) -> Iterator[bytes]:
    for at in range(0, len(data), step or len(data) or 1):
        yield data[at : at + (step or len(data))]


def _refused(error: PeerError, *, close: bool = False) -> ProblemCode:
    """What a refusal must be: fit to be sent (G4), and final where framing is in doubt."""
    assert header_safe(error.detail)
    assert error.close or not close
    return error.problem


# Heads.


def _find(data: bytes, step: int) -> bytes | None:
    """The head in *data* as a connection finds it, or None if it is not there yet."""
    buffer = bytearray()
    searched = 0
    for piece in _pieces(data, step):
        buffer += piece
        end = find_head_end(buffer, searched)
        if end >= 0:
            return bytes(buffer[head_start(buffer) : end])
        searched = len(buffer)
    return None


def _outcome(data: bytes, step: int) -> object:
    try:
        raw = _find(data, step)
        return None if raw is None else (raw, parse_head(raw))
    except PeerError as error:
        return _refused(error, close=True)


def head(data: bytes) -> None:
    """A request's head: h11 must see the same lines in what is let through."""
    step, data = data[:1], data[1:]
    found = _outcome(data, 0)
    assert _outcome(data, step[0] % 8 if step else 0) == found
    if not (isinstance(found, tuple) and isinstance(found[0], bytes)):
        return
    raw, request = found
    assert isinstance(request, RequestHead)
    assert request.length is None or 0 <= request.length <= LARGEST
    assert request.target.startswith("/") or request.target == "*"
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(raw)
    try:
        event = parser.next_event()
    except h11.RemoteProtocolError:
        return
    assert isinstance(event, h11.Request), event
    assert (event.method, event.http_version) == (
        request.method.encode("latin-1"),
        request.http_version.encode("latin-1"),
    )
    # h11 writes a coding in lower case.
    seen = [(name, value.lower()) for name, value in Fields.from_wire(event.headers)]
    assert seen == [(name, value.lower()) for name, value in request.fields]


# Chunked content.


def _unchunk(data: bytes, step: int) -> tuple[object, ...]:
    reader = ChunkedReader(HeadLimits())
    content = b""
    excess = b""
    for piece in _pieces(data, step):
        if reader.finished:
            excess += piece
            continue
        content += reader.feed(memoryview(piece))
        if reader.fault is not None:
            assert reader.fault.close
            break
        excess = reader.excess
        assert len(reader._partial) <= 20_000
    return content, reader.finished, reader.fault is None, excess, reader.trailers


def chunks(data: bytes) -> None:
    """Chunked content: the same content and the same end in any split; as h11 has it."""
    step, data = data[:1], data[1:]
    whole = _unchunk(data, 0)
    assert _unchunk(data, step[0] % 8 if step else 0) == whole
    content, finished, _, excess, _ = whole
    if not finished:
        return
    parser = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
    parser.receive_data(
        b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n" + data
    )
    theirs = b""
    while not isinstance(event := parser.next_event(), h11.EndOfMessage):
        assert event is not h11.NEED_DATA
        if isinstance(event, h11.Data):
            theirs += event.data
    assert (theirs, parser.trailing_data[0]) == (content, excess)


# Patches.


def _read_patch(make: Callable[[], PatchReader], data: bytes, step: int) -> object:
    starts: list[object] = []
    content = b""
    end: object = None
    try:
        reader = make()
        for piece in [*_pieces(data, step), None]:
            for event in reader.end() if piece is None else reader.feed(piece):
                if isinstance(event, PartData):
                    content += event.data
                elif isinstance(event, PartStart):
                    starts.append((event.range, event.length))
                    for number in (event.range.first, event.range.total, event.length):
                        assert number is None or 0 <= number <= LARGEST
                elif isinstance(event, PatchEnd | PatchCut):
                    end = type(event)
    except PeerError as error:
        end = _refused(error)
        content = b""  # how much came before the fault depends on the split
    return starts if end is None else None, end, content


def _patch(make: Callable[[int], PatchReader], data: bytes) -> None:
    step, data = data[:1], data[1:]
    whole = _read_patch(lambda: make(len(data)), data, 0)
    split = _read_patch(lambda: make(len(data)), data, step[0] % 8 if step else 0)
    assert split == whole


def message_patch(data: bytes) -> None:
    """``message/byterange``."""
    _patch(
        lambda size: patch_reader("message/byterange", Fields(), content_length=size),
        data,
    )


def multipart_patch(data: bytes) -> None:
    """``multipart/byteranges`` with a boundary of two characters."""
    _patch(
        lambda size: patch_reader(
            'multipart/byteranges; boundary="aB"', Fields(), content_length=size
        ),
        data,
    )


def binary_patch(data: bytes) -> None:
    """``application/byteranges``."""
    _patch(
        lambda size: patch_reader(
            "application/byteranges", Fields(), content_length=size
        ),
        data,
    )


# Fields.


def structured(data: bytes) -> None:
    """Structured fields never raise, are bounded, and come out of their own form."""
    fields = Fields({"a": data.decode("latin-1")})
    integer = integer_item(fields, "a")
    assert integer is None or 0 <= integer <= LARGEST
    assert boolean_item(fields, "a") in (None, True, False)
    members: dict[str, int | bytes] = {**integer_members(fields, "a")}
    members.update(byte_sequences(fields, "a"))
    again = Fields({"a": format_dictionary(members)})
    assert {**integer_members(again, "a"), **byte_sequences(again, "a")} == members


def preferences(data: bytes) -> None:
    """``Prefer`` never raises, and what was applied can be said."""
    found = parse_preferences(Fields({"prefer": data.decode("latin-1")}))
    assert found.wait is None or 0 <= found.wait <= LARGEST
    applied = preference_applied(found)
    if applied is not None:
        assert header_safe(applied)


def fields(data: bytes) -> None:
    """The other fields' values: refused or understood, in bounds either way."""
    text = data.decode("latin-1")
    split_list(text)
    split_list(text, ";")
    parse_http_date(text)
    parse_media_type(text)
    for parse in (parse_content_range, parse_entity_tags):
        try:
            parse(text)
        except PeerError as error:
            _refused(error)
    try:
        found = parse_content_range(text)
    except PeerError:
        return
    for number in (found.first, found.last, found.total):
        assert number is None or 0 <= number <= LARGEST


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__.replace("_", "-"): target
    for target in (
        head,
        chunks,
        message_patch,
        multipart_patch,
        binary_patch,
        structured,
        preferences,
        fields,
    )
}
