"""A file in parts: sent at the same time, each resumed for itself, and joined once."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.client.test_sockets import (
    MIB,
    PATIENT,
    file_of,
    remaining,
    serving,
)
from trioresume.client import (
    Client,
    Journal,
    Origin,
    Progress,
    RetryPolicy,
    Route,
)
from trioresume.client.parts import LEAST_PART_BYTES, MOST_PARTS, plan_of
from trioresume.errors import CallerError, TransferFailed
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    random_faults,
    scripted_faults,
)

ONCE = RetryPolicy(attempts=0)


def test_parts_cover_the_file_without_a_gap() -> None:
    for length in (0, 1, MIB, 2 * MIB - 1, 2 * MIB, 7 * MIB + 3, 100 * MIB):
        for most in (1, 2, 3, MOST_PARTS):
            plan = plan_of(length, most)
            edges = [part.start for part in plan] + [length]
            assert edges[0] == 0
            assert [part.start + part.size for part in plan] == edges[1:]
            assert len(plan) == max(1, min(most, length // LEAST_PART_BYTES))


async def test_parts_go_at_the_same_time_and_become_one_file(tmp_path: Path) -> None:
    """The target gets the whole, once, with the caller's fields; the parts are released."""
    path, data = file_of(tmp_path, 5 * MIB + 1)
    seen: list[Progress] = []
    async with serving() as service, ChaosProxy(service.address) as proxy:
        async with Client(journal=Journal(tmp_path / "journal")) as c:
            response = await c.request(
                "POST", proxy.url, body=path, parallel=4, on_progress=seen.append
            )
        assert (
            max(record.passed[Direction.UP] for record in proxy.connections) < 2 * MIB
        )
    assert service.contents == [data]
    assert response.status == 201
    assert response.body == data[::-1][:5000]
    assert (response.parts, response.attempts, response.bytes_resent) == (4, 1, 0)
    assert response.protocol == "tus"
    assert remaining(tmp_path / "journal") == []
    assert {progress.total for progress in seen} == {len(data)}
    assert seen[-1].sent == seen[-1].acknowledged == seen[-1].transferred == len(data)
    assert [p.sent for p in seen] == sorted(p.sent for p in seen)


async def test_every_part_goes_on_after_its_cuts(tmp_path: Path) -> None:
    """Random cuts in both directions; the digest is that of the whole."""
    path, data = file_of(tmp_path, 6 * MIB)
    async with serving() as service:
        faults = random_faults(5, mean_bytes=MIB // 2, limit=25)
        async with ChaosProxy(service.address, faults) as proxy:
            async with Client(retry=PATIENT, random=random.Random(1)) as c:
                response = await c.request(
                    "POST", proxy.url, body=path, parallel=3, retry_unsafe=True
                )
            assert proxy.totals.cuts > 5
    assert response.status == 201
    assert response.attempts > 1
    assert response.bytes_resent < 6 * MIB
    # An answer that was lost makes the joining request a second one.
    assert set(service.contents) == {data}


async def _stop_in_the_middle(path: Path, url: str, journal: Path, **how: Any) -> None:
    """Send *path* in three parts, and stop after a part of each has arrived."""
    with trio.CancelScope() as scope:
        async with Client(journal=Journal(journal), limit_rate=8 * MIB) as c:

            def stop(progress: Progress) -> None:
                if progress.sent > path.stat().st_size // 2:
                    scope.cancel()

            await c.request("POST", url, body=path, parallel=3, on_progress=stop, **how)
    assert scope.cancelled_caught


@pytest.mark.parametrize("parallel", [1, 3, 8])
async def test_next_run_goes_on_with_the_same_parts(
    tmp_path: Path, parallel: int
) -> None:
    """Whatever number it asks for: what has arrived is not sent again."""
    path, data = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal)
        assert service.contents == []
        (known,) = Journal(journal).uploads()
        assert (known.parts, known.size, known.protocol) == (3, 6 * MIB, "tus")
        assert not known.all_sent
        async with Client(journal=Journal(journal)) as c:
            response = await c.request("POST", proxy.url, body=path, parallel=parallel)
        assert response.parts == 3
        assert proxy.totals.bytes_up < 8.5 * MIB
    assert service.contents == [data]
    assert remaining(journal) == []


async def test_touched_file_is_stored_whole(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal)
        os.utime(path, (1, 1))
        async with Client(journal=Journal(journal)) as c:
            await c.request("POST", proxy.url, body=path)
    assert service.contents == [data]


async def test_part_that_changed_is_not_mixed_with_its_old_bytes(
    tmp_path: Path,
) -> None:
    path, data = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal)
        changed = bytes([data[0] ^ 1]) + data[1:]
        path.write_bytes(changed)
        async with Client(journal=Journal(journal)) as c:
            response = await c.request("POST", proxy.url, body=path)
        assert response.parts == 3
    assert service.contents == [changed]


@pytest.mark.parametrize("size", [3 * MIB, 7 * MIB])
async def test_file_of_another_length_begins_again(tmp_path: Path, size: int) -> None:
    path, _ = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal)
        data = random.Random(0).randbytes(size)
        path.write_bytes(data)
        async with Client(journal=Journal(journal)) as c:
            response = await c.request("POST", proxy.url, body=path)
    assert response.parts == 1
    assert service.contents == [data]
    assert remaining(journal) == []


async def test_snapshot_of_a_file_that_grows_has_its_first_length(
    tmp_path: Path,
) -> None:
    path, data = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal, snapshot_size=True)
        with path.open("ab") as file:
            file.write(b"more")
        async with Client(journal=Journal(journal)) as c:
            await c.request("POST", proxy.url, body=path, snapshot_size=True)
    assert service.contents == [data]


async def test_file_that_changes_while_it_is_sent_is_never_joined(
    tmp_path: Path,
) -> None:
    path, data = file_of(tmp_path, 6 * MIB)

    def touch(progress: Progress) -> None:
        if progress.sent > MIB:
            with path.open("r+b") as file:
                file.write(data[:10][::-1])

    async with serving() as service:
        async with Client(limit_rate=32 * MIB) as c:
            with pytest.raises(TransferFailed, match="changed while") as caught:
                await c.request(
                    "POST", service.url, body=path, parallel=3, on_progress=touch
                )
    assert caught.value.resumable
    assert service.contents == []


async def test_parts_that_the_server_forgot_are_sent_again(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, 6 * MIB)
    journal = tmp_path / "journal"
    async with serving() as service:
        await _stop_in_the_middle(path, service.url, journal)
    # Another server, at the same address for the client.
    async with serving() as service, ChaosProxy(service.address) as proxy:
        await _stop_in_the_middle(path, proxy.url, journal)
        async with serving() as other:
            proxy.upstream = other.address
            proxy.cut_all()
            async with Client(journal=Journal(journal), retry=PATIENT) as c:
                response = await c.request("POST", proxy.url, body=path)
            assert response.status == 201
            assert other.contents == [data]
    assert service.contents == []


class LosingConnector:
    """Cuts the first connection on which parts are joined, before the answer."""

    def __init__(self) -> None:
        self.joined = 0

    async def connect(self, origin: Origin) -> Route:
        stream = await trio.open_tcp_stream(origin.host, origin.port)
        return Route(LosingStream(stream, self))


class LosingStream(trio.abc.Stream):
    def __init__(self, stream: trio.SocketStream, connector: LosingConnector) -> None:
        self._stream = stream
        self._connector = connector
        self._loses = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._stream.send_all(data)
        if b"upload-concat: final;" in bytes(data).lower():
            self._connector.joined += 1
            self._loses = self._connector.joined == 1

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data = await self._stream.receive_some(max_bytes)
        if self._loses:
            raise trio.BrokenResourceError  # although the server has answered
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize("retry_unsafe", [False, True])
async def test_lost_answer_to_the_join_is_told_and_the_next_run_joins(
    tmp_path: Path, retry_unsafe: bool
) -> None:
    """The request is not idempotent: only a new call, or retry_unsafe, repeats it."""
    path, data = file_of(tmp_path, 3 * MIB)
    journal = tmp_path / "journal"
    connector = LosingConnector()
    async with serving() as service:
        async with Client(
            journal=Journal(journal), retry=PATIENT, connector=connector
        ) as c:
            if retry_unsafe:
                response = await c.request(
                    "POST", service.url, body=path, parallel=3, retry_unsafe=True
                )
            else:
                with pytest.raises(TransferFailed, match="may be stored twice") as e:
                    await c.request("POST", service.url, body=path, parallel=3)
                assert e.value.resumable
                (known,) = Journal(journal).uploads()
                assert known.all_sent
                assert connector.joined == 1
                response = await c.request("POST", service.url, body=path)
        assert connector.joined == 2
    assert response.status == 201
    assert service.contents == [data, data]
    assert remaining(journal) == []


async def test_rate_limit_is_of_all_parts_together(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, 4 * MIB)
    async with serving() as service:
        async with Client(limit_rate=8 * MIB) as c:
            start = trio.current_time()
            await c.request("POST", service.url, body=path, parallel=4)
            assert trio.current_time() - start > 0.3
    assert service.contents == [data]


async def test_slow_connections_add_up(tmp_path: Path) -> None:
    """What it is for: a proxy that limits the rate of each connection."""
    path, _ = file_of(tmp_path, 4 * MIB)
    seconds = {}
    plan = ConnectionPlan(bytes_per_second=4 * MIB)
    async with serving() as service:
        async with ChaosProxy(service.address, lambda _: plan) as proxy:
            for parallel in (1, 4):
                async with Client(http2=False) as c:
                    start = trio.current_time()
                    await c.request("POST", proxy.url, body=path, parallel=parallel)
                    seconds[parallel] = trio.current_time() - start
    assert seconds[4] < seconds[1] * 0.7


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ({"method": "PUT"}, "joined by POST, not by PUT"),
        ({"parallel": 0}, "from 1 to 32"),
        ({"parallel": 33}, "from 1 to 32"),
        ({"body": b"bytes"}, "only a file of known size"),
        ({"body": "/proc/self/status"}, "only a file of known size"),
    ],
)
async def test_what_has_no_parts_is_refused(how: dict[str, Any], reason: str) -> None:
    call = {"method": "POST", "body": __file__, "parallel": 2, **how}
    async with Client() as c:
        with pytest.raises(CallerError, match=reason):
            await c.request(call.pop("method"), "http://127.0.0.1:9/", **call)


async def test_parts_are_of_tus() -> None:
    async with Client(protocol="seed") as c:
        with pytest.raises(CallerError, match="uploads of tus, not of seed"):
            await c.request("POST", "http://127.0.0.1:9/", body=__file__, parallel=2)


async def test_small_file_goes_in_one_piece_without_a_question(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, 2 * MIB - 1)
    async with serving() as service, Client() as c:
        response = await c.request("POST", service.url, body=path, parallel=8)
    assert (response.parts, response.protocol) == (1, "seed")
    assert service.contents == [data]


async def test_upload_that_began_in_one_piece_goes_on_so(tmp_path: Path) -> None:
    path, data = file_of(tmp_path, 4 * MIB)
    journal = tmp_path / "journal"
    cut = scripted_faults([Fault(FaultKind.RST, Direction.UP, 3 * MIB)])
    async with serving() as service, ChaosProxy(service.address, cut) as proxy:
        async with Client(journal=Journal(journal), retry=ONCE) as c:
            with pytest.raises(TransferFailed):
                await c.request("POST", proxy.url, body=path)
        async with Client(journal=Journal(journal)) as c:
            response = await c.request("POST", proxy.url, body=path, parallel=4)
    assert response.parts == 1
    assert service.contents == [data]
