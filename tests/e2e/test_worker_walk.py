"""A random walk over real worker processes, some of which are stopped or killed on the way.

The clients are those of tests/server/shared: no announced offset is taken back, the content
is what its client sent, and each upload becomes one file.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from tests.e2e.command import Service
from tests.e2e.worker_soak import workers_of
from tests.server.harness import Client, Reply
from tests.server.shared.walk import Upload, Walk

UPLOADS = 6
LENGTH = 200_000

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/stat").exists(), reason="the tests look for processes in /proc"
)


async def disturb(service: Service, draw: random.Random, fault: str) -> None:
    """Stop a worker now and then, for less time than it takes to lose what it owns; or kill it."""
    while True:
        await trio.sleep(0.2 + draw.random() / 2)
        worker = draw.choice(workers_of(service.pid) or [0])
        if not worker:
            continue
        if fault == "kill":
            os.kill(worker, signal.SIGKILL)
            await trio.sleep(3.0)
            continue
        os.kill(worker, signal.SIGSTOP)
        await trio.sleep(draw.random() / 4)
        os.kill(worker, signal.SIGCONT)


@pytest.mark.parametrize("fault", ["stop", "kill"])
async def test_workers_lose_no_upload_and_make_no_file_twice(
    tmp_path: Path, fault: str
) -> None:
    """Each request goes to the worker that the system gives it."""
    draw = random.Random(fault)
    service = Service(tmp_path / "data", ("serve", "--workers", "2"))
    await trio.to_thread.run_sync(service.start)
    streams: list[trio.SocketStream] = []

    async def connect() -> Client:
        stream = await trio.open_tcp_stream(*service.address)
        streams.append(stream)
        return Client(stream)

    def is_dying(reply: Reply) -> bool:
        return reply.status == 503

    try:
        walk = Walk(
            draw,
            connect,
            is_dying,
            target="/files/",
            length=LENGTH,
            steps=15,
            done=201,
            patience=60.0,
        )
        uploads = [Upload(walk, draw.randbytes(LENGTH)) for _ in range(UPLOADS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb, service, draw, fault)
            async with trio.open_nursery() as clients:
                for upload in uploads:
                    clients.start_soon(upload.run)
            nursery.cancel_scope.cancel()
        ended = [upload for upload in uploads if upload.outcome is not None]
        for upload in ended:
            assert upload.outcome is not None
            reply = await (await connect()).request("GET", upload.outcome["location"])
            assert reply.body == upload.body
        for stream in streams:
            await trio.aclose_forcefully(stream)
        await trio.to_thread.run_sync(service.stop)
    finally:
        service.close()
    with closing(sqlite3.connect(service.data_dir / "catalog.sqlite3")) as catalog:
        ((files,),) = catalog.execute("SELECT count(*) FROM files").fetchall()
    cancelled = sum(upload.cancelled for upload in uploads)
    assert len(ended) <= files <= len(ended) + cancelled
    service.check_log()
