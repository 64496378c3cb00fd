"""Connections are taken in by the dozen, and nothing that fails stops it."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import pytest
import trio
import trio.testing

from trioresume.server.http import listeners as accepting
from trioresume.server.http.listeners import MOST_AT_ONCE, accept_from


@asynccontextmanager
async def accepting_from() -> AsyncIterator[tuple[tuple[str, int], list[Any]]]:
    """Where to connect to, and what was taken in."""
    taken: list[trio.socket.SocketType] = []
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener, trio.open_nursery() as nursery:
        nursery.start_soon(accept_from, listener, taken.append)
        yield listener.socket.getsockname(), taken
        nursery.cancel_scope.cancel()
    for sock in taken:
        sock.close()


async def until(taken: list[Any], count: int) -> None:
    with trio.fail_after(10):
        while len(taken) < count:  # noqa: ASYNC110 - no event tells of it
            await trio.sleep(0.005)


async def test_many_are_taken_in_at_once() -> None:
    """A hundred that came while the loop was busy take a few rounds of it."""
    async with accepting_from() as (address, taken):
        await trio.testing.wait_all_tasks_blocked()
        sockets = [socket.create_connection(address) for _ in range(100)]
        rounds = 0
        while len(taken) < 100:
            await trio.lowlevel.checkpoint()
            rounds += 1
            assert rounds < 1000
        assert rounds < 20
        assert all(
            not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) for sock in taken
        )
        for sock, theirs in zip(taken, sockets, strict=True):
            assert sock.getpeername() == theirs.getsockname()
            theirs.close()


class Failing(socket.socket):
    """Accepts, after some failures."""

    failures: ClassVar[list[int]] = []

    def accept(self) -> Any:
        if self.failures:
            number = self.failures.pop(0)
            raise OSError(number, errno.errorcode[number])
        return super().accept()


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr("trioresume.server.http.listeners.socket.socket", Failing)
    Failing.failures = []
    return Failing.failures


async def test_one_that_was_given_up_does_not_stop_the_others(
    failing: list[int],
) -> None:
    """A connection may end between its arrival and being taken in."""
    async with accepting_from() as (address, taken):
        failing += [errno.ECONNABORTED] * (2 * MOST_AT_ONCE)
        with socket.create_connection(address):
            await until(taken, 1)
    assert failing == []


async def test_it_goes_on_when_there_are_descriptors_again(
    failing: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """Out of descriptors it waits a moment, and says so."""
    async with accepting_from() as (address, taken):
        failing += [errno.EMFILE, errno.ENFILE]
        before = trio.current_time()
        with caplog.at_level(logging.ERROR), socket.create_connection(address):
            await until(taken, 1)
        assert trio.current_time() - before >= 2 * accepting.PAUSE
    assert caplog.text.count("no descriptor or memory") == 2


async def test_a_closed_listener_is_an_error(failing: list[int]) -> None:
    """Rather than a loop that turns for ever."""
    with pytest.RaisesGroup(pytest.RaisesExc(OSError, match="EBADF")):
        async with accepting_from() as (address, _):
            failing.append(errno.EBADF)
            with socket.create_connection(address):
                await trio.sleep(5)
