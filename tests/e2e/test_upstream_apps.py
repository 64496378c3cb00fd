"""Real applications behind the real command, unchanged (:mod:`.backends`).

Uploads are cut at random places, and the application is killed and restarted. Its log proves
that it got each request once, and whole.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

import trioresume
from tests.e2e.command import Service, free_port
from trioresume.testing import ChaosProxy, random_faults

MakeService = Callable[..., Service]

KIB = 1024


class Application:
    """A real application as a process, which keeps its port over its lives."""

    def __init__(self, name: str, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self._command = [sys.executable, "-m", "tests.e2e.backends", name]
        self._command += [str(self.port), str(folder)]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == b"it listens\n"

    def kill(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()

    def start_uvicorn(self) -> None:
        """Run the FastAPI application instead; it keeps its log in memory."""
        self._process = subprocess.Popen(
            [
                *(sys.executable, "-m", "uvicorn", "--log-level", "info"),
                *("--port", str(self.port)),
                "tests.targets.applications.frameworks:fastapi_app",
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        while b"running on" not in (line := self._process.stdout.readline()):
            assert line

    @property
    def log(self) -> list[dict[str, Any]]:
        path = self.folder / "log"
        lines = path.read_text().splitlines() if path.exists() else []
        return [json.loads(line) for line in lines]

    def got(self, contents: list[bytes]) -> None:
        """Assert that it got each of *contents* once, whole, and nothing else."""
        assert all(entry["read"] == entry["announced"] for entry in self.log)
        found = sorted(entry["sha256"] for entry in self.log)
        assert found == sorted(hashlib.sha256(each).hexdigest() for each in contents)


@pytest.fixture
def make_application(tmp_path: Path) -> Iterator[Callable[[str], Application]]:
    made: list[Application] = []

    def make(name: str) -> Application:
        for module in (name, "cheroot"):
            # Not imported here: pypiserver's bottle changes how this process imports.
            if importlib.util.find_spec(module) is None:
                pytest.skip(f"{module} is not installed")
        application = Application(name, tmp_path / name)
        made.append(application)
        application.start()
        return application

    yield make
    for application in made:
        application.kill()


def form(name: str, content: bytes) -> tuple[bytes, str]:
    """A form with one file, and its media type."""
    boundary = hashlib.sha256(content).hexdigest()[:30]
    head = (
        f"--{boundary}\r\nContent-Disposition: form-data;"
        f' name="file"; filename="{name}"\r\n\r\n'
    )
    body = head.encode() + content + f"\r\n--{boundary}--\r\n".encode()
    return body, f"multipart/form-data; boundary={boundary}"


async def send_cut(
    service: Service, seed: int, requests: list[tuple[str, str, bytes, str]]
) -> list[trioresume.ClientResponse]:
    """Send *requests* over a link that cuts each of them; return the responses."""
    responses: list[trioresume.ClientResponse] = []
    schedule = random_faults(seed, mean_bytes=150 * KIB, limit=5 * len(requests))
    patient = trioresume.RetryPolicy(attempts=100, first_delay=0.02, longest_delay=0.2)
    async with ChaosProxy(service.address, schedule) as proxy:
        async with trioresume.Client(
            protocol="seed", retry=patient, proxies={}
        ) as client:

            async def send(method: str, path: str, body: bytes, kind: str) -> None:
                responses.append(
                    await client.request(
                        method,
                        f"{proxy.url}{path}",
                        body=body,
                        headers={"Content-Type": kind},
                    )
                )

            with trio.fail_after(100):
                async with trio.open_nursery() as nursery:
                    for request in requests:
                        nursery.start_soon(send, *request)
        assert proxy.totals.cuts
    return responses


async def start(service: Service) -> None:
    await trio.to_thread.run_sync(service.start)


@pytest.mark.parametrize("name", ["httpbin", "django"])
async def test_forms_come_whole_and_once(
    name: str,
    seed: int,
    make_application: Callable[[str], Application],
    make_service: MakeService,
) -> None:
    """POST, so that nothing may be sent twice; the application is down for a while."""
    draw = random.Random(seed)
    application = make_application(name)
    service = make_service("--upstream", application.url, "--retry-interval", "200ms")
    await start(service)
    path = "/post" if name == "httpbin" else "/form"
    contents = [draw.randbytes(draw.randint(1, 600 * KIB)) for _ in range(8)]
    forms = [form(f"{number}.bin", each) for number, each in enumerate(contents)]
    application.kill()

    async def come_back() -> None:
        waiting = "SELECT id FROM operations WHERE state = 'waiting'"
        while not service.rows(waiting):  # noqa: ASYNC110 - another process waits
            await trio.sleep(0.02)
        await trio.to_thread.run_sync(application.start)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(come_back)
        responses = await send_cut(
            service, seed, [("POST", path, body, kind) for body, kind in forms]
        )
    assert [response.status for response in responses] == [200] * len(forms)
    application.got([body for body, _ in forms])
    keys = {entry["key"] for entry in application.log}
    assert len(keys) == len(forms)
    await trio.to_thread.run_sync(service.stop)


async def test_fastapi_gets_each_form_once(
    seed: int, tmp_path: Path, make_service: MakeService
) -> None:
    """Its own log, fetched through the front, has each file once."""
    pytest.importorskip("uvicorn")
    draw = random.Random(seed)
    application = Application("fastapi", tmp_path)
    await trio.to_thread.run_sync(application.start_uvicorn)
    try:
        service = make_service("--upstream", application.url)
        await start(service)
        contents = [draw.randbytes(draw.randint(1, 600 * KIB)) for _ in range(6)]
        forms = [form(f"{n}.bin", each) for n, each in enumerate(contents)]
        requests = [("POST", "/form", body, kind) for body, kind in forms]
        responses = await send_cut(service, seed, requests)
        assert {response.status for response in responses} == {200}
        async with trioresume.Client(proxies={}) as client:
            log = await client.request("GET", f"{service.root}/log")
        found = sorted(entry["sha256"] for entry in json.loads(log.body))
        assert found == sorted(hashlib.sha256(each).hexdigest() for each in contents)
        await trio.to_thread.run_sync(service.stop)
    finally:
        application.kill()


async def test_webdav_folder_keeps_what_was_put(
    seed: int,
    make_application: Callable[[str], Application],
    make_service: MakeService,
) -> None:
    """PUT over a bad link; a WebDAV client then lists, moves and reads the files."""
    webdav = pytest.importorskip("webdav3.client")
    draw = random.Random(seed)
    application = make_application("wsgidav")
    service = make_service("--upstream", application.url)
    await start(service)
    contents = [draw.randbytes(draw.randint(1, 600 * KIB)) for _ in range(6)]
    responses = await send_cut(
        service,
        seed,
        [
            ("PUT", f"/{number}.bin", each, "application/octet-stream")
            for number, each in enumerate(contents)
        ],
    )
    assert {response.status for response in responses} <= {201, 204}
    application.got(contents)

    def look(folder: Path) -> None:
        client = webdav.Client({"webdav_hostname": service.root})
        assert sorted(client.list())[:6] == [f"{n}.bin" for n in range(6)]
        client.mkdir("inner")
        client.move("0.bin", "inner/moved.bin")
        client.download_sync("inner/moved.bin", str(folder / "down"))
        assert (folder / "down").read_bytes() == contents[0]
        (folder / "up").write_bytes(contents[1])
        client.upload_sync("inner/again.bin", str(folder / "up"))
        assert client.check("inner/again.bin")
        client.clean("inner")
        assert not client.check("inner")

    folder = application.folder
    await trio.to_thread.run_sync(look, folder)
    await trio.to_thread.run_sync(service.stop)


def wheel(folder: Path) -> Path:
    """A wheel with a module of random content, as installers accept it."""
    path = folder / "pieces-1.0-py3-none-any.whl"
    metadata = "Metadata-Version: 2.1\nName: pieces\nVersion: 1.0\n"
    described = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files = {
        "pieces.py": f"DATA = {random.Random(1).randbytes(300 * KIB)!r}\n",
        "pieces-1.0.dist-info/METADATA": metadata,
        "pieces-1.0.dist-info/WHEEL": described,
    }
    record = "".join(f"{name},,\n" for name in files)
    files["pieces-1.0.dist-info/RECORD"] = f"{record}pieces-1.0.dist-info/RECORD,,\n"
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)
    return path


async def test_wheel_is_uploaded_and_downloaded(
    tmp_path: Path,
    make_application: Callable[[str], Application],
    make_service: MakeService,
) -> None:
    """twine knows no protocol for resumable uploads; the index gets its form whole."""
    pytest.importorskip("twine")
    application = make_application("pypiserver")
    service = make_service("--upstream", application.url)
    await start(service)
    path = wheel(tmp_path)
    command = [sys.executable, "-m", "twine", "upload", "--disable-progress-bar"]
    command += ["--repository-url", service.root, "-u", "a", "-p", "b", str(path)]
    done = await trio.to_thread.run_sync(
        lambda: subprocess.run(command, capture_output=True, text=True, check=False)
    )
    assert done.returncode == 0, done.stdout + done.stderr
    stored = application.folder / "packages" / path.name
    assert stored.read_bytes() == path.read_bytes()
    (entry,) = application.log
    assert entry["read"] == entry["announced"]
    async with trioresume.Client(proxies={}) as client:
        page = await client.request("GET", f"{service.root}/simple/pieces/")
        assert path.name.encode() in page.body
        file = await client.request("GET", f"{service.root}/packages/{path.name}")
        assert file.body == path.read_bytes()
    await trio.to_thread.run_sync(service.stop)
