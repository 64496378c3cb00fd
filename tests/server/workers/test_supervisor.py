"""The supervisor, with processes that serve nothing."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from trioresume.errors import StorageError, WorkersFailed
from trioresume.server.http.connection_counts import SharedCounts, make_counts_file
from trioresume.server.workers.seat import Seat
from trioresume.server.workers.supervisor import Supervisor, SupervisorTimes

FAKE = Path(__file__).with_name("fake_worker.py")
PATIENCE = 30.0

pytestmark = pytest.mark.skipif(
    sys.platform == "win32", reason="workers need Unix sockets"
)


class Stand:
    """A supervisor, and what its workers are ordered to do."""

    def __init__(self, path: Path, count: int, **times: Any) -> None:
        self.path = path
        self.order()
        self.counts_file = make_counts_file()
        self.counts = SharedCounts(self.counts_file, None)
        self.served: list[int] = []
        self.retired: list[int] = []
        self.is_started = trio.Event()
        self.supervisor = Supervisor(
            count=count,
            command=self.command,
            make_seat=self.make_seat,
            descriptors=[self.counts_file],
            counts=self.counts,
            serve_catalog=self.serve_catalog,
            times=SupervisorTimes(**{"last": 5.0, "quick": 0.0, **times}),
        )
        self.supervisor.retire = lambda worker: self.retired.append(worker.number)

    def order(self, **orders: object) -> None:
        """Have the workers that start from now on do *orders*."""
        new = self.path / "orders.new"
        new.write_text(json.dumps(orders), "utf-8")
        new.rename(self.path / "orders")

    def command(self, channel: int) -> list[str]:
        return [sys.executable, str(FAKE), str(channel), str(self.path / "orders")]

    def make_seat(self, number: int, slot: int, catalog: int) -> Seat:
        return Seat(
            number=number,
            workers=2,
            bind=["http://fd:0"],
            slot=slot,
            counts=self.counts_file,
            catalog=catalog,
            lock=self.counts_file,
            data_dir=str(self.path),
            durability="disk",
            parent=os.getpid(),
        )

    async def serve_catalog(self, sock: socket.socket, pid: int) -> None:
        self.served.append(pid)
        sock.close()

    def log(self) -> list[list[str]]:
        """What the workers have noted: what happened, the number, the process."""
        path = self.path / "log"
        if not path.exists():
            return []
        return [line.split() for line in path.read_text("utf-8").splitlines()]

    def hanging(self) -> int:
        """How many workers have begun to hang."""
        return [what for what, _, _ in self.log()].count("hangs")

    def pids(self) -> dict[int, int]:
        """The processes of the workers that are there, by number."""
        return {w.number: w.process.pid for w in self.supervisor.workers}

    async def until(self, holds: Callable[[], object]) -> None:
        """Wait until *holds* returns something true."""
        with trio.fail_after(PATIENCE):
            while not holds():  # noqa: ASYNC110 - of other processes
                await trio.sleep(0.01)

    def close(self) -> None:
        self.counts.close()
        os.close(self.counts_file)


@asynccontextmanager
async def running(stand: Stand) -> AsyncIterator[Supervisor]:
    """Run the supervisor, and shut it down at the end."""
    try:
        with trio.fail_after(2 * PATIENCE):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stand.supervisor.run, stand.is_started.set)
                await stand.is_started.wait()
                yield stand.supervisor
                stand.supervisor.stopping.set()
    finally:
        stand.close()


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


async def test_workers_start_and_end_with_the_service(tmp_path: Path) -> None:
    """All listen before the service is started; none is left when it has ended."""
    stand = Stand(tmp_path, 2)
    async with running(stand):
        pids = stand.pids()
        assert sorted(pids) == [1, 2]
        assert sorted(stand.served) == sorted(pids.values())
    assert not any(map(is_alive, pids.values()))
    assert sorted(stand.retired) == [1, 2]
    told = [what for what, _, _ in stand.log()]
    assert told.count("stop") == 2
    assert told.count("end") == 0


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
async def test_dead_worker_is_replaced(tmp_path: Path, number: int) -> None:
    """The successor has its number, and what the dead one had in its slot is dropped."""
    stand = Stand(tmp_path, 2)
    async with running(stand):
        pids = stand.pids()
        slot = next(w.slot for w in stand.supervisor.workers if w.number == 2)
        SharedCounts(stand.counts_file, slot).add("192.0.2.1", 5)
        os.kill(pids[2], number)
        await stand.until(lambda: stand.pids().get(2, pids[2]) != pids[2])
        assert stand.pids()[1] == pids[1]
        assert stand.counts.all == stand.counts.of("192.0.2.1") == 0


async def test_another_worker_leads_when_the_leader_dies(tmp_path: Path) -> None:
    """One leads at a time."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        pids = stand.pids()
        await stand.until(lambda: ["lead", "1", str(pids[1])] in stand.log())
        os.kill(pids[1], signal.SIGKILL)
        await stand.until(lambda: ["lead", "2", str(pids[2])] in stand.log())
        answer = await supervisor.ask({"do": "retry"}, PATIENCE)
        assert answer["report"] == [2]


async def test_worker_that_cannot_start_ends_the_start(tmp_path: Path) -> None:
    """What it said is the reason of the error."""
    stand = Stand(tmp_path, 2)
    stand.order(fails="the certificate is missing")
    with pytest.raises(WorkersFailed, match=r"did not start: the certificate is miss"):
        await stand.supervisor.run(stand.is_started.set)
    assert not stand.is_started.is_set()
    assert not any(map(is_alive, stand.served))
    stand.close()


async def test_worker_that_never_listens_ends_the_start(tmp_path: Path) -> None:
    """It is not waited for longer than the time for a start."""
    stand = Stand(tmp_path, 1, start=0.3, last=0.1)
    stand.order(is_slow=True)
    with pytest.raises(WorkersFailed, match=r"does not listen after 0\.3 seconds"):
        await stand.supervisor.run(stand.is_started.set)
    assert not any(map(is_alive, stand.served))
    stand.close()


async def test_program_that_is_missing_ends_the_start(tmp_path: Path) -> None:
    """The error says that no worker can be started."""
    stand = Stand(tmp_path, 1)
    stand.supervisor._command = lambda channel: [str(tmp_path / "missing")]
    with pytest.raises(WorkersFailed, match="a worker cannot be started"):
        await stand.supervisor.run(stand.is_started.set)
    stand.close()


async def test_workers_that_die_at_once_end_the_service(tmp_path: Path) -> None:
    """They are started again some times, each time later, and then the service ends."""
    stand = Stand(tmp_path, 1, most_quick=4, first_delay=0.01, quick=60.0)

    async def spoil() -> None:
        await stand.is_started.wait()
        stand.order(dies=True)
        os.kill(stand.pids()[1], signal.SIGKILL)

    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(spoil)
            with pytest.raises(WorkersFailed, match=r"4 workers.*once.*exit code 7"):
                await stand.supervisor.run(stand.is_started.set)
    assert len(stand.served) == 4
    stand.close()


async def test_service_goes_on_while_a_worker_serves(tmp_path: Path) -> None:
    """A replacement that cannot start is tried again, and does not end the service."""
    stand = Stand(
        tmp_path, 2, most_quick=3, first_delay=0.01, longest_delay=0.02, quick=0.1
    )
    async with running(stand) as supervisor:
        pids = stand.pids()
        await trio.sleep(0.2)  # a worker that began just now does not count
        stand.order(fails="no such option")
        os.kill(pids[1], signal.SIGKILL)
        await stand.until(lambda: len(stand.retired) > 5)
        assert not supervisor.stopping.is_set()
        assert stand.pids() == {2: pids[2]}
        stand.order()
        await stand.until(lambda: sorted(stand.pids()) == [1, 2])
        assert stand.pids()[2] == pids[2]


async def test_worker_is_replaced_while_a_new_generation_hangs(tmp_path: Path) -> None:
    """And its successor drains with the old generation when the new one listens."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        old = stand.pids()
        stand.order(is_slow=True)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(supervisor.replace_workers)
            await stand.until(lambda: stand.hanging() == 2)
            hanging = supervisor._workers[2:]
            stand.order()
            os.kill(old[1], signal.SIGKILL)
            await stand.until(lambda: stand.pids().get(1, old[1]) != old[1])
            assert not any(worker.is_ready for worker in hanging)
            for worker in hanging:
                worker.process.kill()
            nursery.cancel_scope.cancel()
        await supervisor.replace_workers()
        await stand.until(lambda: not is_alive(old[2]))
        await stand.until(lambda: len(supervisor._workers) == 2)
        assert {worker.generation for worker in supervisor.workers} == {2}


async def test_replacement_that_hangs_is_killed(tmp_path: Path) -> None:
    """As a worker of a new generation is: otherwise its place stays empty."""
    stand = Stand(tmp_path, 2, start=2.0, ping=0.05, first_delay=0.01)
    async with running(stand) as supervisor:
        pids = stand.pids()
        stand.order(is_slow=True)
        os.kill(pids[1], signal.SIGKILL)
        await stand.until(lambda: stand.hanging() == 1)
        hanging = supervisor._workers[-1].process.pid
        stand.order()
        await stand.until(lambda: sorted(stand.pids()) == [1, 2])
        assert not is_alive(hanging)
        assert stand.pids()[2] == pids[2]


async def test_shutdown_does_not_wait_for_what_hangs(tmp_path: Path) -> None:
    """A worker that does not listen has nothing to finish."""
    stand = Stand(tmp_path, 1, grace=60.0)
    started = 0.0
    async with running(stand) as supervisor:
        stand.order(is_slow=True)
        os.kill(stand.pids()[1], signal.SIGKILL)
        await stand.until(lambda: stand.hanging() == 1)
        started = trio.current_time()
        supervisor.stopping.set()
    assert trio.current_time() - started < 30.0


async def test_new_generation_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    """Only when all of it listens does the old one drain; the new one leads."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        old = stand.pids()
        await supervisor.replace_workers()
        await stand.until(lambda: not any(map(is_alive, old.values())))
        new = stand.pids()
        assert sorted(new) == [1, 2]
        assert not set(new.values()) & set(old.values())
        log = stand.log()
        ready = [log.index(["ready", str(n), str(pid)]) for n, pid in new.items()]
        drain = [log.index(["drain", str(n), str(pid)]) for n, pid in old.items()]
        assert max(ready) < min(drain)
        await stand.until(lambda: ["lead", "1", str(new[1])] in stand.log())


async def test_new_generation_that_cannot_start_changes_nothing(tmp_path: Path) -> None:
    """The old workers go on, and one of them that dies is replaced."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        old = stand.pids()
        stand.order(fails="no such option")
        with pytest.raises(WorkersFailed, match="no such option"):
            await supervisor.replace_workers()
        assert stand.pids() == old
        assert all(map(is_alive, old.values()))
        stand.order()
        os.kill(old[1], signal.SIGKILL)
        await stand.until(lambda: stand.pids().get(1, old[1]) != old[1])


async def test_stopped_worker_is_killed_and_replaced(tmp_path: Path) -> None:
    """Its event loop does not answer."""
    stand = Stand(tmp_path, 2, ping=0.05, pong=0.2)
    async with running(stand):
        pids = stand.pids()
        os.kill(pids[2], signal.SIGSTOP)
        await stand.until(lambda: stand.pids().get(2, pids[2]) != pids[2])
        assert not is_alive(pids[2])
        assert stand.pids()[1] == pids[1]


async def test_process_that_is_to_end_has_ended_on_return(tmp_path: Path) -> None:
    """Even a stopped one can change nothing afterwards."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        pid = stand.pids()[1]
        os.kill(pid, signal.SIGSTOP)
        await supervisor.end_process(pid)
        assert not is_alive(pid)
        await supervisor.end_process(pid)  # nobody's any more


async def test_worker_that_does_not_end_is_killed(tmp_path: Path) -> None:
    """A shutdown takes no longer than the grace period and a little."""
    stand = Stand(tmp_path, 2, grace=0.1, last=0.2)
    stand.order(is_deaf=True)
    async with running(stand):
        pids = stand.pids()
    assert not any(map(is_alive, pids.values()))


async def test_cancelled_service_leaves_no_worker(tmp_path: Path) -> None:
    """They are told to end, and killed if they do not."""
    stand = Stand(tmp_path, 2, last=0.2)
    stand.order(is_deaf=True)
    with trio.fail_after(PATIENCE):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stand.supervisor.run, stand.is_started.set)
            await stand.is_started.wait()
            pids = stand.pids()
            nursery.cancel_scope.cancel()
    assert not any(map(is_alive, pids.values()))
    assert [what for what, _, _ in stand.log()].count("end") == 2
    stand.close()


async def test_reports_are_gathered_from_all_that_answer(tmp_path: Path) -> None:
    """A worker that does not answer costs the patience, and its last report still counts."""
    stand = Stand(tmp_path, 2)
    async with running(stand) as supervisor:
        await supervisor.gather(PATIENCE)
        assert [w.report for w in supervisor.workers] == [[1], [2]]
        stopped = supervisor.workers[1]
        os.kill(stopped.process.pid, signal.SIGSTOP)
        await supervisor.gather(0.1)
        assert stopped.report == [2]
        os.kill(stopped.process.pid, signal.SIGCONT)


async def test_nobody_answers_for_workers_that_are_gone(tmp_path: Path) -> None:
    """The question ends at once if its worker dies."""
    stand = Stand(tmp_path, 1)
    stand.order(is_mute=True)
    async with running(stand) as supervisor:
        pid = stand.pids()[1]
        async with trio.open_nursery() as nursery:

            async def kill() -> None:
                await stand.until(lambda: "retry" in [w for w, _, _ in stand.log()])
                os.kill(pid, signal.SIGKILL)

            nursery.start_soon(kill)
            with pytest.raises(StorageError, match="does not answer"):
                await supervisor.ask({"do": "retry"}, 10 * PATIENCE)
