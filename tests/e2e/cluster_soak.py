"""A soak of a cluster: nodes are killed and stopped, the database restarts, connections are cut.

``python -m tests.e2e.cluster_soak --seconds 60 --nodes 3 --clients 8`` runs it by itself. Clients upload over
tus, each piece to a node by chance. After each fault, and at the end: no offset is lower than one
that was announced, the content is right, and after collection the bucket has what the catalog names.
"""

from __future__ import annotations

import argparse
import hashlib
import http.client
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from tests import postgres
from tests.e2e.command import Service
from tests.s3_servers import ACCESS_KEY, SECRET_KEY, S3Server, running
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.collection import Sweep
from trioresume.store.objects.s3 import S3Bucket
from trioresume.store.port import Collected
from trioresume.store.postgres.catalog import PostgresCatalog

TUS = {"Tus-Resumable": "1.0.0"}
REQUEST_TIMEOUT = 30.0


class Lost(AssertionError):
    """Something that was announced is not there."""


class Soak:
    """Nodes, clients and faults for some seconds."""

    def __init__(
        self,
        database: postgres.PostgresServer,
        objects: S3Server,
        path: Path,
        *,
        nodes: int,
        seed: int,
    ) -> None:
        self.database, self.objects = database, objects
        self._objects_dir = path / "objects"
        self.draw = random.Random(seed)
        self.counts: Counter[str] = Counter()
        self.failures: list[str] = []
        self._ends = threading.Event()
        self._lock = threading.Lock()
        arguments = [
            *("serve", "--catalog", database.url),
            *("--objects", objects.url("soak")),
        ]
        self.nodes = [
            Service(path / f"node-{at}", arguments, environment=objects.environment)
            for at in range(nodes)
        ]
        for node in self.nodes:
            node.start()

    def run(self, seconds: float, clients: int) -> None:
        """Upload and break things; return once every upload has ended."""
        threads = [
            threading.Thread(target=self._client, args=(at, self.draw.random()))
            for at in range(clients)
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline and not self.failures:
            time.sleep(self.draw.uniform(0.5, 2.0))
            self._break()
        self._ends.set()
        for thread in threads:
            thread.join(300)
            if thread.is_alive():
                self.failures.append("a client does not come to an end")

    def _break(self) -> None:
        kind = self.draw.choice(["kill", "kill", "stop", "restart", "crash", "cut"])
        self.counts[kind] += 1
        node = self.draw.choice(self.nodes)
        if kind == "kill":
            node.kill()
            node.start()
        elif kind == "stop":
            os.kill(node.pid, signal.SIGSTOP)
            time.sleep(self.draw.uniform(0.1, 4.0))
            os.kill(node.pid, signal.SIGCONT)
        elif kind == "cut":
            with psycopg.connect(self.database.url, autocommit=True) as connection:
                connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                    " WHERE application_name = 'trioresume'"
                )
        else:
            self.database.restart(crash=kind == "crash")

    # A client.

    def _client(self, at: int, seed: float) -> None:
        draw = random.Random(seed)
        try:
            while not self._ends.is_set():
                self._upload(draw)
        except Exception as exc:  # noqa: BLE001 - the soak reports it
            self.failures.append(f"client {at}: {type(exc).__name__}: {exc}")

    def _ask(
        self,
        draw: random.Random,
        method: str,
        path: str,
        fields: dict[str, str],
        body: bytes = b"",
    ) -> tuple[int, dict[str, str], bytes] | None:
        """Ask a node by chance; None if it cannot be reached, or has no time."""
        node = draw.choice(self.nodes)
        connection = http.client.HTTPConnection(*node.address, timeout=REQUEST_TIMEOUT)
        try:
            connection.request(method, path, body, {**TUS, **fields})
            answer = connection.getresponse()
            data = answer.read()
        except (OSError, http.client.HTTPException):
            return None
        finally:
            connection.close()
        fields = {name.lower(): value for name, value in answer.getheaders()}
        if answer.status in (409, 423, 429, 500, 503):
            # Superseded, busy, or cut off from the database for a moment.
            self.counts[str(answer.status)] += 1
            return None
        return answer.status, fields, data

    def _until(
        self, draw: random.Random, method: str, path: str, fields: dict[str, str]
    ) -> tuple[int, dict[str, str], bytes]:
        """Ask until somebody answers."""
        deadline = time.monotonic() + 120
        while (answer := self._ask(draw, method, path, fields)) is None:
            if time.monotonic() > deadline:
                raise Lost(f"{method} {path} has no answer")
            time.sleep(0.05)
        return answer

    def _upload(self, draw: random.Random) -> None:
        content = draw.randbytes(draw.choice([1000, 200_000, 9_000_000]))
        created = self._until(
            draw, "POST", "/files/", {"Upload-Length": str(len(content))}
        )
        if created[0] != 201:
            raise Lost(f"creation was answered {created[0]}")
        path = urlsplit(created[1]["location"]).path
        announced = 0
        while announced < len(content):
            status, fields, _ = self._until(draw, "HEAD", path, {})
            if status not in (200, 204):
                raise Lost(f"{path} was answered {status} at {announced}")
            offset = int(fields["upload-offset"])
            if offset < announced:
                raise Lost(f"{path}: {announced} was announced, {offset} is there")
            announced = offset
            if offset == len(content):
                break
            piece = content[offset : offset + draw.choice([100_000, 3_000_000])]
            answer = self._ask(
                draw,
                "PATCH",
                path,
                {
                    "Upload-Offset": str(offset),
                    "Content-Type": "application/offset+octet-stream",
                },
                piece,
            )
            if answer is not None and answer[0] in (200, 204):
                announced = int(answer[1].get("upload-offset", offset))
        status, _, data = self._until(draw, "GET", path, {})
        if (
            status != 200
            or hashlib.sha256(data).digest() != hashlib.sha256(content).digest()
        ):
            raise Lost(f"{path}: {status}, {len(data)} bytes of {len(content)}")
        status, _, _ = self._until(draw, "DELETE", path, {})
        if status not in (204, 404, 410):
            raise Lost(f"{path}: its deletion was answered {status}")
        with self._lock:
            self.counts["uploads"] += 1

    # The end.

    def wait_for_collection(self, seconds: float = 60) -> None:
        """After a while the bucket has what the catalog names, and nothing else."""
        self._sweep()
        deadline = time.monotonic() + seconds
        while (leaks := self._leaks()) and time.monotonic() < deadline:
            time.sleep(0.5)
        self.failures += leaks

    def _sweep(self) -> None:
        """Delete what killed nodes had put and never recorded, as a sweep in two hours does."""
        bucket = S3Bucket(
            parse_address(self.objects.url("soak")),
            options={
                "access_key_id": ACCESS_KEY,
                "secret_access_key": SECRET_KEY,
            },
        )
        catalog = PostgresCatalog(self.database.url)
        try:
            sweep = Sweep(catalog, bucket, now=lambda: time.time() + 7200)
            while sweep.advance(1000) != Collected():
                pass
        finally:
            catalog.close()

    def _leaks(self) -> list[str]:
        with psycopg.connect(self.database.url, autocommit=True) as connection:
            connection.execute("SET search_path = trioresume")

            def count(what: str) -> int:
                row = connection.execute(
                    f"SELECT count(*) FROM {what}".encode()
                ).fetchone()
                assert row is not None
                return int(row[0])

            found = {
                "condemned chunks": count("condemned"),
                "parts of tails to delete": count("dropped_parts"),
                "recipes that nothing names": count("recipes WHERE refs = 0"),
                "chunks that nothing names": count("chunks WHERE refs = 0"),
                "released contents": count("contents WHERE key IS NULL"),
                "tails": len(self._objects("tails")),
                "chunks beside those of the catalog": len(self._objects("chunks"))
                - count("chunks"),
            }
        return [f"{number} {what}" for what, number in found.items() if number]

    def _objects(self, kind: str) -> list[Path]:
        found = self._objects_dir.rglob(f"soak/{kind}/**/*")
        return [each for each in found if each.is_file()]

    def close(self) -> None:
        for node in self.nodes:
            node.close()


def soak(seconds: float, *, nodes: int = 3, clients: int = 6, seed: int = 1) -> Soak:
    """Run a soak of its own servers, and return what came of it."""
    with tempfile.TemporaryDirectory(prefix="trioresume-soak-") as directory:
        path = Path(directory)
        database = postgres.PostgresServer()
        try:
            (path / "objects").mkdir()
            with running("versitygw", path / "objects") as objects:
                run = Soak(database, objects, path, nodes=nodes, seed=seed)
                try:
                    run.run(seconds, clients)
                    run.wait_for_collection()
                finally:
                    run.close()
                for node in run.nodes:
                    log = node.log.read_text()
                    if "Traceback" in log:
                        run.failures.append(log[log.index("Traceback") :][:4000])
                return run
        finally:
            database.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--nodes", type=int, default=3)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)  # noqa: T201 - what the script is for
    run = soak(
        options.seconds,
        nodes=options.nodes,
        clients=options.clients,
        seed=options.seed,
    )
    print(dict(run.counts))  # noqa: T201
    print(*run.failures, sep="\n")  # noqa: T201
    sys.exit(1 if run.failures else 0)


if __name__ == "__main__":
    main()
