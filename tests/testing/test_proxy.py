"""The proxy does what its plan says, where it says it, and records it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import given, strategies as st

from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Ending,
    Fault,
    FaultKind,
    random_faults,
    scripted_faults,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator


class Sink:
    """A server that remembers what each connection sent, and echoes if told to."""

    def __init__(self, echo: bool = False) -> None:
        self.echo = echo
        self.received: list[bytes] = []
        self.endings: list[str] = []
        self.started = trio.Event()
        self.ended = trio.Event()

    async def handle(self, stream: trio.SocketStream) -> None:
        number = len(self.received)
        self.received.append(b"")
        try:
            while data := await stream.receive_some():
                self.received[number] += data
                self.started.set()
                if self.echo:
                    await stream.send_all(data)
            self.endings.append("eof")
        except trio.BrokenResourceError:
            self.endings.append("reset")
        self.ended.set()


@asynccontextmanager
async def serving(sink: Sink) -> AsyncGenerator[tuple[str, int]]:
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, sink.handle, 0)
        port = listeners[0].socket.getsockname()[1]
        yield ("127.0.0.1", port)
        nursery.cancel_scope.cancel()


async def send_until_broken(stream: trio.SocketStream, size: int) -> None:
    try:
        for _ in range(size // 1000):
            await stream.send_all(bytes(1000))
    except trio.BrokenResourceError:
        pass


async def test_without_faults_everything_passes_both_ways() -> None:
    """A proxy with no plan is transparent, half-close included."""
    sink = Sink(echo=True)
    async with serving(sink) as address, ChaosProxy(address) as proxy:
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            await stream.send_all(b"x" * 100_000)
            await stream.send_eof()
            back = b""
            while data := await stream.receive_some():
                back += data
        assert back == b"x" * 100_000
        (record,) = proxy.connections
        assert record.passed == {Direction.UP: 100_000, Direction.DOWN: 100_000}
    assert record.ending is Ending.CLOSED
    assert proxy.totals.cuts == 0


async def test_fin_strikes_after_exactly_the_planned_bytes() -> None:
    """The server got that many bytes and an orderly end; so did the client."""
    sink = Sink()
    schedule = scripted_faults([Fault(FaultKind.FIN, Direction.UP, 12_345)])
    async with serving(sink) as address, ChaosProxy(address, schedule) as proxy:
        stream = await trio.open_tcp_stream(*proxy.address)
        await stream.send_all(bytes(20_000))
        assert await stream.receive_some() == b""
        await stream.aclose()
        await sink.ended.wait()
        assert [len(data) for data in sink.received] == [12_345]
        assert sink.endings == ["eof"]
        assert proxy.totals.fins == 1
        assert proxy.connections[0].ending is Ending.FIN
        assert len(proxy.connections[0].struck) == 1


async def test_rst_is_a_reset_on_both_sides() -> None:
    """Neither side mistakes it for an orderly end."""
    sink = Sink()
    schedule = scripted_faults([Fault(FaultKind.RST, Direction.UP, 5_000)])
    async with serving(sink) as address, ChaosProxy(address, schedule) as proxy:
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            await send_until_broken(stream, 10_000)
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await sink.ended.wait()
        assert sink.endings == ["reset"]
        assert proxy.totals.resets == 1


async def test_fault_in_the_response_counts_the_servers_bytes() -> None:
    """A DOWN fault cuts what the server says."""
    sink = Sink(echo=True)
    schedule = scripted_faults([Fault(FaultKind.FIN, Direction.DOWN, 7)])
    async with serving(sink) as address, ChaosProxy(address, schedule) as proxy:
        async with await trio.open_tcp_stream(*proxy.address) as stream:
            await stream.send_all(b"0123456789")
            back = b""
            while data := await stream.receive_some():
                back += data
        assert back == b"0123456"


async def test_stall_is_silence_on_an_open_connection_and_can_end() -> None:
    """Nothing passes while it lasts; afterwards nothing was lost."""
    sink = Sink(echo=True)
    fault = Fault(FaultKind.STALL, Direction.UP, 3, seconds=0.2)
    async with serving(sink) as address:
        async with ChaosProxy(address, scripted_faults([fault])) as proxy:
            async with await trio.open_tcp_stream(*proxy.address) as stream:
                start = trio.current_time()
                await stream.send_all(b"012345")
                back = b""
                while len(back) < 6:
                    back += await stream.receive_some()
                assert back == b"012345"
                assert trio.current_time() - start >= 0.2
        assert proxy.totals.stalls == 1


async def test_endless_stall_ends_with_cut_all() -> None:
    """cut_all reaches connections that are silent."""
    sink = Sink()
    fault = Fault(FaultKind.STALL, Direction.UP, 3)
    async with serving(sink) as address:
        async with ChaosProxy(address, scripted_faults([fault])) as proxy:
            async with await trio.open_tcp_stream(*proxy.address) as stream:
                await stream.send_all(b"012345")
                with trio.move_on_after(0.1) as scope:
                    await stream.receive_some()
                assert scope.cancelled_caught
                assert proxy.cut_all() == 1
                with pytest.raises(trio.BrokenResourceError):
                    await stream.receive_some()
                await sink.ended.wait()
                assert proxy.open_connections == 0


async def test_throttle_limits_the_rate() -> None:
    """20 kB at 100 kB/s take a fifth of a second."""
    sink = Sink()
    plan = ConnectionPlan(bytes_per_second=100_000)
    async with serving(sink) as address:
        async with ChaosProxy(address, scripted_faults([plan])) as proxy:
            start = trio.current_time()
            async with await trio.open_tcp_stream(*proxy.address) as stream:
                await stream.send_all(bytes(20_000))
            await sink.ended.wait()
            assert trio.current_time() - start >= 0.18


async def test_upstream_can_change_and_can_be_away() -> None:
    """A server that restarts elsewhere; while it is away clients are reset."""
    first, second = Sink(), Sink()
    async with serving(first) as address, serving(second) as other:
        async with ChaosProxy(address) as proxy:
            async with await trio.open_tcp_stream(*proxy.address) as stream:
                await stream.send_all(b"one")
            await first.ended.wait()
            with trio.socket.socket() as unused:
                await unused.bind(("127.0.0.1", 0))
                proxy.upstream = ("127.0.0.1", unused.getsockname()[1])
                async with await trio.open_tcp_stream(*proxy.address) as stream:
                    with pytest.raises(trio.BrokenResourceError):
                        await stream.receive_some()
            proxy.upstream = other
            async with await trio.open_tcp_stream(*proxy.address) as stream:
                await stream.send_all(b"two")
            await second.ended.wait()
            await proxy.wait_idle()
    assert (first.received, second.received) == ([b"one"], [b"two"])
    assert [r.ending for r in proxy.connections] == [
        Ending.CLOSED,
        Ending.UNREACHABLE,
        Ending.CLOSED,
    ]


async def test_stopping_the_proxy_resets_what_is_open() -> None:
    """No connection outlives it, and nursery.start reports the address."""
    sink = Sink()
    async with serving(sink) as address:
        proxy = ChaosProxy(address)
        with pytest.raises(RuntimeError):
            _ = proxy.address
        async with trio.open_nursery() as nursery:
            where = await nursery.start(proxy.serve)
            assert where == proxy.address
            stream = await trio.open_tcp_stream(*where)
            await stream.send_all(b"x")
            await sink.started.wait()
            nursery.cancel_scope.cancel()
        async with stream:
            with pytest.raises(trio.BrokenResourceError):
                await stream.receive_some()
        await sink.ended.wait()
    assert proxy.connections[0].ending is Ending.SHUTDOWN


@given(st.integers(), st.integers(0, 1000))
def test_random_plan_depends_on_seed_and_number_only(seed: int, index: int) -> None:
    """A run that went wrong can be run again."""
    assert random_faults(seed)(index) == random_faults(seed)(index)


def test_random_faults_hit_head_body_and_response_at_the_mean() -> None:
    """All three places are hit and the mean distance is the one asked for."""
    schedule = random_faults(3, mean_bytes=50_000, limit=2000)
    faults = [schedule(index).faults[0] for index in range(2000)]
    down = [f for f in faults if f.direction is Direction.DOWN]
    body = [f.after_bytes for f in faults if f.direction is Direction.UP]
    assert 400 < len(down) < 600
    assert 35_000 < sum(body) / len(body) < 50_000
    assert {f.kind for f in faults} == {FaultKind.FIN, FaultKind.RST}
    assert schedule(2000).faults == ()
