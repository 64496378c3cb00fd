"""Hooks of the real command: kills at any instant, and the keeper's command."""

from __future__ import annotations

import json
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import h11
import pytest
import trio

from tests.certificates import authority, server_context
from tests.e2e.command import Service
from tests.hooks.receivers import HTTPReceiver, Posted, until
from tests.processes import environment_of, run
from tests.server.harness import Client
from tests.server.tus import MARK, OCTETS
from tests.targets.upstream.backend import backend
from trioresume.store.catalog.schema import connect_reading

KILLS = int(os.environ.get("TRIORESUME_HOOK_KILLS") or 6)
UPLOADERS = 4
EVENTS = "pre-finish,post-create,post-finish,post-terminate,interrupted"


@dataclass
class Known:
    """What the clients were told, and what the receiver was told."""

    created: set[str] = field(default_factory=set)
    finished: set[str] = field(default_factory=set)
    cancelled: set[str] = field(default_factory=set)
    told: defaultdict[str, list[tuple[str, str]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    """Of each upload, the kinds and ids of its events, as they came."""
    early: list[str] = field(default_factory=list)
    """Events that came before the change was in the catalog."""

    def kinds(self, upload: str) -> list[str]:
        return [kind for kind, _ in self.told[upload]]


class Lives:
    """A service that is killed again and again, its clients, and its receiver."""

    def __init__(self, service: Service, receiver: HTTPReceiver, seed: int) -> None:
        self.service = service
        self.known = Known()
        self.random = random.Random(seed)
        self.kills: Counter[str] = Counter()
        self._kill_at = trio.Event()
        self._kill_when = "time"
        receiver.answer = self.receive

    def receive(self, post: Posted) -> tuple[int, bytes]:
        """Take an event. Sometimes the service dies before it learns of that."""
        upload, kind = post.document["Event"]["Upload"]["ID"], post.kind
        if kind == "pre-finish":
            self._note("asked pre-finish")
            return 200, b""
        if not self._is_committed(upload, kind):
            self.known.early.append(f"{kind} of {upload}")
        self.known.told[upload].append((kind, post.document["ID"]))
        self._note(f"told {kind}")
        return 200, b""

    def _is_committed(self, upload: str, kind: str) -> bool:
        path = str(self.service.data_dir / "catalog.sqlite3")
        with closing(connect_reading(path)) as catalog:
            row = catalog.execute(
                "SELECT state FROM operations WHERE id = ?", (upload,)
            ).fetchone()
        if row is None:
            return False
        wanted = {"post-finish": {"done"}, "post-terminate": {"gone"}}
        return kind not in wanted or row[0] in wanted[kind]

    def _note(self, what: str) -> None:
        if what == self._kill_when:
            self._kill_at.set()

    # The clients.

    async def upload_forever(self) -> None:
        while True:
            try:
                await self._upload()
            except (OSError, trio.BrokenResourceError, h11.ProtocolError):
                await trio.sleep(0.02)  # it is down

    async def _upload(self) -> None:
        stream = await trio.open_tcp_stream(*self.service.address)
        async with stream:
            client = Client(stream)
            size = self.random.choice([0, 10, 3000])
            fields = {**MARK, "Upload-Length": str(size + 10)}
            self._note("request")
            created = await client.request("POST", "/files/", fields, b"")
            if created.status != 201:
                return
            path = "/" + created["location"].split("/", 3)[3]
            upload = path.split("/")[2]
            self.known.created.add(upload)
            self._note("created")
            if self.random.random() < 0.2:
                gone = await client.request("DELETE", path, MARK)
                if gone.status == 204:
                    self.known.cancelled.add(upload)
                    self._note("cancelled")
                return
            said = {**OCTETS, "Upload-Offset": "0"}
            body = self.random.randbytes(size + 10)
            done = await client.request("PATCH", path, said, body)
            if done.status == 204:
                self._note("received")
                message = done["response-message-location"]
                response = await client.request("GET", message, {"Prefer": "wait=5"})
                if response.status == 200:
                    self.known.finished.add(upload)
                    self._note("finished")

    # The kills.

    async def kill(self) -> None:
        """Let the service live until something happens, and kill it then."""
        points = (
            "time",
            "request",
            "created",
            "cancelled",
            "received",
            "finished",
            "asked pre-finish",
            "told post-create",
            "told post-finish",
            "told post-terminate",
        )
        await trio.to_thread.run_sync(self.service.start)
        with trio.move_on_after(10):
            await trio.sleep(self.random.uniform(0.05, 0.3))
            self._kill_at, self._kill_when = trio.Event(), self.random.choice(points)
            with trio.move_on_after(
                self.random.uniform(0, 0.3) if self._kill_when == "time" else 5
            ):
                await self._kill_at.wait()
            await trio.sleep(self.random.choice([0, 0, 0.002, 0.01]))
        self.kills[self._kill_when] += 1
        await trio.to_thread.run_sync(self.service.kill)

    async def settle(self) -> None:
        """Start once more, and wait until the outbox is empty."""
        await trio.to_thread.run_sync(self.service.start)
        with trio.fail_after(60):
            while self.waiting():  # noqa: ASYNC110 - another process empties it
                await trio.sleep(0.05)
        await trio.to_thread.run_sync(self.service.stop)

    def waiting(self) -> int:
        path = str(self.service.data_dir / "catalog.sqlite3")
        with closing(connect_reading(path)) as catalog:
            (count,) = catalog.execute("SELECT count(*) FROM events").fetchone()
        return int(count)

    def check(self) -> None:
        """Compare what the clients know with what the receiver was told."""
        known = self.known
        assert known.early == []
        for upload in known.created:
            assert "post-create" in known.kinds(upload), upload
        for upload in known.finished:
            assert "post-finish" in known.kinds(upload), upload
        for upload in known.cancelled:
            assert "post-terminate" in known.kinds(upload), upload
        for upload, told in known.told.items():
            # In order. A new life may repeat, but never leaves one out.
            order = list(dict.fromkeys(told))
            ranks = [order.index(event) for event in told]
            assert all(after <= rank + 1 for rank, after in pairwise(ranks)), told
            assert len(order) == len({name for _, name in order}), told
            assert order[0][0] == "post-create", told
            if "post-finish" in known.kinds(upload):
                assert order[-1][0] == "post-finish", told
                assert known.kinds(upload).count("post-terminate") == 0, told


@asynccontextmanager
async def living(data_dir: Path, seed: int) -> AsyncIterator[Lives]:
    async with HTTPReceiver(lambda _: (200, b"")).running() as receiver:
        enabled = ("--hooks-enabled-events", EVENTS, "--hooks-http-backoff", "50ms")
        service = Service(data_dir, ("serve", "--hooks-http", receiver.url, *enabled))
        try:
            yield Lives(service, receiver, seed)
            service.check_log()
        finally:
            service.close()


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_no_event_is_lost_by_kills(tmp_path: Path, seed: int) -> None:
    """Promise 12: each is delivered at least once, and none before its change was durable.

    ``TRIORESUME_HOOK_KILLS`` sets the number of kills.
    """
    async with living(tmp_path / "data", seed) as lives, trio.open_nursery() as clients:
        for _ in range(UPLOADERS):
            clients.start_soon(lives.upload_forever)
        for _ in range(KILLS):
            await lives.kill()
        clients.cancel_scope.cancel()
    async with living(tmp_path / "data", seed) as last:
        last.known = lives.known
        await last.settle()
        last.check()
    known = lives.known
    repeated = sum(
        len(told) - len({name for _, name in told}) for told in known.told.values()
    )
    print(  # noqa: T201 - pytest shows it on failure and with -s
        f"{lives.kills.total()} kills {dict(lives.kills)}; {len(known.created)} uploads created,"
        f" {len(known.finished)} finished, {len(known.cancelled)} cancelled;"
        f" {sum(map(len, known.told.values()))} events came, {repeated} of them again"
    )
    assert known.created


@pytest.mark.parametrize("way", ["own", "hypercorn", "upstream"])
async def test_hooks_are_told_over_tls_whatever_carries_the_request(
    way: str, tmp_path: Path
) -> None:
    """A receiver that speaks https, and a front or a target that is not the usual one."""

    def answer(post: Posted) -> tuple[int, bytes]:
        upload = post.document["Event"]["Upload"]
        if post.kind == "pre-create" and upload["Size"] > 10:
            refusal = {"StatusCode": 413, "Body": "too large for us"}
            return 200, json.dumps(
                {"RejectUpload": True, "HTTPResponse": refusal}
            ).encode()
        return 200, b""

    trusted = tmp_path / "authority.pem"
    authority().cert_pem.write_to_path(str(trusted))
    receiver = HTTPReceiver(answer, server_context())
    async with receiver.running(), backend() as behind:
        words = {
            "hypercorn": ("--front", "hypercorn"),
            "upstream": ("--upstream", behind.url),
        }
        events = "pre-create,post-create,post-finish"
        service = Service(
            tmp_path / "data",
            (
                *(
                    "serve",
                    "--hooks-http",
                    receiver.url,
                    "--hooks-enabled-events",
                    events,
                ),
                *("--hooks-http-cacert", str(trusted), *words.get(way, ())),
            ),
        )
        try:
            await trio.to_thread.run_sync(service.start)
            wanted = [("prefer", "resume")]
            replies = []
            for content in (bytes(100), b"content"):
                async with await trio.open_tcp_stream(*service.address) as stream:
                    client = Client(stream)
                    replies.append(
                        await client.request("POST", "/files/", wanted, content)
                    )
            refused, taken = replies
            assert (refused.status, refused.body) == (413, b"too large for us")
            assert taken.status in (200, 201)
            await receiver.until(lambda: "post-finish" in receiver.kinds)
            assert receiver.kinds == [
                "pre-create",
                "pre-create",
                "post-create",
                "post-finish",
            ]
            sizes = {
                post.document["Event"]["Upload"]["Size"] for post in receiver.posts[1:]
            }
            assert sizes == {7}
            assert len(behind.seen) == (way == "upstream")
            await trio.to_thread.run_sync(service.stop)
        finally:
            service.close()


async def hooks_command(data_dir: Path, *words: str) -> tuple[int, str]:
    """Run ``trioresume hooks``; return its exit code and its output."""
    command = ["trioresume", "hooks", *words, "--data-dir", str(data_dir)]
    call = partial(run, command, environment=environment_of(), timeout=60)
    done = await trio.to_thread.run_sync(call)
    assert not done.returncode or done.stderr.startswith("Error: "), done.stderr
    return done.returncode, done.stdout


async def listed(data_dir: Path) -> list[dict[str, Any]]:
    code, output = await hooks_command(data_dir, "ls", "--json")
    assert code == 0
    return [json.loads(line) for line in output.splitlines()]


@pytest.mark.parametrize("is_running", [True, False])
async def test_keeper_lists_repeats_and_drops_events(
    tmp_path: Path, is_running: bool
) -> None:
    """Beside a running service, and on a directory that none has open."""
    receiver = HTTPReceiver(lambda _: (500, b""))
    data_dir = tmp_path / "data"
    async with receiver.running():
        enabled = ("--hooks-enabled-events", "post-create,post-finish")
        arguments = ("serve", "--hooks-http", receiver.url, *enabled)
        service = Service(data_dir, (*arguments, "--hooks-give-up-after", "0s"))
        try:
            await trio.to_thread.run_sync(service.start)
            for _ in range(2):
                async with await trio.open_tcp_stream(*service.address) as stream:
                    put = await Client(stream).request(
                        "POST", "/files/", (), b"content"
                    )
                    assert put.status == 201
            await until(lambda: len(service.rows("SELECT * FROM dead_events")) == 4)
            if not is_running:
                await trio.to_thread.run_sync(service.stop)
            events = await listed(data_dir)
            assert [event["kind"] for event in events].count("post-finish") == 2
            errors = {event["error"] for event in events}
            assert errors == {"the receiver answers 500"}
            assert all(event["dead"] for event in events)
            numbers = [str(event["number"]) for event in events]
            code, output = await hooks_command(data_dir, "ls")
            assert code == 0
            assert output.count("dead") == 4
            code, output = await hooks_command(data_dir, "drop", numbers[0])
            assert (code, output) == (0, "Dropped: 1 events.\n")
            code, output = await hooks_command(data_dir, "drop", numbers[0], "999999")
            assert (code, output) == (1, "Dropped: 0 events.\n")
            receiver.answer = lambda _: (200, b"")
            receiver.posts.clear()
            code, output = await hooks_command(data_dir, "retry", "--all")
            assert (code, output) == (0, "To be sent again: 3 events.\n")
            if not is_running:
                assert [event["dead"] for event in await listed(data_dir)] == [
                    False
                ] * 3
                await trio.to_thread.run_sync(service.start)
            await receiver.until(lambda: len(receiver.posts) >= 3)
            await until(lambda: not service.rows("SELECT * FROM events"))
            assert await listed(data_dir) == []
            await trio.to_thread.run_sync(service.stop)
        finally:
            service.close()


@pytest.mark.parametrize(
    "words",
    [
        ["--hooks-http", "http://127.0.0.1:1/", "--hooks-dir", "."],
        ["--hooks-http", "ftp://x/"],
        ["--hooks-http", "http://127.0.0.1:1/", "--hooks-enabled-events", "post-x"],
        ["--hooks-http", "http://127.0.0.1:1/", "--hooks-http-forward-headers", "Host"],
        ["--hooks-http-secret-file", "pyproject.toml"],
        [
            "--hooks-http",
            "http://127.0.0.1:1/",
            "--hooks-http-secret-file",
            "README.md",
        ],
    ],
)
def test_options_that_make_no_sense_are_refused(
    words: list[str], tmp_path: Path
) -> None:
    """Before anything is opened."""
    command = ["trioresume", "serve", "--data-dir", str(tmp_path / "data"), *words]
    done = run(command, environment=environment_of(), timeout=60)
    assert done.returncode == 2, done.stderr
    assert "Error: " in done.stderr
    assert not (tmp_path / "data").exists()
