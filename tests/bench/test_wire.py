"""The load generator's reading of responses."""

from __future__ import annotations

import pytest

from bench.wire import MAX_HEAD, BadResponse, Response, ResponseReader

ANSWER = (
    b"HTTP/1.1 100 Continue\r\nContent-Location: /r\r\n\r\n"
    b"HTTP/1.1 201 Created\r\nLocation: /files/1\r\nContent-Length: 3\r\n\r\nyes"
)


def test_any_split_of_the_bytes_gives_the_same_responses() -> None:
    """An interim and a final response are found wherever the bytes were cut."""
    for cut in range(len(ANSWER) + 1):
        reader = ResponseReader()
        found = reader.feed(ANSWER[:cut]) + reader.feed(ANSWER[cut:])
        assert [response.status for response in found] == [100, 201]
        assert found[1].fields["location"] == "/files/1"


def test_a_final_response_waits_for_its_body() -> None:
    """It is reported with the last byte of the body, not with the head."""
    reader = ResponseReader()
    assert [r.status for r in reader.feed(ANSWER[:-1])] == [100]
    assert [r.status for r in reader.feed(ANSWER[-1:])] == [201]


def test_a_204_has_no_body() -> None:
    """RFC 9110, section 15.3.5: it ends with its head."""
    found = ResponseReader().feed(b"HTTP/1.1 204 No Content\r\n\r\n")
    assert found == [Response(204, {})]


@pytest.mark.parametrize(
    "data",
    [
        b"HTTP/1.1 200 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"SSH-2.0-server\r\n\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"x" * (MAX_HEAD + 1),
    ],
)
def test_what_is_not_understood_is_refused(data: bytes) -> None:
    """A guess would end an upload at the wrong moment."""
    with pytest.raises(BadResponse):
        ResponseReader().feed(data)
