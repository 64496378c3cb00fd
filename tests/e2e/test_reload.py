"""SIGHUP and the real command: tokens and the log file are read anew, and no connection ends."""

from __future__ import annotations

import http.client
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.command import Service
from trioresume import new_token

MakeService = Callable[..., Service]


def _hangup(service: Service) -> None:
    os.kill(service.pid, signal.SIGHUP)


def _status(connection: http.client.HTTPConnection, token: str) -> int:
    connection.request("GET", "/files/x", headers={"Authorization": f"Bearer {token}"})
    response = connection.getresponse()
    response.read()
    return response.status


def test_hangup_reads_the_tokens_again(
    make_service: MakeService, tmp_path: Path
) -> None:
    """A new name may come in, a removed one may not, over the connection that was open."""
    tokens = tmp_path / "tokens"
    (ann, ann_line), (bob, bob_line) = new_token("ann"), new_token("bob")
    tokens.write_text(f"{ann_line}\n")
    service = make_service("--tokens-file", str(tokens))
    service.start()
    connection = http.client.HTTPConnection(*service.address, timeout=20)
    assert [_status(connection, ann), _status(connection, bob)] == [404, 401]
    socket = connection.sock
    tokens.write_text(f"{bob_line}\n")
    _hangup(service)
    service.wait_for_log("SIGHUP: the tokens were read again")
    assert [_status(connection, ann), _status(connection, bob)] == [401, 404]
    assert connection.sock is socket
    connection.close()
    service.stop()


@pytest.mark.parametrize("fault", ["broken line\n", "", None])
def test_tokens_that_cannot_be_read_change_nothing(
    fault: str | None, make_service: MakeService, tmp_path: Path
) -> None:
    """A bad line, an empty file or a missing file never opens or closes the service."""
    tokens = tmp_path / "tokens"
    ann, line = new_token("ann")
    tokens.write_text(f"{line}\n")
    service = make_service("--tokens-file", str(tokens))
    service.start()
    if fault is None:
        tokens.unlink()
    else:
        tokens.write_text(fault)
    _hangup(service)
    service.wait_for_log("SIGHUP: the tokens stay as they were: ")
    connection = http.client.HTTPConnection(*service.address, timeout=20)
    assert [_status(connection, ann), _status(connection, "else")] == [404, 401]
    connection.close()
    service.stop()


def test_hangup_without_anything_to_read_says_so(service: Service) -> None:
    """test_hangup_ends_nothing in test_shutdown has an upload that goes on."""
    _hangup(service)
    service.wait_for_log("SIGHUP: there is nothing to read again")


def _wait_for(path: Path, text: str) -> None:
    deadline = time.monotonic() + 20
    while not path.exists() or text not in path.read_text():
        assert time.monotonic() < deadline, f"{path} does not say {text!r}"
        time.sleep(0.02)


def test_log_file_is_opened_again_after_it_was_renamed(
    make_service: MakeService, tmp_path: Path
) -> None:
    """As logrotate does: rename, SIGHUP. Others may not read it; a full path keeps the old."""
    log, old = tmp_path / "log" / "service.log", tmp_path / "log" / "service.log.1"
    log.parent.mkdir()
    service = make_service("--log-file", str(log))
    service.start()
    log.touch()
    assert log.stat().st_mode & 0o007 == 0
    log.rename(old)
    _hangup(service)
    _wait_for(log, "SIGHUP: the log file was opened again")
    before = old.read_text()
    log.rename(old.with_suffix(".2"))
    log.mkdir()
    _hangup(service)
    _wait_for(old.with_suffix(".2"), "SIGHUP: the log file stays as it was: ")
    assert old.read_text() == before
    service.stop()
    # What is not a record of the log stays where it was.
    assert "Shutting down." in service.log.read_text()
    assert "SIGHUP" not in service.log.read_text()


def test_log_file_that_cannot_be_opened_is_a_usage_error(
    make_service: MakeService, tmp_path: Path
) -> None:
    """Before anything is served."""
    service = make_service("--log-file", str(tmp_path / "missing" / "log"))
    with pytest.raises(AssertionError, match="cannot be opened: No such file"):
        service.start()
    assert not service.data_dir.exists()


def test_shutdown_does_not_wait_for_a_reload_that_hangs(
    make_service: MakeService, tmp_path: Path
) -> None:
    """The file of tokens has become a pipe that nobody writes to, as on a dead file system."""
    tokens = tmp_path / "tokens"
    tokens.write_text(f"{new_token('ann')[1]}\n")
    service = make_service("--tokens-file", str(tokens))
    service.start()
    tokens.unlink()
    os.mkfifo(tokens)
    _hangup(service)
    # The reload has begun when it has opened the pipe; then it waits for what is written.
    with tokens.open("wb"):
        service.stop()
