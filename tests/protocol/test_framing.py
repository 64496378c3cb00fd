"""Request heads: what is refused that h11 would let pass."""

from __future__ import annotations

import h11
import pytest
from hypothesis import example, given, strategies as st

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.framing import (
    HeadLimits,
    check_field,
    expects_continue,
    find_head_end,
    head_start,
    parse_head,
    request_head,
    response_head,
)
from trioresume.protocol.heads import Fields, RequestHead, reason_phrase

GOOD = (
    b"POST /files/?a=b HTTP/1.1\r\nHost: example.test:8080\r\nContent-Length: 5\r\n"
    b"X-Empty:\r\nX-Text: \t a b \xe9 \t\r\n\r\n"
)


def with_host(raw: bytes) -> bytes:
    """*raw* with a ``Host`` as its first field, so that this is not what it lacks."""
    return raw.replace(b"\r\n", b"\r\nHost: a\r\n", 1)


def refusal_of_head(raw: bytes, limits: HeadLimits | None = None) -> PeerError:
    with pytest.raises(PeerError) as caught:
        parse_head(with_host(raw), limits or HeadLimits())
    assert caught.value.close, "framing in doubt must close the connection"
    return caught.value


def head_of(
    *lines: tuple[str, str],
    method: bytes = b"POST",
    target: bytes = b"/",
    version: bytes = b"1.1",
    host: bool = True,
) -> RequestHead:
    fields = Fields([("Host", "a.test")] if host else []).plus(lines)
    return request_head(method, target, fields, version, peer="peer")


# ---------------------------------------------------------------- finding the end


def test_the_head_ends_after_its_blank_line() -> None:
    """What follows it is content."""
    assert find_head_end(bytearray(GOOD + b"body")) == len(GOOD)
    assert find_head_end(memoryview(GOOD)) == len(GOOD)


def test_the_end_is_found_however_the_bytes_arrive() -> None:
    """Each call continues where the one before it stopped."""
    buffer = bytearray()
    searched = 0
    for index in range(len(GOOD)):
        buffer += GOOD[index : index + 1]
        end = find_head_end(buffer, searched)
        searched = len(buffer)
        assert end == (len(GOOD) if index == len(GOOD) - 1 else -1)


def test_empty_lines_before_the_request_are_skipped_up_to_a_bound() -> None:
    """RFC 9112, section 2.2."""
    for count in range(5):
        buffer = b"\r\n" * count + GOOD
        assert head_start(buffer) == 2 * count
        assert find_head_end(buffer) == len(buffer)
    assert find_head_end(b"\r\n") == find_head_end(b"\r") == find_head_end(b"") == -1
    with pytest.raises(PeerError):
        find_head_end(b"\r\n" * 5)


@pytest.mark.parametrize(
    "beginning",
    [
        b"GET / HTTP/1.1\n",
        b"\n",
        b"GET / HTTP/1.1\r\nHost: a\n\n",
        b"GET / HTTP/1.1\rHost: a",
    ],
)
def test_a_bad_line_end_is_refused_at_once(beginning: bytes) -> None:
    """G2: such a client gets its 400, not a timeout."""
    with pytest.raises(PeerError) as caught:
        find_head_end(beginning)
    assert caught.value.problem is ProblemCode.MALFORMED_REQUEST
    assert caught.value.close


def test_a_head_that_never_ends_is_refused_at_the_limit() -> None:
    """G3: 414 while it is all request line, else 431."""
    limits = HeadLimits(max_size=100, max_target=50)
    assert find_head_end(b"G" * 100, 0, limits) == -1
    with pytest.raises(PeerError) as caught:
        find_head_end(b"G" * 101, 0, limits)
    assert caught.value.problem is ProblemCode.URI_TOO_LONG
    with pytest.raises(PeerError) as caught:
        find_head_end(b"GET / HTTP/1.1\r\n" + b"a" * 100, 0, limits)
    assert caught.value.problem is ProblemCode.HEADER_TOO_LARGE


def test_the_buffer_can_be_resized_after_each_call() -> None:
    """No search result may pin the server's buffer, not even through an exception."""
    for content in (GOOD, GOOD[:-2], b"GET / HTTP/1.1\n"):
        buffer = bytearray(content)
        try:
            find_head_end(buffer)
        except PeerError as error:
            kept: PeerError | None = error
        else:
            kept = None
        buffer += b"more"
        del kept


# ---------------------------------------------------------------- the raw bytes


def test_a_good_head_passes_and_h11_agrees() -> None:
    """The check refuses nothing that is right."""
    assert parse_head(GOOD).length == 5
    assert parse_head(b"GET / HTTP/1.0\r\n\r\n").length == 0
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(GOOD)
    assert isinstance(connection.next_event(), h11.Request)


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        (b"GET / HTTP/1.1\nHost: a\n\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nHost: a\nX: b\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nHost: a\rX: b\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX: a\r\n folded\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\n X: a\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX : a\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX a\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\n: a\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX: a\x1bb\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX\xe9: a\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /#a HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /\x01 HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /\x7f HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /\xc3\xa9 HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /a b HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET  / HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1 \r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET /\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"G(T / HTTP/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / http/1.1\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.1\r\nX: a\r\n", ProblemCode.MALFORMED_REQUEST),
        (b"", ProblemCode.MALFORMED_REQUEST),
        (b"GET / HTTP/1.2\r\n\r\n", ProblemCode.VERSION_NOT_SUPPORTED),
        (b"GET / HTTP/0.9\r\n\r\n", ProblemCode.VERSION_NOT_SUPPORTED),
        (b"GET / HTTP/11.1\r\n\r\n", ProblemCode.VERSION_NOT_SUPPORTED),
        (b"PRI * HTTP/2.0\r\n\r\n", ProblemCode.VERSION_NOT_SUPPORTED),
        (b"GET /" + b"a" * 8192 + b" HTTP/1.1\r\n\r\n", ProblemCode.URI_TOO_LONG),
        (
            b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 100 + b"\r\n",
            ProblemCode.HEADER_TOO_LARGE,
        ),
        (
            b"GET / HTTP/1.1\r\nX: " + b"a" * 16384 + b"\r\n\r\n",
            ProblemCode.HEADER_TOO_LARGE,
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\ncontent-length: 5\r\n\r\n",
            ProblemCode.MALFORMED_REQUEST,
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 5, 5\r\n\r\n",
            ProblemCode.MALFORMED_REQUEST,
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: +5\r\n\r\n",
            ProblemCode.MALFORMED_REQUEST,
        ),
        (b"GET / HTTP/1.1\r\nContent-Length:\r\n\r\n", ProblemCode.MALFORMED_REQUEST),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 1000000000000000\r\n\r\n",
            ProblemCode.MALFORMED_REQUEST,
        ),
        (
            b"GET / HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
            ProblemCode.MALFORMED_REQUEST,
        ),
    ],
)
def test_a_bad_head_is_refused(raw: bytes, problem: ProblemCode) -> None:
    """G1, G2, G3 and G6, one row each."""
    assert refusal_of_head(raw).problem is problem


def test_a_head_at_every_limit_passes() -> None:
    """G3: the limits are the largest values accepted."""
    parse_head(with_host(b"GET / HTTP/1.1\r\n" + b"a:b\r\n" * 99 + b"\r\n"))
    parse_head(with_host(b"GET /" + b"a" * 8191 + b" HTTP/1.1\r\n\r\n"))
    fixed = len(with_host(b"GET / HTTP/1.1\r\nX: \r\n\r\n"))
    largest = b"GET / HTTP/1.1\r\nX: " + b"a" * (16384 - fixed) + b"\r\n\r\n"
    parse_head(with_host(largest))
    longest = b"GET / HTTP/1.1\r\nContent-Length: 999999999999999\r\n\r\n"
    assert parse_head(with_host(longest)).length == 999999999999999


@given(st.binary(max_size=200), st.booleans())
@example(b"\r\n\r\n", True)
def test_any_bytes_pass_or_are_refused(data: bytes, begun: bool) -> None:
    """No other exception; and what is found to be a head is judged as one."""
    buffer = (b"GET / HTTP/1.1\r\n" if begun else b"") + data
    refused: PeerError | None = None
    try:
        end = find_head_end(buffer)
        if end >= 0:
            parse_head(buffer[head_start(buffer) : end])
    except PeerError as error:
        refused = error
    assert refused is None or refused.close


@given(
    st.lists(
        st.tuples(st.sampled_from(["a", "X-Bc"]), st.sampled_from(["", "v w", "\xe9"]))
    )
)
def test_what_the_check_passes_h11_reads_alike(lines: list[tuple[str, str]]) -> None:
    """The two parsers of a head may not differ in what they see."""
    text = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "a"), *lines])
    raw = f"GET / HTTP/1.1\r\n{text}\r\n".encode("latin-1")
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert Fields.from_wire(event.headers) == parse_head(raw).fields


_LINE = st.tuples(
    st.sampled_from(
        ["Host", "X-A", "Content-Length", "Transfer-Encoding", "Expect", "Connection"]
    )
    | st.text("aZ-_:( \t\xe9", max_size=3),
    st.sampled_from(["a", "5", "05", "+5", "5, 5", "chunked", "100-continue", "close"])
    | st.text("a, \t\x00\x01\x7f\xe9\r\n", max_size=4),
)


@given(
    st.sampled_from(["GET", "POST", "P!", "P ", ""]),
    st.sampled_from(["/", "/a?b", "*", "http://x/y", "/\xe9", "/ ", "/#"]),
    st.sampled_from(["HTTP/1.1", "HTTP/1.0", "HTTP/2.0", "http/1.1", "HTTP/1.1 "]),
    st.lists(_LINE, max_size=4),
)
def test_h11_refuses_nothing_that_the_check_passes(
    method: str, target: str, version: str, lines: list[tuple[str, str]]
) -> None:
    """It is asked only if it has to frame an answer, and must know then what it answers."""
    text = "".join(f"{name}: {value}\r\n" for name, value in [("Host", "a"), *lines])
    raw = f"{method} {target} {version}\r\n{text}\r\n".encode("latin-1")
    try:
        head = parse_head(raw)
    except PeerError:
        return
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert event.method.decode() == head.method == method
    assert event.target.decode() == target
    assert event.http_version.decode() == head.http_version
    assert len(event.headers) == len(head.fields)
    body = connection.next_event()
    ended = isinstance(body, h11.EndOfMessage)
    assert ended == (head.length == 0)
    assert connection.trailing_data == (b"", False)


_VALUES = st.text(
    st.characters(max_codepoint=255) | st.sampled_from("\r\n\0 \t:a"), max_size=6
)
_ANSWERED = st.lists(
    st.tuples(
        st.sampled_from(["date", "x-a", "etag", "connection", "content-length"])
        | st.text("a-:( \r\n\xe9", max_size=4),
        st.sampled_from(["0", "12", "close", "+1", ""]) | _VALUES,
    ),
    max_size=4,
)


@example(100, [("content-length", "close")])
@given(st.sampled_from([100, 104, 200, 201, 204, 304, 460, 599]), _ANSWERED)
def test_response_head_is_the_one_that_h11_writes(
    status: int, lines: list[tuple[str, str]]
) -> None:
    """Or it is left to h11. No target can put a line of its own into a head."""
    fields = Fields(lines)
    written = response_head(status, fields)
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
    connection.next_event()
    kind = h11.InformationalResponse if status < 200 else h11.Response
    try:
        event = kind(
            status_code=status, headers=fields.to_wire(), reason=reason_phrase(status)
        )
        by_h11 = connection.send(event)
    except h11.LocalProtocolError:
        assert written is None
    else:
        assert written in (None, by_h11)


@pytest.mark.parametrize(
    ("status", "lines", "is_left"),
    [
        (201, [("content-length", "0"), ("x-a", "b c")], False),
        (204, [("x-a", "")], False),
        (304, [("etag", '"a"')], False),
        (104, [("location", "/a")], False),
        (200, [("x-a", "b")], True),
        (200, [("content-length", "1"), ("content-length", "1")], True),
        (200, [("content-length", "1"), ("transfer-encoding", "chunked")], True),
        (200, [("content-length", "1"), ("x-a", "b\r\nc: d")], True),
        (200, [("content-length", "1"), ("x-a", "b\n")], True),
        (200, [("content-length", "1"), ("a b", "c")], True),
        (200, [("content-length", "1"), ("a: b", "c")], True),
        (200, [("content-length", "1"), ("x-a", "b\r\n")], True),
        (200, [("content-length", "1"), ("", "c")], True),
        (1000, [("content-length", "1")], True),
    ],
)
def test_head_is_left_to_h11_if_it_must_frame_or_refuse(
    status: int, lines: list[tuple[str, str]], is_left: bool
) -> None:
    """All other heads are written here."""
    assert (response_head(status, Fields(lines)) is None) == is_left


def test_binary_fields_must_fit_into_a_line() -> None:
    """A binary format could else smuggle a second line in a value."""
    assert check_field(b"X-A", b" b ") == (b"X-A", b"b")
    for name, value in ((b"", b""), (b"a:b", b""), (b"a", b"b\r\nc: d"), (b"a", b"\0")):
        with pytest.raises(PeerError):
            check_field(name, value)


# ---------------------------------------------------------------- the meaning


def test_a_head_becomes_a_value() -> None:
    """Method, target, fields, version, length and peer."""
    head = head_of(("Content-Length", "5"), target=b"/a?b=c")
    assert (head.method, head.path, head.query) == ("POST", "/a", "b=c")
    assert (head.http_version, head.length, head.peer) == ("1.1", 5, "peer")


def test_the_length_says_whether_content_follows() -> None:
    """None is chunked, 0 is none at all."""
    assert head_of().length == 0
    assert head_of(("Transfer-Encoding", "Chunked")).length is None


@pytest.mark.parametrize(
    ("target", "origin_form"),
    [
        (b"/", "/"),
        (b"//a/b", "//a/b"),
        (b"http://a.test", "/"),
        (b"HTTP://a.test:80/b?c", "/b?c"),
        (b"https://u@a.test/b//c", "/b//c"),
        (b"http://a.test?b", "/?b"),
    ],
)
def test_targets_come_out_in_origin_form(target: bytes, origin_form: str) -> None:
    """RFC 9112, section 3.2.2: the absolute form is accepted everywhere."""
    assert head_of(target=target).target == origin_form


def test_an_asterisk_is_a_target_for_options_alone() -> None:
    """RFC 9112, section 3.2.4; an absolute URI without a path means the same."""
    assert head_of(method=b"OPTIONS", target=b"*").target == "*"
    assert head_of(method=b"OPTIONS", target=b"http://a.test").target == "*"
    with pytest.raises(PeerError):
        head_of(target=b"*")


@pytest.mark.parametrize(
    "target", [b"a/b", b"ftp://a/b", b"http:///b", b"a.test:80", b""]
)
def test_another_form_of_target_is_refused(target: bytes) -> None:
    """Nothing is guessed."""
    with pytest.raises(PeerError) as caught:
        head_of(target=target)
    assert caught.value.problem is ProblemCode.MALFORMED_REQUEST


@pytest.mark.parametrize(
    ("lines", "version", "problem"),
    [
        ([("Content-Length", "5"), ("Transfer-Encoding", "chunked")], b"1.1", 400),
        ([("Transfer-Encoding", "chunked")], b"1.0", 400),
        ([("Transfer-Encoding", "gzip, chunked")], b"1.1", 501),
        ([("Transfer-Encoding", "chunked")] * 2, b"1.1", 501),
        ([("Content-Length", "5")] * 2, b"1.1", 400),
        ([("Content-Length", "5,5")], b"1.1", 400),
        ([("Content-Length", "9999999999999999")], b"1.1", 400),
        ([("Host", "b.test")], b"1.1", 400),
        ([], b"2.0", 505),
    ],
)
def test_contradictory_framing_is_refused(
    lines: list[tuple[str, str]], version: bytes, problem: int
) -> None:
    """G1, G2, G6: and the connection is closed."""
    with pytest.raises(PeerError) as caught:
        head_of(*lines, version=version)
    assert caught.value.problem.status == problem
    assert caught.value.close


def test_a_host_is_needed_and_must_look_like_one() -> None:
    """RFC 9112, section 3.2; HTTP/1.0 may do without."""
    assert head_of(version=b"1.0", host=False).target == "/"
    for lines in ([], [("Host", "a b")], [("Host", "a/b")]):
        with pytest.raises(PeerError):
            head_of(*lines, host=False)


def test_connect_is_not_implemented() -> None:
    """This is an origin server."""
    with pytest.raises(PeerError) as caught:
        head_of(method=b"CONNECT", target=b"a.test:80")
    assert caught.value.problem is ProblemCode.NOT_IMPLEMENTED


def test_only_100_continue_is_an_expectation() -> None:
    """R7, R8: any other is a 417, and HTTP/1.0 has none."""
    assert expects_continue(head_of(("Expect", "100-Continue")))
    assert not expects_continue(head_of())
    assert not expects_continue(head_of(("Expect", "100-continue"), version=b"1.0"))
    assert not expects_continue(head_of(("Expect", "x"), version=b"1.0"))
    for value in ("200-ok", "100-continue, x", "100-continue;a=b"):
        with pytest.raises(PeerError) as caught:
            expects_continue(head_of(("Expect", value)))
        assert caught.value.problem is ProblemCode.EXPECTATION_FAILED
