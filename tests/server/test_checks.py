"""What is found in a configuration, and that nothing is changed by looking."""

from __future__ import annotations

import datetime as dt
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trustme

from tests.certificates import write_server_files
from trioresume import Certificate, Config, TLSSettings, check_config
from trioresume.store.disk_store import open_store


def _config(tmp_path: Path, **settings: object) -> Config:
    config = Config(bind=["127.0.0.1:0"], data_dir=tmp_path / "data")
    return replace(config, **settings)  # type: ignore[arg-type]


def _found(config: Config) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for finding in check_config(config):
        found.setdefault(finding.severity, []).append(finding.text)
    return found


def _snapshot(directory: Path) -> list[tuple[str, int, int]]:
    return sorted(
        (str(path), path.lstat().st_ino, path.lstat().st_mtime_ns)
        for path in directory.rglob("*")
    )


def test_healthy_configuration_has_no_warning(tmp_path: Path) -> None:
    """With a new directory, with an old one, and while somebody serves it."""
    certificate, key = write_server_files(tmp_path)
    config = _config(
        tmp_path, ssl=TLSSettings(certificates=[Certificate(certificate, key)])
    )
    key.chmod(0o600)
    for _ in range(2):
        found = _found(config)
        assert not found.get("warning")
        assert not found.get("error")
        open_store(config.data_dir).close()
    store = open_store(config.data_dir)
    before = _snapshot(tmp_path)
    found = _found(config)
    store_dir = Path(config.data_dir)
    assert f"a server is running on {store_dir}" in found["note"]
    assert not found.get("error")
    assert _snapshot(tmp_path) == before
    store.close()


def _file_in_place_of_the_directory(tmp_path: Path) -> Config:
    (tmp_path / "data").write_bytes(b"")
    return _config(tmp_path)


def _unknown_format(tmp_path: Path) -> Config:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "format").write_text("trioresume data directory, format 99\n")
    return _config(tmp_path)


def _half_restored(tmp_path: Path) -> Config:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "restoring").write_bytes(b"")
    return _config(tmp_path)


def _full_disk(tmp_path: Path) -> Config:
    full = Path("/proc")  # a disk without any room
    if not full.is_dir() or os.statvfs(full).f_bavail:
        pytest.skip("no disk without room is here")
    return _config(tmp_path, data_dir=full / "data")


def _missing_key(tmp_path: Path) -> Config:
    certificate, key = write_server_files(tmp_path)
    key.unlink()
    return _config(
        tmp_path, ssl=TLSSettings(certificates=[Certificate(certificate, key)])
    )


def _no_directory_for_the_socket(tmp_path: Path) -> Config:
    return _config(tmp_path, bind=[f"unix:{tmp_path}/missing/up.sock"])


def _file_in_place_of_the_socket(tmp_path: Path) -> Config:
    (tmp_path / "up.sock").write_bytes(b"")
    return _config(tmp_path, bind=[f"unix:{tmp_path}/up.sock"])


def _unknown_host(tmp_path: Path) -> Config:
    return _config(tmp_path, bind=["192.0.2.1:0"])  # an address of documentation


def _long_name_of_the_socket(tmp_path: Path) -> Config:
    return _config(tmp_path, bind=[f"unix:{tmp_path}/{'x' * 100}"])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_file_in_place_of_the_directory, "is no directory"),
        (_unknown_format, "is of a format that is not known"),
        (_half_restored, "was not restored to the end"),
        (_full_disk, "the disk is full"),
        (_missing_key, "cannot be read: No such file"),
        (_no_directory_for_the_socket, "cannot be listened on: No such file"),
        (_long_name_of_the_socket, "File name too long"),
        (_file_in_place_of_the_socket, "a file that is no socket is there"),
        (_unknown_host, "cannot be listened on: Cannot assign"),
    ],
)
def test_what_keeps_a_service_from_starting_is_an_error(
    make: Callable[[Path], Config], words: str, tmp_path: Path
) -> None:
    """One line that names it."""
    config = make(tmp_path)
    before = _snapshot(tmp_path)
    errors = _found(config)["error"]
    assert [text for text in errors if words in text], errors
    assert _snapshot(tmp_path) == before


@pytest.mark.parametrize("is_served", [False, True])
def test_port_in_use_is_an_error_unless_the_server_runs(
    is_served: bool, tmp_path: Path
) -> None:
    """Beside a running server its own port is in use, as it should be."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        bind = f"127.0.0.1:{taken.getsockname()[1]}"
        config = _config(tmp_path, bind=[bind])
        store = open_store(config.data_dir)
        if not is_served:
            store.close()
        found = _found(config)
        if is_served:
            assert f"{bind} is in use, as it is while the server runs" in found["note"]
            store.close()
        else:
            assert found["error"] == [f"{bind} cannot be listened on: it is in use"]


@pytest.mark.parametrize(
    ("days", "severity", "words"),
    [(-1, "error", "ended at"), (5, "warning", "ends soon"), (30, "ok", "valid until")],
)
def test_end_of_a_certificate_is_told_before_it_comes(
    days: int, severity: str, words: str, tmp_path: Path
) -> None:
    """Also that everybody may read its key."""
    ends = dt.datetime.now(dt.UTC) + dt.timedelta(days=days)
    leaf = trustme.CA().issue_cert("up.example", not_after=ends)
    both = tmp_path / "both.pem"
    leaf.private_key_and_cert_chain_pem.write_to_path(both)
    both.chmod(0o644)
    config = _config(tmp_path, ssl=TLSSettings(certificates=[Certificate(both)]))
    found = _found(config)
    assert [text for text in found[severity] if words in text]
    if severity != "error":
        assert f"everybody may read the private key in {both}" in found["warning"]


def test_clock_that_went_back_is_a_warning(tmp_path: Path) -> None:
    """The catalog was changed later than now."""
    config = _config(tmp_path)
    open_store(config.data_dir).close()
    later = time.time() + 86400
    os.utime(tmp_path / "data" / "catalog.sqlite3", (later, later))
    assert "the clock is behind" in _found(config)["warning"][0]


def test_other_people_s_eyes_are_a_warning(tmp_path: Path) -> None:
    """The directory is made for its owner only."""
    config = _config(tmp_path)
    open_store(config.data_dir).close()
    (tmp_path / "data").chmod(0o755)
    assert _found(config)["warning"] == [f"everybody may look into {tmp_path / 'data'}"]
