"""Worker threads and lanes: order, errors, and who is told of what."""

from __future__ import annotations

import threading
import time
from functools import partial
from operator import floordiv

import pytest
import trio

from trioresume.server.async_store.threads import Lane, Threads


@pytest.mark.parametrize("threads", [0, 1, 4])
async def test_results_come_to_the_event_loop(threads: int) -> None:
    workers = Threads(threads)
    loop = threading.get_ident()
    results: list[object] = []
    all_came = trio.Event()

    def then(result: object, error: Exception | None) -> None:
        assert threading.get_ident() == loop
        results.append(error or result)
        if len(results) == 100:
            all_came.set()

    with workers.running():
        for number in range(100):
            workers.submit(partial(floordiv, 100, number), then)
        with trio.fail_after(5):
            await all_came.wait()
    assert {r for r in results if isinstance(r, int)} == {
        100 // n for n in range(1, 100)
    }
    assert [type(r) for r in results if not isinstance(r, int)] == [ZeroDivisionError]


@pytest.mark.parametrize("early", [True, False])
async def test_no_job_is_left_lying(early: bool) -> None:
    """One that comes after a thread's look for it, before or after it says it rests."""
    workers = Threads(1)
    ended = trio.Event()

    class Idle(list[threading.Lock]):
        came = False

        def append(self, lock: threading.Lock) -> None:
            if early:
                self.come()
            super().append(lock)
            if not early:
                self.come()

        def come(self) -> None:
            if not self.came:
                self.came = True
                workers.submit(int, lambda result, error: ended.set())

    workers._idle = Idle()
    with workers.running(), trio.fail_after(5):
        await ended.wait()


@pytest.mark.parametrize("threads", [0, 4])
async def test_a_lane_keeps_the_order(threads: int) -> None:
    """However long each takes, the second job begins after the first one's end."""
    workers = Threads(threads)
    log: list[object] = []
    done: list[object] = []
    with workers.running():
        lanes = [Lane(workers) for _ in range(3)]
        for number in range(30):

            def job(number: int = number) -> int:
                log.append(("begin", number))
                time.sleep(0.002 * (number % 3))
                log.append(("end", number))
                return number

            lanes[number % 3].put(job, lambda result, error: done.append(result))
        for lane in lanes:
            await lane.until(0)
            assert lane.pending == 0
    assert sorted(map(str, done)) == sorted(map(str, range(30)))
    for lane_number in range(3):
        mine = [entry for entry in log if entry[1] % 3 == lane_number]  # type: ignore[index]
        expected = [n for n in range(30) if n % 3 == lane_number]
        assert mine == [(what, n) for n in expected for what in ("begin", "end")]


async def test_until_waits_for_as_many_as_it_says() -> None:
    workers = Threads(1)
    gate = threading.Event()
    with workers.running():
        lane = Lane(workers)
        for _ in range(3):
            lane.put(gate.wait, lambda result, error: None)
        with trio.move_on_after(0.05) as scope:
            await lane.until(2)
        assert scope.cancelled_caught
        assert lane.pending == 3
        gate.set()
        with trio.fail_after(5):
            await lane.until(2)
            await lane.until(0)


async def test_a_call_returns_and_raises() -> None:
    workers = Threads(2)
    with workers.running():
        lane = Lane(workers)
        assert await lane.call(lambda: "result") == "result"
        with pytest.raises(ZeroDivisionError):
            await lane.call(partial(floordiv, 1, 0))
        assert await lane.call(lambda: 2) == 2


async def test_a_bug_after_a_job_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    workers = Threads(1)
    results: list[object] = []

    def buggy(result: object, error: Exception | None) -> None:
        raise ZeroDivisionError

    with workers.running():
        lane = Lane(workers)
        lane.put(lambda: 1, buggy)
        lane.put(lambda: 2, lambda result, error: results.append(result))
        await lane.until(0)
    assert results == [2]
    assert "a bug after disk work" in caplog.text


async def test_what_was_submitted_is_done_before_the_end() -> None:
    done: list[int] = []

    def job(number: int) -> None:
        time.sleep(0.001)
        done.append(number)

    workers = Threads(3)
    with workers.running():
        for number in range(30):
            workers.submit(partial(job, number), lambda result, error: None)
    assert sorted(done) == list(range(30))


async def test_a_thread_follows_a_lane_without_the_event_loop() -> None:
    """What was put in is done, though the loop was told of nothing in between."""
    workers = Threads(1)
    done = threading.Semaphore(0)
    with workers.running():
        lane = Lane(workers)
        for _ in range(5):
            lane.put(done.release, lambda result, error: None)
        for _ in range(5):  # no checkpoint here: the loop stands still
            assert done.acquire(timeout=5)
        assert lane.pending == 5
        await lane.until(0)


async def test_lanes_take_turns() -> None:
    """One that never runs dry does not keep a thread from the others."""
    workers = Threads(1)
    log: list[str] = []
    gate = threading.Event()
    with workers.running():
        busy, other = Lane(workers), Lane(workers)
        busy.put(gate.wait, lambda result, error: None)
        for _ in range(3):
            busy.put(lambda: log.append("busy"), lambda result, error: None)
        other.put(lambda: log.append("other"), lambda result, error: None)
        gate.set()
        await busy.until(0)
        await other.until(0)
    assert log == ["other", "busy", "busy", "busy"]


async def test_lanes_are_ended_in_full() -> None:
    """On exit every job of every lane was called, though threads change lanes."""
    workers = Threads(2)
    done: list[int] = []

    def job(number: int) -> None:
        time.sleep(0.0005)
        done.append(number)

    with workers.running():
        lanes = [Lane(workers) for _ in range(7)]
        for number in range(70):
            lanes[number % 7].put(partial(job, number), lambda result, error: None)
    assert sorted(done) == list(range(70))
    assert all(
        [n for n in done if n % 7 == k] == list(range(k, 70, 7)) for k in range(7)
    )


async def test_a_lane_that_is_waited_for_is_next() -> None:
    """Unless it has no jobs, or a thread: then there is nothing to be done."""
    workers = Threads(1)
    log: list[int] = []
    started, gate = threading.Event(), threading.Event()

    def hold() -> None:
        started.set()
        gate.wait()

    with workers.running():
        busy, *others = (Lane(workers) for _ in range(4))
        busy.put(hold, lambda result, error: None)
        assert started.wait(timeout=5)
        for number, lane in enumerate(others):
            lane.put(partial(log.append, number), lambda result, error: None)
        others[2].hasten()
        busy.hasten()
        Lane(workers).hasten()
        gate.set()
        for lane in others:
            await lane.until(0)
    assert log == [2, 0, 1]
