"""The bars and lines of ``trioresume upload`` say what is true at the moment."""

from __future__ import annotations

import io
import os
import pty
import re
import ssl
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import h11
import pytest
import trio
from rich.console import Console

from tests.cli.test_upload import SECONDS, command, file_of
from tests.e2e.command import Service
from trioresume import ProcessingProgress, Progress
from trioresume.cli import progress as showing, units
from trioresume.cli.progress import FileProgress, RateMeter, Total
from trioresume.client.decisions.actions import Outcome
from trioresume.client.progress import trouble_of
from trioresume.protocol.dialects.client import Answer
from trioresume.protocol.heads import Fields

MIB = 1024 * 1024


def told(sent: int, *, moved: int | None = None, **more: object) -> Progress:
    """What the client says: *sent* is the position, *moved* what this run has sent."""
    moved = sent if moved is None else moved
    return Progress(sent, 0, 10 * MIB, 1, transferred=moved, **more)  # type: ignore[arg-type]  # the callers' own names


def file_at(now: float, name: str = "file") -> FileProgress:
    return FileProgress(name, name, 10 * MIB, meter=RateMeter(now), started=now)


# Rates.


def test_rate_is_that_of_the_last_seconds() -> None:
    """The rate counts recent bytes only: a fast start an hour ago does not matter."""
    meter = RateMeter(0.0)
    for second in range(1, 11):
        meter.note(float(second), 1000 * second)
    assert meter.rate(10.0) == pytest.approx(1000)
    for second in range(11, 21):
        meter.note(float(second), 10_000 + 10 * (second - 10))
    assert meter.rate(20.0) == pytest.approx(10)


def test_rate_falls_to_zero_when_nothing_moves() -> None:
    """Also when nobody tells anything any more, as of a server that is gone."""
    meter = RateMeter(0.0)
    meter.note(1.0, 5_000_000)
    rates = [meter.rate(1.0 + seconds) for seconds in range(8)]
    assert rates[0] == pytest.approx(5_000_000)
    assert rates == sorted(rates, reverse=True)
    assert rates[6:] == [0.0, 0.0]


def test_resumed_run_counts_only_what_it_sends() -> None:
    """A jump to the offset that the server already has does not count for the rate."""
    file = file_at(0.0)
    file.note(told(0), 0.1)
    file.note(told(8 * MIB, moved=0), 0.2)
    assert file.rate(0.2) == 0
    file.note(told(9 * MIB, moved=MIB), 1.2)
    assert file.rate(1.2) == pytest.approx(MIB / 1.2)
    total = Total(1, 10 * MIB, started=0.0)
    total.begin(file)
    file.note(told(10 * MIB, moved=2 * MIB), 2.0)
    total.end(file, ok=True, now=2.0)
    assert file.rate(2.0) == pytest.approx(MIB)
    assert total.rate(2.0) == pytest.approx(MIB)


def test_rate_is_zero_while_there_is_trouble() -> None:
    """At once, and what was before it does not come back with the connection."""
    file = file_at(0.0)
    file.note(told(5 * MIB), 1.0)
    assert file.rate(1.0) > MIB
    file.note(told(5 * MIB, trouble="connection refused", retry_in=3.0), 1.1)
    assert file.rate(1.1) == 0
    assert file.note_in_words(1.1) == "connection refused, trying again in 3 s"
    assert file.note_in_words(3.1) == "connection refused, trying again in 1 s"
    file.note(told(5 * MIB, trouble="connection refused"), 4.1)
    assert file.note_in_words(4.1) == "connection refused, trying again"
    file.note(told(5 * MIB + 1000), 4.2)
    assert file.rate(4.2) == pytest.approx(1000 / 3.1)
    assert file.note_in_words(4.2) == ""


def test_position_that_falls_back_is_shown() -> None:
    """The server has less than was sent: the bar says so, and the rate is not negative."""
    file = file_at(0.0)
    file.note(told(5 * MIB), 1.0)
    file.note(told(2 * MIB, moved=5 * MIB), 2.0)
    assert file.sent == 2 * MIB
    assert file.rate(2.0) > 0


def test_answer_is_waited_for() -> None:
    """Everything was handed over; what is missing is the server's word."""
    file = file_at(0.0)
    file.note(told(10 * MIB), 1.0)
    assert file.note_in_words(1.0) == "all sent, waiting for the answer"


# All files together.


def test_processing_is_shown_instead_of_what_was_sent() -> None:
    """The bar is that of the server's steps, and its remark cannot reach the terminal raw."""
    steps = ProcessingProgress(1, 2, "count\x1b[2J")
    file = file_at(0.0)
    file.note(told(10 * MIB, processing=steps), 1.0)
    words = "all sent, the server processes it, 1 of 2: count"
    assert file.note_in_words(1.0).startswith(words)
    console, shown = bars(120, 1)
    shown.begin(file)
    (row, note) = picture(console, shown)
    assert "━━━╺━━━" in row  # half of it
    assert words in note
    assert "\x1b[2J" not in note
    assert "\\x1b[2J" in note
    file.note(told(10 * MIB, processing=ProcessingProgress(7, None)), 1.1)
    assert file.note_in_words(1.1) == "all sent, the server processes it, 7"
    file.note(told(10 * MIB, processing=steps, trouble="connection lost"), 1.2)
    assert file.note_in_words(1.2).startswith("connection lost")


def test_total_counts_what_is_done_and_what_runs() -> None:
    """And what has failed is not waited for."""
    total = Total(4, 40 * MIB, started=0.0)
    files = [file_at(0.0, str(number)) for number in range(3)]
    for file in files:
        total.begin(file)
        file.note(told(4 * MIB), 2.0)
    assert (total.sent, total.size) == (12 * MIB, 40 * MIB)
    assert total.rate(2.0) == pytest.approx(6 * MIB)
    files[0].note(told(10 * MIB), 3.0)
    total.end(files[0], ok=True, now=3.0)
    total.end(files[1], ok=False, now=3.0)
    assert (total.sent, total.size) == (14 * MIB, 30 * MIB)
    assert total.in_words() == "1 of 4 files, 1 failed"
    assert total.running == [files[2]]
    assert not total.over


def bars(width: int, count: int, height: int = 24) -> tuple[Console, showing._Bars]:
    console = Console(
        file=io.StringIO(), width=width, height=height, force_terminal=True
    )
    return console, showing._Bars(console, Total(count, count * 10 * MIB), lambda: 2.0)


def picture(console: Console, shown: showing._Bars) -> list[str]:
    with console.capture() as capture:
        console.print(shown.render())
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", capture.get())
    return [line.rstrip() for line in text.splitlines()]


def test_rate_of_all_files_outlives_each_of_them() -> None:
    """Many small files: those that have just begun have no rate, and yet bytes flow."""
    total = Total(100, 100 * MIB, started=0.0)
    for number in range(50):
        now = 0.1 * number
        file = file_at(now)
        total.begin(file)
        file.note(told(MIB), now + 0.1)
        total.end(file, ok=True, now=now + 0.1)
    total.begin(file_at(5.0))
    assert total.rate(5.0) == pytest.approx(10 * MIB, rel=0.1)
    (waiting,) = total.running
    waiting.note(told(0, moved=0, trouble="connection refused"), 5.1)
    assert total.rate(5.1) == 0


def test_running_files_come_first_and_the_total_last() -> None:
    """A file that is done has its line already, and leaves the picture."""
    console, shown = bars(100, 3)
    first, second = file_at(0.0, "first"), file_at(0.0, "second")
    for file in (first, second):
        shown.begin(file)
        shown.show(file, told(4 * MIB))
    shown.end(first, ok=True)
    trouble = told(4 * MIB, trouble="connection refused", retry_in=3.0)
    shown.show(second, trouble)
    lines = picture(console, shown)
    assert len(lines) == 3
    assert lines[0].startswith("second")
    assert "4.0 MiB of 10.0 MiB" in lines[0]
    assert lines[0].endswith("0 B/s")
    assert lines[1] == "  connection refused, trying again in 3 s"
    assert lines[2].startswith("1 of 3 files")
    assert "14.0 MiB of 30.0 MiB" in lines[2]


@pytest.mark.parametrize("width", [20, 40, 60, 80, 200])
def test_picture_fits_any_terminal(width: int) -> None:
    """No line is broken, and there are no more lines than the terminal has."""
    console, shown = bars(width, 64, height=10)
    for number in range(64):
        file = file_at(0.0, f"{number} {'name' * 30}")
        shown.begin(file)
        shown.show(file, told(MIB, trouble="the server answered 503"))
    lines = picture(console, shown)
    assert len(lines) <= 10
    assert all(len(line) <= width for line in lines)
    assert any("… and 61 more" in line for line in lines)
    assert lines[-1].startswith("0 of ")


@pytest.mark.parametrize(
    ("size", "text"),
    [(None, "3.0 MiB of ?"), (0, "0 B of 0 B"), (10 * MIB, "3.0 MiB of 10.0 MiB")],
)
def test_any_size_can_be_drawn(size: int | None, text: str) -> None:
    """Content whose length is not known, and a file that is empty."""
    console, shown = bars(100, 1)
    file = FileProgress("file", "file", size)
    shown.begin(file)
    shown.show(file, Progress(0 if size == 0 else 3 * MIB, 0, size, 1))
    assert text in picture(console, shown)[0]
    shown.end(file, ok=True)
    assert text in picture(console, shown)[0]


def test_one_system_of_units() -> None:
    """Powers of 1024, under their own names."""
    assert units.size(1023) == "1023 B"
    assert units.size(1_000_000) == "976.6 KiB"
    assert units.rate(3 * MIB) == "3.0 MiB/s"
    assert units.size(5 * 1024**4) == "5.0 TiB"
    assert units.size(None) == "?"
    assert [units.duration(n) for n in (0.4, 59.4, 125, 3725)] == [
        "0 s",
        "59 s",
        "2:05",
        "1:02:05",
    ]


# Lines.


def test_lines_tell_trouble_once_and_progress_now_and_then(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A log is not filled by a server that stays away."""
    now = 0.0
    shown = showing._Lines(Total(2, 20 * MIB, started=0.0), lambda: now)
    file = file_at(0.0)
    shown.begin(file)
    for step in range(120):
        now = step / 4
        shown.show(file, told(MIB, trouble="connection refused", retry_in=0.7))
        shown.show(file, told(MIB, trouble="connection refused"))
    lines = capsys.readouterr().err.splitlines()
    of_file = [line for line in lines if line.startswith("file")]
    assert of_file[0] == (
        "file: 10 %, 1.0 MiB of 10.0 MiB, 0 B/s, connection refused, "
        "trying again in 1 s"
    )
    assert 3 <= len(of_file) <= 4
    assert "0 of 2 files: 5 %, 1.0 MiB of 20.0 MiB, 0 B/s" in lines


# What went wrong, in words.


def outcome(cause: Exception | None = None, status: int | None = None) -> Outcome:
    answer = None if status is None else Answer(status, Fields())
    return Outcome(answer=answer, cause=cause)


def raised_from(exc: Exception, cause: BaseException) -> Exception:
    exc.__cause__ = cause
    return exc


@pytest.mark.parametrize(
    ("ended", "words"),
    [
        (outcome(ConnectionRefusedError(111, "x")), "connection refused"),
        (
            outcome(
                raised_from(
                    OSError("all attempts to connect to h:1 failed"),
                    ExceptionGroup("", [ConnectionRefusedError(111, "x")]),
                )
            ),
            "connection refused",
        ),
        (
            outcome(raised_from(trio.BrokenResourceError(), BrokenPipeError(32, "x"))),
            "connection lost",
        ),
        (outcome(trio.BrokenResourceError("whatever")), "connection lost"),
        (outcome(OSError(113, "x")), "no route to the server"),
        (
            outcome(raised_from(trio.BrokenResourceError(), ssl.SSLEOFError(8, "EOF"))),
            "connection lost",
        ),
        (outcome(ssl.SSLError(1, "wrong version")), "TLS failed: wrong version"),
        (outcome(TimeoutError("nothing moved for 60 seconds")), "nothing moved for 60 seconds"),
        (outcome(EOFError("the server closed")), "the server closed"),
        (outcome(h11.RemoteProtocolError("gibberish")), "the server's answer cannot be read"),
        (outcome(status=503), "the server answered 503"),
        (outcome(status=202), None),
        (outcome(), "no answer"),
    ],
)  # fmt: skip
def test_trouble_is_told_in_words(ended: Outcome, words: str | None) -> None:
    """Not as the exception that this program happened to get."""
    assert trouble_of(ended) == words


# The real command on a real terminal.


class Terminal:
    """The command on a pseudo-terminal, and what it has written there."""

    def __init__(self, words: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            words,
            env=environment | {"TERM": "xterm", "COLUMNS": "120", "LINES": "24"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=slave,
        )
        os.close(slave)
        self.text = ""

    def read(self) -> bool:
        """Take in more; False at the end."""
        try:
            piece = os.read(self._master, 65536)
        except OSError:  # Linux reports the end of a terminal as an error
            return False
        plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", piece.decode(errors="replace"))
        self.text += plain
        return bool(piece)

    def read_until(self, reached: Callable[[str], object]) -> None:
        """Take in more until *reached* says so of the text since the last call."""
        self.text = ""
        deadline = time.monotonic() + SECONDS
        while not reached(self.text):
            assert time.monotonic() < deadline, self.text
            assert self.read(), self.text

    def close(self) -> int:
        self.text = ""
        while self.read():
            pass
        os.close(self._master)
        return self.process.wait(SECONDS)


def test_bar_tells_that_the_server_is_gone(tmp_path: Path) -> None:
    """Its rate is zero then, the next try is told; and the upload goes on with the server."""
    service = Service(tmp_path / "data")
    service.start()
    try:
        path, data = file_of(tmp_path, 6_000_000)
        url = f"{service.root}/files/file.bin"
        words, environment = command(
            tmp_path, path, url, options=["--limit-rate", "2MB"]
        )
        terminal = Terminal(words, environment)
        terminal.read_until(lambda text: re.search(r"1\.\d MiB of 5\.7 MiB", text))
        assert re.search(r"\d MiB/s", terminal.text)
        service.kill()
        terminal.read_until(
            lambda text: re.search(
                r" 0 B/s\s+connection refused, trying again in [0-9]+ s", text
            )
        )
        service.start()
        terminal.read_until(lambda text: re.search(r"5\.\d MiB of 5\.7 MiB", text))
        assert terminal.close() == 0
        assert (tmp_path / "data").exists()
        done = subprocess.run(
            ["curl", "-sS", url], capture_output=True, timeout=SECONDS, check=True
        )
        assert done.stdout == data
    finally:
        service.close()


APPLICATION = """
def app(environ, start_response):
    while environ["wsgi.input"].read(65536):
        pass
    tell = environ["trioresume.progress"]
    for done, remark in enumerate(["reading", "counting", "writing"]):
        tell(done, 3, remark)
        open(f"at-{done}", "w").close()
        while not __import__("os").path.exists(f"go-{done}"):
            __import__("time").sleep(0.01)
    start_response("201 Created", [("Location", "/made")])
    return [b""]
"""


def test_bar_follows_what_the_application_does(tmp_path: Path) -> None:
    """What a WSGI application behind the real server reports is on the sender's terminal."""
    (tmp_path / "steps.py").write_text(APPLICATION)
    service = Service(
        tmp_path / "data",
        ("serve", "--app", "steps:app", "--wsgi"),
        environment={"PYTHONPATH": str(tmp_path)},
    )
    service.start()
    try:
        path, _ = file_of(tmp_path, 1_000_000)
        words, environment = command(
            tmp_path, path, f"{service.root}/x", options=["--method", "POST"]
        )
        terminal = Terminal(words, environment)
        for done, remark in enumerate(["reading", "counting", "writing"]):
            told = f"the server processes it, {done} of 3: {remark}"
            terminal.read_until(lambda text, told=told: told in text)  # type: ignore[misc]  # mypy infers no default
            (tmp_path / f"go-{done}").touch()
        assert terminal.close() == 0
    finally:
        service.close()


def test_rate_of_a_resumed_run_is_that_of_this_run(tmp_path: Path) -> None:
    """Six of eight megabytes are there: they do not count as sent in a second."""
    service = Service(tmp_path / "data")
    service.start()
    try:
        path, _ = file_of(tmp_path, 8_000_000)
        url = f"{service.root}/files/file.bin"
        words, environment = command(
            tmp_path, path, url, options=["--limit-rate", "4MB"]
        )
        first = Terminal(words, environment)
        first.read_until(lambda text: re.search(r"5\.\d MiB of 7\.6 MiB", text))
        first.process.kill()
        first.close()
        words, environment = command(
            tmp_path, path, url, options=["--limit-rate", "500k"]
        )
        second = Terminal(words, environment)
        text = ""
        while second.read():
            text += second.text
            second.text = ""
        assert second.close() == 0
        rates = re.findall(r"([0-9.]+) (B|KiB|MiB)/s", text)
        factors = {"B": 1, "KiB": 1024, "MiB": MIB}
        assert len(rates) > 5
        assert max(float(number) * factors[unit] for number, unit in rates) < 900_000
    finally:
        service.close()
