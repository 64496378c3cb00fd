"""message/http: the same bytes each time, whatever the connection was."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from trioresume.errors import CallerError, PeerError
from trioresume.protocol.heads import Fields, end_to_end_fields
from trioresume.protocol.message import (
    parse_response_head,
    serialise_response,
)

FIELDS = Fields(
    {"date": "Sun, 06 Nov 1994 08:49:37 GMT", "location": "/files/a", "x-text": "\xe9"}
)


def test_a_response_is_written_with_its_length() -> None:
    """R26: status line, recorded fields, Content-Length."""
    assert serialise_response(
        201, Fields({"location": "/a", "content-length": "9"}), 5
    ) == (b"HTTP/1.1 201 Created\r\nLocation: /a\r\nContent-Length: 5\r\n\r\n")


def test_hop_by_hop_fields_are_dropped() -> None:
    """R26: the well-known ones and those that Connection names."""
    fields = Fields(
        [
            ("Connection", "close, X-Hop"),
            ("Connection", "X-Other"),
            ("X-Hop", "1"),
            ("X-Other", "1"),
            ("Keep-Alive", "timeout=5"),
            ("Transfer-Encoding", "chunked"),
            ("Trailer", "x"),
            ("Upgrade", "h2c"),
            ("Set-Cookie", "a=b"),
            ("Set-Cookie", "c=d"),
        ]
    )
    assert list(end_to_end_fields(fields)) == [
        ("set-cookie", "a=b"),
        ("set-cookie", "c=d"),
    ]


@pytest.mark.parametrize("status", [204, 304])
def test_a_status_without_content_has_no_length(status: int) -> None:
    """RFC 9112, section 6.3; content there is a bug of the caller."""
    head = serialise_response(status, Fields({"content-length": "5"}), 0)
    assert b"Content-Length" not in head
    with pytest.raises(CallerError):
        serialise_response(status, Fields(), 1)


def test_an_unregistered_status_has_an_empty_reason() -> None:
    """The space before the reason stays (RFC 9112, section 4)."""
    assert serialise_response(299, Fields(), 0).startswith(b"HTTP/1.1 299 \r\n")
    assert serialise_response(200, Fields(), 0, reason="Fine").startswith(
        b"HTTP/1.1 200 Fine\r\n"
    )


@pytest.mark.parametrize(
    ("status", "fields", "reason"),
    [
        (100, {}, None),
        (600, {}, None),
        (200, {"a": "b\r\nc: d"}, None),
        (200, {"a\r\nb": "c"}, None),
        (200, {"a": "€"}, None),
        (200, {}, "a\nb"),
    ],
)
def test_what_would_not_be_one_response_is_refused(
    status: int, fields: dict[str, str], reason: str | None
) -> None:
    """G4: a handler's mistake must not become a second message."""
    with pytest.raises(CallerError):
        serialise_response(status, Fields(fields), 0, reason=reason)


def test_what_is_written_reads_back_from_any_prefix() -> None:
    """None until the head is there; then where the body begins."""
    head = serialise_response(201, FIELDS, 5)
    for size in range(len(head)):
        assert parse_response_head(head[:size]) is None
    for body in (b"", b"hel", b"hello"):
        assert parse_response_head(head + body) == (
            201,
            FIELDS.plus({"content-length": "5"}),
            len(head),
        )


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 100 Continue\r\n\r\n",
        b"HTTP/1.1 2000 X\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\r\n",
        b"{}\n\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
    ],
)
def test_what_is_not_a_final_response_is_refused(data: bytes) -> None:
    """R26: final response only."""
    with pytest.raises(PeerError):
        parse_response_head(data)


@given(
    st.binary(max_size=80), st.sampled_from([b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 "])
)
def test_any_bytes_are_a_response_or_refused(data: bytes, prefix: bytes) -> None:
    """No other exception."""
    try:
        parse_response_head(prefix + data)
    except PeerError:
        pass
