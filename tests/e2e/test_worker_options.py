"""What else works with several workers, and which limits count over all of them."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.test_systemd import Manager, manager
from tests.e2e.test_workers import SECONDS, until, worker_with
from tests.e2e.wire import Answer, Wire, request_head
from tests.e2e.worker_soak import workers_of
from trioresume import new_token

__all__ = ["manager"]

MakeService = Callable[..., Service]
KIB = 1024
MOST_OPEN = 4
MOST_CONNECTIONS = 12

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests look for processes in /proc"
)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Service, str]]:
    """A service with two workers and many options, and the token of its user."""
    folder = tmp_path_factory.mktemp("options")
    token, line = new_token("ann")
    (folder / "tokens").write_text(f"{line}\n")
    (folder / "done").mkdir()
    service = Service(
        folder / "data",
        (
            *("serve", "--workers", "2"),
            *("--access-log", str(folder / "access"), "--access-log-format", "json"),
            *("--log-file", str(folder / "log"), "--log-format", "json"),
            *("--tokens-file", str(folder / "tokens"), "--public-health"),
            *("--max-open-uploads-per-principal", str(MOST_OPEN)),
            *("--max-connections", str(MOST_CONNECTIONS)),
            *("--max-stored-bytes-per-principal", str(400 * KIB)),
            *("--on-success", f"copy:{folder}/done", "--ui"),
        ),
    )
    # The service says first where it listens first.
    service._command += ["--bind", f"unix:{folder}/public"]
    service.start()
    yield service, token
    service.stop()
    service.check_log()
    assert "Traceback" not in (folder / "log").read_text()


async def send(
    service: Service,
    token: str,
    method: str,
    target: str,
    body: bytes = b"",
    **fields: str,
) -> tuple[Answer, int | None]:
    """One request over a connection of its own; its answer, and the worker that gave it.

    None if the worker has closed the connection since.
    """
    all_fields = [
        ("Authorization", f"Bearer {token}"),
        *((name.replace("_", "-"), value) for name, value in fields.items()),
    ]
    if body or method in ("PUT", "POST"):
        all_fields.append(("Content-Length", str(len(body))))
    with await Wire.connect(service.address) as wire:
        await wire.send(request_head(method, target, all_fields) + body)
        answer = await wire.answer(method)
        try:
            return answer, worker_with(service, wire)
        except AssertionError:
            return answer, None


async def test_quota_counts_over_all_workers(
    crew: tuple[Service, str], new_name: str
) -> None:
    """G7: what one worker has stored leaves less for the others; deleting makes room."""
    service, token = crew
    workers, stored, statuses = set(), [], []
    for number in range(8):
        name = f"{new_name}-{number}"
        body = os.urandom(100 * KIB)
        answer, worker = await send(service, token, "PUT", name, body)
        workers.add(worker)
        statuses.append(answer.status)
        if answer.status == 201:
            stored.append(name)
    assert len(workers - {None}) == 2
    assert len(stored) in (2, 3)  # a file costs 4 KiB more; an operation as well
    assert set(statuses[len(stored) :]) == {507}
    for name in stored:
        assert (await send(service, token, "DELETE", name))[0].status == 204
    answer, _ = await send(service, token, "PUT", new_name, os.urandom(100 * KIB))
    assert answer.status == 201
    assert (await send(service, token, "DELETE", new_name))[0].status == 204


async def test_quota_holds_for_uploads_at_the_same_moment(
    crew: tuple[Service, str], new_name: str
) -> None:
    """G7: two workers that look at once do not both give away the last bytes."""
    service, token = crew
    answers: list[tuple[str, int]] = []

    async def put(number: int) -> None:
        name = f"{new_name}-{number}"
        body = os.urandom(100 * KIB)
        answer, _ = await send(service, token, "PUT", name, body)
        answers.append((name, answer.status))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(put, number)
    stored = [name for name, status in answers if status == 201]
    assert len(stored) in (1, 2, 3)
    assert {status for _, status in answers} <= {201, 429, 507}
    for name in stored:
        assert (await send(service, token, "DELETE", name))[0].status == 204


async def test_open_uploads_count_over_all_workers(
    crew: tuple[Service, str], new_name: str
) -> None:
    """G5: 429 at the limit, at whichever worker."""
    service, token = crew
    places, statuses, workers = [], [], set()
    for number in range(MOST_OPEN + 4):
        answer, worker = await send(
            service,
            token,
            "POST",
            "/files/",
            tus_resumable="1.0.0",
            upload_length=str(10 + number),
        )
        statuses.append(answer.status)
        workers.add(worker)
        if answer.status == 201:
            places.append(answer.fields["location"])
    assert statuses == [201] * MOST_OPEN + [429] * 4
    assert len(workers - {None}) == 2
    for place in places:
        path = place.removeprefix(service.root)
        answer, _ = await send(service, token, "DELETE", path, tus_resumable="1.0.0")
        assert answer.status == 204


async def test_connections_count_over_all_workers(crew: tuple[Service, str]) -> None:
    """G5: beyond the limit 503, or an idle connection of the same worker is closed."""
    service, token = crew
    head = request_head("GET", "/files/none", [("Authorization", f"Bearer {token}")])
    with ExitStack() as stack:
        busy = []
        for _ in range(MOST_CONNECTIONS):
            wire = stack.enter_context(await Wire.connect(service.address))
            await wire.send(head[:20])  # a request that has begun: it is not idle
            await wire.until_read()
            busy.append(wire)
        late = stack.enter_context(await Wire.connect(service.address))
        await late.send(head)
        assert (await late.answer("GET")).status == 503
        for wire in busy:
            await wire.send(head[20:])
            assert (await wire.answer("GET")).status == 404


async def test_lines_of_the_logs_have_the_number_of_the_worker(
    crew: tuple[Service, str], new_name: str
) -> None:
    """The access log's and the log's; a line of the parent has none."""
    service, token = crew
    folder = service.data_dir.parent
    workers = {(await send(service, token, "GET", new_name))[1] for _ in range(6)}
    assert len(workers - {None}) == 2

    def numbers() -> set[int]:
        lines = map(json.loads, (folder / "access").read_text().splitlines())
        return {line["worker"] for line in lines if line["path"] == new_name}

    await trio.to_thread.run_sync(
        lambda: until(lambda: numbers() == {1, 2}, "a worker has written nothing")
    )
    lines = [json.loads(line) for line in (folder / "log").read_text().splitlines()]
    assert any("worker" not in line for line in lines)


async def test_all_workers_accept_from_a_unix_socket(crew: tuple[Service, str]) -> None:
    """The name is made once, and each worker answers there."""
    service, _ = crew
    path = service.data_dir.with_name("public")

    def look() -> None:
        for _ in range(4):
            with closing(socket.socket(socket.AF_UNIX)) as raw:
                raw.settimeout(SECONDS)
                raw.connect(str(path))
                raw.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert raw.recv(100).startswith(b"HTTP/1.1 200 ")

    await trio.to_thread.run_sync(look)


async def test_page_and_tasks_and_commands_work(
    crew: tuple[Service, str], new_name: str
) -> None:
    """``--ui``, ``--on-success``, and the commands that ask the process with the lock."""
    service, token = crew
    assert (await send(service, token, "GET", "/ui/"))[0].status == 200
    assert (await send(service, token, "PUT", new_name, b"abc"))[0].status == 201
    name = new_name.rpartition("/")[2]
    copies = service.data_dir.with_name("done")

    def copied() -> bool:
        return any(path.name == name for path in copies.rglob("*") if path.is_file())

    await trio.to_thread.run_sync(lambda: until(copied, "the file was not copied"))

    def command(*words: str) -> str:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "trioresume", words[0]),
                *("--data-dir", str(service.data_dir), *words[1:]),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done
        return done.stdout

    assert name in await trio.to_thread.run_sync(command, "ls")
    await trio.to_thread.run_sync(command, "gc")
    await trio.to_thread.run_sync(command, "rm", "--owner", "ann", name)
    assert (await send(service, token, "GET", new_name))[0].status == 404


def test_socket_that_was_handed_over_is_every_workers(tmp_path: Path) -> None:
    """``fd:NUMBER``, and a socket of systemd: the parent passes it on."""
    with closing(socket.create_server(("127.0.0.1", 0))) as handed:
        number = handed.fileno()
        command = [sys.executable, "-m", "trioresume", "serve", "--workers", "2"]
        command += ["--bind", f"fd:{number}", "--data-dir", str(tmp_path / "data")]
        with subprocess.Popen(
            command,
            pass_fds=[number],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        ) as process:
            try:
                assert process.stdout is not None
                line = process.stdout.readline()
                assert line.startswith("You can now upload files to: ")
                for _ in range(4):
                    connection = http.client.HTTPConnection(*handed.getsockname())
                    connection.request("GET", "/files/none")
                    assert connection.getresponse().status == 404
                    connection.close()
                assert len(workers_of(process.pid)) == 2
            finally:
                process.terminate()
            assert process.wait() == 0


def test_systemd_is_told_by_the_parent(
    manager: Manager, make_service: MakeService
) -> None:
    """Ready when the leading worker has taken up what was left; again after a reload."""
    service = make_service(
        "--workers", "2", environment={"NOTIFY_SOCKET": manager.variable}
    )
    service.start()
    assert "Serving at" in manager.wait_for("READY")["STATUS"]
    old = workers_of(service.pid)
    os.kill(service.pid, signal.SIGHUP)
    manager.wait_for("RELOADING")
    manager.wait_for("READY")
    assert not set(old) & set(workers_of(service.pid)[-2:])
    manager.drain()
    service.stop()
    manager.wait_for("STOPPING")
