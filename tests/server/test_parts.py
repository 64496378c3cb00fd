"""What only one of several processes does at a time."""

from __future__ import annotations

import trio
import trio.testing

from trioresume.server.parts import Leading


async def test_task_runs_while_its_process_leads(autojump_clock: object) -> None:
    """It begins anew each time the process leads again, and ends with that."""
    log: list[str] = []

    async def task() -> None:
        log.append("begun")
        try:
            await trio.sleep_forever()
        finally:
            log.append("ended")

    leading = Leading()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leading.run, task)
        await trio.testing.wait_all_tasks_blocked()
        leading.end()  # it does not lead: nothing to end
        assert log == []
        for _ in range(2):
            leading.begin()
            leading.begin()
            await trio.testing.wait_all_tasks_blocked()
            leading.end()
            leading.end()
            await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert log == ["begun", "ended"] * 2


async def test_task_that_is_done_is_not_done_again_by_itself(
    autojump_clock: object,
) -> None:
    """A recovery runs once each time the process begins to lead."""
    runs = 0

    async def task() -> None:
        nonlocal runs
        runs += 1
        await trio.lowlevel.checkpoint()

    leading = Leading()
    leading.begin()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(leading.run, task)
        await trio.sleep(1)
        assert runs == 1
        nursery.cancel_scope.cancel()
