"""What the client does when each call of a connection fails, waits, or is cancelled.

See :mod:`tests.client.held`.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import trio
import trio.testing

from tests.client.held import HeldConnector
from tests.client.http2_gateway import carrier, over_each_carrier
from tests.client.models import RufhModel, TusModel
from tests.client.peer import TARGET, Model, Peer, Served, modelled
from tests.client.test_client import client, pattern
from trioresume.client import Client

pytest_generate_tests = over_each_carrier
__all__ = ["carrier"]

Clock = trio.testing.MockClock

DATA = pattern(200_000)
MODELS: dict[str, Callable[[], Model | TusModel | RufhModel]] = {
    "seed": Model,
    "rufh": RufhModel,
    "tus": lambda: TusModel(results=True),
}
DIALECT = pytest.mark.parametrize("dialect", MODELS)


def held_client(connector: HeldConnector, dialect: str) -> Client:
    return client(connector, protocol=dialect)  # type: ignore[arg-type]


class _Fails(HeldConnector):
    """Fails one call, the *number*-th; ``failed`` is its name."""

    def __init__(self, peer: Peer, number: int) -> None:
        super().__init__(peer)
        self._number = number
        self.failed = ""

    async def meet(self, call: str, data: bytes) -> None:
        await super().meet(call, data)
        if call != "close" and len(self.calls) == self._number:
            self.failed = call
            if call == "connect":
                raise ConnectionRefusedError("as told")
            raise trio.BrokenResourceError("as told")


@DIALECT
async def test_any_call_may_fail_once(dialect: str, autojump_clock: Clock) -> None:
    """All of it arrives, once; and what was received is not sent again for nothing."""
    failed: set[str] = set()
    number = 0
    while "" not in failed:  # until a run had no call to fail any more
        number += 1
        model = MODELS[dialect]()
        async with modelled(model) as peer:
            connector = _Fails(peer, number)
            async with held_client(connector, dialect) as c:
                response = await c.request("POST", TARGET, body=DATA)
        assert response.status in (200, 201)
        assert model.processed == [DATA]
        assert connector.calls.count("close") >= len(connector.sent)
        failed.add(connector.failed)
        number += number // 10  # the first ones are all different
    assert failed == {"connect", "send", "receive", ""}


@DIALECT
async def test_run_that_is_cancelled_in_any_call_leaves_nothing_open(
    dialect: str, autojump_clock: Clock
) -> None:
    """And the upload goes on from there, by whoever knows its address."""
    for call in ("connect", "send", "receive"):
        for count in range(1, 6):
            model = MODELS[dialect]()
            async with modelled(model) as peer:
                connector = HeldConnector(peer)
                seen = 0

                def is_last(data: bytes, count: int = count) -> bool:
                    nonlocal seen
                    seen += 1
                    return seen == count

                held = connector.hold(call, is_last)
                async with trio.open_nursery() as nursery:

                    async def run(connector: HeldConnector = connector) -> None:
                        async with held_client(connector, dialect) as c:
                            await c.request("POST", TARGET, body=DATA)
                            nursery.cancel_scope.cancel()

                    nursery.start_soon(run)
                    await held.reached()
                    nursery.cancel_scope.cancel()
                opened = len(connector.sent)
                assert connector.calls.count("close") >= opened
                await trio.testing.wait_all_tasks_blocked()
                for stream in peer.clients:
                    with pytest.raises(trio.ClosedResourceError):
                        await stream.send_all(b"x")


async def test_answer_is_not_believed_before_it_is_whole(
    autojump_clock: Clock,
) -> None:
    """The run waits as long as the response's bytes do."""
    model: Served = Model(answer=lambda body: b"a" * 100_000)
    async with modelled(model) as peer:
        connector = HeldConnector(peer)
        receiving = connector.hold("receive", lambda data: data.endswith(b"a" * 100))
        results: list[bytes] = []

        async def run() -> None:
            async with held_client(connector, "seed") as c:
                results.append((await c.request("POST", TARGET, body=b"hello")).body)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await receiving.reached()
            await trio.testing.wait_all_tasks_blocked()
            assert results == []
            receiving.fail(trio.BrokenResourceError("cut"))
        assert results == [b"a" * 100_000]


async def test_content_is_taken_from_its_source_as_fast_as_it_is_sent(
    autojump_clock: Clock,
) -> None:
    """While a send waits, no more than a window of the source is asked for."""
    taken = 0

    async def source() -> object:
        nonlocal taken
        for _ in range(10_000):
            taken += 1
            yield bytes(10_000)

    model = Model()
    async with modelled(model) as peer:
        connector = HeldConnector(peer)
        sending = connector.hold("send", lambda data: len(data) > 5000)
        async with trio.open_nursery() as nursery:

            async def run() -> None:
                async with held_client(connector, "seed") as c:
                    await c.request("POST", TARGET, body=source())  # type: ignore[arg-type]

            nursery.start_soon(run)
            await sending.reached()
            await trio.sleep(5)
            before = taken
            await trio.sleep(20)
            assert taken == before < 2000
            nursery.cancel_scope.cancel()
