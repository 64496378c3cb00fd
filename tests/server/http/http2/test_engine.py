"""The engine: what h2 would say of the same bytes, and where it differs on purpose."""

from __future__ import annotations

import struct
from collections.abc import Iterable

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import pytest
from h2.settings import SettingCodes
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)
from hypothesis import given, strategies as st

from trioresume.server.http.http2.engine import (
    INITIAL_WINDOW,
    PREFACE,
    AckedPing,
    ConnectionFault,
    Content,
    ContentEnded,
    Engine,
    ErrorCodes,
    Event,
    GoingAway,
    Request,
    Reset,
    Trailers,
    WindowOpened,
)

PAIRS = [
    (":method", "POST"),
    (":scheme", "http"),
    (":authority", "test"),
    (":path", "/"),
]


class Ends:
    """An engine and a client of h2, without anything between them."""

    def __init__(self, *, most_streams: int = 10, most_section: int = 1024) -> None:
        self.engine = Engine(
            most_streams=most_streams,
            most_section=most_section,
            window=4 * INITIAL_WINDOW,
            now=0,
        )
        config = h2.config.H2Configuration(client_side=True, header_encoding=None)
        self.client = h2.connection.H2Connection(config)
        self.client.initiate_connection()
        self.now = 0.0
        self.come()
        self.go()
        self.come()

    def come(self, *frames: Frame, step: int = 65536) -> list[Event]:
        """Give the engine what the client has queued, and *frames*, *step* bytes at a time."""
        data = self.client.data_to_send()
        data += b"".join(frame.serialize() for frame in frames)
        return self.feed(data, step)

    def feed(self, data: bytes, step: int = 65536) -> list[Event]:
        events: list[Event] = []
        for at in range(0, len(data), step):
            piece = memoryview(data)[at : at + step]
            events += self.engine.receive(piece, self.now)
        return [
            Content(e.stream, [memoryview(bytes(part)) for part in e.parts])
            if isinstance(e, Content)
            else e
            for e in events
        ]

    def go(self) -> list[h2.events.Event]:
        """Give the client what the engine has queued."""
        return self.client.receive_data(bytes(self.engine.take_output()))

    def begin(
        self, fields: Iterable[tuple[str, str]] = (), *, ends: bool = False
    ) -> int:
        stream = self.client.get_next_available_stream_id()
        self.client.send_headers(stream, [*PAIRS, *fields], end_stream=ends)
        events = self.come()
        assert isinstance(events[0], Request)
        return stream


def content(events: Iterable[Event], stream: int) -> bytes:
    """The content of *stream* in *events*."""
    return b"".join(
        part
        for event in events
        if isinstance(event, Content) and event.stream == stream
        for part in event.parts
    )


def fault(ends: Ends, *frames: Frame) -> int:
    """The code of the fault that *frames* are; the client is told of it."""
    with pytest.raises(ConnectionFault) as caught:
        ends.come(*frames)
    told = bytes(ends.engine.take_output())
    assert told[-17:-14] == b"\x00\x00\x08", "a GOAWAY comes last"
    assert int.from_bytes(told[-4:], "big") == caught.value.code
    return caught.value.code


def test_request_is_told_with_its_fields() -> None:
    """The fields of a request come as the client sent them."""
    ends = Ends()
    ends.client.send_headers(1, [*PAIRS, ("x-name", "value")], end_stream=True)
    (request,) = ends.come()
    assert isinstance(request, Request)
    assert request.ends
    assert (b"x-name", b"value") in request.pairs
    assert (b":path", b"/") in request.pairs


@given(step=st.integers(1, 40), sizes=st.lists(st.integers(0, 60), max_size=5))
def test_any_split_of_the_bytes_gives_the_same_content(
    step: int, sizes: list[int]
) -> None:
    """Content is the same however the bytes of its frames are split."""
    ends = Ends()
    stream = ends.begin()
    expected = b""
    for index, size in enumerate(sizes):
        data = bytes([index]) * size
        ends.client.send_data(stream, data, pad_length=index if index % 2 else None)
        expected += data
    ends.client.end_stream(stream)
    events = ends.come(step=step)
    assert content(events, stream) == expected
    assert events[-1] == ContentEnded(stream)


@given(
    frames=st.lists(
        st.tuples(st.sampled_from([1, 3]), st.integers(0, 3000), st.booleans()),
        max_size=12,
    )
)
def test_windows_and_states_are_those_of_h2(
    frames: list[tuple[int, int, bool]],
) -> None:
    """After any DATA frames h2's books are the same as if h2 had read the bytes."""
    ends = Ends()
    twin = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    twin.initiate_connection()
    other = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    other.initiate_connection()
    for stream in (1, 3):
        ends.begin()
        other.send_headers(stream, PAIRS)
    twin.receive_data(other.data_to_send())
    base = ends.engine._books.inbound_flow_control_window
    twin_base = twin.inbound_flow_control_window
    for stream, size, last in frames:
        frame = DataFrame(stream, bytes(size), flags=["END_STREAM"] if last else [])
        fault_of_twin: int | None = None
        try:
            twin.receive_data(frame.serialize())
        except h2.exceptions.ProtocolError as exc:
            fault_of_twin = exc.error_code
        if fault_of_twin is not None:
            assert fault(ends, frame) == fault_of_twin
            return
        ends.come(frame)
        books = ends.engine._books
        for known in (1, 3):
            ours, theirs = books.streams.get(known), twin.streams.get(known)
            if ours is not None and theirs is not None:
                assert ours.state_machine.state == theirs.state_machine.state
                credit = ours.inbound_flow_control_window
                assert credit == theirs.inbound_flow_control_window
        spent = base - books.inbound_flow_control_window
        assert spent == twin_base - twin.inbound_flow_control_window


def test_content_is_a_view_and_no_copy() -> None:
    """The content of an ordinary frame is a view of the caller's buffer."""
    ends = Ends()
    ends.begin()
    buffer = bytearray(DataFrame(1, b"content").serialize())
    (event,) = ends.engine.receive(memoryview(buffer), 0)
    assert isinstance(event, Content)
    buffer[-1:] = b"!"
    assert event.parts == [b"conten!"]


def test_trailers_end_the_content() -> None:
    """Trailers are told, and then the end of the content."""
    ends = Ends()
    stream = ends.begin()
    ends.client.send_data(stream, b"abc")
    ends.client.send_headers(stream, [("x-sum", "1")], end_stream=True)
    events = ends.come()
    assert events[1:] == [Trailers(stream, [(b"x-sum", b"1")]), ContentEnded(stream)]


@pytest.mark.parametrize(("size", "ends_it"), [(11, False), (9, True)])
@pytest.mark.parametrize("pad", [None, 3])
def test_content_of_the_wrong_length_resets_its_stream_only(
    size: int, ends_it: bool, pad: int | None
) -> None:
    """More or less content than Content-Length says is a fault of the request."""
    ends = Ends()
    stream = ends.begin([("content-length", "10")])
    ends.client.send_data(stream, bytes(size), end_stream=ends_it, pad_length=pad)
    assert Reset(stream) in ends.come()
    reset = [e for e in ends.go() if isinstance(e, h2.events.StreamReset)]
    assert [e.error_code for e in reset] == [ErrorCodes.PROTOCOL_ERROR]
    assert content(ends.come(DataFrame(stream, b"late")), stream) == b""
    other = ends.begin()
    ends.client.send_data(other, b"abc")
    assert content(ends.come(), other) == b"abc"


def test_length_counts_for_content_in_the_same_read() -> None:
    """A request and its content that come together are judged together."""
    ends = Ends()
    ends.client.send_headers(1, [*PAIRS, ("content-length", "3")])
    ends.client.send_data(1, b"abc", end_stream=True)
    request, came, ended = ends.come()
    assert isinstance(request, Request)
    assert content([came], 1) == b"abc"
    assert ended == ContentEnded(1)


def test_trailers_before_the_promised_end_reset_the_stream() -> None:
    """Trailers after too little content are a fault of the request."""
    ends = Ends()
    stream = ends.begin([("content-length", "10")])
    ends.client.send_headers(stream, [("x-sum", "1")], end_stream=True)
    assert ends.come() == [Reset(stream)]


def test_content_after_our_reset_is_dropped() -> None:
    """The engine drops content that arrives after it has reset the stream."""
    ends = Ends()
    stream = ends.begin()
    ends.engine.reset(stream, ErrorCodes.CANCEL)
    assert ends.come(DataFrame(stream, b"late", flags=["END_STREAM"])) == []


def test_reset_by_the_peer_is_told() -> None:
    """The peer's RST_STREAM ends its stream."""
    ends = Ends()
    stream = ends.begin()
    ends.client.reset_stream(stream)
    assert ends.come() == [Reset(stream)]


def test_goaway_of_the_peer_lets_its_streams_end() -> None:
    """A response can be sent after the peer has said that it goes."""
    ends = Ends()
    stream = ends.begin()
    assert ends.come(GoAwayFrame(0, last_stream_id=0), step=3) == [GoingAway()]
    ends.engine.send_head(stream, [(b":status", b"200")], ends=True)
    assert any(isinstance(e, h2.events.StreamEnded) for e in ends.go())


def test_our_goaway_lets_the_streams_end() -> None:
    """Content and a response pass after a GOAWAY of the server."""
    ends = Ends()
    stream = ends.begin()
    ends.engine.go_away(2**31 - 1)
    gone = ends.go()
    assert any(isinstance(e, h2.events.ConnectionTerminated) for e in gone)
    frame = DataFrame(stream, b"abc", flags=["END_STREAM"])
    assert content(ends.come(frame), stream) == b"abc"
    ends.engine.send_head(stream, [(b":status", b"200")], ends=True)
    assert ends.engine.take_output()


def test_answered_ping_is_told() -> None:
    """The peer's answer to our PING comes as an event."""
    ends = Ends()
    ends.engine.ping()
    ends.go()
    assert AckedPing() in ends.come()


def test_credit_is_told_to_the_peer() -> None:
    """A grant opens the peer's window of the stream."""
    ends = Ends()
    stream = ends.begin()
    before = ends.client.local_flow_control_window(stream)
    ends.client.send_data(stream, bytes(1000))
    ends.come()
    ends.engine.grant(stream, 1500)
    ends.go()
    assert ends.client.local_flow_control_window(stream) == before + 500


def test_connection_gets_credit_for_every_byte() -> None:
    """The window of the connection never stops a stream."""
    ends = Ends()
    for _ in range(20):
        stream = ends.begin()
        ends.client.send_data(stream, bytes(16000))
        ends.client.send_data(stream, bytes(16000), end_stream=True)
        ends.come()
        ends.engine.send_head(stream, [(b":status", b"200")], ends=True)
        ends.go()
    assert ends.client.outbound_flow_control_window >= 2 * INITIAL_WINDOW


def test_peer_s_table_size_does_not_grow_ours() -> None:
    """A peer that allows a huge HPACK table makes this side keep no more than before."""
    ends = Ends()
    ends.come(SettingsFrame(0, settings={SettingsFrame.HEADER_TABLE_SIZE: 2**32 - 1}))
    assert ends.engine._books.encoder.header_table_size == 4096


@given(
    frames=st.lists(
        st.dictionaries(
            st.integers(0, 12), st.sampled_from([0, 1, 2, 65_535, 2**24 - 1, 2**32 - 1])
        ),
        max_size=4,
    )
)
def test_settings_are_those_of_h2(frames: list[dict[int, int]]) -> None:
    """After any SETTINGS the known settings are the same as in h2's own way."""
    ends = Ends()
    twin = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    twin.initiate_connection()
    other = h2.connection.H2Connection(h2.config.H2Configuration(client_side=True))
    other.initiate_connection()
    twin.receive_data(other.data_to_send())
    for settings in frames:
        frame = SettingsFrame(0, settings=settings)
        fault_of_twin: int | None = None
        try:
            twin.receive_data(frame.serialize())
        except h2.exceptions.ProtocolError as exc:
            fault_of_twin = exc.error_code
        if fault_of_twin is not None:
            assert fault(ends, frame) == fault_of_twin
            return
        ends.come(frame)
        books = ends.engine._books
        known = {
            k: v for k, v in twin.remote_settings.items() if k in set(SettingCodes)
        }
        assert dict(books.remote_settings) == known
        assert books.max_outbound_frame_size == twin.max_outbound_frame_size


def test_unknown_settings_are_not_kept() -> None:
    """A peer that sends each setting there can be, known or not, takes no memory by it."""
    ends = Ends()
    for first in range(256, 2**16, 2000):
        codes = range(first, min(first + 2000, 2**16))
        several = b"".join(struct.pack(">HL", code, 1) for code in codes)
        # hyperframe sends only the lower byte of a code.
        ends.feed(len(several).to_bytes(3, "big") + b"\x04" + bytes(5) + several)
        ends.go()
    assert set(ends.engine._books.remote_settings) <= set(SettingCodes)
    ends.begin()


def test_connections_share_their_own_settings_only() -> None:
    """What one peer sets does not change another peer's connection."""
    one, other = Ends(), Ends()
    one.come(SettingsFrame(0, settings={SettingsFrame.MAX_FRAME_SIZE: 2**20}))
    assert one.engine._books.remote_settings.max_frame_size == 2**20
    assert other.engine._books.remote_settings.max_frame_size == 2**14
    own = one.engine._books.local_settings
    assert own is other.engine._books.local_settings
    assert Ends(most_section=2048).engine._books.local_settings is not own


def test_new_initial_window_is_told() -> None:
    """Settings may open the windows of all streams."""
    ends = Ends()
    frame = SettingsFrame(0, settings={SettingsFrame.INITIAL_WINDOW_SIZE: 100_000})
    assert ends.come(frame) == [WindowOpened(0)]


def test_closed_streams_are_forgotten() -> None:
    """Thousands of requests leave next to nothing behind."""
    ends = Ends()
    for _ in range(1000):
        stream = ends.begin(ends=True)
        ends.engine.send_head(stream, [(b":status", b"200")], ends=True)
        ends.engine.forget(stream)
        ends.engine.take_output()
        ends.client.streams.clear()
        ends.client._closed_streams.clear()
    assert len(ends.engine._books.streams) == 0
    assert len(ends.engine._books._closed_streams) <= 256


# Attacks, and other faults of the connection.


def headers(stream: int, data: bytes, *flags: str) -> HeadersFrame:
    return HeadersFrame(stream, data, flags=flags)


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([DataFrame(1, b"x")], ErrorCodes.PROTOCOL_ERROR),
        ([ContinuationFrame(1, b"")], ErrorCodes.PROTOCOL_ERROR),
        ([headers(1, b"\x82"), DataFrame(1, b"x")], ErrorCodes.PROTOCOL_ERROR),
        ([headers(1, b"\x82"), GoAwayFrame(0)], ErrorCodes.PROTOCOL_ERROR),
        ([headers(1, b"\xff\xff\xff\xff", "END_HEADERS")], ErrorCodes.PROTOCOL_ERROR),
        ([headers(2, b"\x82", "END_HEADERS")], ErrorCodes.PROTOCOL_ERROR),
        ([WindowUpdateFrame(0, window_increment=2**31 - 1)] * 2, 3),
    ],
)
def test_fault_of_the_connection_ends_it(frames: list[Frame], code: int) -> None:
    """Frames that make no sense end the connection, with a GOAWAY."""
    assert fault(Ends(), *frames) == code


def test_wrong_preface_is_a_fault() -> None:
    """A peer that does not begin with the preface speaks something else."""
    engine = Engine(most_streams=1, most_section=1024, window=INITIAL_WINDOW, now=0)
    with pytest.raises(ConnectionFault):
        engine.receive(memoryview(b"GET / HTTP/1.1\r\nHost: test\r\n\r\n"), 0)


def test_preface_may_come_in_pieces() -> None:
    """The preface is known however it is split."""
    engine = Engine(most_streams=1, most_section=1024, window=INITIAL_WINDOW, now=0)
    for byte in PREFACE:
        assert engine.is_within_head
        engine.receive(memoryview(bytes([byte])), 0)
    assert not engine.is_within_head


def test_large_frame_is_refused_at_its_head() -> None:
    """A frame over the limit is refused before its payload comes."""
    ends = Ends()
    with pytest.raises(ConnectionFault) as caught:
        ends.feed((16 * 1024 + 1).to_bytes(3, "big") + bytes([6, 0, 0, 0, 0, 0]))
    assert caught.value.code == ErrorCodes.FRAME_SIZE_ERROR


def test_content_beyond_the_window_is_a_fault() -> None:
    """A peer that ignores the credit of a stream loses its connection."""
    ends = Ends()
    stream = ends.begin()
    frames = [DataFrame(stream, bytes(16384))] * 4
    assert fault(ends, *frames) == ErrorCodes.FLOW_CONTROL_ERROR


def test_flood_of_continuations_is_stopped_at_the_limit_of_a_section() -> None:
    """A field section that does not end takes little memory."""
    ends = Ends(most_section=1024)
    frames: list[Frame] = [headers(1, b"\x82")]
    frames += [ContinuationFrame(1, bytes(1000))] * 5
    assert fault(ends, *frames) == ErrorCodes.ENHANCE_YOUR_CALM


def test_flood_of_empty_continuations_is_stopped() -> None:
    """Empty CONTINUATION frames are counted, too."""
    frames: list[Frame] = [headers(1, b"\x82")]
    frames += [ContinuationFrame(1, b"")] * 100
    with pytest.raises(ConnectionFault):
        Ends().come(*frames)


def test_small_section_that_decodes_to_much_is_stopped() -> None:
    """The limit holds for the decoded section, not for its compressed bytes."""
    ends = Ends(most_section=1024)
    value = b"x" * 900
    literal = b"\x40\x01a\x7f" + bytes([0x80 | (900 - 127) & 0x7F, (900 - 127) >> 7])
    block = literal + value + b"\xbe" * 20
    assert fault(ends, headers(1, block, "END_HEADERS")) == ErrorCodes.ENHANCE_YOUR_CALM


UNKNOWN_FRAME = bytes([0, 0, 3, 0xF0, 0, 0, 0, 0, 1]) + b"abc"
FLOODS: dict[str, bytes] = {
    "ping": PingFrame(0, bytes(8)).serialize(),
    "settings": SettingsFrame(0, {SettingsFrame.MAX_FRAME_SIZE: 16384}).serialize(),
    "priority": PriorityFrame(1, depends_on=3, stream_weight=1).serialize(),
    "empty data": DataFrame(1, b"").serialize(),
    "window updates": WindowUpdateFrame(1, window_increment=1).serialize(),
    "unknown frames": UNKNOWN_FRAME,
    "settings acks": SettingsFrame(0, flags=["ACK"]).serialize(),
}


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
def test_flood_ends_the_connection(frame: bytes) -> None:
    """Useless frames are taken for a while; a flood of them ends the connection."""
    ends = Ends()
    ends.begin()
    ends.feed(frame * 300)
    ends.engine.take_output()
    with pytest.raises(ConnectionFault) as caught:
        ends.feed(frame * 3000)
    assert caught.value.code == ErrorCodes.ENHANCE_YOUR_CALM


@pytest.mark.parametrize("frame", FLOODS.values(), ids=FLOODS.keys())
def test_same_frames_over_a_long_time_are_no_flood(frame: bytes) -> None:
    """Time refills the allowance."""
    ends = Ends()
    ends.begin()
    for _ in range(100):
        ends.now += 1
        ends.feed(frame * 80)
        ends.engine.take_output()


def test_content_earns_window_updates() -> None:
    """A download may be acknowledged in small steps."""
    ends = Ends()
    stream = ends.begin()
    ends.engine.send_head(stream, [(b":status", b"200")])
    ends.come(WindowUpdateFrame(0, window_increment=2**30))
    for _ in range(5000):
        ends.come(WindowUpdateFrame(stream, window_increment=8192))
        ends.engine.send_content(stream, bytes(8192))
        ends.engine.take_output()


def test_rapid_resets_end_the_connection() -> None:
    """Requests that are reset at once are taken for a while, and then no more."""
    ends = Ends()
    code = None
    for number in range(1, 2000, 2):
        ends.client.send_headers(number, PAIRS)
        try:
            ends.come(RstStreamFrame(number))
        except ConnectionFault as exc:
            code = exc.code
            break
        ends.engine.take_output()
        ends.client.streams.clear()
    assert code == ErrorCodes.ENHANCE_YOUR_CALM
    assert number > 200
