"""A socket with TLS: nothing stalls, nothing spins, and an end differs from a cut."""

from __future__ import annotations

import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
import trio.testing

from tests.certificates import client_context, server_context
from tests.server.http.tls.pairs import tls_pair, wrapped
from trioresume.server.http.tls.transport import TLSTransport

KIB = 1024


async def receive(transport: TLSTransport, size: int, step: int = 64 * KIB) -> bytes:
    """Exactly *size* bytes, at most *step* in a call."""
    data = bytearray(size)
    have = 0
    with trio.fail_after(10):
        while have < size:
            view = memoryview(data)[have : have + step]
            count = transport.receive_nowait(view)
            if count is None:
                await transport.wait_readable()
                continue
            assert count > 0, "the end came early"
            have += count
    return bytes(data)


@pytest.mark.parametrize("step", [1, 1000, 16 * KIB, 1024 * KIB])
async def test_content_arrives_whole_in_reads_of_any_size(step: int) -> None:
    """Bytes that OpenSSL holds are found without a wait for the socket."""
    sent = bytes(range(256)) * (KIB if step > 1 else 8)
    async with tls_pair() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(theirs.send_all, sent)
        assert await receive(ours, len(sent), step) == sent


async def test_one_read_takes_many_records() -> None:
    """A piece is filled with all that has come, not with one record."""
    async with tls_pair() as (ours, theirs):
        await theirs.send_all(bytes(80 * KIB))
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(128 * KIB))) == 80 * KIB


async def test_bytes_that_openssl_holds_are_readable_at_once() -> None:
    """The socket is empty, and yet there is something to read."""
    async with tls_pair() as (ours, theirs):
        await theirs.send_all(b"0123456789")
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(4))) == 4
        assert ours.readable == 6
        with trio.fail_after(1):
            await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(9))) == 6


class _Relay:
    """Passes encrypted bytes on, as many as a test says."""

    def __init__(self, source: socket.socket, goal: socket.socket) -> None:
        self._source = source
        self._goal = goal
        self.held = bytearray()

    def take(self) -> None:
        """Take everything that the source has."""
        self._source.setblocking(False)
        while True:
            try:
                self.held += self._source.recv(64 * KIB)
            except BlockingIOError:
                return

    def pass_on(self, size: int) -> None:
        self._goal.sendall(self.held[:size])
        del self.held[:size]


@asynccontextmanager
async def relayed() -> AsyncIterator[tuple[TLSTransport, TLSTransport, _Relay]]:
    """Both ends after the handshake; from now on the client's bytes wait in the relay."""
    # TCP, because a Unix socket has no low-water mark.
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname())
        one, _ = listener.accept()
    other, far = socket.socketpair()
    ours = wrapped(one, server_context(), server_side=True)
    theirs = wrapped(other, client_context(), server_side=False)
    forth, back = _Relay(far, near), _Relay(near, far)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ours.handshake)
        nursery.start_soon(theirs.handshake)
        for _ in range(4):
            await trio.testing.wait_all_tasks_blocked(0.01)
            for relay in (forth, back):
                relay.take()
                relay.pass_on(len(relay.held))
    yield ours, theirs, forth
    for end in (ours, theirs):
        await end.aclose()
    near.close()
    far.close()


async def test_part_of_a_record_is_nothing_to_read() -> None:
    """Otherwise a reader that trusts ``readable`` would try again without end."""
    async with relayed() as (ours, theirs, relay):
        await theirs.send_all(bytes(16 * KIB))
        relay.take()
        relay.pass_on(9 * KIB)
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(KIB))) is None
        assert ours.readable == 0
        relay.pass_on(KIB)
        assert ours.readable == 0
        relay.pass_on(len(relay.held))
        assert await receive(ours, 16 * KIB) == bytes(16 * KIB)


async def test_low_water_mark_leaves_room_for_a_part_of_a_record() -> None:
    """OpenSSL may have taken it from the socket, so the rest is less than was announced."""
    async with relayed() as (ours, theirs, relay):
        await theirs.send_all(bytes(40 * KIB))
        relay.take()
        relay.pass_on(24 * KIB)
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(64 * KIB))) == 16 * KIB
        ours.set_low_water(24 * KIB)
        relay.pass_on(len(relay.held))
        with trio.fail_after(5):
            await ours.wait_readable()
        assert await receive(ours, 24 * KIB) == bytes(24 * KIB)


async def test_end_is_told_by_its_alert() -> None:
    """A clean end reads as 0, as often as it is asked for, also without the end of TCP."""
    async with tls_pair() as (ours, theirs):
        await theirs.send_all(b"all")
        await theirs._say_end()
        assert await receive(ours, 3) == b"all"
        for _ in range(2):
            with trio.fail_after(1):
                await ours.wait_readable()
            assert ours.receive_nowait(memoryview(bytearray(9))) == 0


async def test_end_without_its_alert_is_a_cut() -> None:
    """The bytes before it are handed on; then comes an error, and no end."""
    async with tls_pair() as (ours, theirs):
        await theirs.send_all(b"a part")
        await theirs.aclose()
        assert await receive(ours, 6) == b"a part"
        await ours.wait_readable()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                ours.receive_nowait(memoryview(bytearray(9)))


@pytest.mark.parametrize("clean", [True, False])
async def test_only_a_clean_close_sends_the_alert(clean: bool) -> None:
    """A response that was cut must not look as if it had ended."""
    async with tls_pair() as (ours, theirs):
        await ours.send_all(b"answer")
        await ours.aclose(clean=clean)
        assert await receive(theirs, 6) == b"answer"
        await theirs.wait_readable()
        if clean:
            assert theirs.receive_nowait(memoryview(bytearray(9))) == 0
        else:
            with pytest.raises(trio.BrokenResourceError):
                theirs.receive_nowait(memoryview(bytearray(9)))


async def test_what_comes_after_the_end_is_counted() -> None:
    """So that a lingering server notices when its peer is done."""
    async with tls_pair() as (ours, theirs):
        await ours.send_eof()
        await theirs.send_all(b"not heard")
        await ours.wait_readable()
        assert ours.receive_nowait(memoryview(bytearray(999)))
        await theirs.send_eof()
        with trio.fail_after(5):
            while ours.receive_nowait(memoryview(bytearray(999))) != 0:
                await ours.wait_readable()


async def test_close_waits_only_a_moment_for_a_peer_that_does_not_read(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """The last alert has no room, and the connection closes without it."""
    async with tls_pair() as (ours, _):
        while ours.send_some_nowait(bytes(16 * KIB)) is not None:
            pass
        start = trio.current_time()
        await ours.aclose(clean=True)
        assert trio.current_time() - start == pytest.approx(1)


async def test_full_buffer_loses_and_repeats_nothing() -> None:
    """What OpenSSL has begun to send is finished before anything else."""
    sent = bytearray()
    async with tls_pair() as (ours, theirs):
        number = 0
        while True:
            number += 1
            block = number.to_bytes(4) * (5 * KIB)
            count = ours.send_some_nowait(block)
            if count is None:
                break
            sent += block[:count]
            if count < len(block):
                assert not ours.send_nowait(b"late")
        rest = b"the rest" * 9 * KIB
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, rest)
            assert await receive(theirs, len(sent) + len(rest)) == bytes(sent) + rest


async def test_message_beyond_the_buffer_is_sent_before_the_next() -> None:
    """``send_nowait`` takes a message whole, even if only a part of it has room."""
    sent = bytearray()
    async with tls_pair() as (ours, theirs):
        number = 0
        while ours.send_nowait(block := number.to_bytes(4) * (12 * KIB)):
            sent += block
            number += 1
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, b"end")
            assert await receive(theirs, len(sent) + 3) == bytes(sent) + b"end"


async def test_two_tasks_may_wait_for_the_same() -> None:
    """The writer needs the peer's bytes, too, if the peer shakes hands again."""
    async with tls_pair() as (ours, theirs):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.wait_readable)
            nursery.start_soon(ours.wait_readable)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await theirs.send_all(b"wake up")
        assert await receive(ours, 7) == b"wake up"


async def test_failure_of_a_peer_that_sends_no_tls_is_an_error() -> None:
    """Neither a wait without end nor another exception than the port's own."""
    async with relayed() as (ours, _, relay):
        relay.held += b"\x17\x03\x03\x00\x20" + bytes(32)
        relay.pass_on(37)
        await ours.wait_readable()
        for _ in range(2):
            with pytest.raises(trio.BrokenResourceError):
                ours.receive_nowait(memoryview(bytearray(9)))
            with trio.fail_after(1):
                await ours.wait_readable()


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_handshake_tells_what_was_agreed_on(version: ssl.TLSVersion) -> None:
    """The version and the application protocol."""
    server, client = server_context(), client_context()
    client.maximum_version = version
    server.set_alpn_protocols(["h2", "http/1.1"])
    client.set_alpn_protocols(["http/1.1"])
    async with tls_pair(server, client) as (ours, _):
        assert ours.tls is not None
        assert ours.tls.version == version.name.replace("_", ".")
        assert ours.tls.protocol == "http/1.1"
        assert ours.tls.certificate is None
