"""Counts within the service's process: calls of functions, and bytes in memory."""

from __future__ import annotations

import contextlib
import gc
import os
import ssl
import sys
import threading
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType

import trio

import trioresume
from bench.gate.client import Client
from bench.server import make_certificate

__all__ = ["Amounts", "count"]

PIECE_SIZE = 2 << 20
"""Bytes of a piece of the receive memory. The default are eight pieces."""

LEFT_ROUNDS = 3
RESIDENT = {
    "idle_over_tls": "per idle TLS",
    "idle_over_http2": "per idle HTTP/2",
    "stalled_over_http2": "per stalled stream",
}

_CALLS = frozenset({"call", "c_call"})


@dataclass(frozen=True, slots=True)
class Amounts:
    """How much is done for the counts. The bounds are for these."""

    warm_up: int = 20
    """Requests before the counted ones."""
    times: int = 100
    """Counted requests of each kind."""
    large: int = 16
    """MiB of a large upload."""
    held: int = 200
    """Connections that are open at once."""
    settle: float = 1.3
    """Seconds: longer than the service puts off its work, such as commits and collection."""


USUAL = Amounts()


class _Calls:
    """Counts calls in this thread and in the threads that begin within :meth:`counting`."""

    def __init__(self) -> None:
        # One list per thread, because an increment of a shared number could be lost.
        self._counts: list[list[int]] = []
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def counting(self) -> Iterator[None]:
        threading.setprofile(self._begin)
        sys.setprofile(self._profiler())
        try:
            yield
        finally:
            sys.setprofile(None)
            threading.setprofile(None)

    def _begin(self, frame: FrameType, event: str, arg: object) -> None:
        sys.setprofile(self._profiler())

    def _profiler(self) -> Callable[[FrameType, str, object], None]:
        mine = [0]
        with self._lock:
            self._counts.append(mine)

        def profile(frame: FrameType, event: str, arg: object) -> None:
            if event in _CALLS:
                mine[0] += 1

        return profile

    @property
    def total(self) -> int:
        return sum(count for (count,) in self._counts)


def count(directory: Path, amounts: Amounts = USUAL) -> dict[str, float]:
    """Return all of this module's figures; data goes to *directory*."""
    figures: dict[str, float] = {}
    calls = _Calls()
    with calls.counting():
        trio.run(_run, directory / "calls", _count_calls, amounts, calls, figures)
    # Resident memory is counted: of the receive memory, which all share, one piece is enough.
    held = partial(_run, receive_memory=PIECE_SIZE)
    trio.run(held, directory / "held", _count_held, amounts, figures)
    return figures


async def _run(
    directory: Path,
    part: Callable[..., object],
    *args: object,
    receive_memory: int = 8 * PIECE_SIZE,
) -> None:
    made = make_certificate(directory.with_name(f"{directory.name}-tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(made.certfile, made.keyfile)
    context.set_alpn_protocols(["h2", "http/1.1"])
    config = trioresume.Config(
        bind=["http://127.0.0.1:0", "127.0.0.1:0"],
        data_dir=directory,
        ssl=context,
        receive_memory=receive_memory,
    )
    async with trio.open_nursery() as nursery:
        server = await nursery.start(trioresume.serve, trioresume.FileService(), config)
        host, _, port = server.urls[0].removeprefix("http://").rpartition(":")
        tls_port = int(server.urls[1].rpartition(":")[2])
        with Client((host, int(port)), tls_port) as client:
            await part(client, *args)  # type: ignore[misc]
            nursery.cancel_scope.cancel()


async def _do(client: Client, verb: str, times: int) -> None:
    await trio.to_thread.run_sync(client.do, verb, times)


async def _count_calls(
    client: Client, amounts: Amounts, calls: _Calls, figures: dict[str, float]
) -> None:
    await _do(client, "begin", 1)
    for verb in ("small", "offset", "append"):
        await _do(client, verb, amounts.warm_up)
        before = calls.total
        await _do(client, verb, amounts.times)
        figures[f"calls per {verb}"] = (calls.total - before) / amounts.times
    await _do(client, "large", amounts.large)
    before = calls.total
    await _do(client, "large", amounts.large)
    figures["calls per MiB"] = (calls.total - before) / amounts.large
    await _do(client, "large_over_http2", amounts.large)
    before = calls.total
    await _do(client, "large_over_http2", amounts.large)
    figures["calls over HTTP/2 per MiB"] = (calls.total - before) / amounts.large


async def _count_held(
    client: Client, amounts: Amounts, figures: dict[str, float]
) -> None:
    await _do(client, "begin", 1)
    verbs = ("small", "offset", "append")
    for verb in verbs:
        await _do(client, verb, amounts.warm_up)
    # Take the smallest of several rounds: a leak shows in each, but a cache that happens to
    # fill shows in only one.
    left: list[int] = []
    for _ in range(LEFT_ROUNDS):
        before = await _blocks(amounts.settle)
        for verb in verbs:
            await _do(client, verb, amounts.times)
        left.append(await _blocks(amounts.settle) - before)
    figures["blocks left per request"] = min(left) / (amounts.times * len(verbs))
    for verb in ("idle", "stalled"):
        await _do(client, verb, amounts.warm_up)
        await trio.sleep(amounts.settle)
        gc.collect()
        tracemalloc.start()
        try:
            await _do(client, verb, amounts.held)
            await trio.sleep(amounts.settle)
            gc.collect()
            figures[f"bytes per {verb}"] = (
                tracemalloc.get_traced_memory()[0] / amounts.held
            )
        finally:
            tracemalloc.stop()

    # OpenSSL's memory is not Python's: look at the process.
    for verb, name in RESIDENT.items():
        await _do(client, verb, amounts.warm_up)
        before = resident()
        await _do(client, verb, amounts.held)
        await trio.sleep(amounts.settle)
        figures[f"resident {name}"] = (resident() - before) / amounts.held


def resident() -> int:
    """Return the bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def _blocks(settle: float) -> int:
    await trio.sleep(settle)
    gc.collect()
    return sys.getallocatedblocks()
