"""Standard output and standard error in every state: none of them decides the work."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.command import Service
from tests.platforms import linux_only
from tests.processes import SOURCE, environment_of
from trioresume.cli import logs
from trioresume.cli.output import GuardedWriter, output

pytestmark = linux_only("/dev/full, and pipes of a size that is set")

SECONDS = 60.0
STATES = ("closed", "full", "gone", "stuck")
"""closed: no such descriptor. full: no space. gone: a pipe without a reader. stuck: a
pipe that is full and never read."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    running = Service(tmp_path_factory.mktemp("output") / "data")
    running.start()
    try:
        yield running
    finally:
        running.close()


def stuck_pipe(stack: ExitStack) -> int:
    """The writing end of a pipe that is full; nobody reads it."""
    reader, writer = os.pipe()
    stack.callback(os.close, reader)
    stack.callback(os.close, writer)
    os.set_blocking(writer, False)
    for size in (65536, 1):
        try:
            while True:
                os.write(writer, b"x" * size)
        except BlockingIOError:
            pass
    os.set_blocking(writer, True)
    return writer


def broken_pipe(stack: ExitStack) -> int:
    """The writing end of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    stack.callback(os.close, writer)
    return writer


def start(
    stack: ExitStack,
    arguments: Sequence[object],
    states: Mapping[int, str],
    directory: Path,
) -> subprocess.Popen[bytes]:
    """The command with descriptors 1 and 2 in the given states; else they are pipes."""
    targets = {1: subprocess.PIPE, 2: subprocess.PIPE}
    closings = ""
    for number, state in states.items():
        if state == "closed":
            closings += f" {number}>&-"
        elif state == "full":
            closings += f" {number}>/dev/full"
        elif state == "gone":
            targets[number] = broken_pipe(stack)
        else:
            targets[number] = stuck_pipe(stack)
    environment = environment_of(directory / "state")
    words = ["sh", "-c", f'exec "$@"{closings}', "sh"]
    words += [sys.executable, "-m", "trioresume", *map(str, arguments)]
    return subprocess.Popen(
        words,
        stdin=subprocess.DEVNULL,
        stdout=targets[1],
        stderr=targets[2],
        env=environment,
        cwd=directory,
    )


def run(
    arguments: Sequence[object], states: Mapping[int, str], directory: Path
) -> tuple[int, bytes, bytes]:
    """Run it to its end: the exit code, and what came out where somebody reads."""
    with ExitStack() as stack:
        process = start(stack, arguments, states, directory)
        try:
            out, err = process.communicate(timeout=SECONDS)
        finally:
            process.kill()
        return process.returncode, out or b"", err or b""


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    ("numbers", "options"),
    [((1,), ()), ((2,), ()), ((1, 2), ()), ((1,), ("--json",))],
)
def test_upload_is_done_whatever_takes_its_output(
    service: Service,
    tmp_path: Path,
    numbers: tuple[int, ...],
    options: tuple[str, ...],
    state: str,
) -> None:
    """The file is stored whole, and the exit code says so."""
    name = f"{state}-{'-'.join(map(str, numbers))}{''.join(options)}"
    path = tmp_path / name
    path.write_bytes(name.encode() * 10_000)
    url = f"{service.root}/files/{name}"
    states = dict.fromkeys(numbers, state)
    code, out, err = run(["upload", *options, path, url], states, tmp_path)
    assert code == 0, err
    with urllib.request.urlopen(url, timeout=SECONDS) as response:
        assert response.read() == path.read_bytes()
    if 1 not in numbers:
        assert out.decode().strip() == url
    if 2 not in numbers:
        assert b"Traceback" not in err
        assert (b"standard output could not be written" in err) == (
            state in ("full", "stuck")
        )


@pytest.mark.parametrize("state", STATES)
def test_refused_upload_fails_whatever_takes_its_output(
    service: Service, tmp_path: Path, state: str
) -> None:
    """The message is lost, the exit code is not; and the other file is sent."""
    path = tmp_path / "file"
    path.write_bytes(b"content")
    arguments = ["upload", path, f"{service.root}/nothing/"]
    code, _, _ = run(arguments, {1: state, 2: state}, tmp_path)
    assert code == 1


@pytest.mark.parametrize("state", STATES)
def test_wrong_usage_is_wrong_usage(tmp_path: Path, state: str) -> None:
    """Exit code 2, also where nobody can be told."""
    code, _, _ = run(["serve", "--bind", "nonsense"], {1: state, 2: state}, tmp_path)
    assert code == 2


@pytest.mark.parametrize(
    ("number", "state"),
    # Not (1, "stuck"): it waits for the reader of its table, as a filter does.
    [(1, "closed"), (1, "full"), (1, "gone"), *((2, state) for state in STATES)],
)
def test_bench_measures_whatever_takes_its_output(
    service: Service, tmp_path: Path, number: int, state: str
) -> None:
    """The file has the results that the command was asked for."""
    report = tmp_path / "report.json"
    arguments = ["bench", f"{service.root}/files/", "-n", "2", "--total", "2"]
    arguments += ["--size", "1k", "--json", str(report)]
    code, _, err = run(arguments, {number: state}, tmp_path)
    assert code == 0, err
    assert json.loads(report.read_text())


# The keeper's commands.


@pytest.fixture(scope="module")
def damaged(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory with a file, one of whose bytes was changed."""
    directory = tmp_path_factory.mktemp("damaged")
    service = Service(directory / "data")
    service.start()
    try:
        request = urllib.request.Request(
            f"{service.root}/files/x", data=bytes(300_000), method="PUT"
        )
        with urllib.request.urlopen(request, timeout=SECONDS):
            pass
        service.stop()
    finally:
        service.close()
    chunks = [path for path in (directory / "data/chunks").rglob("*") if path.is_file()]
    content = bytearray(chunks[0].read_bytes())
    content[1000] ^= 1
    chunks[0].write_bytes(content)
    return directory / "data"


@pytest.mark.parametrize("state", ["closed", "full", "gone"])
@pytest.mark.parametrize("number", [1, 2])
def test_verify_tells_of_damage_by_its_exit_code(
    damaged: Path, tmp_path: Path, number: int, state: str
) -> None:
    """Exit code 3, whoever reads."""
    arguments = ["verify", "--data-dir", damaged]
    code, out, err = run(arguments, {number: state}, tmp_path)
    assert code == 3, err
    assert number == 1 or b"Damages: 2." in out
    assert b"Traceback" not in err


@pytest.mark.parametrize("state", ["closed", "full", "gone"])
@pytest.mark.parametrize("number", [1, 2])
def test_collection_is_done_whatever_takes_its_output(
    damaged: Path, tmp_path: Path, number: int, state: str
) -> None:
    """It has released what there was; the line about it may be lost."""
    code, _, err = run(["gc", "--data-dir", damaged], {number: state}, tmp_path)
    assert code == 0, err
    assert b"Traceback" not in err


LISTINGS = (["ls"], ["show"], ["show", "x"])


@pytest.mark.parametrize("arguments", LISTINGS)
@pytest.mark.parametrize(
    ("states", "code"),
    [
        ({2: "closed"}, 0),
        ({2: "full"}, 0),
        ({2: "gone"}, 0),
        ({2: "stuck"}, 0),
        ({1: "closed"}, 0),
        ({1: "gone"}, 0),
        ({1: "full"}, 1),
    ],
)
def test_listing_fails_only_if_it_was_lost(
    damaged: Path,
    tmp_path: Path,
    arguments: list[str],
    states: dict[int, str],
    code: int,
) -> None:
    """Printing is the work here. A reader that closes the output wants no more of it."""
    found, out, err = run([*arguments, "--data-dir", damaged], states, tmp_path)
    assert found == code, err
    assert b"Traceback" not in err
    if 1 not in states:
        assert b"x" in out or b"totals" in out
    if code:
        assert b"standard output could not be written: No space left" in err


@pytest.mark.parametrize("arguments", [["token", "bob"], ["--help"], ["ls", "--help"]])
def test_lost_product_is_a_failure(tmp_path: Path, arguments: list[str]) -> None:
    """A token that nobody has seen was not made."""
    code, _, err = run(arguments, {1: "full"}, tmp_path)
    assert code == 1
    assert err.decode() == (
        "Error: standard output could not be written: No space left on device\n"
    )


# The service.


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("numbers", [(1,), (2,), (1, 2)])
def test_service_goes_on_whatever_takes_its_log(
    tmp_path: Path, numbers: tuple[int, ...], state: str
) -> None:
    """It answers while it logs all it can, and ends in order."""
    port = Service(tmp_path / "unused").port
    arguments = ["serve", "--bind", f"127.0.0.1:{port}", "--data-dir", "data"]
    arguments += ["--log-level", "debug"]
    with ExitStack() as stack:
        states = dict.fromkeys(numbers, state)
        process = start(stack, arguments, states, tmp_path)
        stack.callback(process.wait)
        stack.callback(process.kill)
        url = f"http://127.0.0.1:{port}/files/file"
        put(url, b"content", process)
        for _ in range(20):
            with urllib.request.urlopen(url, timeout=10) as response:
                assert response.read() == b"content"
        process.send_signal(signal.SIGTERM)
        assert process.wait(9) == 0
        for stream in (process.stdout, process.stderr):
            if stream is not None:
                stream.close()


def put(url: str, content: bytes, process: subprocess.Popen[bytes]) -> None:
    """Store it, as soon as somebody listens."""
    deadline = time.monotonic() + SECONDS
    while True:
        request = urllib.request.Request(url, data=content, method="PUT")
        try:
            with urllib.request.urlopen(request, timeout=10):
                return
        except OSError:
            assert process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)


def test_closed_descriptors_are_not_given_to_files(tmp_path: Path) -> None:
    """Else what is written to "standard error" would go into the first file or socket."""
    program = (
        "import os\n"
        "from trioresume.cli.output import guard\n"
        "guard()\n"
        "print(os.open(os.devnull, os.O_RDONLY) > 2, flush=True)\n"
        "os.write(1, str([os.readlink(f'/proc/self/fd/{n}') for n in (0, 2)]).encode())\n"
        "try:\n"
        "    os.read(0, 1)\n"
        "except OSError as exc:\n"
        "    print(exc.strerror)\n"
    )
    words = ["sh", "-c", 'exec "$@" <&- 2>&-', "sh", sys.executable, "-c", program]
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    done = subprocess.run(
        words, env=environment, capture_output=True, timeout=SECONDS, check=False
    )
    assert done.stdout.decode() == (
        "True\n['/dev/null', '/dev/null']Bad file descriptor\n"
    )


# The writer.


def test_slow_reader_gets_whole_lines_and_the_writer_never_waits() -> None:
    """What does not fit is dropped; what was written comes in its order."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    guarded = GuardedWriter(writer, waits=False, linger=5.0, queue_bytes=100_000)
    lines = [f"{number:0999d}\n".encode() for number in range(1000)]
    started = time.monotonic()
    for line in lines:
        assert guarded.write(line) == len(line)
    assert time.monotonic() - started < 5
    assert guarded.take_lost() == 0  # not while it still loses
    got = b""
    while len(got) < 100_000:
        got += os.read(reader, 65536)
    assert guarded.drain()
    guarded.write(b"last\n")
    assert guarded.drain()
    os.close(writer)
    while piece := os.read(reader, 65536):
        got += piece
    os.close(reader)
    received = got.splitlines(keepends=True)
    assert received.pop() == b"last\n"
    # There may have been room again for a later one, if the writer was interrupted.
    later = iter(lines)
    assert all(line in later for line in received)
    assert guarded.take_lost() == 1000 - len(received)
    assert guarded.take_lost() == 0


def test_reader_that_never_reads_is_given_up_once() -> None:
    """The end of the command waits for it once, and not at each stream's end again."""
    with ExitStack() as stack:
        guarded = GuardedWriter(stuck_pipe(stack), waits=False, linger=0.2)
        guarded.write(b"line\n")
        started = time.monotonic()
        assert not guarded.drain()
        assert not guarded.drain()
        assert 0.2 <= time.monotonic() - started < 2
        assert isinstance(guarded.error, TimeoutError)


@pytest.mark.parametrize("format", logs.FORMATS)
def test_log_tells_of_lines_that_were_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, format: str
) -> None:
    """As soon as there is room again, in the format of the log."""
    path = tmp_path / "log"
    full = os.open("/dev/full", os.O_WRONLY)
    taking = os.open(path, os.O_WRONLY | os.O_CREAT)
    guarded = GuardedWriter(full, waits=True)
    stream = os.fdopen(os.dup(taking), "w")
    # Put back at the end, so that nothing writes to a descriptor that is closed.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    monkeypatch.setattr(output, "stderr", guarded)
    monkeypatch.setattr(
        sys,
        "stderr",
        type(
            "Text",
            (),
            {
                "write": lambda _, text: guarded.write(text.encode()),
                "flush": lambda _: None,
                "isatty": lambda _: False,
            },
        )(),
    )
    logs.configure("info", format)
    logger = logging.getLogger("trioresume.test")
    for number in range(3):
        logger.info("lost %d", number)
    os.dup2(taking, full)
    logger.info("written")
    logger.info("written, too")
    stream.close()
    os.close(full)
    os.close(taking)
    lines = path.read_text().splitlines()
    assert "written" in lines[0]
    assert "lines of this log that could not be written: 3" in lines[1]
    assert "written, too" in lines[2]
    if format == "json":
        assert [json.loads(line)["level"] for line in lines] == [
            "info",
            "warning",
            "info",
        ]
