"""systemd's side of the service, played with real sockets; the units, read by its own tools.

The service tells how it is (sd_notify), and takes sockets that listen already (socket
activation).
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path

import click
import pytest
import trio
from click.testing import CliRunner

from tests.e2e.command import Service, free_port
from tests.processes import environment_of
from trioresume import Config, FileService, Server, serve
from trioresume.cli import main
from trioresume.cli.service.systemd import (
    ServiceManager,
    chosen_sockets,
    handed_sockets,
)
from trioresume.protocol.operation import OperationState
from trioresume.store.port import OperationId, OperationRecord
from trioresume.testing import MemoryStore

MakeService = Callable[..., Service]
DEPLOY = Path(__file__).parents[2] / "docs/deploy"
SECONDS = 30.0


class Manager:
    """The end that systemd has of the notification socket."""

    def __init__(self, address: str) -> None:
        self.variable = address.replace("\0", "@")
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address)

    def message(self, seconds: float = SECONDS) -> dict[str, str]:
        """The next message. Raises :class:`TimeoutError` if none comes in time."""
        self._socket.settimeout(seconds)
        lines = self._socket.recv(65536).decode().split("\n")
        return dict(line.split("=", 1) for line in lines)

    def wait_for(self, name: str) -> dict[str, str]:
        """The next message with *name*; others are dropped."""
        deadline = time.monotonic() + SECONDS
        while name not in (message := self.message()):
            assert time.monotonic() < deadline
        return message

    def drain(self) -> None:
        """Drop what has come so far."""
        self._socket.setblocking(False)
        try:
            while True:
                self._socket.recv(65536)
        except BlockingIOError:
            pass

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def manager() -> Iterator[Manager]:
    """A manager whose socket has a name in the file system."""
    with tempfile.TemporaryDirectory(prefix="trioresume-") as folder:
        with closing(Manager(f"{folder}/notify")) as manager:
            yield manager


def test_manager_is_told_of_start_reload_and_end(
    manager: Manager, make_service: MakeService
) -> None:
    """READY=1 when it listens; RELOADING=1 with the moment, and READY=1 again; STOPPING=1."""
    service = make_service(environment={"NOTIFY_SOCKET": manager.variable})
    service.start()
    first = manager.message()
    assert first["STATUS"] == "Opening the data directory"
    assert int(first["EXTEND_TIMEOUT_USEC"]) > 10_000_000
    ready = manager.wait_for("READY")
    assert ready == {"READY": "1", "STATUS": f"Serving at {service.root}"}
    before = time.monotonic_ns() // 1000
    os.kill(service.pid, signal.SIGHUP)
    reloading = manager.message()
    assert reloading["RELOADING"] == "1"
    moment = int(reloading["MONOTONIC_USEC"])
    assert before <= moment <= time.monotonic_ns() // 1000
    assert manager.message() == ready
    service.stop()
    stopping = manager.message()
    assert stopping["STOPPING"] == "1"
    grace = Config().grace_timeout
    assert int(stopping["EXTEND_TIMEOUT_USEC"]) >= grace * 1_000_000


def test_manager_that_is_gone_harms_nothing(make_service: MakeService) -> None:
    """Its socket was removed, or it was none."""
    variables = {"NOTIFY_SOCKET": "/nonexistent/notify", "WATCHDOG_USEC": "90000"}
    service = make_service(environment=variables)
    service.start()
    service.stop()


@pytest.mark.parametrize("address", ["", "/nonexistent", "vsock:2:1234", "@nobody"])
async def test_nobody_is_told_anything(address: str) -> None:
    """An address that is not there, or of a kind that is not known, is no error."""
    await ServiceManager({"NOTIFY_SOCKET": address}, 1).tell_ready("Serving")


BLOCKING_APP = """\
import os


async def app(scope, receive, send):
    assert scope["type"] == "http"
    with open(os.environ["GATE"], "rb") as gate:  # it waits for somebody who writes
        gate.read()
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})
"""


def test_watchdog_is_fed_by_the_event_loop(
    make_service: MakeService, tmp_path: Path
) -> None:
    """A loop that is stuck does not feed it, and feeds it again when it runs again."""
    (tmp_path / "blocking.py").write_text(BLOCKING_APP)
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    with closing(Manager(f"\0{tmp_path}/notify")) as manager:
        environment = {
            "NOTIFY_SOCKET": manager.variable,
            "WATCHDOG_USEC": "600000",
            "GATE": str(gate),
        }
        application = ("--app", "blocking:app", "--app-loop", "trio")
        service = make_service(*application, environment=environment)
        service.start()
        manager.wait_for("READY")
        assert [manager.message() for _ in range(3)] == [{"WATCHDOG": "1"}] * 3
        client = http.client.HTTPConnection(*service.address, timeout=SECONDS)
        client.request("GET", "/")
        # The application has opened the gate: the loop stands still.
        with gate.open("wb"):
            manager.drain()
            with pytest.raises(TimeoutError):
                manager.message(seconds=1.0)
        assert client.getresponse().status == 204
        client.close()
        assert manager.wait_for("WATCHDOG")
        service.stop()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "7"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "8"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "often"}, None),
    ],
    ids=str,
)
def test_watchdog_is_fed_if_it_is_ours(
    variables: dict[str, str], seconds: float | None
) -> None:
    """sd_watchdog_enabled(3): WATCHDOG_PID says whose it is."""
    assert ServiceManager(variables, 7).watchdog_seconds == seconds


class _SlowCatalog(MemoryStore):
    """Its unprocessed operations take as long to find as the test wants."""

    blocking = True  # have it called in threads

    def __init__(self) -> None:
        super().__init__()
        self.gate = threading.Event()

    def operations_in(
        self,
        states: Sequence[OperationState],
        limit: int,
        after: OperationId | None,
    ) -> list[OperationRecord]:
        assert self.gate.wait(SECONDS)
        return []


async def test_ready_waits_for_recovery() -> None:
    """The service listens before that, and is recovered after."""
    store = _SlowCatalog()
    async with trio.open_nursery() as nursery:
        config = Config(bind=["127.0.0.1:0"])

        async def run(*, task_status: trio.TaskStatus[Server]) -> None:
            target = FileService("/files/")
            await serve(target, config, store=store, task_status=task_status)

        server: Server = await nursery.start(run)
        with trio.move_on_after(0.1) as waited:
            await server.wait_recovered()
        assert waited.cancelled_caught
        store.gate.set()
        await server.wait_recovered()
        server.shutdown()


# Sockets that listen already.

_LAUNCHER = """\
import os, sys
count = int(sys.argv[1])
for target, source in enumerate(map(int, sys.argv[2 : 2 + count]), 3):
    os.dup2(source, target)
os.environ["LISTEN_PID"] = os.environ.get("LISTEN_PID") or str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "trioresume", *sys.argv[2 + count :]])
"""


@contextmanager
def _activated(
    sockets: list[socket.socket],
    *arguments: str,
    folder: Path,
    variables: Mapping[str, str],
) -> Iterator[subprocess.Popen[str]]:
    """The service as systemd starts it, with *sockets* from descriptor 3 on."""
    # High numbers, so that none is overwritten before it was copied.
    copies = [os.dup2(s.fileno(), 100 + n) for n, s in enumerate(sockets)]
    launch = [sys.executable, "-c", _LAUNCHER, str(len(copies)), *map(str, copies)]
    try:
        process = subprocess.Popen(
            [*launch, "serve", "--data-dir", str(folder / "data"), *arguments],
            pass_fds=copies,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=folder,
            env={
                **environment_of(),
                "LISTEN_FDS": str(len(copies)),
                **variables,
            },
        )
    finally:
        for copy in copies:
            os.close(copy)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


SHOWING_APP = """\
import os


async def app(scope, receive, send):
    names = [n for n in os.environ if n.startswith(("LISTEN_", "NOTIFY_", "WATCHDOG_"))]
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": repr(names).encode()})
"""


def test_sockets_of_systemd_are_served(tmp_path: Path) -> None:
    """All of them without --bind, TCP and Unix; who connected before the start is answered."""
    (tmp_path / "showing.py").write_text(SHOWING_APP)
    path = f"/tmp/trioresume-{os.getpid()}.sock"
    with (
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as local,
        socket.socket(socket.AF_UNIX) as client,
    ):
        local.bind(path)
        try:
            local.listen()
            early = http.client.HTTPConnection(
                "127.0.0.1", tcp.getsockname()[1], timeout=SECONDS
            )
            early.request("GET", "/")
            client.connect(path)
            arguments = ("--app", "showing:app")
            variables = {"LISTEN_FDNAMES": "public:local"}
            with _activated(
                [tcp, local], *arguments, folder=tmp_path, variables=variables
            ) as process:
                assert process.stdout is not None
                said = [process.stdout.readline() for _ in range(2)]
                port = tcp.getsockname()[1]
                assert said[0].endswith(f" http://127.0.0.1:{port}/\n")
                assert said[1].endswith(f" http://unix:{path}:/\n")
                # A program that the service starts must not take them for its own.
                assert early.getresponse().read() == b"[]"
                early.close()
                client.settimeout(SECONDS)
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
                assert client.recv(65536).startswith(b"HTTP/1.1 200 ")
                process.terminate()
                process.communicate(timeout=SECONDS)
                assert process.returncode == 0
            assert os.path.exists(path)  # it is systemd's
        finally:
            os.unlink(path)


@pytest.mark.parametrize(
    ("bind", "variables", "words"),
    [
        (
            ["fd:other"],
            {},
            "no socket 'other' was handed over by systemd; there are: a",
        ),
        (["127.0.0.1:0"], {}, "handed over the socket 'a' (fd:3), and no --bind names"),
        (["fd:4"], {}, "handed over the socket 'a' (fd:3), and no --bind names"),
        (["fd:a"], {"LISTEN_PID": "1"}, "there are: none"),
        (["fd:3"], {"LISTEN_FDS": "many"}, "LISTEN_FDS is no number of sockets"),
        (["fd:3"], {"LISTEN_FDS": "257"}, "LISTEN_FDS is no number of sockets"),
    ],
    ids=str,
)
def test_socket_that_is_missing_or_forgotten_prevents_the_start(
    bind: list[str], variables: dict[str, str], words: str
) -> None:
    """A socket from which nobody accepts would let its clients wait for ever."""
    environ = {"LISTEN_PID": "7", "LISTEN_FDS": "1", "LISTEN_FDNAMES": "a"} | variables
    with pytest.raises(click.UsageError) as raised:
        chosen_sockets(bind, handed_sockets(environ, 7), is_given=True)
    assert words in raised.value.message


@pytest.mark.parametrize(
    ("bind", "names", "chosen"),
    [
        (["fd:b", "https://fd:a"], "a:b", ("fd:4", "https://fd:3")),
        (["fd:a", "127.0.0.1:80"], "a:a", ("fd:3", "fd:4", "127.0.0.1:80")),
        (["fd:3", "fd:4", "unix:/run/fd:5"], "", ("fd:3", "fd:4", "unix:/run/fd:5")),
        (None, "a:b", ("fd:3", "fd:4")),
    ],
    ids=str,
)
def test_sockets_are_chosen_by_name_or_number(
    bind: list[str] | None, names: str, chosen: tuple[str, ...]
) -> None:
    """A name may stand for several; without --bind all are taken."""
    handed = handed_sockets(
        {"LISTEN_PID": "7", "LISTEN_FDS": "2", "LISTEN_FDNAMES": names}, 7
    )
    found = chosen_sockets(bind or ["default"], handed, is_given=bind is not None)
    assert found == chosen


def test_without_systemd_the_addresses_are_as_they_were() -> None:
    """Also when the variables are another process's."""
    for environ in ({}, {"LISTEN_PID": "8", "LISTEN_FDS": "1"}):
        handed = handed_sockets(environ, 7)
        assert handed == ()
        assert chosen_sockets(["a:1"], handed, is_given=False) == ("a:1",)


def test_socket_that_systemd_itself_hands_over(tmp_path: Path) -> None:
    """By its own program, with a name, and the connection that made it start."""
    activate = shutil.which("systemd-socket-activate")
    if activate is None:
        pytest.skip("systemd-socket-activate is not installed (on Debian: systemd)")
    port = free_port()
    log = tmp_path / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            [activate, "-l", f"127.0.0.1:{port}", "--fdname=public"]
            + [f"-E{name}={value}" for name, value in environment_of().items()]
            + [sys.executable, "-m", "trioresume", "serve", "--bind", "fd:public"]
            + ["--data-dir", str(tmp_path / "data")],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        deadline = time.monotonic() + SECONDS
        while "Listening on" not in log.read_text():
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.01)
        client = http.client.HTTPConnection("127.0.0.1", port, timeout=SECONDS)
        client.request("GET", "/files/x")
        assert client.getresponse().status == 404
        client.close()
        process.terminate()
        assert process.wait(SECONDS) == 0, log.read_text()
    finally:
        process.kill()
        process.wait()


# The units.


UNITS = sorted(
    path.name
    for path in DEPLOY.iterdir()
    if path.suffix in (".service", ".socket", ".timer")
)


def _analyze(*arguments: str, units: Sequence[str], folder: Path) -> str:
    """What systemd-analyze says of the units; the command in them is there."""
    program = shutil.which("systemd-analyze")
    if program is None:
        pytest.skip("systemd-analyze is not installed (on Debian: systemd)")
    for name in UNITS:
        text = (DEPLOY / name).read_text()
        text = text.replace("/opt/trioresume/bin/trioresume", "/bin/true")
        (folder / name).write_text(text)
    done = subprocess.run(
        [program, *arguments, *(str(folder / name) for name in units)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    if "unrecognized option" in done.stderr:
        pytest.skip("this systemd-analyze reads no units of another system")
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_systemd_has_nothing_to_say_of_the_units(tmp_path: Path) -> None:
    """No unknown setting, no missing unit."""
    assert _analyze("verify", "--man=no", units=UNITS, folder=tmp_path) == ""


def test_service_is_exposed_as_little_as_the_page_says(tmp_path: Path) -> None:
    """The score of ``systemd-analyze security``, from 0 (safe) to 10."""
    arguments = ("security", "--offline=true", "--no-pager")
    said = _analyze(*arguments, units=["trioresume.service"], folder=tmp_path)
    found = re.search(r"Overall exposure level for \S+: (\d+\.\d)", said)
    assert found, said
    assert float(found[1]) <= 1.2


def test_options_in_the_unit_are_there() -> None:
    """What the unit starts can be started: the command knows each of its options."""
    unit = (DEPLOY / "trioresume.service").read_text()
    (line,) = re.findall(r"^ExecStart=\S+ (.*)$", unit, re.MULTILINE)
    known = CliRunner().invoke(main, ["serve", "--help"]).output
    assert line.split()[0] == "serve"
    for word in line.split()[1:]:
        assert not word.startswith("-") or word in known
