"""What stands between the content of a request and the upload that takes it."""

from __future__ import annotations

from typing import Any

import pytest
import trio.testing

from trioresume.errors import PeerError, ProblemCode
from trioresume.server.uploads.sinks import bounded


class FullSink:
    """Has no room until its test says so. Only the calls of these tests are there."""

    def __init__(self) -> None:
        self.taken_bytes = b""
        self.emptied = trio.Event()

    @property
    def has_room(self) -> bool:
        return self.emptied.is_set()

    async def room(self) -> None:
        await self.emptied.wait()

    def append(self, data: memoryview, piece: object = None) -> None:
        self.taken_bytes += data


def sink_of(most: int) -> tuple[FullSink, Any]:
    full = FullSink()
    sink: Any = full
    return full, bounded(sink, most)


async def test_limit_of_a_request_waits_for_room_as_its_sink_does() -> None:
    """Otherwise a request with a limit would take memory as fast as it sends."""
    full, limited = sink_of(10)
    assert not limited.has_room
    async with trio.open_nursery() as nursery:
        is_over = trio.Event()

        async def wait() -> None:
            await limited.room()
            is_over.set()

        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert not is_over.is_set()
        full.emptied.set()
    assert limited.has_room


def test_limit_of_a_request_takes_so_many_bytes_and_no_more() -> None:
    """C13: the part within the limit is handed on."""
    full, limited = sink_of(10)
    limited.append(memoryview(b"0123456789"))
    with pytest.raises(PeerError) as refused:
        limited.append(memoryview(b"ab"))
    assert refused.value.problem is ProblemCode.CONTENT_TOO_LARGE
    assert full.taken_bytes == b"0123456789"
    full, limited = sink_of(3)
    with pytest.raises(PeerError):
        limited.append(memoryview(b"abcd"))
    assert full.taken_bytes == b"abc"
