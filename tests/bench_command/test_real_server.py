"""The benchmark against the real ``trioresume serve``, cut, killed and started again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import pytest

from tests.e2e.command import START_SECONDS, Service, free_port
from tests.e2e.conftest import make_service, service
from tests.processes import SOURCE
from trioresume.bench import (
    CheckedBy,
    Ending,
    FaultPlace,
    Faults,
    Protocol,
    Results,
    Settings,
    SizeKind,
    Sizes,
    Snapshot,
    run,
)

__all__ = ["make_service", "service"]

MIB = 1 << 20

SETTINGS = Settings(
    url="filled in",
    at_once=4,
    total=8,
    sizes=Sizes(kind=SizeKind.UNIFORM, minimum=MIB, maximum=6 * MIB),
    faults=Faults(mean_bytes=MIB, places=tuple(FaultPlace)),
    idle_timeout=10.0,
)


def check(results: Results) -> None:
    """Everything came through and is right, and the books balance."""
    assert results.ok, [(u.ending, u.detail, u.check) for u in results.uploads]
    assert results.checks == {CheckedBy.DIGEST: results.settings.total}
    # No byte that was sent before a cut may go missing, nor count twice.
    assert results.sent - results.sent_again == results.stored
    assert sum(results.series.sent) >= results.sent
    assert sum(results.series.finished) == len(results.uploads)


async def test_uploads_are_cut_in_every_way_and_resumed(service: Service) -> None:
    """The seed is found by asking; two processes share a plan with every kind of cut."""
    seen: list[Snapshot] = []
    results = await run(
        replace(
            SETTINGS,
            url=service.root + "/files/",
            server_pid=service.pid,
            processes=2,
        ),
        observe=seen.append,
    )
    check(results)
    assert results.protocol is Protocol.SEED
    assert {upload.process for upload in results.uploads} == {0, 1}
    assert [generator.process for generator in results.generators] == [0, 1]
    assert len(results.cuts) >= 6
    assert results.resume is not None
    assert results.offset_query is not None
    assert results.resume.count > 10
    assert results.server is not None
    assert results.server.user + results.server.system > 0
    assert results.server.peak_resident > 10 * MIB
    assert seen[-1].done == seen[-1].checked == 8
    assert {"loading", "checking"} <= {snapshot.phase for snapshot in seen}


@pytest.mark.parametrize("streams", [1, 4])
async def test_uploads_are_cut_over_http2(
    make_service: Callable[..., Service], streams: int
) -> None:
    """A cut ends an upload's own connection, or its stream on a shared one."""
    service = make_service("--h2c")
    service.start()
    results = await run(
        replace(
            SETTINGS,
            url=service.root + "/files/",
            sizes=Sizes(kind=SizeKind.UNIFORM, minimum=MIB, maximum=3 * MIB),
            http2=True,
            streams=streams,
            processes=2,
        )
    )
    check(results)
    assert results.carrier == "HTTP/2"
    assert results.protocol is Protocol.SEED
    assert len(results.cuts) >= 4
    assert results.resume is not None


class Restartable:
    """``trioresume serve`` as a user starts it: by a shell command, with a pid file."""

    def __init__(self, directory: Path) -> None:
        self.port = free_port()
        self.pid_file = directory / "pid"
        self.log = directory / "log"
        self.log.touch()  # the shell goes on before its child has made it
        serve = shlex.join(
            [
                *(sys.executable, "-m", "trioresume", "serve"),
                *("--bind", f"127.0.0.1:{self.port}"),
                *("--data-dir", str(directory / "data")),
            ]
        )
        self.start = (
            f"PYTHONPATH={shlex.quote(str(SOURCE))} {serve} >> {self.log} 2>&1 & "
            f"echo $! > {self.pid_file}.new; mv {self.pid_file}.new {self.pid_file}"
        )
        self.kill = f"kill -9 $(cat {self.pid_file})"

    def __enter__(self) -> Self:
        subprocess.run(["sh", "-c", self.start], check=True, timeout=30)
        deadline = time.monotonic() + START_SECONDS
        while "You can now upload" not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.05)
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.kill(int(self.pid_file.read_text()), signal.SIGKILL)


async def test_a_killed_server_is_survived(tmp_path: Path) -> None:
    """``kill -9`` and a restart, by commands of the user's: the uploads go on (G9)."""
    with Restartable(tmp_path) as server:
        settings = replace(
            SETTINGS,
            url=f"http://127.0.0.1:{server.port}/files/",
            sizes=Sizes(minimum=4 * MIB, maximum=4 * MIB),
            total=4,
            rate=2 * MIB,
            server_pid_file=str(server.pid_file),
            faults=Faults(
                kill_command=server.kill,
                restart_command=server.start,
                kill_every=0.7,
                down_seconds=0.1,
            ),
        )
        results = await run(settings)
        check(results)
        assert results.server is not None
        assert results.server.pid == int(server.pid_file.read_text())
    assert results.kills
    assert all(kill.up is not None and kill.up > kill.down for kill in results.kills)
    attempts = [attempt for upload in results.uploads for attempt in upload.attempts]
    assert any(attempt.ending is Ending.KILLED for attempt in attempts)
    assert results.resume is not None
    assert "Traceback" not in server.log.read_text()
