"""Random walks: clients of three processes that share a store, whose processes die and stop.

Whatever the order: no announced offset is taken back, the content is what its client sent, and
its target is called at most once.
"""

from __future__ import annotations

import random
from collections import Counter

import pytest
import trio

from tests.server.harness import Client, Reply
from tests.server.shared.services import Shared, id_of, shared_services
from tests.server.shared.walk import Upload, Walk
from trioresume import Request, Response
from trioresume.protocol.operation import OperationState
from trioresume.server.serving import Tuning

UPLOADS = 4


async def disturb(
    draw: random.Random, shared: Shared, alive: list[int], fault: str
) -> None:
    """Stop or kill a process now and then, or have it miss notices."""
    while True:
        await trio.sleep(draw.random() / 20)
        at = draw.choice(alive)
        store = shared.stores[at]
        if draw.random() < 0.2:
            store.miss()
        elif fault == "kill" and len(alive) > 1:
            alive.remove(at)
            shared.kill(at)
        elif fault == "stop":
            store.is_stopped = True
            await trio.sleep(draw.random() / 5)
            store.is_stopped = False


@pytest.mark.parametrize("fault", ["none", "stop", "kill"])
@pytest.mark.parametrize("seed", range(3))
async def test_no_upload_is_lost_or_processed_twice(seed: int, fault: str) -> None:
    """Three processes, four clients, each request to any of the processes."""
    draw = random.Random(seed)
    calls: Counter[bytes] = Counter()

    async def target(request: Request) -> Response:
        body = await request.body.read()
        calls[body] += 1
        await trio.sleep(draw.random() / 100)
        return Response(200, {}, b"%d" % calls[body])

    # An owner that missed a claim does not answer it.
    timeout = 0.05 if fault == "stop" else 1.0
    async with shared_services(
        target,
        processes=3,
        takeover_timeout=timeout,
        tuning=Tuning(ask_timeout=timeout),
    ) as shared:
        alive = [0, 1, 2]

        async def connect() -> Client:
            return shared.connect(draw.choice(alive))

        def is_dying(reply: Reply) -> bool:
            # Its store does nothing any more, and its connections are about to be closed.
            return reply.status == 500 and len(alive) < 3

        walk = Walk(draw, connect, is_dying)
        uploads = [Upload(walk, draw.randbytes(walk.length)) for _ in range(UPLOADS)]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(disturb, draw, shared, alive, fault)
            async with trio.open_nursery() as clients:
                for upload in uploads:
                    clients.start_soon(upload.run)
            nursery.cancel_scope.cancel()
        for upload in uploads:
            times = calls[upload.body]
            record = shared.memory.store.operation(id_of(upload.location))
            assert record is not None
            if upload.outcome is not None:
                is_known = upload.outcome.code != "indeterminate"
                assert is_known or fault != "none"
                assert upload.outcome.body == b"1" if is_known else times <= 1
            else:
                assert upload.cancelled
                assert times <= 1
                assert record.state in (OperationState.GONE, OperationState.ABANDONED)
        assert set(calls) <= {upload.body for upload in uploads}
