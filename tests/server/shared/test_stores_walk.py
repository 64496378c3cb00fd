"""The random walk over every kind of store that several processes share."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from tests.server.harness import Client, Reply
from tests.server.shared.services import running_services
from tests.server.shared.walk import Upload, Walk
from tests.store.conftest import postgres_server, postgres_url  # noqa: F401
from tests.store.postgres.stands import PostgresSharedStand
from tests.store.remote.stands import KeeperStand
from tests.store.shared import TAKEOVER_TIMEOUT, SharedStand
from trioresume import Request, Response
from trioresume.server.serving import Tuning

UPLOADS = 3


@pytest.fixture(params=["keeper", "postgres"])
def stand(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[SharedStand]:
    """Workers before a keeper, and nodes of a cluster. Their calls are the real ones."""
    made: SharedStand
    if request.param == "keeper":
        made = KeeperStand(tmp_path)
    else:
        made = PostgresSharedStand(request.getfixturevalue("postgres_url"))
    yield made
    made.close()


@pytest.mark.parametrize("fault", ["none", "stop", "kill"])
async def test_no_store_loses_an_upload_or_has_it_processed_twice(
    stand: SharedStand, fault: str
) -> None:
    """Three processes and three clients, whose requests go to any process that lives."""
    draw = random.Random(fault)
    calls: Counter[bytes] = Counter()
    alive = [0, 1, 2]

    async def target(request: Request) -> Response:
        body = await request.body.read()
        calls[body] += 1
        await trio.sleep(draw.random() / 100)
        return Response(200, {}, b"%d" % calls[body])

    stores = [await trio.to_thread.run_sync(stand.join) for _ in alive]
    tuning = Tuning(ask_timeout=TAKEOVER_TIMEOUT)
    async with running_services([target] * 3, stores, tuning=tuning) as (
        services,
        scopes,
    ):

        async def disturb() -> None:
            while fault != "none":
                await trio.sleep(draw.random() / 5)
                at = draw.choice(alive)
                if fault == "stop":
                    await trio.to_thread.run_sync(stand.stop, stores[at])
                    await trio.sleep(2 * draw.random() * TAKEOVER_TIMEOUT)
                    await trio.to_thread.run_sync(stand.go_on, stores[at])
                elif len(alive) > 1:
                    alive.remove(at)
                    await trio.to_thread.run_sync(stand.kill, stores[at])
                    scopes[at].cancel()

        async def connect() -> Client:
            return services[draw.choice(alive)].connect()

        def is_dying(reply: Reply) -> bool:
            # The store may have ended a process that was stopped or slow, but not its tasks.
            return reply.status in (500, 503)

        walk = Walk(draw, connect, is_dying, length=160, steps=12, patience=20.0)
        uploads = [Upload(walk, draw.randbytes(walk.length)) for _ in range(UPLOADS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb)
            async with trio.open_nursery() as clients:
                for upload in uploads:
                    clients.start_soon(upload.run)
            nursery.cancel_scope.cancel()
    for upload in uploads:
        assert calls[upload.body] <= 1
        if upload.outcome is None:
            assert upload.cancelled
        elif upload.outcome.code != "indeterminate":
            assert calls[upload.body] == 1
        else:
            assert fault != "none"
    assert set(calls) <= {upload.body for upload in uploads}
