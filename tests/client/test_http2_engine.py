"""The client's HTTP/2 without sockets: any split of the bytes, frames, bounds, windows."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import h2.config
import h2.connection
import h2.events
import hpack
import pytest
from h2.errors import ErrorCodes
from h2.settings import SettingCodes
from hyperframe.frame import DataFrame, Frame, HeadersFrame, SettingsFrame
from hypothesis import given, strategies as st

from trioresume.client.content.file_source import FileSpan, SourceChanged
from trioresume.client.http.http2.engine import (
    STREAM_WINDOW,
    ConnectionFault,
    Content,
    ContentEnded,
    Engine,
    Event,
    NoHttp2,
    Reset,
    Section,
)
from trioresume.client.http.http2.frames import FRAME_HEAD, FrameBlock
from trioresume.protocol.allowance import Allowance

GET = [
    (b":method", b"GET"),
    (b":scheme", b"https"),
    (b":authority", b"a"),
    (b":path", b"/"),
]


def engine() -> tuple[Engine, int]:
    """An engine that knows the server's settings, and its first stream."""
    made = Engine(most_section=65_536, now=0.0)
    made.receive(SettingsFrame(0).serialize(), 0.0)
    return made, made.begin(GET, ends=True)


def answer(fields: list[tuple[str, str]], content: bytes) -> bytes:
    """What h2 sends for a response, with an interim one, trailers and padding."""
    config = h2.config.H2Configuration(client_side=False)
    server = h2.connection.H2Connection(config)
    client = h2.connection.H2Connection()
    client.initiate_connection()
    client.send_headers(1, [(n.decode(), v.decode()) for n, v in GET], end_stream=True)
    server.initiate_connection()
    server.receive_data(client.data_to_send())
    server.send_headers(1, [(":status", "102"), ("upload-offset", "7")])
    server.send_headers(1, [(":status", "200"), *fields])
    half = len(content) // 2
    server.send_data(1, content[:half], pad_length=9)
    server.send_data(1, content[half:])
    server.send_headers(1, [("digest", "x")], end_stream=True)
    return server.data_to_send()


@given(data=st.data(), content=st.binary(max_size=2000))
def test_any_split_of_the_bytes_gives_the_same(
    data: st.DataObject, content: bytes
) -> None:
    """A response with all kinds of frames, as h2 makes it."""
    wire = answer([("content-length", str(len(content)))], content)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(wire)), max_size=8)))
    made = Engine(most_section=65_536, now=0.0)
    made.receive(SettingsFrame(0).serialize(), 0.0)
    made.begin(GET, ends=True)
    events: list[Event] = []
    for start, stop in zip([0, *cuts], [*cuts, len(wire)], strict=True):
        events += made.receive(wire[start:stop], 0.0)
    sections = [event.pairs for event in events if isinstance(event, Section)]
    assert [dict(s)[b":status"] for s in sections] == [b"102", b"200"]
    got = b"".join(event.data for event in events if isinstance(event, Content))
    assert got == content
    assert events[-1] == ContentEnded(1)


def test_content_beyond_the_window_is_a_fault() -> None:
    """The window is what the caller has not taken yet."""
    made, stream = engine()
    block = hpack.Encoder().encode([(":status", "200")])
    made.receive(
        HeadersFrame(stream, data=block, flags=["END_HEADERS"]).serialize(), 0.0
    )
    frame = DataFrame(stream, data=bytes(16_384)).serialize()
    for _ in range(STREAM_WINDOW // 16_384):
        made.receive(frame, 0.0)
    with pytest.raises(ConnectionFault, match="breaks HTTP/2's rules"):
        made.receive(frame, 0.0)
    taken, stream = engine()
    taken.receive(
        HeadersFrame(stream, data=block, flags=["END_HEADERS"]).serialize(), 0.0
    )
    for _ in range(2 * STREAM_WINDOW // 16_384):
        taken.receive(frame, 0.0)
        taken.grant(stream, 16_384)


def test_unknown_settings_are_not_kept() -> None:
    """A server that sends each setting there can be takes no memory by it."""
    made, _ = engine()
    for first in range(256, 2**16, 2000):
        codes = range(first, min(first + 2000, 2**16))
        several = b"".join(struct.pack(">HL", code, 1) for code in codes)
        # hyperframe sends only the lower byte of a code.
        head = len(several).to_bytes(3, "big") + b"\x04" + bytes(5)
        made.receive(head + several, 0.0)
    assert set(made._books.remote_settings) <= set(SettingCodes)


def test_first_frame_is_the_servers_settings() -> None:
    """RFC 9113, section 3.4."""
    made = Engine(most_section=65_536, now=0.0)
    with pytest.raises(NoHttp2):
        made.receive(b"HTTP/1.1 200 OK\r\n", 0.0)
    made = Engine(most_section=65_536, now=0.0)
    with pytest.raises(NoHttp2):
        made.receive(SettingsFrame(0, flags=["ACK"]).serialize(), 0.0)


@pytest.mark.parametrize("bodiless", ["HEAD", "204", "304"])
def test_length_without_content_is_no_fault(bodiless: str) -> None:
    """RFC 9110, section 8.6: these have the length that a GET would have."""
    made = Engine(most_section=65_536, now=0.0)
    made.receive(SettingsFrame(0).serialize(), 0.0)
    method = b"HEAD" if bodiless == "HEAD" else b"GET"
    stream = made.begin([(b":method", method), *GET[1:]], ends=True)
    status = "200" if bodiless == "HEAD" else bodiless
    block = hpack.Encoder().encode([(":status", status), ("content-length", "5")])
    frame = HeadersFrame(stream, data=block, flags=["END_HEADERS", "END_STREAM"])
    events = made.receive(frame.serialize(), 0.0)
    assert isinstance(events[0], Section)
    assert events[1:] == [ContentEnded(stream)]


def test_malformed_response_ends_one_stream() -> None:
    """Content before a head: the stream is reset, the connection goes on."""
    made, stream = engine()
    made.take_output()
    (event,) = made.receive(DataFrame(stream, data=b"x").serialize(), 0.0)
    assert isinstance(event, Reset)
    assert event.code == ErrorCodes.PROTOCOL_ERROR
    assert made.has_ids
    assert made.take_output()[3] == 3  # RST_STREAM
    other = made.begin(GET, ends=True)
    assert other == stream + 2


def test_windows_are_kept_past_h2() -> None:
    """A sent byte counts for the stream and for the connection. Unused credit comes back."""
    made, _ = engine()
    first, second = (made.begin(GET, ends=False) for _ in range(2))
    assert made.room(first) == 65_535
    made.spend(first, 60_000)
    assert made.room(first) == made.room(second) == 5_535
    made.give_back(60_000)
    assert made.room(first) == 5_535
    assert made.room(second) == 65_535


@given(
    data=st.binary(min_size=1, max_size=300),
    payload=st.integers(1, 100),
    capacity=st.integers(1, 400),
    steps=st.lists(st.integers(1, 100), max_size=300),
    in_memory=st.booleans(),
)
def test_content_as_frames_comes_back_whole(
    data: bytes, payload: int, capacity: int, steps: list[int], in_memory: bool
) -> None:
    """Wherever the server's window ends, and whether it was in memory or in a file."""
    block = FrameBlock(3, payload, capacity)
    if in_memory:
        count = block.copy(memoryview(data))
    else:
        fd = os.memfd_create("content")
        try:
            os.write(fd, data)
            count = block.read(FileSpan(fd, 0, len(data)))
        finally:
            os.close(fd)
    assert count == min(len(data), block.capacity)
    came = b""
    at = 0
    for step in [*steps, count]:
        size = min(step, count - at)
        wire = bytes(block.frames(at, size)) if size else b""
        at += size
        while wire:
            frame, length = Frame.parse_frame_header(memoryview(wire[:FRAME_HEAD]))
            assert (frame.stream_id, frame.type, *frame.flags) == (3, 0)
            assert 0 < length <= payload
            came += wire[FRAME_HEAD : FRAME_HEAD + length]
            wire = wire[FRAME_HEAD + length :]
    assert came == data[:count]


def test_file_that_became_shorter_is_told(tmp_path: Path) -> None:
    """Nothing is sent for a stream that is gone."""
    path = tmp_path / "file"
    path.write_bytes(b"")
    with path.open("rb") as file:
        with pytest.raises(SourceChanged):
            FrameBlock(1, 100, 100).read(FileSpan(file.fileno(), 0, 10))


def test_allowance_comes_back_with_time_and_content() -> None:
    """A server that only floods runs out of it."""
    spent = Allowance(0.0, most=10, each_second=1)
    assert all(spent.spend(1, 0.0) for _ in range(10))
    assert not spent.spend(1, 0.0)
    assert spent.spend(1, 5.0)
    spent = Allowance(0.0, most=10, each_second=0)
    for _ in range(100):
        spent.earn(1024)
        assert spent.spend(1, 0.0)
