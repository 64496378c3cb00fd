"""Files that change, grow or have no true size, pipes and directories: the real command."""

from __future__ import annotations

import json
import os
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
