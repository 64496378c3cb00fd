"""The sink between the content of a request and the upload that takes it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from trioresume.errors import PeerError, ProblemCode
from trioresume.server.uploads.receive import OperationSink


def sink_of(most: int | None) -> tuple[OperationSink, bytearray]:
    """A sink with a limit for one request, and what it hands on."""
    taken = bytearray()
    incoming = SimpleNamespace(offset=0, append=lambda data, *_: taken.extend(data))
    operation: Any = SimpleNamespace(
        incoming=incoming,
        record=SimpleNamespace(length=None, reserved=0),
        reserve=lambda end: None,
    )
    return OperationSink(operation, None, most), taken


def test_limit_of_a_request_takes_so_many_bytes_and_no_more() -> None:
    """C13: the part within the limit is handed on."""
    sink, taken = sink_of(10)
    sink.append(memoryview(b"0123456789"))
    with pytest.raises(PeerError) as refused:
        sink.append(memoryview(b"ab"))
    assert refused.value.problem is ProblemCode.CONTENT_TOO_LARGE
    assert taken == b"0123456789"
    sink, taken = sink_of(3)
    with pytest.raises(PeerError):
        sink.append(memoryview(b"abcd"))
    assert taken == b"abc"


def test_request_without_a_limit_is_taken_whole() -> None:
    """No limit of a request is no limit at all."""
    sink, taken = sink_of(None)
    for _ in range(3):
        sink.append(memoryview(b"abcd"))
    assert taken == b"abcdabcdabcd"
