"""Record what ``trioresume upload`` shows on a terminal: ``python -m docs.recordings``.

tmux is the terminal. Each recording is a text file in docs/recordings with some screens of a
real run against a real server: what was typed, and what the terminal showed at that moment.
"""

from __future__ import annotations

import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DIRECTORY = Path(__file__).parent / "recordings"
COLUMNS, LINES = 96, 16
SECONDS = 60.0
PORT = 8080
MIB = 1 << 20


class Terminal:
    """One terminal of tmux, with a server of its own below *folder*."""

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.frames: list[str] = []
        self._folder = folder
        self._tmux = ["tmux", "-S", str(folder / "tmux"), "-f", "/dev/null"]
        self._server: subprocess.Popen[bytes] | None = None
        commands = folder / "commands"
        commands.mkdir()
        script = commands / "trioresume"
        script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m trioresume "$@"\n')
        script.chmod(0o755)
        environment = {
            "PATH": f"{commands}:/usr/bin:/bin",
            "PS1": "$ ",
            "HOME": str(folder),
            "LC_ALL": "C.UTF-8",
            "TERM": "screen",
            "HISTFILE": "/dev/null",
        }
        words = [f"{name}={value}" for name, value in environment.items()]
        shell = ["env", "-i", *words, "bash", "--norc", "--noprofile"]
        # For tmux it is one command, which a shell splits.
        self._run(
            "new-session", "-d", "-x", str(COLUMNS), "-y", str(LINES), "-c", str(folder),
            shlex.join(shell),
        )  # fmt: skip
        self.until(lambda text: text.strip() == "$")
        self.type("stty -echoctl; clear")  # show no ^C
        self.until(lambda text: text.strip() == "$")

    def _run(self, *words: str) -> str:
        done = subprocess.run(
            [*self._tmux, *words],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=True,
        )
        return done.stdout

    # The server.

    def start_server(self) -> None:
        """Start the server, and wait until it listens."""
        with (self._folder / "server.log").open("ab") as log:
            self._server = subprocess.Popen(
                [
                    *(sys.executable, "-m", "trioresume", "serve"),
                    *("--bind", f"127.0.0.1:{self.port}"),
                    *("--data-dir", str(self._folder / "data")),
                ],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        assert self._server.stdout is not None
        assert self._server.stdout.readline().startswith(b"You can now upload")

    def kill_server(self) -> None:
        """Kill the server, as a power cut would."""
        if self._server is not None:
            self._server.send_signal(signal.SIGKILL)
            self._server.communicate()
            self._server = None

    # The terminal.

    def type(self, line: str) -> None:
        """Type *line* and press Enter."""
        self._run("send-keys", "-l", line.replace(f":{PORT}", f":{self.port}"))
        self._run("send-keys", "Enter")

    def press(self, key: str) -> None:
        """Press *key*, by tmux's name of it."""
        self._run("send-keys", key)

    def screen(self) -> str:
        """What the terminal shows now, without spaces and empty lines at the ends."""
        text = self._run("capture-pane", "-p", "-J")  # long lines whole
        text = text.replace(f":{self.port}", f":{PORT}")
        text = text.replace(str(self._folder), "/home/anna")
        return "\n".join(line.rstrip() for line in text.splitlines()).strip("\n")

    def until(self, reached: Callable[[str], object]) -> str:
        """Wait until *reached* says so of the screen, and return the screen."""
        deadline = time.monotonic() + SECONDS
        while True:
            shown = self.screen()
            if reached(shown):
                return shown
            assert time.monotonic() < deadline, shown
            time.sleep(0.05)

    def record(self, remark: str, reached: Callable[[str], object]) -> None:
        """Keep the screen for which *reached* holds first, below *remark*."""
        self.frames.append(f"── {remark} {'─' * (COLUMNS - 4 - len(remark))}")
        self.frames.append(self.until(reached))

    def text(self) -> str:
        """The whole recording."""
        return "\n".join(self.frames) + "\n"

    def close(self) -> None:
        """End the terminal, what runs in it, and the server."""
        self.kill_server()
        self._run("kill-server")


def is_prompt(text: str) -> bool:
    """Whether the shell waits for a command."""
    return text.rsplit("\n", 1)[-1].strip() == "$"


def shows(pattern: str) -> Callable[[str], object]:
    """Whether *pattern* is on the screen."""
    return re.compile(pattern).search


def two_hundred_files(terminal: Terminal, folder: Path) -> None:
    """Two hundred files, four at a time."""
    photos = folder / "photos"
    photos.mkdir()
    numbers = random.Random(1)
    for number in range(1, 201):
        data = numbers.randbytes(numbers.randrange(100_000, 500_000))
        photos.joinpath(f"{number:03}.jpg").write_bytes(data)
    terminal.start_server()
    terminal.type(
        "trioresume upload -r photos http://127.0.0.1:8080/files/"
        " --concurrency 4 --limit-rate 8MiB"
    )
    terminal.record("on the way", shows(r"\b[5-9]\d of 200 files"))
    terminal.record("at the end", lambda text: is_prompt(text) and "200 of 200" in text)


def dead_server(terminal: Terminal, folder: Path) -> None:
    """The server is killed in the middle, and started again."""
    (folder / "film.mkv").write_bytes(random.Random(2).randbytes(16 * MIB))
    terminal.start_server()
    terminal.type(
        "trioresume upload film.mkv http://127.0.0.1:8080/files/ --limit-rate 4MiB"
    )
    terminal.record("on the way", shows(r"[5-9]\.\d MiB of 16"))
    terminal.kill_server()
    terminal.record("the server was killed", shows(r"connection refused, trying again"))
    terminal.start_server()
    terminal.record("the server runs again", shows(r"1[2-5]\.\d MiB of 16"))
    terminal.record("at the end", is_prompt)


def resumed_run(terminal: Terminal, folder: Path) -> None:
    """The command is stopped, and run again."""
    (folder / "film.mkv").write_bytes(random.Random(3).randbytes(16 * MIB))
    terminal.start_server()
    line = "trioresume upload film.mkv http://127.0.0.1:8080/files/ --limit-rate 4MiB"
    terminal.type(line)
    terminal.until(shows(r"(?:9|1\d)\.\d MiB of 16"))
    terminal.press("C-c")
    terminal.record("Ctrl-C", is_prompt)
    terminal.type("clear; trioresume uploads ls")
    terminal.record(
        "what is unfinished", lambda text: "film.mkv" in text and is_prompt(text)
    )
    terminal.type(f"clear; {line}")
    terminal.record("the same command again", shows(r"1[2-5]\.\d MiB of 16"))
    terminal.record("at the end", is_prompt)


RECORDINGS: dict[str, Callable[[Terminal, Path], None]] = {
    "two-hundred-files": two_hundred_files,
    "dead-server": dead_server,
    "resumed-run": resumed_run,
}


@contextmanager
def _terminal(port: int) -> Iterator[tuple[Terminal, Path]]:
    # A short path: that of tmux's socket has a limit of about a hundred characters.
    folder = Path(tempfile.mkdtemp(prefix="rec"))
    try:
        terminal = Terminal(folder, port)
        try:
            yield terminal, folder
        finally:
            terminal.close()
    finally:
        shutil.rmtree(folder)


def record(name: str) -> str:
    """Make the recording called *name*, and return it."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with _terminal(port) as (terminal, folder):
        RECORDINGS[name](terminal, folder)
        return terminal.text()


def main() -> None:
    """Make all recordings."""
    DIRECTORY.mkdir(exist_ok=True)
    for name in RECORDINGS:
        DIRECTORY.joinpath(f"{name}.txt").write_text(record(name), "utf-8")


if __name__ == "__main__":
    main()
