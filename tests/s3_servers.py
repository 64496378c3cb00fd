"""S3-compatible object stores for the tests: real servers, each a process of its own.

``python -m tests.s3_servers`` starts versitygw with a bucket, and says how to use it.

versitygw is a Go module: ``go install github.com/versity/versitygw/cmd/versitygw@v1.8.0``. Its
POSIX backend keeps objects as files and checks conditional puts under a lock. SeaweedFS (the
program ``weed``) is distributed, and keeps objects in volumes. What is not installed is skipped.

TRIORESUME_S3_SERVER=weed has the tests of ``tests/store`` use SeaweedFS. Its master, volume and
filer have their usual ports then, so there can be only one: give pytest ``-n0``.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import boto3
import botocore.exceptions
import pytest

__all__ = ["KINDS", "S3Server", "find", "running", "start"]

ACCESS_KEY, SECRET_KEY = "tests", "tests-secret"
REGION = "us-east-1"
KINDS = ("versitygw", "weed")
_PATIENCE = 30.0


@dataclass(frozen=True)
class S3Server:
    """A server that runs, and its bucket."""

    kind: str
    port: int
    bucket: str = "uploads"

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def url(
        self, prefix: str = "", *, endpoint: str | None = None, more: str = ""
    ) -> str:
        """The value of ``--objects``."""
        return (
            f"s3://{self.bucket}/{prefix}?endpoint={endpoint or self.endpoint}"
            f"&region={REGION}{more}"
        )

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
            "AWS_REGION": REGION,
            "AWS_EC2_METADATA_DISABLED": "true",
        }


def find(kind: str) -> str | None:
    """Where the program is: on the path, or where ``go install`` puts it."""
    found = os.environ.get(f"TRIORESUME_{kind.upper()}") or shutil.which(kind)
    if found is not None:
        return found
    path = Path(os.environ.get("GOPATH") or Path.home() / "go") / "bin" / kind
    return str(path) if path.is_file() else None


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def start(kind: str, directory: Path) -> tuple[S3Server, subprocess.Popen[bytes]]:
    """Start a server that keeps everything in *directory*; it answers on return.

    A directory that has been used is served as it is, so this is also a restart.
    """
    program = find(kind)
    if program is None:
        pytest.skip(f"{kind} is not installed")
    directory.mkdir(parents=True, exist_ok=True)
    port = _free_port()
    return _start(kind, program, directory, port)


def restart(server: S3Server, directory: Path) -> subprocess.Popen[bytes]:
    """Start *server* again, on the same port."""
    program = find(server.kind)
    assert program is not None
    return _start(server.kind, program, directory, server.port)[1]


def _start(
    kind: str, program: str, directory: Path, port: int
) -> tuple[S3Server, subprocess.Popen[bytes]]:
    server = S3Server(kind, port)
    environment = os.environ | server.environment
    if kind == "versitygw":
        root = directory / "objects"
        (root / server.bucket).mkdir(parents=True, exist_ok=True)
        command = [program, "--port", f"127.0.0.1:{port}", "--keep-alive", "--quiet"]
        command += ["--access", ACCESS_KEY, "--secret", SECRET_KEY]
        command += ["posix", str(root)]
    else:
        command = [program, "mini", f"-dir={directory}", "-ip=127.0.0.1"]
        command += [f"-s3.port={port}", f"-bucket={server.bucket}"]
        command += ["-webdav=false", "-admin.ui=false"]
    with (directory / "log").open("ab") as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
    try:
        _wait_until_it_listens(process, port)
        if kind != "versitygw":
            _wait_for_the_bucket(server)
    except BaseException:
        stop(process)
        raise
    return server, process


def _wait_until_it_listens(process: subprocess.Popen[bytes], port: int) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("the object store did not start") from None
            time.sleep(0.02)


def _wait_for_the_bucket(server: S3Server) -> None:
    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        region_name=REGION,
        aws_access_key_id=ACCESS_KEY,
        aws_secret_access_key=SECRET_KEY,
    )
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            client.put_object(Bucket=server.bucket, Key="first", Body=b"x")
            client.delete_object(Bucket=server.bucket, Key="first")
            return
        except botocore.exceptions.ClientError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.1)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End the server, at once."""
    process.kill()
    process.wait()


@contextmanager
def running(kind: str, directory: Path) -> Iterator[S3Server]:
    """A server for the block."""
    server, process = start(kind, directory)
    try:
        yield server
    finally:
        stop(process)


def main() -> None:
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with (
        tempfile.TemporaryDirectory(prefix="trioresume-s3-") as directory,
        running(
            sys.argv[1] if len(sys.argv) > 1 else "versitygw", Path(directory)
        ) as server,
    ):
        for name, value in server.environment.items():
            sys.stdout.write(f"export {name}={value}\n")
        sys.stdout.write(f"# --objects '{server.url()}'\n")
        sys.stdout.flush()
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
