"""The second listener answers whatever happens to the first."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.server.harness import Recorder, SocketService, head, socket_service
from tests.server.watch.admin import ask, metrics, sample
from trioresume import CallerError, StorageError
from trioresume.errors import ClientError
from trioresume.server.api.watching import WatchSettings
from trioresume.server.serving import Tuning
from trioresume.server.watch.facts import LookTimes
from trioresume.testing import MemoryStore

GIB = 1 << 30


def _watch(tmp_path: Path, **settings: Any) -> WatchSettings:
    return WatchSettings(admin_bind=[f"unix:{tmp_path / 'admin'}"], **settings)


@asynccontextmanager
async def admin_of(tmp_path: Path, **settings: Any) -> AsyncIterator[SocketService]:
    async with socket_service(
        settings.pop("handler", None) or Recorder(),
        tmp_path / "data",
        watch=_watch(tmp_path),
        **settings,
    ) as service:
        yield service


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;version=x",
        "text/plain;version=1.y.0",
        "text/plain;version=" + "9" * 5000,
        "application/openmetrics-text;q=;version=;escaping=\xff,;,",
        "=",
    ],
)
async def test_metrics_are_told_whatever_is_accepted(
    accept: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A wrong field is no fault of the service, and fills no log."""
    async with admin_of(tmp_path):
        reply = await ask(tmp_path / "admin", "/metrics", fields={"Accept": accept})
        assert reply.status == 200
        assert b"trioresume_requests_running" in reply.body
    assert "Traceback" not in caplog.text


async def test_it_serves_its_three_pages_and_no_upload(tmp_path: Path) -> None:
    """Nothing of the service is to be had there; what was sent is not read."""
    path = tmp_path / "admin"
    async with admin_of(tmp_path):
        assert (await ask(path, "/healthz")).body == b"ok\n"
        ready = await ask(path, "/readyz")
        assert (ready.status, ready.json["ready"]) == (200, True)
        assert ready.json["checks"] == dict.fromkeys(
            ("catalog", "disk", "shutdown"), "ok"
        )
        assert (await metrics(path))["trioresume_requests_running"] == 0
        for target in ("/", "/files/x", "/operations/x/content", "/metrics/"):
            assert (await ask(path, target)).code == "not-found"
        for target in ("/metrics", "/healthz", "/readyz"):
            reply = await ask(path, target, "POST")
            assert (reply.status, reply["allow"]) == (405, "GET, HEAD")
    assert not path.exists()


async def test_it_answers_when_the_public_listener_is_full(tmp_path: Path) -> None:
    """And a flood of it takes no place of the public ones."""
    path = tmp_path / "admin"
    async with admin_of(tmp_path, max_connections=2) as service:
        async with service.connect() as one, service.connect() as two:
            for client in (one, two):
                await client.send(
                    head("POST", "/", {"Expect": "100-continue"}, length=9)
                )
                assert (await client.interim()).status == 100
            async with service.connect() as refused:
                assert (await refused.request("GET", "/")).status == 503
            assert (await ask(path, "/readyz")).status == 200
            seen = await metrics(path)
            assert sample(seen, "connections", carrier="http/1.1") == 2
            assert sample(seen, "requests_running") == 2
        flood = [await trio.open_unix_socket(str(path)) for _ in range(40)]
        async with service.connect() as client:
            assert (await client.request("GET", "/")).status == 200
        # They are idle, so that newcomers take their places.
        assert (await ask(path, "/healthz")).status == 200
        for stream in flood:
            await trio.aclose_forcefully(stream)


async def test_service_that_shuts_down_is_not_ready(tmp_path: Path) -> None:
    """From the first moment to the last request; the loop lives all the time."""
    recorder = Recorder(gate=trio.Event())
    path = tmp_path / "admin"
    async with admin_of(tmp_path, handler=recorder, grace_timeout=60) as service:
        async with service.connect() as client:
            await client.send(head("POST", "/", length=0))
            await recorder.begun.wait()
            service.server.shutdown()
            reply = await ask(path, "/readyz")
            assert (reply.status, reply.json["ready"]) == (503, False)
            assert reply.json["checks"]["shutdown"] != "ok"
            assert (await ask(path, "/healthz")).status == 200
            assert recorder.gate is not None
            recorder.gate.set()
            assert (await client.reply()).status == 200


async def test_disk_below_its_limit_is_not_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says how much there is, and how much it keeps free."""
    usage = type("Usage", (), {"total": 100 * GIB, "free": 2 * GIB, "used": 98 * GIB})
    path = tmp_path / "admin"
    async with admin_of(tmp_path, min_free_space=4 * GIB):
        monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
        reply = await ask(path, "/readyz")
        assert reply.status == 503
        assert str(4 * GIB) in reply.json["checks"]["disk"]
        seen = await metrics(path)
        assert sample(seen, "disk_free_bytes") == 2 * GIB
        assert sample(seen, "disk_kept_free_bytes") == 4 * GIB


class BadStore(MemoryStore):
    """A store in memory whose commits can fail, or hang."""

    def __init__(self) -> None:
        super().__init__()
        self.fails = False
        self.gate = threading.Event()
        self.gate.set()

    @property
    def blocking(self) -> bool:
        return True

    def apply(self, batch: Any) -> Any:
        if self.fails:
            raise StorageError(os.strerror(errno.EROFS))
        assert self.gate.wait(60)
        return super().apply(batch)


async def test_catalog_that_cannot_be_written_is_not_ready(tmp_path: Path) -> None:
    """A commit that fails, or does not end in time, is the catalog's answer."""
    times = LookTimes(ready_age=0.0, commit_age=0.0, patience=0.2)
    store = BadStore()
    path = tmp_path / "admin"
    tuning = Tuning(look_times=times)
    async with admin_of(tmp_path, store=store, tuning=tuning):
        store.fails = True
        reply = await ask(path, "/readyz")
        assert (reply.status, reply.json["checks"]["catalog"]) == (
            503,
            os.strerror(errno.EROFS),
        )
        store.fails = False
        assert (await ask(path, "/readyz")).status == 200
        store.gate.clear()
        try:
            reply = await ask(path, "/readyz")
            assert "no answer" in reply.json["checks"]["catalog"]
            assert reply.status == 503
            assert (await metrics(path))["trioresume_requests_running"] == 0
        finally:
            store.gate.set()


async def test_states_and_usage_come_from_the_catalog(tmp_path: Path) -> None:
    """What a restart would find, not a count that could be wrong after one."""
    path = tmp_path / "admin"
    async with admin_of(tmp_path, max_stored_bytes=GIB):
        pass
    async with admin_of(tmp_path, max_stored_bytes=GIB) as service:
        async with service.connect() as client:
            fields = {"Prefer": "resume", "Expect": "100-continue"}
            await client.send(head("POST", "/", fields, length=9))
            assert (await client.interim()).status == 100
            seen = await metrics(path)
    assert sample(seen, "uploads", state="receiving") == 1
    assert sample(seen, "uploads_open") == 1
    assert sample(seen, "stored_bytes") >= 4096
    assert sample(seen, "stored_bytes_limit") == GIB


async def test_public_health_needs_no_token(tmp_path: Path) -> None:
    """Only that path, and only if it is switched on."""

    async def nobody(_: object) -> Any:
        raise ClientError("not asked for /healthz")

    for is_on in (True, False):
        async with (
            socket_service(
                Recorder(),
                tmp_path / "data",
                watch=WatchSettings(public_health=is_on),
                authenticate=nobody,
            ) as service,
            service.connect() as client,
        ):
            reply = await client.request("GET", "/healthz")
            assert reply.status == (200 if is_on else 500)
            if is_on:
                assert (await client.request("GET", "/healthz/x")).status == 500
                assert (await client.request("PUT", "/healthz", {}, b"")).status == 405


async def test_address_in_use_is_an_error_at_the_start(tmp_path: Path) -> None:
    """And takes nothing from the service that has it."""
    path = tmp_path / "admin"
    async with admin_of(tmp_path):
        with pytest.raises(ExceptionGroup) as caught:
            async with socket_service(
                Recorder(), tmp_path / "other", watch=_watch(tmp_path)
            ):
                pass
        assert caught.group_contains(OSError)
        assert (await ask(path, "/healthz")).status == 200


@pytest.mark.parametrize("bind", ["unix:", "9180", ":9180", "https://127.0.0.1:1"])
def test_bad_address_is_refused(bind: str) -> None:
    """At once, and not when somebody looks at the metrics."""
    with pytest.raises(CallerError):
        WatchSettings(admin_bind=[bind])
