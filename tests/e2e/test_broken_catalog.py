"""The real service, when its catalog or its whole data directory breaks under it."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import closing
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.e2e.command import Service

MakeService = Callable[..., Service]

pytestmark = pytest.mark.slow


TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {
    **TUS,
    "Upload-Offset": "0",
    "Content-Type": "application/offset+octet-stream",
}


def answer(
    service: Service,
    method: str,
    path: str,
    body: bytes | None = None,
    fields: Mapping[str, str] | None = None,
) -> tuple[int, str]:
    """The status and the ``Location``."""
    connection = HTTPConnection(*service.address, timeout=60)
    try:
        connection.request(method, path, body, dict(fields or {}))
        response = connection.getresponse()
        response.read()
        return response.status, response.getheader("Location", "")
    finally:
        connection.close()


def ask(service: Service, method: str, path: str, body: bytes | None = None) -> int:
    return answer(service, method, path, body)[0]


@pytest.mark.parametrize("what", ["removed", "moved", "replaced"])
def test_nothing_succeeds_in_a_data_directory_that_is_gone(
    make_service: MakeService, what: str
) -> None:
    """No 2xx leaves for what nobody can find again (promise 1)."""
    service = make_service()
    service.start()
    assert ask(service, "PUT", "/files/a", b"content") == 201
    create = {**TUS, "Upload-Length": "9"}
    status, location = answer(service, "POST", "/files/", fields=create)
    assert status == 201
    upload = urlsplit(location).path
    if what == "removed":
        shutil.rmtree(service.data_dir)
    else:
        moved = service.data_dir.with_name("moved")
        service.data_dir.rename(moved)
        if what == "replaced":
            shutil.copytree(moved, service.data_dir, ignore=lambda *_: ["control"])
    for method, path, body in [
        ("HEAD", "/files/a", None),
        ("GET", "/files/a", None),
        ("PUT", "/files/b", b""),
        ("PUT", "/files/c", b"more"),
        ("POST", "/files/", b""),
        ("DELETE", "/files/a", None),
    ]:
        assert ask(service, method, path, body) == 500, (method, path)
    for method, path, body, fields in [
        ("POST", "/files/", None, create),
        ("HEAD", upload, None, TUS),
        ("PATCH", upload, b"bytes", PATCH),
        ("PATCH", upload, b"the whole", PATCH),
        ("DELETE", upload, None, TUS),
        ("PUT", "/files/d", b"part", {"Upload-Complete": "?0"}),
    ]:
        status, _ = answer(service, method, path, body, fields)
        assert status == 500, (method, path)
    assert service.is_running


def remove_catalog(data_dir: Path) -> None:
    for path in data_dir.glob("catalog.sqlite3*"):
        path.unlink()


def empty_catalog(data_dir: Path) -> None:
    remove_catalog(data_dir)
    (data_dir / "catalog.sqlite3").touch()


def remove_log(data_dir: Path) -> None:
    """After a kill at the first run this is where all of the catalog is."""
    (data_dir / "catalog.sqlite3-wal").unlink()


@pytest.mark.parametrize("damage", [remove_catalog, empty_catalog, remove_log])
def test_content_without_a_catalog_is_not_taken_for_remains(
    make_service: MakeService, damage: Callable[[Path], None]
) -> None:
    """Promise 1: the service refuses to start; once the catalog is back, all is there."""
    service = make_service()
    service.start()
    assert ask(service, "PUT", "/files/a", b"content") == 201
    service.kill()
    saved = {p: p.read_bytes() for p in service.data_dir.glob("catalog.sqlite3*")}
    damage(service.data_dir)
    for _ in range(2):
        with pytest.raises(AssertionError, match="the catalog is missing or empty"):
            service.start()
    assert service.chunk_bytes() == len(b"content")
    remove_catalog(service.data_dir)
    for path, content in saved.items():
        path.write_bytes(content)
    service.start()
    assert ask(service, "GET", "/files/a") == 200


def test_damaged_index_does_not_end_the_service(make_service: MakeService) -> None:
    """Promise 10: what can be read is served, and the log says what to do."""
    service = make_service()
    service.start()
    assert ask(service, "PUT", "/files/a", b"content") == 201
    service.stop()
    path = service.data_dir / "catalog.sqlite3"
    with closing(sqlite3.connect(path)) as catalog:
        (page,) = catalog.execute(
            "SELECT rootpage FROM sqlite_master WHERE name = 'operations_by_state'"
        ).fetchone()
        (size,) = catalog.execute("PRAGMA page_size").fetchone()
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    service.start()
    for _ in range(3):
        assert ask(service, "GET", "/files/a") == 200
    service.wait_for_log("recovery is postponed")
    assert "trioresume verify" in service.log.read_text()
    assert ask(service, "GET", "/files/a") == 200
    service.check_log()
