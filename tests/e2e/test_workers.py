"""Several worker processes and their parent: whichever of them ends, nothing announced is lost.

These are the real command and real signals. docs/explanation/workers.md has the matrix of what
ends when, and names these tests.
"""

from __future__ import annotations

import http.client
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio

from tests.certificates import write_server_files
from tests.e2e import test_applications as applications
from tests.e2e.command import Service
from tests.e2e.soak import run_all
from tests.e2e.test_takeover import start
from tests.e2e.wire import Answer, Cut, Wire, ask, request_head
from tests.e2e.worker_soak import soaks_of, workers_of
from tests.server.harness import RESUME, Client, head

MakeService = Callable[..., Service]
SIZE = 3_000_000
SECONDS = 60.0

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests look for processes in /proc"
)


@pytest.fixture(scope="module")
def crew(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A running service with two workers, for all tests that leave it running."""
    folder = tmp_path_factory.mktemp("crew")
    service = Service(
        folder / "data",
        ("serve", "--workers", "2", "--admin-bind", f"unix:{folder}/admin"),
    )
    service.start()
    yield service
    service.stop()
    service.check_log()


def until(holds: Callable[[], object], what: str) -> None:
    """Wait until *holds* returns something true."""
    deadline = time.monotonic() + SECONDS
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def is_alive(pid: int) -> bool:
    """Whether there is such a process, and it can still do something."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def await_workers(service: Service, *, without: int | None = None) -> list[int]:
    """Wait until there are two workers again, and *without* is none of them."""
    until(
        lambda: (
            len(found := workers_of(service.pid)) == 2
            and without not in found
            and _metrics(service)["trioresume_workers"] == 2
        ),
        "there are not two workers again",
    )
    return workers_of(service.pid)


def _metrics(service: Service) -> dict[str, float]:
    """The metrics by name and labels."""
    admin = service.data_dir.with_name("admin")

    class Local(http.client.HTTPConnection):
        def connect(self) -> None:
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.connect(str(admin))

    connection = Local("admin", timeout=SECONDS)
    connection.request("GET", "/metrics")
    text = connection.getresponse().read().decode()
    connection.close()
    lines = [line for line in text.splitlines() if not line.startswith("#")]
    return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines}


def worker_with(service: Service, wire: Wire) -> int:
    """The worker that has the connection *wire*."""
    return worker_with_port(service, wire.port)


def worker_with_port(service: Service, port: int) -> int:
    """The worker that has the connection of the client's *port*."""
    ours, theirs = f"0100007F:{port:04X}", f"0100007F:{service.port:04X}"
    inode = ""
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        fields = line.split()
        if fields[1:3] == [theirs, ours]:
            inode = fields[9]
    for pid in workers_of(service.pid):
        for name in os.listdir(f"/proc/{pid}/fd"):
            try:
                if os.readlink(f"/proc/{pid}/fd/{name}") == f"socket:[{inode}]":
                    return pid
            except OSError:
                continue  # it was closed meanwhile
    raise AssertionError("no worker has the connection")


async def offset_of(service: Service, place: str) -> int:
    answer = await ask_again(service, "HEAD", place)
    assert answer.status == 200, answer
    return int(answer.fields["upload-offset"])


async def ask_again(service: Service, method: str, target: str) -> Answer:
    """Ask until no process dies in the middle."""
    with trio.fail_after(SECONDS):
        while True:
            try:
                return await ask(service.address, method, target)
            except Cut:
                await trio.sleep(0.05)


async def finish(service: Service, place: str, content: bytes, offset: int) -> int:
    """Send what is missing, and return the status of the answer."""
    part = f"Content-Range: bytes {offset}-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
    length = ("Content-Length", str(len(part) + SIZE - offset))
    head = request_head("PATCH", place, [("Content-Type", "message/byterange"), length])
    with await Wire.connect(service.address) as wire:
        await wire.send(head + part + content[offset:])
        return (await wire.answer("PATCH")).status


async def begun(
    service: Service, name: str, count: int
) -> tuple[Wire, str, bytes, int]:
    """An upload whose first *count* bytes are durable: it was told so."""
    content = random.Random(name).randbytes(SIZE)
    wire, place = await start(service, name, SIZE)
    await wire.send(content[:count])
    with trio.fail_after(SECONDS):
        while (offset := await offset_of(service, place)) != count:
            # A question that was faster than the bytes has ended their writer.
            wire.close()
            wire, place = await start(service, name, SIZE)
            await wire.send(content[:count])
            await wire.until_read()
    wire.close()
    return wire, place, content, offset


async def test_any_worker_goes_on_with_any_upload(crew: Service, new_name: str) -> None:
    """The content, the message and the file are the same, whoever is asked."""
    content = random.Random(new_name).randbytes(SIZE)
    offset, asked = 0, Counter[int]()
    wire, place = await start(crew, new_name, SIZE)
    wire.close()
    step = SIZE // 10
    while offset < SIZE:
        end = min(SIZE, offset + step)
        part = f"Content-Range: bytes {offset}-{end - 1}/{SIZE}\r\n\r\n".encode()
        length = ("Content-Length", str(len(part) + end - offset))
        fields = [("Content-Type", "message/byterange"), length]
        with await Wire.connect(crew.address) as wire:
            await wire.send(request_head("PATCH", place, fields) + part)
            await wire.send(content[offset:end])
            answer = await wire.answer("PATCH")
            asked[worker_with(crew, wire)] += 1
        assert answer.status == (204 if end < SIZE else 201), answer
        offset = end
        if offset < SIZE:
            assert await offset_of(crew, place) == offset
    assert len(asked) == 2, "one worker got all connections"
    for _ in range(4):
        assert (await ask(crew.address, "GET", new_name)).body == content


async def test_worker_killed_while_it_receives(crew: Service, new_name: str) -> None:
    """What was announced is there at the other worker, and a new worker comes."""
    content = random.Random(new_name).randbytes(SIZE)
    _, place, content, offset = await begun(crew, new_name, SIZE // 2)
    fields = [("Content-Type", "message/byterange"), ("Content-Length", str(SIZE))]
    with await Wire.connect(crew.address) as wire:
        part = f"Content-Range: bytes {offset}-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
        fields[1] = ("Content-Length", str(len(part) + SIZE - offset))
        await wire.send(request_head("PATCH", place, fields) + part)
        await wire.send(content[offset : offset + 1000])
        await wire.until_read()
        victim = worker_with(crew, wire)
        os.kill(victim, signal.SIGKILL)
        with pytest.raises(Cut):
            await wire.answer("PATCH")
    found = await offset_of(crew, place)
    assert offset <= found <= offset + 1000
    assert await finish(crew, place, content, found) == 201
    assert (await ask(crew.address, "GET", new_name)).body == content
    await trio.to_thread.run_sync(lambda: await_workers(crew, without=victim))


async def test_stopped_worker_is_killed_before_its_upload_passes_on(
    crew: Service, new_name: str
) -> None:
    """R21: the newest writer wins, though the old one cannot even say that it has ended."""
    _, place, content, offset = await begun(crew, new_name, SIZE // 2)
    part = f"Content-Range: bytes {offset}-{SIZE - 1}/{SIZE}\r\n\r\n".encode()
    length = ("Content-Length", str(len(part) + SIZE - offset))
    fields = [("Content-Type", "message/byterange"), length]
    with await Wire.connect(crew.address) as wire:
        await wire.send(request_head("PATCH", place, fields) + part)
        await wire.send(content[offset : offset + 1000])
        await wire.until_read()
        victim = worker_with(crew, wire)
        os.kill(victim, signal.SIGSTOP)
        with trio.fail_after(SECONDS):
            assert await finish(crew, place, content, offset) in (201, 409)
            if (found := await offset_of(crew, place)) != SIZE:
                assert await finish(crew, place, content, found) == 201
        assert not is_alive(victim)
    assert (await ask(crew.address, "GET", new_name)).body == content
    await trio.to_thread.run_sync(lambda: await_workers(crew, without=victim))


async def test_worker_that_is_told_to_end_is_replaced(
    crew: Service, new_name: str
) -> None:
    """SIGTERM to a worker: it finishes what it has, and another one comes."""
    content = random.Random(new_name).randbytes(SIZE)
    wire, _ = await start(crew, new_name, SIZE)
    with wire:
        await wire.send(content[:1000])
        victim = worker_with(crew, wire)
        os.kill(victim, signal.SIGTERM)
        await trio.to_thread.run_sync(lambda: await_workers(crew, without=None))
        await wire.send(content[1000:])
        assert (await wire.answer("PUT")).status == 201
    await trio.to_thread.run_sync(lambda: await_workers(crew, without=victim))


async def test_metrics_are_those_of_all_workers(crew: Service, new_name: str) -> None:
    """Each request counts once, whichever worker had it; so does an upload."""
    await trio.to_thread.run_sync(lambda: await_workers(crew))
    key = 'trioresume_requests_total{dialect="plain",method="PUT",status="201"}'
    before = await trio.to_thread.run_sync(_metrics, crew)
    workers = set()
    for number in range(8):
        with await Wire.connect(crew.address) as wire:
            length = ("Content-Length", "3")
            await wire.send(request_head("PUT", f"{new_name}{number}", [length]))
            await wire.send(b"abc")
            assert (await wire.answer("PUT")).status == 201
            workers.add(worker_with(crew, wire))
    assert len(workers) == 2
    after = await trio.to_thread.run_sync(_metrics, crew)
    assert after[key] == before.get(key, 0) + 8
    created = 'trioresume_uploads_created_total{dialect="plain"}'
    assert after[created] == before.get(created, 0) + 8
    assert after["trioresume_workers"] == 2


async def test_parent_that_is_stopped_only_delays(crew: Service, new_name: str) -> None:
    """Nothing is acknowledged meanwhile; when it goes on, so does everything."""
    content = random.Random(new_name).randbytes(SIZE)
    os.kill(crew.pid, signal.SIGSTOP)
    try:
        with await Wire.connect(crew.address) as wire:
            length = ("Content-Length", str(SIZE))
            await wire.send(request_head("PUT", new_name, [length]))
            with trio.move_on_after(0.5) as waiting:
                await wire.send(content)
                await wire.answer("PUT")
            assert waiting.cancelled_caught
            os.kill(crew.pid, signal.SIGCONT)
            with trio.move_on_after(0.5):
                await wire.send(b"")
    finally:
        os.kill(crew.pid, signal.SIGCONT)
    await trio.to_thread.run_sync(lambda: await_workers(crew))
    with await Wire.connect(crew.address) as wire:
        await wire.send(request_head("PUT", new_name, [("Content-Length", str(SIZE))]))
        await wire.send(content)
        assert (await wire.answer("PUT")).status in (201, 204)
    assert (await ask(crew.address, "GET", new_name)).body == content


async def test_reload_refuses_no_connection_and_cuts_no_upload(
    crew: Service, new_name: str
) -> None:
    """SIGHUP under load: each small request succeeds, and a slow upload is not cut."""
    old = await trio.to_thread.run_sync(lambda: await_workers(crew))
    content = random.Random(new_name).randbytes(SIZE)
    slow, _ = await start(crew, new_name, SIZE)
    done, failures = trio.Event(), []

    async def request_on(number: int) -> None:
        count = 0
        while not done.is_set():
            count += 1
            try:
                with await Wire.connect(crew.address) as wire:
                    length = [("Content-Length", "3")]
                    name = f"{new_name}-{number}-{count}"
                    await wire.send(request_head("PUT", name, length) + b"abc")
                    status = (await wire.answer("PUT")).status
                    if status != 201:
                        failures.append(str(status))
            except Cut as exc:
                failures.append(repr(exc))

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(request_on, number)
        with slow:
            await slow.send(content[: SIZE // 2])
            os.kill(crew.pid, signal.SIGHUP)
            holder = worker_with(crew, slow)
            with trio.fail_after(SECONDS):
                # ASYNC110: no event tells of other processes.
                while len(set(workers_of(crew.pid)) & set(old)) > 1:  # noqa: ASYNC110
                    await trio.sleep(0.02)
            assert is_alive(holder)
            await slow.send(content[SIZE // 2 :])
            assert (await slow.answer("PUT")).status == 201
        with trio.fail_after(SECONDS):
            while any(map(is_alive, old)):  # noqa: ASYNC110
                await trio.sleep(0.02)
        done.set()
    assert failures == []
    assert (await ask(crew.address, "GET", new_name)).body == content
    assert not set(await trio.to_thread.run_sync(lambda: await_workers(crew))) & set(
        old
    )


async def test_parent_killed_while_workers_receive(
    make_service: MakeService, new_name: str
) -> None:
    """Its workers end with it, and the next start finds everything that was announced."""
    service = make_service("--workers", "2")
    await trio.to_thread.run_sync(service.start)
    _, place, content, offset = await begun(service, new_name, SIZE // 2)
    workers = workers_of(service.pid)
    os.kill(workers[0], signal.SIGSTOP)  # also one that cannot notice
    await trio.to_thread.run_sync(service.kill)
    await trio.to_thread.run_sync(
        lambda: until(lambda: not any(map(is_alive, workers)), "a worker lives on")
    )
    await trio.to_thread.run_sync(service.start)
    assert await offset_of(service, place) >= offset
    found = await offset_of(service, place)
    assert await finish(service, place, content, found) == 201
    assert (await ask(service.address, "GET", new_name)).body == content
    # Killed again, in the middle of a reload: no worker of either generation is left.
    workers = workers_of(service.pid)
    os.kill(service.pid, signal.SIGHUP)
    await trio.to_thread.run_sync(
        lambda: until(lambda: len(workers_of(service.pid)) > 2, "no reload began")
    )
    workers = workers_of(service.pid)
    await trio.to_thread.run_sync(service.kill)
    await trio.to_thread.run_sync(
        lambda: until(lambda: not any(map(is_alive, workers)), "a worker lives on")
    )


async def test_worker_killed_while_its_target_is_called(
    make_service: MakeService, tmp_path: Path
) -> None:
    """R31: the application is called once, and another worker says that nobody knows more.

    The administrator may have it called once more: the parent has a worker do that.
    """
    log = tmp_path / "app" / "log"
    log.parent.mkdir()
    log.touch()
    service = applications.application(make_service, "--workers", "2")
    await trio.to_thread.run_sync(service.start)
    body = applications.BODY
    async with await applications.connect(service) as stream:
        client = Client(stream)
        fields = {**dict(RESUME), "X-Log": str(log)}
        await client.send(head("POST", "/x", fields, length=len(body)))
        begun = await client.interim()
        await client.send(body)
        await trio.to_thread.run_sync(applications.wait_for_a_call, log)
        port = stream.socket.getsockname()[1]
        os.kill(worker_with_port(service, port), signal.SIGKILL)
    place = begun.fields.get("response-message-location") or ""
    log.with_name(applications.FINISHED).touch()
    for _ in range(2):  # and it stays so
        async with await applications.connect(service) as stream:
            told = await Client(stream).request("GET", place, {"Prefer": "wait=20"})
        assert told.body.startswith(b"HTTP/1.1 500 "), told.body
        assert b'"code": "indeterminate"' in told.body
    assert applications.calls(log) == [applications.WHOLE]
    done = await applications.retry(service, place.split("/")[-2])
    assert (done.returncode, done.stdout) == (0, "The target answered 201.\n"), done
    assert applications.calls(log) == 2 * [applications.WHOLE]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_service_whose_workers_hang_ends_when_told(
    tmp_path: Path, number: signal.Signals
) -> None:
    """A worker has two minutes until it listens. The end does not wait for that."""
    command = [sys.executable, "-m", "trioresume", "serve", "--workers", "2"]
    command += ["--data-dir", str(tmp_path / "data"), "--bind", "127.0.0.1:0"]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, stderr=log, stdout=log)
    try:
        until(lambda: len(workers_of(process.pid)) == 2, "the workers do not start")
        workers = workers_of(process.pid)
        for worker in workers:
            os.kill(worker, signal.SIGSTOP)
        process.send_signal(number)
        assert process.wait(SECONDS) == 0, (tmp_path / "log").read_text()
    finally:
        process.kill()
        process.wait()
    assert not any(map(is_alive, workers))
    assert "before the workers listen" in (tmp_path / "log").read_text()
    assert not (tmp_path / "data" / "control").exists()


async def test_reload_with_a_fault_keeps_the_old_workers(
    make_service: MakeService, tmp_path: Path, new_name: str
) -> None:
    """A certificate that cannot be read: the log says why, and the old one is used on."""
    cert, key = write_server_files(tmp_path)
    config = tmp_path / "trioresume.toml"
    config.write_text(
        f'[serve]\nssl-certfile = "{cert}"\nssl-keyfile = "{key}"\n', "utf-8"
    )
    service = make_service("--workers", "2", "--config", str(config))
    service.root = service.root.replace("http:", "https:")
    await trio.to_thread.run_sync(service.start)
    workers = workers_of(service.pid)
    good = cert.read_bytes()
    cert.write_text("nothing")
    os.kill(service.pid, signal.SIGHUP)
    log = "SIGHUP: the workers stay: worker"
    await trio.to_thread.run_sync(service.wait_for_log, log, SECONDS)
    assert workers_of(service.pid) == workers
    cert.write_bytes(good)
    config.write_text(config.read_text() + 'max-upload-size = "10"\n', "utf-8")
    os.kill(service.pid, signal.SIGHUP)
    log = "SIGHUP: the workers are new ones"
    await trio.to_thread.run_sync(service.wait_for_log, log, SECONDS)
    service.stop()


async def test_killed_workers_and_parents_lose_nothing(
    make_service: MakeService, seed: int, full: bool
) -> None:
    """A short soak; ``python -m tests.e2e.worker_soak`` is the long one."""
    service = make_service("--workers", "2")
    (soak,) = soaks_of([service], seed, 200 if full else 8, 4, "h1")
    report = await run_all([soak])
    print(report, dict(soak.deaths))  # noqa: T201 - pytest shows it on failure
    assert soak.deaths["parent"] >= 1
