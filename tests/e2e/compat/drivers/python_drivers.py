"""The trials of ``registry.py``, done with Python's HTTP clients: ``python_drivers.py CLIENT …``.

Each client is a class with one method, ``send``. The trials are the same for all.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

BLOCK = 65_536
TIMEOUT = 5
"""Seconds that HTTPX waits for a response, or for room in a window."""


class Answer:
    """A response: its status, its fields in lower case, its content."""

    def __init__(
        self,
        status: int,
        fields: Mapping[str, str],
        content: bytes,
        version: str = "",
    ) -> None:
        self.version = version
        self.status = status
        self.fields = {name.lower(): value for name, value in fields.items()}
        self.content = content


class Body:
    """Content to send. With *cut* the client finds that its source broke there."""

    def __init__(self, path: Path, start: int = 0, cut: int | None = None) -> None:
        self.path, self.start, self.cut = path, start, cut
        self.size = path.stat().st_size - start

    def blocks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.start)
            sent = 0
            while block := file.read(BLOCK):
                if self.cut is not None and sent >= self.cut:
                    time.sleep(
                        0.3
                    )  # what was sent shall not be lost with the connection
                    raise OSError("the source broke")
                yield block
                sent += len(block)


@dataclass(frozen=True)
class Asked:
    """A request. *known* says whether its length is stated, *expect* whether to wait for a 100."""

    method: str
    url: str
    fields: dict[str, str]
    body: Body | None
    known: bool
    expect: bool


class Client(Protocol):
    def send(self, asked: Asked) -> Answer: ...


class Curl:
    """pycurl, which brings a libcurl of its own."""

    http2 = False

    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        import pycurl

        curl = pycurl.Curl()
        content = bytearray()
        heads: list[list[bytes]] = []

        def note(line: bytes) -> None:
            if line.startswith(b"HTTP/"):
                heads.append([])
            heads[-1].append(line)

        curl.setopt(pycurl.URL, url)
        curl.setopt(pycurl.CUSTOMREQUEST, method)
        curl.setopt(pycurl.NOPROXY, "*")
        versions = (pycurl.CURL_HTTP_VERSION_1_1, pycurl.CURL_HTTP_VERSION_2TLS)
        curl.setopt(pycurl.HTTP_VERSION, versions[self.http2])
        curl.setopt(pycurl.CAINFO, os.environ["SSL_CERT_FILE"])
        curl.setopt(pycurl.WRITEFUNCTION, content.extend)
        curl.setopt(pycurl.HEADERFUNCTION, note)
        lines = [f"{name}: {value}" for name, value in fields.items()]
        if body is not None:
            blocks = body.blocks()
            rest = bytearray()

            def read(most: int) -> bytes | int:
                while len(rest) < most:
                    try:
                        block = next(blocks, b"")
                    except OSError:
                        return int(pycurl.READFUNC_ABORT)
                    if not block:
                        break
                    rest.extend(block)
                taken = bytes(rest[:most])
                del rest[:most]
                return taken

            curl.setopt(pycurl.UPLOAD, 1)
            curl.setopt(pycurl.READFUNCTION, read)
            if asked.known:
                curl.setopt(pycurl.INFILESIZE_LARGE, body.size)
            lines.append("Expect: 100-continue" if asked.expect else "Expect:")
        elif method == "HEAD":
            curl.setopt(pycurl.NOBODY, 1)
        elif method == "POST":
            lines.append("Content-Length: 0")
        curl.setopt(pycurl.HTTPHEADER, lines)
        try:
            curl.perform()
        except pycurl.error as exc:
            raise OSError(str(exc)) from exc
        status = int(curl.getinfo(pycurl.RESPONSE_CODE))
        curl.close()
        pairs = (
            line.decode("latin-1").split(":", 1) for line in heads[-1] if b":" in line
        )
        version = heads[-1][0].split()[0].decode()
        return Answer(status, {n: v.strip() for n, v in pairs}, bytes(content), version)


class Curl2(Curl):
    http2 = True


class Wget:
    """GNU Wget: content comes from a file, which cannot break off.

    It refuses the answer to a Range that it has not asked for itself, which is ``-c``.
    """

    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            command = ["wget", "-q", "-S", "--no-config", "--no-proxy", "--tries=1"]
            command += ["--content-on-error", f"--method={method}", "-O", "body"]
            start = 0
            if method == "GET" and "Range" in fields:
                start = int(fields["Range"].removeprefix("bytes=").removesuffix("-"))
                (folder / "body").write_bytes(bytes(start))
                command.append("-c")
                fields = {}
            command += [f"--header={n}: {v}" for n, v in fields.items()]
            if asked.expect:
                command.append("--header=Expect: 100-continue")
            if body is not None:
                content = b"".join(Body(body.path, body.start).blocks())
                (folder / "content").write_bytes(content[: body.cut])
                command.append("--body-file=content")
            done = subprocess.run(
                [*command, url], cwd=folder, capture_output=True, check=False
            )
            lines = done.stderr.decode("latin-1").splitlines()
            heads = [i for i, line in enumerate(lines) if line.startswith("  HTTP/")]
            if not heads:
                raise OSError(done.stderr.decode())
            status = int(lines[heads[-1]].split()[1])
            pairs = (
                x.strip().split(":", 1) for x in lines[heads[-1] + 1 :] if ":" in x
            )
            kept = folder / "body"
            return Answer(
                status,
                {n: v.strip() for n, v in pairs},
                kept.read_bytes()[start:] if kept.exists() else b"",
            )


class Urllib3:
    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        import urllib3

        if body is not None and asked.known:
            fields["Content-Length"] = str(body.size)
        if asked.expect:
            fields["Expect"] = "100-continue"
        with urllib3.PoolManager(retries=False) as pool:
            response = pool.request(
                method,
                url,
                headers=fields,
                body=None if body is None else body.blocks(),
            )
            return Answer(response.status, dict(response.headers), response.data)


class Requests:
    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        import requests

        if asked.expect:
            fields["Expect"] = "100-continue"

        class Sized:
            """Content whose length requests can ask for."""

            def __init__(self, body: Body) -> None:
                self._size = body.size
                self._blocks = body.blocks()

            def __len__(self) -> int:
                return self._size

            def __iter__(self) -> Iterator[bytes]:
                return self._blocks

        data = None if body is None else Sized(body) if asked.known else body.blocks()
        with requests.Session() as session:
            session.trust_env = False
            response = session.request(method, url, headers=fields, data=data)
            return Answer(response.status_code, response.headers, response.content)


class Httpx:
    http2 = False

    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        import httpx

        if body is not None and asked.known:
            fields["Content-Length"] = str(body.size)
        if asked.expect:
            fields["Expect"] = "100-continue"
        context = ssl.create_default_context(cafile=os.environ["SSL_CERT_FILE"])
        with httpx.Client(
            trust_env=False, timeout=TIMEOUT, http2=self.http2, verify=context
        ) as client:
            response = client.request(
                method,
                url,
                headers=fields,
                content=None if body is None else body.blocks(),
            )
            return Answer(
                response.status_code,
                response.headers,
                response.content,
                response.http_version,
            )


class Httpx2(Httpx):
    http2 = True


class Aiohttp:
    def send(self, asked: Asked) -> Answer:
        method, url, fields, body = asked.method, asked.url, asked.fields, asked.body
        import aiohttp

        async def blocks(body: Body) -> object:
            for block in body.blocks():
                yield block

        async def run() -> Answer:
            headers = dict(fields)
            if body is not None and asked.known:
                headers["Content-Length"] = str(body.size)
            async with (
                aiohttp.ClientSession() as session,
                session.request(
                    method,
                    url,
                    headers=headers,
                    data=None if body is None else blocks(body),
                    expect100=asked.expect,
                ) as response,
            ):
                return Answer(response.status, response.headers, await response.read())

        try:
            return asyncio.run(run())
        except aiohttp.ClientError as exc:
            raise OSError(str(exc)) from exc


CLIENTS: dict[str, type[Client]] = {
    "pycurl": Curl,
    "pycurl-tls": Curl,
    "pycurl-h2": Curl2,
    "wget": Wget,
    "urllib3": Urllib3,
    "requests": Requests,
    "httpx": Httpx,
    "httpx-h2": Httpx2,
    "aiohttp": Aiohttp,
}


def say(trial: str, answer: Answer, **further: object) -> None:
    line = {
        "trial": trial,
        "version": answer.version,
        "status": answer.status,
        "fields": answer.fields,
        "digest": hashlib.sha256(answer.content).hexdigest(),
        "text": answer.content.decode() if len(answer.content) <= 4096 else "",
        **further,
    }
    print(json.dumps(line), flush=True)  # noqa: T201 - what the test reads


class Trials:
    def __init__(
        self, client: Client, root: str, limited: str, path: Path, name: str
    ) -> None:
        self.client, self.root, self.limited = client, root, limited
        self.path, self.name = path, name
        self.type = {"Content-Type": "application/octet-stream"}

    def _send(
        self,
        method: str,
        url: str,
        fields: Mapping[str, str],
        body: Body | None = None,
        *,
        known: bool = True,
        expect: bool = False,
    ) -> Answer:
        return self.client.send(Asked(method, url, dict(fields), body, known, expect))

    def put(self) -> None:
        url = f"{self.root}/files/{self.name}-put"
        say("put", self._send("PUT", url, self.type, Body(self.path)))

    def stream(self) -> None:
        url = f"{self.root}/files/"
        answer = self._send("POST", url, self.type, Body(self.path), known=False)
        say("stream", answer)

    def prefer(self) -> None:
        url = f"{self.root}/files/{self.name}-prefer"
        fields = {**self.type, "Prefer": "resume"}
        say("prefer", self._send("PUT", url, fields, Body(self.path)))

    def expect(self) -> None:
        url = f"{self.root}/files/{self.name}-expect"
        fields = {**self.type, "Prefer": "resume"}
        answer = self._send("PUT", url, fields, Body(self.path), expect=True)
        say("expect", answer)

    def interim(self) -> None:
        url = f"{self.root}/files/"
        fields = {
            **self.type,
            "Upload-Complete": "?1",
            "Upload-Draft-Interop-Version": "6",
        }
        say("interim", self._send("POST", url, fields, Body(self.path)))

    def resume(self) -> None:
        url = f"{self.root}/files/"
        length = str(self.path.stat().st_size)
        first = {"Upload-Complete": "?0", "Upload-Length": length}
        upload = self._send("POST", url, first).fields["location"]
        append = {"Content-Type": "application/partial-upload", "Upload-Offset": "0"}
        half = self.path.stat().st_size // 2
        # wget sends half as a request of its own; the others are cut within one.
        complete = "?0" if isinstance(self.client, Wget) else "?1"
        try:
            fields = {**append, "Upload-Complete": complete}
            self._send("PATCH", upload, fields, Body(self.path, cut=half))
        except Exception as exc:  # noqa: BLE001 - each has errors of its own
            print(f"cut: {exc!r}", file=sys.stderr)  # noqa: T201 - for whoever looks
        offset = int(self._send("HEAD", upload, {}).fields["upload-offset"])
        fields = {**append, "Upload-Offset": str(offset), "Upload-Complete": "?1"}
        answer = self._send("PATCH", upload, fields, Body(self.path, offset))
        say("resume", answer, offset=offset)

    def refused(self) -> None:
        url = f"{self.limited}/files/{self.name}-refused"
        say("refused", self._send("PUT", url, self.type, Body(self.path)))

    def range(self) -> None:
        url = f"{self.root}/files/{self.name}-put"
        say("range", self._send("GET", url, {"Range": "bytes=1000-"}))

    def delete(self) -> None:
        say(
            "delete",
            self._send("DELETE", f"{self.root}/files/{self.name}-put", {}),
        )


def main() -> None:
    client, root, limited, path, name, *wanted = sys.argv[1:]
    trials = Trials(CLIENTS[client](), root, limited, Path(path), name)
    for trial in wanted:
        try:
            getattr(trials, trial)()
        except Exception as exc:  # noqa: BLE001 - each has errors of its own
            line = {"trial": trial, "status": 0, "error": repr(exc)}
            print(json.dumps(line), flush=True)  # noqa: T201 - what the test reads


if __name__ == "__main__":
    os.environ.pop("http_proxy", None)
    main()
