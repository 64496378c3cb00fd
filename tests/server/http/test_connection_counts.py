"""Connections are counted over all processes of a service (G5)."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import trio
import trio.testing

from trioresume import Config, PeerError
from trioresume.server.http.connection_counts import (
    MOST_SLOTS,
    SharedCounts,
    make_counts_file,
)
from trioresume.server.http.front import Admission
from trioresume.server.http.listeners import LEAD, accept_from

ADDRESS = "192.0.2.7"


class Guest:
    def __init__(self, address: str = "") -> None:
        self.address = address
        self.is_dismissed = False

    def dismiss(self) -> None:
        self.is_dismissed = True


@pytest.fixture
def counts() -> Iterator[list[SharedCounts]]:
    """The counts as three workers see them."""
    file = make_counts_file()
    parent = SharedCounts(file, None)
    for slot in range(3):
        parent.open(slot)
    views = [SharedCounts(file, slot) for slot in range(3)]
    os.close(file)
    yield views
    for view in [parent, *views]:
        view.close()


def _admissions(counts: list[SharedCounts], **limits: Any) -> list[Admission]:
    return [Admission(Config(**limits), each) for each in counts]


def test_connections_of_all_workers_add_up(counts: list[SharedCounts]) -> None:
    """Whoever looks sees the same sums; each one sees its own number."""
    counts[0].add(ADDRESS, 2)
    counts[1].add(ADDRESS, 1)
    counts[1].add("", 4)
    for view in counts:
        assert (view.all, view.of(ADDRESS), view.of("192.0.2.8")) == (7, 3, 0)
    assert [view.own() for view in counts] == [2, 5, 0]
    counts[1].add(ADDRESS, -1)
    assert counts[2].of(ADDRESS) == 2


def test_what_a_dead_worker_had_is_dropped(counts: list[SharedCounts]) -> None:
    """Its successor begins with nothing."""
    counts[1].begin()
    counts[1].add(ADDRESS, 5)
    counts[0].clear(1)
    assert (counts[2].all, counts[2].of(ADDRESS), counts[2].least()) == (0, 0, 0)


def test_only_workers_that_accept_are_compared(counts: list[SharedCounts]) -> None:
    """A worker that drains or starts does not have to be waited for."""
    counts[0].begin()
    counts[1].begin()
    counts[0].add("", 3)
    counts[1].add("", 2)
    assert counts[2].least() == 2
    counts[1].end()
    assert counts[2].least() == 3


def test_last_slot_is_a_slot(counts: list[SharedCounts]) -> None:
    """As many workers as there are slots can count."""
    file = make_counts_file()
    last = SharedCounts(file, MOST_SLOTS - 1)
    last.open(MOST_SLOTS - 1)
    last.add(ADDRESS, 1)
    assert (last.all, last.of(ADDRESS)) == (1, 1)
    last.close()
    os.close(file)


def test_addresses_rarely_share_a_count(counts: list[SharedCounts]) -> None:
    """With thousands of other addresses, hardly any is counted higher than it is."""
    for number in range(2000):
        counts[0].add(f"198.51.{number // 250}.{number % 250}", 1)
    wrong = sum(
        counts[1].of(f"203.0.{number // 250}.{number % 250}") > 0
        for number in range(1000)
    )
    assert wrong < 300  # a place is taken with 0.39, both are with 0.15


def test_limit_of_all_connections_holds_over_workers(
    counts: list[SharedCounts],
) -> None:
    """G5: 503, whoever has the others; a place that becomes free is for anybody."""
    first, second, _ = _admissions(counts, max_connections=3)
    guests = [Guest(), Guest(), Guest()]
    first.enter(guests[0])
    second.enter(guests[1])
    second.enter(guests[2])
    for admission in (first, second):
        with pytest.raises(PeerError) as caught:
            admission.enter(Guest())
        assert caught.value.problem.status == 503
    assert counts[0].all == 3
    second.leave(guests[2])
    second.leave(guests[2])
    first.enter(Guest())
    assert counts[0].all == 3


def test_idle_connection_of_the_same_worker_makes_room(
    counts: list[SharedCounts],
) -> None:
    """G5: a worker closes its own idle connections only."""
    first, second, _ = _admissions(counts, max_connections=2)
    idle = Guest()
    first.enter(idle)
    first.note_idle(idle)
    second.enter(Guest())
    with pytest.raises(PeerError):
        second.enter(Guest())
    first.enter(Guest())
    assert idle.is_dismissed
    assert counts[2].all == 2


def test_limit_of_an_address_holds_over_workers(counts: list[SharedCounts]) -> None:
    """G5: 429 for this address only."""
    first, second, _ = _admissions(counts, max_connections_per_address=2)
    mine = Guest(ADDRESS)
    first.enter(mine)
    second.enter(Guest(ADDRESS))
    with pytest.raises(PeerError) as caught:
        second.enter(Guest(ADDRESS))
    assert caught.value.problem.status == 429
    second.enter(Guest("192.0.2.8"))
    first.note_idle(mine)
    first.enter(Guest(ADDRESS))
    assert mine.is_dismissed
    assert (counts[0].of(ADDRESS), counts[0].all) == (2, 3)


def test_request_through_a_proxy_counts_for_its_client(
    counts: list[SharedCounts],
) -> None:
    """G5: also for other workers; a refused request leaves the counts as they were."""
    first, second, _ = _admissions(counts, max_connections_per_address=1)
    proxied, other = Guest(""), Guest("")
    first.enter(proxied)
    second.enter(other)
    first.count_as(proxied, ADDRESS)
    with pytest.raises(PeerError):
        second.count_as(other, ADDRESS)
    assert other.address == ""
    assert (counts[0].of(ADDRESS), counts[0].all) == (1, 2)
    first.count_as(proxied, "")
    second.count_as(other, ADDRESS)
    assert counts[0].of(ADDRESS) == 1


async def test_worker_with_more_connections_lets_others_be_first(
    counts: list[SharedCounts],
) -> None:
    """A crowd is shared, though one worker is woken first each time."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    # A worker has a descriptor of its own for the same socket.
    same = trio.SocketListener(listener.socket.dup())
    taken: list[list[trio.socket.SocketType]] = [[], []]

    def take_for(index: int) -> Any:
        def take(sock: trio.socket.SocketType) -> None:
            taken[index].append(sock)
            counts[index].add("", 1)

        return take

    address = listener.socket.getsockname()
    clients = [socket.create_connection(address) for _ in range(60)]
    for index in range(2):
        counts[index].begin()
    try:
        with trio.fail_after(30):
            async with listener, same, trio.open_nursery() as nursery:
                for index, each in enumerate((listener, same)):
                    nursery.start_soon(
                        accept_from, each, take_for(index), counts[index]
                    )
                while sum(map(len, taken)) < 60:  # noqa: ASYNC110 - no event tells it
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
        assert abs(len(taken[0]) - len(taken[1])) <= LEAD
    finally:
        for client in clients:
            client.close()
        for sock in [*taken[0], *taken[1]]:
            sock.close()


async def test_stopped_worker_is_not_waited_for_long(
    counts: list[SharedCounts],
) -> None:
    """It seems to have room, and takes nothing: the others take everything."""
    counts[0].begin()
    counts[1].begin()  # and never accepts
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    taken: list[trio.socket.SocketType] = []

    def take(sock: trio.socket.SocketType) -> None:
        taken.append(sock)
        counts[0].add("", 1)

    address = listener.socket.getsockname()
    clients = [socket.create_connection(address) for _ in range(40)]
    try:
        with trio.fail_after(30):
            async with listener, trio.open_nursery() as nursery:
                nursery.start_soon(accept_from, listener, take, counts[0])
                while len(taken) < 40:  # noqa: ASYNC110 - no event tells it
                    await trio.sleep(0.001)
                nursery.cancel_scope.cancel()
    finally:
        for client in clients:
            client.close()
        for sock in taken:
            sock.close()
