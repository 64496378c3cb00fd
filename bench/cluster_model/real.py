"""The small end on a real cluster: the same load, with everything that it sends counted."""

from __future__ import annotations

import http.client
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from urllib.parse import urlsplit

from bench.cluster_model.plan import Bout, UploadPlan
from bench.cluster_model.recorder import DatabaseTap, ObjectsTap, Recorder
from bench.server import free_port

__all__ = ["Unavailable", "run_real"]

_REPOSITORY = Path(__file__).parent.parent.parent
_TUS = {"Tus-Resumable": "1.0.0"}
_START_SECONDS = 60.0
_PIECE = 1 << 18


class Unavailable(Exception):
    """A server that is needed did not start."""


@contextmanager
def _helper(module: str) -> Iterator[subprocess.Popen[str]]:
    """Run a server of the tests for the block."""
    process = subprocess.Popen(
        (sys.executable, "-m", module),
        cwd=_REPOSITORY,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _object_store(process: subprocess.Popen[str]) -> tuple[str, dict[str, str]]:
    assert process.stdout is not None
    environment: dict[str, str] = {}
    for line in process.stdout:
        exported = re.fullmatch(r"export (\w+)=(.*)\n", line)
        if exported is not None:
            environment[exported[1]] = exported[2]
        url = re.fullmatch(r"# --objects '(.*)'\n", line)
        if url is not None:
            return url[1], environment
    raise Unavailable("versitygw did not start; is it installed?")


def _database(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    if not url:
        raise Unavailable("PostgreSQL did not start; is it installed?")
    return url


@contextmanager
def _node(
    at: Path, arguments: Sequence[str], environment: dict[str, str]
) -> Iterator[int]:
    """Run a node for the block; yield its port."""
    port = free_port()
    command = [sys.executable, "-m", "trioresume", "serve", *arguments]
    command += ["--bind", f"127.0.0.1:{port}", "--data-dir", str(at)]
    log = at.with_name(f"{at.name}.log")
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=_REPOSITORY,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **environment},
        )
    try:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > deadline:
                    raise Unavailable(
                        f"a node did not start:\n{log.read_text()}"
                    ) from None
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def _wait_until_it_answers(port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_START_SECONDS)
    try:
        connection.request("OPTIONS", "/files/")
        connection.getresponse().read()
    finally:
        connection.close()


class _Client:
    """Uploads one plan over tus, with its cuts."""

    def __init__(self, plan: UploadPlan, ports: Sequence[int], seed: int) -> None:
        self._plan, self._ports = plan, ports
        self._links: list[socket.socket] = []
        """The number of connections. Neither side noticed some of the cuts."""
        self._content = random.Random(seed).randbytes(plan.size)

    def _ask(
        self, node: int, method: str, path: str, fields: dict[str, str]
    ) -> dict[str, str]:
        connection = http.client.HTTPConnection(
            "127.0.0.1", self._ports[node], timeout=60
        )
        try:
            connection.request(method, path, b"", {**_TUS, **fields})
            answer = connection.getresponse()
            body = answer.read()
        finally:
            connection.close()
        if answer.status not in (200, 201, 204):
            raise AssertionError(f"{method} {path}: {answer.status} {body[:200]!r}")
        return {name.lower(): value for name, value in answer.getheaders()}

    def run(self) -> Counter[str]:
        """Upload it; return how often it was cut, moved and answered with an error."""
        plan, seen = self._plan, Counter[str]()
        node = plan.bouts[0].node
        created = self._ask(node, "POST", "/files/", {"Upload-Length": str(plan.size)})
        path = urlsplit(created["location"]).path
        durable = at = 0
        while True:
            bout = plan.bouts[min(at, len(plan.bouts) - 1)]
            if at:
                time.sleep(plan.away)
                seen["moves"] += bout.node != node
                node = bout.node
                fields = self._ask(node, "HEAD", path, {})
                found = int(fields["upload-offset"])
                if found < durable:
                    raise AssertionError(f"{durable} was announced, {found} is there")
                durable = found
            ends = self._send(
                node, path, durable, bout, is_last=at + 1 >= len(plan.bouts)
            )
            if ends is None:
                return seen
            seen["cuts" if ends else "errors"] += 1
            at += 1

    def _send(
        self, node: int, path: str, offset: int, bout: Bout, *, is_last: bool
    ) -> bool | None:
        """Send one PATCH. Return None at the end, True after a cut, False after an error."""
        rest = self._plan.size - offset
        count = rest if is_last else min(bout.sends, rest - 1)
        head = f"PATCH {path} HTTP/1.1\r\nHost: model\r\nTus-Resumable: 1.0.0\r\n"
        head += f"Upload-Offset: {offset}\r\nContent-Length: {rest}\r\n"
        head += "Content-Type: application/offset+octet-stream\r\n\r\n"
        answer = b""
        link = socket.create_connection(("127.0.0.1", self._ports[node]), 60)
        self._links.append(link)
        try:
            link.sendall(head.encode())
            began, end = time.monotonic(), offset + count
            for at in range(offset, end, _PIECE):
                due = began + (at - offset) / self._plan.rate
                time.sleep(max(0.0, due - time.monotonic()))
                link.sendall(self._content[at : min(end, at + _PIECE)])
            if not is_last and bout.is_silent:
                return True
            if not is_last:
                link.shutdown(socket.SHUT_WR)
            while data := link.recv(_PIECE):
                answer += data
                if is_last and b"\r\n\r\n" in answer:
                    break
        except OSError:
            pass
        link.close()
        if answer.startswith(b"HTTP/1.1 204"):
            return None
        return not answer


def run_real(
    plans: Sequence[UploadPlan], nodes: int, *, clients: int, seed: int
) -> Counter[str]:
    """Upload *plans* to a real cluster, and return what was counted.

    What the nodes do when they are idle is not in it. Raises :class:`Unavailable`.
    """
    counts: Counter[str] = Counter()
    lock = threading.Lock()
    with ExitStack() as stack:
        objects, environment = _object_store(
            stack.enter_context(_helper("tests.s3_servers"))
        )
        database = _database(stack.enter_context(_helper("tests.postgres")))
        recorders = []

        def behind(url: str, tap: ObjectsTap | DatabaseTap) -> str:
            found = re.search(r"127\.0\.0\.1:(\d+)", url)
            assert found is not None
            recorder = stack.enter_context(Recorder(int(found[1]), tap))
            recorders.append(recorder)
            return url.replace(found[0], f"127.0.0.1:{recorder.port}", 1)

        objects = behind(objects, ObjectsTap(counts, lock))
        database = behind(database, DatabaseTap(counts, lock))
        database += "?sslmode=disable&gssencmode=disable"
        directory = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="trioresume-model-"))
        )
        arguments = ("--catalog", database, "--objects", objects)
        ports = [
            stack.enter_context(_node(directory / f"node-{at}", arguments, environment))
            for at in range(nodes)
        ]
        for port in ports:
            _wait_until_it_answers(port)
        with lock:
            counts.clear()
        with ThreadPoolExecutor(clients) as pool:
            seen = Counter[str]()
            runs = [
                pool.submit(_Client(plan, ports, seed * 1_000_003 + at).run)
                for at, plan in enumerate(plans)
            ]
            for run in runs:
                seen += run.result()
        time.sleep(
            1.0
        )  # what was delayed, and what tells other nodes, is counted as well
        with lock:
            counted = counts + seen
        for recorder in recorders:
            if recorder.failure is not None:
                raise recorder.failure
    return counted
