"""The benchmark on itself: real processes, small loads, the bare loop as server."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from bench.content import Buffer, Piece
from bench.load import Generator, LoadFailed, run
from bench.measure import Bench, VerificationFailed, verify
from bench.server import Server, ServerFailed, Target, raw_loop
from bench.workspace import Workspace

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"), reason="reads /proc, sends from a memfd"
)

MIB = 1 << 20


@pytest.fixture(scope="module")
def buffer() -> Iterator[Buffer]:
    with closing(Buffer(3)) as made:
        yield made


@pytest.fixture
def bench(buffer: Buffer, tmp_path: Path) -> Iterator[Bench]:
    with closing(Workspace(tmp_path)) as workspace:
        yield Bench(buffer=buffer, workspace=workspace, timeout=20)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(raw_loop(), tmp_path / "data") as started:
        yield started


def test_a_run_is_measured_and_verified(bench: Bench) -> None:
    """Uploads of several chunks each arrive whole; time and memory are told."""
    result = bench.run(raw_loop(), 4, 9 * MIB + 1)
    assert result.n == 4
    assert result.bytes == 4 * (9 * MIB + 1)
    assert len(set(result.outcome.locations)) == 4
    assert result.rate > 0
    assert result.cpu_per_gib > 0
    assert result.peak_resident > MIB


def test_the_interim_response_is_waited_for(
    bench: Bench, server: Server, buffer: Buffer
) -> None:
    """With ``resume`` the body follows the 100, and is the right one."""
    job = replace(bench.job(server, 3, MIB), resume=True)
    verify(server, buffer, job, run(job))


def test_other_bytes_are_found_out(
    bench: Bench, server: Server, buffer: Buffer
) -> None:
    """An upload whose stored bytes differ fails the verification."""
    job = bench.job(server, 2, MIB)
    outcome = run(job)
    swapped = replace(outcome, locations=outcome.locations[::-1])
    with pytest.raises(VerificationFailed):
        verify(server, buffer, job, swapped)


def test_a_generator_process_does_a_job(bench: Bench, server: Server) -> None:
    """It reports each upload's location, its CPU time, and when the mark passed."""
    outcome = Generator(bench.job(server, 5, MIB, mark=2 * MIB)).run()
    assert len(outcome.locations) == 5
    assert outcome.started <= outcome.marked <= outcome.started + outcome.seconds
    assert 0 < outcome.first_done <= outcome.seconds


def test_a_generator_without_a_server_fails(bench: Bench, server: Server) -> None:
    """The parent gets the reason, not a hang."""
    job = bench.job(server, 1, MIB)
    server.stop()
    with pytest.raises(LoadFailed):
        Generator(job).run()


def test_a_server_that_does_not_start_shows_what_it_said(tmp_path: Path) -> None:
    """The error holds the server's own words."""
    broken = Target("broken", (sys.executable, "-c", "print('no such luck')"))
    with pytest.raises(ServerFailed, match="no such luck"):
        Server(broken, tmp_path)


def test_a_data_dir_is_emptied_and_removed_at_the_end(tmp_path: Path) -> None:
    """Between runs the files stay without bytes: see bench.workspace for why."""
    workspace = Workspace(tmp_path)
    with workspace.data_dir() as directory:
        (directory / "below").mkdir(parents=True)
        (directory / "below" / "file").write_bytes(b"bytes")
    assert (directory / "below" / "file").stat().st_size == 0
    workspace.close()
    assert list(tmp_path.iterdir()) == []


def test_a_digest_of_nothing_is_that_of_an_empty_upload(
    bench: Bench, server: Server, buffer: Buffer
) -> None:
    """The generator sends an empty body too."""
    job = bench.job(server, 1, 0)
    verify(server, buffer, job, run(job))
    assert buffer.digest(Piece(0, 0)) == buffer.digest(Piece(5, 0))
