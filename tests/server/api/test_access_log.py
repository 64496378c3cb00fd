"""The access log: its formats, and that it makes nobody wait."""

from __future__ import annotations

import json
import os
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from trioresume import AccessLog, CallerError
from trioresume.server.api.access_log import MOST_WAITING, LogFormat, LoggedRequest

REQUEST = LoggedRequest(
    ended_at=1_700_000_000.25,
    seconds=0.5,
    client="192.0.2.7",
    principal="anna",
    method="POST",
    target="/files/x?token=secret",
    version="1.1",
    dialect="tus",
    status=201,
    problem=None,
    received=1000,
    sent=20,
    request_id="0123",
    operation="A" * 22,
    referer="https://app.example/",
    user_agent="curl/8",
    trace=None,
)
COMBINED = re.compile(
    r"(?P<client>\S+) (?P<ident>\S+) (?P<user>\S+) \[(?P<date>[^\]]+)\]"
    r' "(?P<method>\S+) (?P<path>\S+) (?P<protocol>\S+)" (?P<status>\d{3}) (?P<size>\d+|-)'
    r' "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"'
)


@asynccontextmanager
async def writing(path: Path, format: LogFormat = "json") -> AsyncIterator[AccessLog]:
    log = AccessLog(path, format)
    async with log.running():
        yield log


async def _lines(
    path: Path, requests: Iterable[LoggedRequest], format: LogFormat
) -> list[str]:
    async with writing(path, format) as log:
        for request in requests:
            log.note(request)
    return path.read_text("ascii").splitlines()  # noqa: ASYNC240 - a small file


async def test_lines_of_each_format(tmp_path: Path) -> None:
    """As web servers write them; the end of the log waits for the last line."""
    (line,) = await _lines(tmp_path / "common", [REQUEST], "common")
    common = (
        '192.0.2.7 - anna [14/Nov/2023:22:13:20 +0000] "POST /files/x HTTP/1.1" 201 20'
    )
    assert line == common
    (line,) = await _lines(tmp_path / "combined", [REQUEST], "combined")
    assert line == f'{common} "https://app.example/" "curl/8"'
    (line,) = await _lines(tmp_path / "json", [REQUEST], "json")
    members = json.loads(line)
    assert members["time"] == "2023-11-14T22:13:20.250Z"
    assert (members["path"], members["operation"]) == ("/files/x", "A" * 22)
    assert "secret" not in line


@pytest.mark.parametrize(
    "text",
    [
        '"',
        "\\",
        '\\" 200 1 "',
        "\r\n192.0.2.9 - - ",
        "\x1b[2J",
        "ü\u2028\0",
        " ",
        "x" * 5000,
    ],
)
@pytest.mark.parametrize(
    "member", ["principal", "target", "method", "referer", "user_agent"]
)
async def test_text_of_clients_stays_in_its_place(
    tmp_path: Path, member: str, text: str
) -> None:
    """A line stays one line of printable ASCII, and a strict parser reads its parts."""
    changes: dict[str, Any] = {member: text}
    hostile = REQUEST._replace(**changes)
    (line,) = await _lines(tmp_path / "combined", [hostile], "combined")
    assert re.fullmatch(r"[ -~]*", line)
    match = COMBINED.fullmatch(line)
    assert match is not None
    assert (match["status"], match["size"], match["client"]) == (
        "201",
        "20",
        "192.0.2.7",
    )
    (line,) = await _lines(tmp_path / "json", [hostile], "json")
    assert re.fullmatch(r"[ -~]*", line)
    assert json.loads(line)["status"] == 201


async def test_rotated_file_is_left_after_a_reload(tmp_path: Path) -> None:
    """Every line is in one of the two files. A path that cannot be opened changes nothing."""
    path, old = tmp_path / "log", tmp_path / "log.1"
    async with writing(path) as log:
        log.note(REQUEST._replace(request_id="first"))
        with trio.fail_after(10):
            while not log.written:  # noqa: ASYNC110 - it tells nobody
                await trio.sleep(0.01)
        path.rename(old)
        path.mkdir()
        with pytest.raises(CallerError, match="cannot be opened"):
            log.reload()
        path.rmdir()
        log.reload()
        log.note(REQUEST._replace(request_id="later"))
    assert "first" in old.read_text()
    assert "later" not in old.read_text()
    assert "later" in path.read_text()
    assert log.written == 2


async def test_reader_that_stops_costs_lines_and_no_time(tmp_path: Path) -> None:
    """The queue is bounded; what does not fit is counted, and the end does not wait."""
    path = tmp_path / "fifo"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with trio.fail_after(20):
            async with writing(path) as log:
                for _ in range(2 * MOST_WAITING):
                    log.note(REQUEST)
                assert log.dropped == MOST_WAITING
        assert log.written + log.dropped >= MOST_WAITING
    finally:
        os.close(reader)


async def test_full_disk_costs_lines_and_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Once, and not for each line."""
    async with writing(Path("/dev/full")) as log:
        log.note(REQUEST)
        log.note(REQUEST)
    assert (log.written, log.dropped) == (0, 2)
    assert caplog.text.count("is not written") == 1


def test_path_that_cannot_be_opened_is_an_error_at_once(tmp_path: Path) -> None:
    """Not at the first request."""
    with pytest.raises(CallerError, match="cannot be opened"):
        AccessLog(tmp_path / "missing" / "log")
    with pytest.raises(CallerError, match="format"):
        AccessLog(tmp_path / "log", "xml")  # type: ignore[arg-type]
