"""The download benchmark: against the real service, and servers that are wrong."""

from __future__ import annotations

import contextlib
import os
import random
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from blake3 import blake3
from click.testing import CliRunner

from bench.download import Measured, Work, forget, main, measure, report
from bench.fetch import Question, Request, WrongAnswer, fetch
from bench.peers import find
from bench.server import Server
from tests.bench_scripts.fakes import faulty
from tests.platforms import linux_only, needs
from trioresume.bench.content import Region

pytestmark = linux_only("epoll and /proc")

MIB = 1 << 20


@pytest.fixture(scope="module")
def region() -> Iterator[Region]:
    with Region.make(1, 4 * MIB) as region:
        yield region


def test_requests_of_a_run_are_of_as_many_bytes_however_many_there_are(
    region: Region,
) -> None:
    """One connection or many, whole or in ranges; each digest is that of its bytes."""
    for work in (
        Work(1, 4 * MIB),
        Work(4, 4 * MIB),
        Work(1, 4 * MIB, MIB),
        Work(4, 4 * MIB, MIB // 2),
    ):
        requests = work.requests("/files/a", region, 1)
        assert len(requests) == work.connections
        assert sum(each.length for row in requests for each in row) == 4 * MIB
        for each in {each for row in requests for each in row}:
            first = each.first or 0
            assert each.digest == region.digest(first, each.length)
            assert first + each.length <= work.size


def test_downloads_of_the_real_service_are_measured_and_right(
    region: Region, tmp_path: Path
) -> None:
    """Whole and in ranges, warm and from the disk: every byte was compared."""
    for number, work in enumerate([Work(3, 3 * MIB), Work(2, 2 * MIB, MIB // 4)]):
        directory = tmp_path / f"data{number}"
        with Server(find("trioresume-process"), directory) as server:
            cold = directory if number else None
            run = measure(server, work, region, cold=cold)
        assert run.bytes == work.total
        assert run.rate > 0
        assert run.peak_resident > 0
        assert run.generator > 0


def test_wrong_bytes_are_noticed(region: Region, tmp_path: Path) -> None:
    """A server that loses one is not measured."""
    with (
        Server(faulty("drop"), tmp_path / "data") as server,
        pytest.raises(WrongAnswer),
    ):
        measure(server, Work(1, MIB), region, cold=None)


BODY = b"0123456789"


@contextmanager
def answering(answer: bytes) -> Iterator[tuple[str, int]]:
    """A server that gives every connection *answer* and closes it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with listener.accept()[0] as connection:
                connection.recv(1000)
                connection.sendall(answer)

        thread = threading.Thread(target=serve)
        thread.start()
        yield listener.getsockname()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"200 OK\r\nContent-Length: 10\r\n\r\n012345678X", "not the stored bytes"),
        (b"200 OK\r\nContent-Length: 10\r\n\r\n0123", "cut 6 bytes"),
        (
            b"200 OK\r\nContent-Length: 10\r\n\r\n0123456789a",
            "more bytes than it announced",
        ),
        (b"200 OK\r\nContent-Length: 9\r\n\r\n012345678", "announced"),
        (b"206 Partial\r\nContent-Length: 10\r\n\r\n0123456789", "answered"),
        (b"200 OK\r\n\r\n0123456789", "answered"),
    ],
)
def test_every_way_to_answer_wrongly_is_noticed(answer: bytes, problem: str) -> None:
    """Not only the length counts."""
    digest = blake3(BODY).digest()
    with answering(b"HTTP/1.1 " + answer) as address:
        with pytest.raises(WrongAnswer, match=problem):
            fetch(address, [[Request("/", len(BODY), digest)]])


class Keeping:
    """A server that answers *each* requests on a connection and then closes it.

    *says* whether the last answer has ``Connection: close``, *resets* whether the end is a
    reset, *cut* whether it comes within an answer.
    """

    def __init__(
        self, each: int, *, says: bool, resets: bool = False, cut: bool = False
    ) -> None:
        self._each, self._says, self._resets, self._cut = each, says, resets, cut
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address: tuple[str, int] = self._listener.getsockname()
        threading.Thread(target=self._run, daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                connection = self._listener.accept()[0]
            except OSError:
                return
            self.connections += 1
            threading.Thread(target=self._serve, args=[connection], daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            received = b""
            for number in range(self._each):
                while b"\r\n\r\n" not in received:
                    data = connection.recv(65536)
                    if not data:
                        return
                    received += data
                head, _, received = received.partition(b"\r\n\r\n")
                last = number == self._each - 1
                fields = b"Connection: close\r\n" if last and self._says else b""
                body = b"" if head.startswith(b"HEAD") else BODY
                if last and self._cut:
                    body = body[:4]
                connection.sendall(
                    b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n"
                    + fields
                    + b"\r\n"
                    + body
                )
            if self._resets:
                linger = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)

    def close(self) -> None:
        self._listener.close()


ASKED = Request("/", len(BODY), blake3(BODY).digest())


@pytest.mark.parametrize("resets", [False, True])
@pytest.mark.parametrize("says", [False, True])
@pytest.mark.parametrize("each", [1, 3])
def test_kept_connection_may_be_closed_between_two_answers(
    each: int, says: bool, resets: bool
) -> None:
    """As nginx does after a thousand requests: the next one goes on another connection."""
    with closing(Keeping(each, says=says, resets=resets)) as server:
        fetched = fetch(server.address, [[ASKED] * 10, [ASKED] * 7])
        assert fetched.bytes == 17 * len(BODY)
        assert server.connections >= 17 // each


def test_answer_that_is_cut_is_noticed_on_a_kept_connection() -> None:
    """Only between answers may it end."""
    with closing(Keeping(3, says=False, cut=True)) as server:
        with pytest.raises(WrongAnswer, match="cut 6 bytes"):
            fetch(server.address, [[ASKED] * 10])


def test_connection_that_answers_nothing_is_noticed() -> None:
    """It is not tried again for ever."""
    with closing(Keeping(0, says=False)) as server:
        with pytest.raises((WrongAnswer, ConnectionResetError)):
            fetch(server.address, [[ASKED] * 2])
        assert server.connections == 1


def test_small_question_goes_on_too() -> None:
    """On a connection of its own that is closed as well."""
    with closing(Keeping(2, says=True)) as server:
        question = Question(server.address, "/")
        with question.asked():
            deadline = time.monotonic() + 20
            while len(question.latencies) < 7:
                assert time.monotonic() < deadline
                time.sleep(0.01)
        assert server.connections >= 3


@needs("nginx")
def test_nginx_that_closes_kept_connections_is_fetched_from(tmp_path: Path) -> None:
    """The real one, with a small number of requests for each connection."""
    (tmp_path / "file").write_bytes(BODY)
    os.chmod(tmp_path, 0o755)
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = probe.getsockname()
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; user root;\n"
        "events {} http { access_log off; keepalive_requests 3;\n"
        f"server {{ listen 127.0.0.1:{address[1]}; root {tmp_path}; }} }}\n"
    )
    process = subprocess.Popen(
        ["nginx", "-p", str(tmp_path), "-c", str(config)], stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 20
        while True:
            with contextlib.suppress(ConnectionRefusedError):
                socket.create_connection(address).close()
                break
            assert time.monotonic() < deadline
            assert process.poll() is None
            time.sleep(0.05)
        asked = Request("/file", len(BODY), blake3(BODY).digest())
        fetched = fetch(address, [[asked] * 20] * 4)
        assert fetched.bytes == 80 * len(BODY)
    finally:
        process.terminate()
        process.wait()


def test_report_sets_servers_in_relation_round_by_round() -> None:
    """The last one is the measure; the ratio is the rounds' median, not the medians'."""
    work = Work(16, 1 << 30)

    def run(cpu: float, seconds: float) -> Measured:
        return Measured(
            bytes=1 << 30,
            seconds=seconds,
            user=cpu / 2,
            system=cpu / 2,
            peak_resident=50 * MIB,
            generator=0.95,
            heads=[0.001] * 98 + [0.004, 0.25],
        )

    rounds = [
        {(work, "a"): run(0.4, 1.0), (work, "b"): run(0.2, 0.5)},
        {(work, "a"): run(1.2, 4.0), (work, "b"): run(0.3, 1.0)},
    ]
    lines = list(report([work], ["a", "b"], rounds))
    assert len(lines) == 4
    assert lines[2] == (
        "| 16 x 64 MiB | a | 640 (256-1024) | 0.38 (0.25-0.50) | 0.80 (0.40-1.20) "
        "| 0.40 + 0.40 | 3.00 (2.00-4.00) | 1.0 / 4.0 / 250 | 50 | 95% ! |"
    )
    assert "| b |" in lines[3]


def test_command_measures_and_reports(tmp_path: Path) -> None:
    """A run of its own, of a few megabytes, as documented but smaller."""
    options = (
        "--servers trioresume-process --connections 2 --bytes 2MiB --rounds 1 "
        f"--kinds range --range 256KiB --work-dir {tmp_path}"
    )
    done = CliRunner().invoke(main, options.split())
    assert done.exit_code == 0, done.output
    assert "| 2 x 4 ranges of 256 KiB | trioresume-process |" in done.output


def test_forgotten_files_are_intact(tmp_path: Path) -> None:
    """They come from the disk then, as they were."""
    data = random.Random(1).randbytes(100_000)
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "a").write_bytes(data)
    forget(tmp_path)
    assert (tmp_path / "deep" / "a").read_bytes() == data
