"""The real command behind real proxies, configured as docs/behind-a-proxy.md says.

Uploads in each dialect are cut and resumed through nginx, Caddy and HAProxy, at the root of a
name and under a path of it.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio
from tusclient.client import TusClient

from tests.e2e import proxies
from tests.e2e.carriers import HTTP1, HTTP1_TLS, HTTP2, HTTP2_CLEAR, Carrier
from tests.e2e.command import Service
from tests.e2e.proxies import Proxy
from tests.e2e.tus_uploads import Source
from tests.e2e.wire import parse_message
from tests.platforms import needs
from tests.server.harness import Client, Reply
from trioresume.testing import (
    ChaosProxy,
    ConnectionPlan,
    Direction,
    Fault,
    FaultKind,
    scripted_faults,
)

CONTENT = os.urandom(1_500_000)
HALF = len(CONTENT) // 2
TUS = {"Tus-Resumable": "1.0.0"}
RUFH = {"Upload-Draft-Interop-Version": "6"}


@dataclass(frozen=True)
class Front:
    """A proxy, the service behind it, and the path that the service is given there."""

    proxy: Proxy
    service: Service
    prefix: str = ""
    passes_interims: bool = False
    is_relay: bool = False
    carrier: Carrier = HTTP1
    """What a client speaks to the proxy."""

    @property
    def files(self) -> str:
        return f"{self.prefix}/files/"

    @property
    def origin(self) -> str:
        if self.carrier.is_secure:
            return self.proxy.root.replace("http:", "https:")
        return self.proxy.root

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream(*self.proxy.address)
        try:
            yield Client(await self.carrier.over(stream))
        finally:
            await trio.aclose_forcefully(stream)

    def head(
        self, method: str, target: str, fields: Mapping[str, str], length: int
    ) -> bytes:
        path = urlsplit(target).path
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.proxy.port}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if length or method in ("POST", "PATCH"):
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    async def ask(
        self,
        method: str,
        target: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        """One request on a connection of its own."""
        async with self.connect() as client:
            head = self.head(method, target, fields or {}, len(body))
            await client.send(head + body)
            return await client.reply(method)

    async def check_stored(self, content_at: str) -> None:
        """The upload there became a file, which is found through the proxy, too."""
        place = content_at.removesuffix("content") + "message"
        message = await self.ask("GET", place, {"Prefer": "wait=10"})
        assert message.status == 200
        recorded = parse_message(message.body)
        assert recorded.status == 201
        await self.check_file(recorded.fields["location"])

    async def check_file(self, location: str) -> None:
        assert location.startswith(self.files)
        assert (await self.ask("GET", location)).body == CONTENT


@contextmanager
def running(
    name: str,
    title: str,
    folder: Path,
    *further: str,
    carrier: Carrier = HTTP1,
    is_local: bool = False,
) -> Iterator[Front]:
    """The proxy with the page's block, and the service with the page's options.

    With *is_local* a Unix socket is between them.
    """
    prefix = "/up" if "path" in title else ""
    relay = title == "a relay"
    arguments = [] if relay else proxies.options(name)
    if prefix:
        arguments += ["--root-path", prefix]
    block = proxies.snippet(name, title)
    with ExitStack() as stack:
        local: list[str] = []
        if is_local:
            # The name of a socket is short; folders of tests are not.
            short = tempfile.TemporaryDirectory(prefix="trioresume-")
            path = Path(stack.enter_context(short)) / "http.sock"
            block = block.replace("127.0.0.1:8080", proxies.unix_address(name, path))
            local = ["--bind", f"unix:{path}", "--trusted-proxy", "unix"]
        service = Service(folder / "data", ("serve", *arguments, *further, *local))
        if local:
            service.root = f"http://{local[1]}:"
        (folder / "proxy").mkdir()
        proxy = stack.enter_context(
            proxies.run(name, block, service.port, folder / "proxy")
        )
        service.start()
        try:
            interims = relay or name != "nginx"
            yield Front(proxy, service, prefix, interims, relay, carrier)
        finally:
            service.close()
        service.check_log()


@pytest.fixture(scope="module", params=proxies.CONFIGURATIONS, ids=": ".join)
def front(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Front]:
    """Each configuration of the page."""
    name, title = request.param
    with running(name, title, tmp_path_factory.mktemp("front")) as front:
        yield front


def append_tus(offset: int) -> dict[str, str]:
    """The fields of a tus PATCH."""
    media_type = {"Content-Type": "application/offset+octet-stream"}
    return {**TUS, **media_type, "Upload-Offset": str(offset)}


def append_rufh(offset: int) -> dict[str, str]:
    """The fields of the last append in RUFH."""
    media_type = {"Content-Type": "application/partial-upload"}
    state = {"Upload-Offset": str(offset), "Upload-Complete": "?1"}
    return {**RUFH, **media_type, **state}


async def cut_after_half(front: Front, client: Client) -> None:
    """Send half of the content; when it has arrived, be cut."""
    await client.send(CONTENT[:HALF])
    await front.service.wait_for_tail(HALF)
    await client.aclose()


async def test_tus_upload_is_cut_and_resumed(front: Front) -> None:
    """D5, D6, G13, R4: content arrives while it is sent; the Location is absolute."""
    length = {"Upload-Length": str(len(CONTENT))}
    created = await front.ask("POST", front.files, {**TUS, **length})
    assert created.status == 201
    location = created["location"]
    assert location.startswith(f"{front.origin}{front.prefix}/operations/")
    async with front.connect() as client:
        fields = append_tus(0)
        await client.send(front.head("PATCH", location, fields, len(CONTENT)))
        await cut_after_half(front, client)
    seen = await front.ask("HEAD", location, TUS)
    assert (seen.status, seen["upload-offset"]) == (200, str(HALF))
    done = await front.ask("PATCH", location, append_tus(HALF), CONTENT[HALF:])
    assert (done.status, done["upload-offset"]) == (204, str(len(CONTENT)))
    assert done.message.startswith(f"{front.prefix}/operations/")
    await front.check_stored(location)


async def test_rufh_upload_is_cut_and_resumed(front: Front) -> None:
    """C2, C6, C8, C11: begun with a 104, or with an empty request where there is none."""
    async with front.connect() as client:
        if front.passes_interims:
            first = {**RUFH, "Upload-Complete": "?1"}
            await client.send(front.head("POST", front.files, first, len(CONTENT)))
            interim = await client.interim()
            assert interim.status == 104
            location = interim.fields.get("location") or ""
        else:
            empty = {**RUFH, "Upload-Complete": "?0"}
            created = await front.ask("POST", front.files, empty)
            assert (created.status, created.interims) == (201, [])
            location = created["location"]
            fields = append_rufh(0)
            await client.send(front.head("PATCH", location, fields, len(CONTENT)))
        assert location.startswith(f"{front.origin}{front.prefix}/operations/")
        await cut_after_half(front, client)
    seen = await front.ask("HEAD", location, RUFH)
    assert (seen["upload-offset"], seen["upload-complete"]) == (str(HALF), "?0")
    done = await front.ask("PATCH", location, append_rufh(HALF), CONTENT[HALF:])
    assert (done.status, done["upload-complete"]) == (201, "?1")
    await front.check_file(json.loads(done.body)["location"])


async def test_seed_s_upload(front: Front) -> None:
    """R1, R5, R12, R15: resumed where the 100 comes through; else the answer has it."""
    fields = {"Prefer": "resume", "Expect": "100-continue"}
    head = front.head("POST", front.files, fields, len(CONTENT))
    if not front.passes_interims:
        async with front.connect() as client:
            await client.send(head)
            if not front.carrier.is_http2:  # there nginx does not answer it
                assert not list((await client.interim()).fields)  # nginx's own
            await client.send(CONTENT)
            done = await client.reply()
        assert (done.status, done.interims) == (201, [])
        assert done.content.startswith(f"{front.prefix}/operations/")
        await front.check_file(done["location"])
        return
    async with front.connect() as client:
        await client.send(head)
        while (
            "request-content-location" not in (interim := await client.interim()).fields
        ):
            assert interim.status == 100  # Caddy's own
        await cut_after_half(front, client)
    content = interim.fields.get("request-content-location") or ""
    assert content.startswith(f"{front.prefix}/operations/")
    seen = await front.ask("HEAD", content)
    assert seen["content-length"] == str(HALF)
    rest = b"Content-Range: bytes %d-%d/%d\r\n\r\n" % (
        HALF,
        len(CONTENT) - 1,
        len(CONTENT),
    )
    media_type = {"Content-Type": "message/byterange"}
    done = await front.ask("PATCH", content, media_type, rest + CONTENT[HALF:])
    assert done.status == 201
    await front.check_file(done["location"])


async def test_client_that_comes_back_does_not_wait(front: Front) -> None:
    """R21, D5: its old connection is open and silent, at the proxy and behind it."""
    length = {"Upload-Length": str(len(CONTENT))}
    created = await front.ask("POST", front.files, {**TUS, **length})
    location = created["location"]
    async with front.connect() as silent:
        fields = append_tus(0)
        await silent.send(front.head("PATCH", location, fields, len(CONTENT)))
        await silent.send(CONTENT[:HALF])
        await front.service.wait_for_tail(HALF)
        with trio.fail_after(10):  # the timeouts are a minute and more
            # Without asking first, as a client that was told the offset may.
            done = await front.ask("PATCH", location, append_tus(HALF), CONTENT[HALF:])
    assert done.status == 204
    await front.check_stored(location)


def test_tuspy_uploads_through_it(front: Front) -> None:
    """D5, D6: the client as it is, in pieces, and again by the URL it was told."""
    client = TusClient(front.origin + front.files)
    first: Any = client.uploader(file_stream=Source(CONTENT), chunk_size=400_000)
    first.upload(stop_at=800_000)
    again: Any = client.uploader(
        file_stream=Source(CONTENT), chunk_size=400_000, url=first.url
    )
    assert again.offset == 800_000
    again.upload()
    trio.run(front.check_stored, first.url)


@pytest.mark.parametrize(("name", "title"), proxies.SECURED)
async def test_uploads_through_tls_and_http2_to_the_service(
    name: str, title: str, tmp_path: Path
) -> None:
    """Each dialect is cut and resumed, and a client that comes back does not wait."""
    behind = HTTP2_CLEAR if title.startswith("HTTP/2") else HTTP1_TLS
    fronts = [HTTP1_TLS, HTTP2] if title == "TLS on both sides" else [HTTP1]
    for carrier in fronts:
        folder = tmp_path / carrier.name
        folder.mkdir()
        options = behind.options(folder)
        with running(name, title, folder, *options, carrier=carrier) as front:
            await test_tus_upload_is_cut_and_resumed(front)
            await test_rufh_upload_is_cut_and_resumed(front)
            await test_seed_s_upload(front)
            await test_client_that_comes_back_does_not_wait(front)


@pytest.mark.parametrize("name", proxies.NAMES)
async def test_uploads_through_a_unix_socket(name: str, tmp_path: Path) -> None:
    """G13: each dialect is cut and resumed, and the proxy is believed about the origin."""
    with running(name, "a name of its own", tmp_path, is_local=True) as front:
        await test_tus_upload_is_cut_and_resumed(front)
        await test_rufh_upload_is_cut_and_resumed(front)
        await test_seed_s_upload(front)


@pytest.fixture(scope="module")
def caddy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Front]:
    """The configuration in which there is most to get wrong."""
    folder = tmp_path_factory.mktemp("caddy")
    with running("caddy", "a path of a name", folder) as front:
        yield front


async def test_command_uploads_through_cuts(caddy: Front, tmp_path: Path) -> None:
    """R21: trioresume upload, cut in front of the proxy, whose own 100 comes first."""
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    cuts = [
        Fault(kind, Direction.UP, 400_000) for kind in (FaultKind.FIN, FaultKind.RST)
    ]
    async with ChaosProxy(caddy.proxy.address, scripted_faults(cuts)) as chaos:
        # Slowly, so that the offer is there before the cut on a busy machine, too.
        command = [sys.executable, "-m", "trioresume", "upload", "--limit-rate", "2M"]
        ran = await trio.run_process(
            [*command, str(path), chaos.url + caddy.files],
            capture_stdout=True,
            capture_stderr=True,
            env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
        )
        assert chaos.totals.cuts == 2
    location = urlsplit(ran.stdout.decode().split()[-1]).path
    await caddy.check_file(location)


@pytest.mark.parametrize(("method", "protocol"), [("POST", "tus"), ("PUT", "rufh")])
async def test_command_finds_out_what_works_through_nginx(
    tmp_path: Path, method: str, protocol: str
) -> None:
    """R5, C4, D5: the seed's offer does not come through; what does is resumed."""
    path = tmp_path / "content"
    path.write_bytes(CONTENT)
    cut = ConnectionPlan((Fault(FaultKind.RST, Direction.UP, 600_000),))
    with running("nginx", "a name of its own", tmp_path) as front:
        async with ChaosProxy(front.proxy.address, lambda _: cut) as chaos:
            command = [sys.executable, "-m", "trioresume", "upload", "--json"]
            ran = await trio.run_process(
                [*command, "--method", method, str(path), chaos.url + front.files],
                capture_stdout=True,
                capture_stderr=True,
                env={**os.environ, "XDG_STATE_HOME": str(tmp_path)},
            )
            assert chaos.totals.cuts >= 2
        result = json.loads(ran.stdout)
        assert (result["status"], result["protocol"]) == (201, protocol)
        await front.check_file(urlsplit(result["location"]).path)


# Who is believed.

LIES = {
    "X-Forwarded-For": "192.0.2.1",
    "X-Forwarded-Host": "evil.example",
    "X-Forwarded-Proto": "https",
    "Forwarded": "for=192.0.2.1;host=evil.example;proto=https",
}


async def test_what_a_client_says_of_itself_is_not_believed(front: Front) -> None:
    """G13: the proxy's word replaces it, or stands behind it."""
    fields = {**TUS, **LIES, "Upload-Length": "5"}
    created = await front.ask("POST", front.files, fields)
    assert created.status == 201
    assert "evil.example" not in created["location"]
    if front.is_relay:
        expected = ""  # a relay: the signs of a proxy are all that is known
    else:
        expected = front.origin
    assert created["location"].startswith(f"{expected}{front.prefix}/operations/")


def test_others_than_the_proxy_are_not_believed(front: Front) -> None:
    """G13: who comes to the service itself, from an address that is not trusted."""
    fields = {**TUS, **LIES, "Upload-Length": "5"}
    lines = [f"{name}: {value}" for name, value in fields.items()]
    request = "\r\n".join(
        ["POST /files/ HTTP/1.1", "Host: direct.example", *lines, "Content-Length: 0"]
    )
    with closing(socket.socket()) as sock:
        try:
            sock.bind(("127.0.0.2", 0))
        except OSError as exc:
            pytest.skip(f"the loopback interface has one address: {exc}")
        sock.settimeout(20)
        sock.connect(front.service.address)
        sock.sendall(f"{request}\r\n\r\n".encode())
        answer = sock.recv(65536).decode().lower()
    assert "\r\nlocation: " + front.prefix + "/operations/" in answer


@needs("curl")
def test_https_and_http_2_in_front(caddy: Front, tmp_path: Path) -> None:
    """C2, G13: the 104 comes over HTTP/2, and the Location has the proxy's scheme."""
    origin = f"https://localhost:{caddy.proxy.tls_port}"
    (tmp_path / "content").write_bytes(CONTENT)
    command = ["curl", "-q", "-sS", "-k", "--http2", "--noproxy", "*", "-D", "heads"]
    command += ["-o", "body", "-H", "Upload-Complete: ?1", "--data-binary", "@content"]
    command += ["-H", "Upload-Draft-Interop-Version: 6", origin + caddy.files]
    subprocess.run(command, cwd=tmp_path, timeout=60, check=True)
    first, *_, last = (tmp_path / "heads").read_text().strip().split("\n\n")
    assert first.startswith("HTTP/2 104")
    assert f"location: {origin}{caddy.prefix}/operations/" in first
    assert last.startswith("HTTP/2 201")
