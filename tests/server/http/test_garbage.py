"""Whatever a request was, its objects are freed with it (promise 5).

What is held in a circle stays until the garbage collector comes, which the command has do
so seldom: thousands of bad requests would be held until then.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest
import trio
import trio.testing

from tests.e2e.bad_requests import BAD
from tests.server.harness import RESUME, chunked, head, memory_service
from trioresume import Config, FileService

Clock = trio.testing.MockClock

GOOD = {
    "whole": head("PUT", "/files/a", length=3) + b"abc",
    "resumable": head("PUT", "/files/b", RESUME, length=3) + b"abc",
    "chunked": head("PUT", "/files/c", {"Transfer-Encoding": "chunked"})
    + chunked(b"abcdef", 3),
    "cut": head("PUT", "/files/d", RESUME, length=9) + b"abc",
    "read": head("GET", "/files/none"),
}
REQUESTS = GOOD | {str(number): request for number, request in enumerate(BAD)}


@pytest.fixture
def garbage() -> Iterator[list[object]]:
    """What only the garbage collector finds, from now on."""
    enabled, debug = gc.isenabled(), gc.get_debug()
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    yield gc.garbage
    gc.set_debug(debug)
    gc.garbage.clear()
    if enabled:
        gc.enable()


@pytest.mark.parametrize("request_", REQUESTS.values(), ids=REQUESTS)
async def test_request_leaves_no_circle(
    request_: bytes, autojump_clock: Clock, garbage: list[object]
) -> None:
    """Good or bad, answered or cut."""
    config = Config(tombstone_lifetime=10, incomplete_lifetime=20, response_lifetime=20)
    async with memory_service(FileService(), config) as service:
        for number in range(3):
            _, client = service.transports()
            await client.send_all(request_)
            await client.send_eof()
            while await client.receive_some(65536):
                pass
            await client.aclose()
            await trio.sleep(100)
            if number == 0:
                gc.collect()  # what is made once
                garbage.clear()
        gc.collect()
        ours = [
            found
            for found in garbage
            if type(found).__module__.startswith(("trioresume", "h11"))
        ]
        assert ours == []
