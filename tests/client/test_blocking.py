"""``trioresume.upload``: a blocking call, for scripts and threads."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest
import trio

import trioresume
from trioresume import CallerError, Config, FileService, Journal, Progress
from trioresume.testing import ChaosProxy, random_faults

BODY = bytes(range(256)) * 4096
PATIENT = trioresume.RetryPolicy(first_delay=0.01, longest_delay=0.05)


@contextmanager
def service(data_dir: Path) -> Iterator[tuple[str, str]]:
    """A file service in another thread: its URL, and the URL of a bad link to it."""
    urls: list[str] = []
    ready = threading.Event()
    tokens: list[trio.lowlevel.TrioToken] = []
    scope = trio.CancelScope()

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        config = Config(bind=["127.0.0.1:0"], data_dir=data_dir, durability="process")
        with scope:
            async with trio.open_nursery() as nursery:
                server = await nursery.start(trioresume.serve, FileService(), config)
                root = server.urls[0]
                address = "127.0.0.1", int(root.rpartition(":")[2])
                faults = random_faults(3, mean_bytes=150_000, limit=6)
                async with ChaosProxy(address, faults) as proxy:
                    urls.append(root)
                    urls.append("http://{}:{}".format(*proxy.address))
                    ready.set()
                    await trio.sleep_forever()

    thread = threading.Thread(target=trio.run, args=(main,))
    thread.start()
    try:
        assert ready.wait(20)
        yield urls[0], urls[1]
    finally:
        tokens[0].run_sync_soon(scope.cancel)
        thread.join(20)


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


def test_upload_survives_cuts_and_names_the_file(tmp_path: Path) -> None:
    """Bytes, a path and an open file; the name goes along; several threads at once."""
    path = tmp_path / "an ä.bin"
    path.write_bytes(BODY)
    with service(tmp_path / "data") as (root, bad), ThreadPoolExecutor() as threads:
        running = [
            threads.submit(trioresume.upload, content, f"{bad}/files/", retry=PATIENT)
            for content in (path, str(path), BODY)
        ]
        responses = [each.result(60) for each in running]
        with path.open("rb") as file:
            responses.append(
                trioresume.upload(file, f"{bad}/files/{1}", method="PUT", retry=PATIENT)
            )
        assert [r.status for r in responses] == [201] * 4
        assert sum(r.attempts for r in responses) > 4

        async def stored(location: str) -> trioresume.ClientResponse:
            async with trioresume.Client() as client:
                return await client.request("GET", root + location)

        for response in responses:
            got = trio.run(stored, response.headers.get("location") or "")
            assert got.body == BODY
        first = trio.run(stored, responses[0].headers.get("location") or "")
        assert "an%20%C3%A4.bin" in (first.headers.get("content-disposition") or "")


def test_an_exception_in_on_progress_ends_it_and_the_journal_goes_on(
    tmp_path: Path,
) -> None:
    """The next call sends only the rest."""
    path = tmp_path / "file.bin"
    path.write_bytes(BODY * 8)
    journal = Journal(tmp_path / "journal")

    def stop(progress: Progress) -> None:
        if progress.sent:
            raise KeyError("enough")

    with service(tmp_path / "data") as (root, _):
        url = f"{root}/files/file.bin"
        with pytest.raises(KeyError):
            trioresume.upload(
                path,
                url,
                method="PUT",
                journal=journal,
                limit_rate=3_000_000,
                on_progress=stop,
            )
        seen: list[Progress] = []
        response = trioresume.upload(
            path, url, method="PUT", journal=journal, on_progress=seen.append
        )
        assert response.status == 201


def test_it_blocks_no_event_loop() -> None:
    """In asyncio and in trio it refuses, and says what to do instead."""

    async def call() -> None:
        with pytest.raises(CallerError, match="to_thread"):
            trioresume.upload(b"", "http://127.0.0.1:1/")

    asyncio.run(call())
    trio.run(call)


def test_what_cannot_be_sent_is_an_error(tmp_path: Path) -> None:
    """A missing file, and a URL that is none."""
    with pytest.raises(FileNotFoundError):
        trioresume.upload(tmp_path / "missing", "http://127.0.0.1:1/")
    with pytest.raises(CallerError):
        trioresume.upload(b"", "ftp://127.0.0.1/")
