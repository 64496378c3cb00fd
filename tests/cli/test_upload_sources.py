"""Files that change, grow or have no true size, pipes and directories: the real command."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.cli.test_upload import (
    SECONDS,
    Network,
    command,
    file_of,
    journal_of,
    run,
)

SIZE = 4_000_000


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    with Network() as running:
        yield running


def grow(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"one line more\n")


def shrink(path: Path) -> None:
    os.truncate(path, SIZE // 2)


def touch(path: Path) -> None:
    os.utime(path)


def rewrite_with_its_old_date(path: Path) -> None:
    """What mtime and size do not show, and the change time does."""
    status = path.stat()
    with path.open("r+b") as file:
        file.seek(SIZE - 5)
        file.write(b"other")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def change_during(
    network: Network, directory: Path, path: Path, change: Callable[[Path], None]
) -> tuple[int, str]:
    """Upload *path*, change it once a half is there; the exit code and what was said."""
    words, environment = command(
        directory, path, network.url, options=["--limit-rate", "4MB", "--quiet"]
    )
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True
    )
    while network.proxy.totals.bytes_up < before + SIZE // 2:
        time.sleep(0.01)
    change(path)
    _, said = process.communicate(timeout=SECONDS)
    return process.returncode, said


@pytest.mark.parametrize(
    "change", [grow, shrink, touch, rewrite_with_its_old_date, Path.unlink]
)
def test_changed_file_is_not_called_stored(
    network: Network, tmp_path: Path, change: Callable[[Path], None]
) -> None:
    """Exit code 75 and the file's name: the next run sends what is there then."""
    path, _ = file_of(tmp_path, SIZE)
    code, said = change_during(network, tmp_path, path, change)
    assert code == 75, said
    assert str(path) in said
    if change in (grow, shrink):
        # Nothing can make it whole, so it is left neither here nor there.
        assert journal_of(tmp_path) == []
    if change is grow:
        assert "--snapshot-size" in said
    if change is not Path.unlink:
        done = run(tmp_path, path, network.url)
        assert done.returncode == 0, done.stderr
        assert network.fetch(done.stdout.strip()) == path.read_bytes()
        assert journal_of(tmp_path) == []


def test_touched_file_goes_on_where_it_was(network: Network, tmp_path: Path) -> None:
    """The digest of what was sent proves that it is the same file still."""
    path, data = file_of(tmp_path, SIZE)
    code, _ = change_during(network, tmp_path, path, touch)
    assert code == 75
    before = network.proxy.totals.bytes_up
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    assert network.fetch(done.stdout.strip()) == data
    assert network.proxy.totals.bytes_up - before < SIZE * 0.7


def test_growing_log_is_sent_as_it_was_at_the_beginning(
    network: Network, tmp_path: Path
) -> None:
    """``--snapshot-size``: one run, and everything that was there when it began."""
    path, data = file_of(tmp_path, SIZE)
    stop = threading.Event()

    def log() -> None:
        while not stop.wait(0.02):
            grow(path)

    writer = threading.Thread(target=log)
    writer.start()
    try:
        done = run(
            tmp_path,
            path,
            network.url,
            options=["--snapshot-size", "--limit-rate", "4MB", "--quiet"],
        )
    finally:
        stop.set()
        writer.join()
    assert done.returncode == 0, done.stderr
    stored = network.fetch(done.stdout.strip())
    assert stored[:SIZE] == data
    assert path.read_bytes().startswith(stored)
    assert journal_of(tmp_path) == []


def test_snapshot_that_is_rewritten_is_not_called_stored(
    network: Network, tmp_path: Path
) -> None:
    """A log that grows keeps its beginning; what does not is no log."""
    path, _ = file_of(tmp_path, SIZE)
    words, environment = command(
        tmp_path,
        path,
        network.url,
        options=["--limit-rate", "4MB", "--quiet", "--snapshot-size"],
    )
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True
    )
    while network.proxy.totals.bytes_up < before + SIZE // 2:
        time.sleep(0.01)
    with path.open("r+b") as file:
        file.write(b"other")
    _, said = process.communicate(timeout=SECONDS)
    assert process.returncode == 75, said
    assert "changed" in said


# What has no true size, and what is no file.


@pytest.mark.parametrize(
    "path", ["/proc/version", "/proc/self/status", "/proc/filesystems"]
)
def test_size_0_is_read_before_it_is_called_empty(
    network: Network, tmp_path: Path, path: str
) -> None:
    """Files of /proc say 0, and have content."""
    if not Path(path).exists():
        pytest.skip("no such file on this system")
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    stored = network.fetch(done.stdout.strip())
    assert stored
    if "self" not in path:
        assert stored == Path(path).read_bytes()


def test_size_that_is_too_large_is_not_believed(
    network: Network, tmp_path: Path
) -> None:
    """Files of /sys say 4096, and have less."""
    path = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    if not path.exists():
        pytest.skip("no such file on this system")
    done = run(tmp_path, path, network.url)
    assert done.returncode == 0, done.stderr
    assert network.fetch(done.stdout.strip()) == path.read_bytes()


@pytest.mark.parametrize("protocol", ["auto", "seed", "rufh", "tus"])
def test_standard_input_is_content(
    network: Network, tmp_path: Path, protocol: str
) -> None:
    """A pipe that is larger than the buffer, in any protocol."""
    data = os.urandom(12_000_000)
    words, environment = command(
        tmp_path, "-", network.url, options=["--protocol", protocol, "--json"]
    )
    done = subprocess.run(
        words,
        env=environment,
        input=data,
        capture_output=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert network.fetch(result["location"]) == data
    assert result["bytes"] == len(data)


def test_process_substitution_and_named_pipes_are_content(
    network: Network, tmp_path: Path
) -> None:
    """As bash gives them: /dev/fd/63; and as mkfifo makes them."""
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    words, environment = command(tmp_path)
    line = " ".join(words)
    script = (
        f"(head -c 300000 /dev/zero > {fifo}) & "
        f"{line} {fifo} <(head -c 100000 /dev/zero) {network.url}"
    )
    done = subprocess.run(
        ["bash", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = dict(line.rsplit(": ", 1) for line in done.stdout.splitlines())
    sizes = sorted(len(network.fetch(location)) for location in lines.values())
    assert sizes == [100_000, 300_000]


def test_silent_pipe_can_be_interrupted(network: Network, tmp_path: Path) -> None:
    """Ctrl-C does not wait for a writer."""
    words, environment = command(tmp_path, "-", network.url)
    before = network.proxy.totals.connections
    process = subprocess.Popen(
        words, env=environment, stdin=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while network.proxy.totals.connections == before:
        time.sleep(0.01)
    time.sleep(0.3)
    process.terminate()
    assert process.wait(10) == 130
    assert process.stdin is not None
    process.stdin.close()


def test_directory_needs_recursive(network: Network, tmp_path: Path) -> None:
    """And says so; with it, each file below it is sent, in order, once."""
    folder = tmp_path / "folder"
    (folder / "deep").mkdir(parents=True)
    (folder / "a").write_bytes(b"first")
    (folder / "deep" / "b").write_bytes(b"second")
    (folder / "empty").write_bytes(b"")
    (folder / "loop").symlink_to(folder)
    os.mkfifo(folder / "pipe")
    done = run(tmp_path, folder, network.url)
    assert done.returncode == 2
    assert "--recursive" in done.stderr
    assert str(folder) in done.stderr
    done = run(tmp_path, folder, network.url, options=["--recursive"])
    assert done.returncode == 0, done.stderr
    assert "pipe is not a regular file" in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    stored = {path: network.fetch(url) for path, url in lines.items()}
    assert stored == {
        str(folder / "a"): b"first",
        str(folder / "empty"): b"",
        str(folder / "deep" / "b"): b"second",
    }


def test_without_a_home_it_goes_on(network: Network, tmp_path: Path) -> None:
    """No HOME and no entry in the password file: a warning, no journal, exit code 0."""
    path, data = file_of(tmp_path, 1000)
    words, environment = command(tmp_path, path, network.url)
    for name in ("HOME", "XDG_STATE_HOME"):
        environment.pop(name, None)
    # The interpreter asks the password file for this user, who is not in it.
    script = (
        "import pwd\n"
        "def nobody(*_): raise KeyError('no entry')\n"
        "pwd.getpwuid = pwd.getpwnam = nobody\n"
        "from trioresume.cli import main\n"
        "main(prog_name='trioresume')\n"
    )
    words[1:3] = ["-c", script]
    done = subprocess.run(
        words,
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "no home directory" in done.stderr
    assert network.fetch(done.stdout.strip()) == data
    assert not (tmp_path / "~").exists()


def no_room() -> None:
    """Let no file grow, as on a full disk. Pipes and sockets are no files."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


@pytest.mark.parametrize("trouble", ["empty home", "no directory", "no room"])
def test_upload_is_done_although_the_journal_cannot_be_written(
    network: Network, tmp_path: Path, trouble: str
) -> None:
    """One warning says where and why. The exit code tells of the work."""
    path, data = file_of(tmp_path, 1000)
    words, environment = command(tmp_path, path, network.url)
    state = Path(environment["XDG_STATE_HOME"])
    if trouble == "empty home":
        del environment["XDG_STATE_HOME"]
        environment["HOME"] = ""
    elif trouble == "no directory":
        state.touch()
    done = subprocess.run(
        words,
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
        preexec_fn=no_room if trouble == "no room" else None,
    )
    assert done.returncode == 0, done.stderr
    assert network.fetch(done.stdout.strip()) == data
    assert len(done.stderr.splitlines()) == 1, done.stderr
    if trouble == "empty home":
        assert "no home directory" in done.stderr
    else:
        reason = "Not a directory" if trouble == "no directory" else "File too large"
        assert f"{state / 'trioresume' / 'uploads'}: {reason}" in done.stderr
        assert "Errno" not in done.stderr


def test_who_stops_an_upload_that_is_not_remembered_is_told(
    network: Network, tmp_path: Path
) -> None:
    """A later run begins again, so the hint must not promise more."""
    path, _ = file_of(tmp_path, SIZE)
    words, environment = command(
        tmp_path, path, network.url, options=["--limit-rate", "4MB"]
    )
    Path(environment["XDG_STATE_HOME"]).touch()
    before = network.proxy.totals.bytes_up
    process = subprocess.Popen(
        words, env=environment, stderr=subprocess.PIPE, text=True
    )
    while network.proxy.totals.bytes_up < before + 1_000_000:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 130
    assert "not everything could be remembered" in errors
    assert "same command" not in errors


# What cannot be read, among what can.


def without_privileges() -> list[str]:
    """The words that make a command obey the modes of files, also for root."""
    if os.geteuid() != 0:
        return []
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("root reads everything here")
    return [setpriv, "--bounding-set=-dac_override,-dac_read_search"]


def run_unprivileged(
    directory: Path, *arguments: object, options: list[str]
) -> subprocess.CompletedProcess[str]:
    words, environment = command(directory, *arguments, options=options)
    return subprocess.run(
        [*without_privileges(), *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )


@pytest.mark.parametrize("mode", [0o000, 0o400])
def test_folder_that_cannot_be_read_does_not_stop_the_others(
    network: Network, tmp_path: Path, mode: int
) -> None:
    """Exit code 1, and the folder is named: it cannot be listed, or only listed."""
    folder = tmp_path / "folder"
    locked = folder / "locked"
    locked.mkdir(parents=True)
    (folder / "a").write_bytes(b"first")
    (folder / "z").write_bytes(b"last")
    (locked / "secret").write_bytes(b"not to be had")
    locked.chmod(mode)
    try:
        done = run_unprivileged(
            tmp_path, folder, network.url, options=["--recursive", "--json", "--quiet"]
        )
    finally:
        locked.chmod(0o700)
    assert done.returncode == 1, done.stderr
    results = {
        entry["file"]: entry for entry in map(json.loads, done.stdout.splitlines())
    }
    assert network.fetch(results.pop(str(folder / "a"))["location"]) == b"first"
    assert network.fetch(results.pop(str(folder / "z"))["location"]) == b"last"
    [(name, failed)] = results.items()
    assert name == str(locked if mode == 0 else locked / "secret")
    assert "Permission denied" in failed["error"]
    assert f"{name}: " in done.stderr


def make_missing(path: Path) -> None:
    """Nothing is there."""


def make_dangling(path: Path) -> None:
    path.symlink_to("nowhere")


def make_loop(path: Path) -> None:
    path.symlink_to(path.name)


def make_unreadable(path: Path) -> None:
    path.write_bytes(b"not to be had")
    path.chmod(0)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))


@pytest.mark.parametrize(
    "make", [make_missing, make_dangling, make_loop, make_unreadable, make_socket]
)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_file_that_cannot_be_opened_does_not_stop_the_others(
    network: Network, tmp_path: Path, make: Callable[[Path], None], method: str
) -> None:
    """Exit code 1; the others are stored, those before it and those after."""
    bad = tmp_path / "bad"
    make(bad)
    good = [file_of(tmp_path, 10, "a")[0], file_of(tmp_path, 20, "b")[0]]
    done = run_unprivileged(
        tmp_path,
        good[0],
        bad,
        good[1],
        network.url,
        options=["--method", method, "--quiet"],
    )
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith(f"{bad}: ")
    assert "Traceback" not in done.stderr
    lines = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    for path in good:
        assert network.fetch(lines[str(path)]) == path.read_bytes()


def test_only_a_bare_dash_is_standard_input(network: Network, tmp_path: Path) -> None:
    """``./-`` is a file of that name, as is one found in a directory."""
    (tmp_path / "-").write_bytes(b"of the file")
    words, environment = command(tmp_path, "./-", network.url)
    stored = []
    for tail in (
        ["./-", network.url],
        [".", "--recursive", network.url],
        ["-", network.url],
    ):
        done = subprocess.run(
            [*words[:4], "--no-journal", "--json", *tail],
            env=environment,
            cwd=tmp_path,
            input=b"of standard input",
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        stored.append(network.fetch(json.loads(done.stdout)["location"]))
    assert stored == [b"of the file", b"of the file", b"of standard input"]


@pytest.mark.parametrize("state", ["0<&-", "0>/dev/null"])
def test_standard_input_that_cannot_be_read_fails_at_once(
    network: Network, tmp_path: Path, state: str
) -> None:
    """It is not taken for a connection that is tried again, nor for empty content."""
    words, environment = command(tmp_path, "-", network.url)
    done = subprocess.run(
        ["bash", "-c", f'"$@" {state}', "bash", *words],
        env=environment,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert "-: standard input is closed, or cannot be read" in done.stderr


def test_read_error_is_the_file_s(network: Network, tmp_path: Path) -> None:
    """A file whose reading fails is told at once; the network is not to blame."""
    path = Path("/proc/self/mem")
    if not path.exists():
        pytest.skip("no such file on this system")
    good, data = file_of(tmp_path, 100)
    done = run(tmp_path, path, good, network.url, options=["--quiet"])
    assert done.returncode == 1
    assert done.stderr == f"{path}: Input/output error\n"
    assert network.fetch(done.stdout.strip().split(": ")[1]) == data
