"""A client of the second listener, over its Unix socket."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import trio

from tests.server.harness import Client, Reply

__all__ = ["ask", "metrics", "sample"]


async def ask(
    path: Path,
    target: str,
    method: str = "GET",
    fields: Mapping[str, str] | None = None,
) -> Reply:
    """The answer to one request on a connection of its own."""
    stream = await trio.open_unix_socket(str(path))
    async with stream:
        with trio.fail_after(20):
            return await Client(stream).request(method, target, fields or {})


async def metrics(path: Path) -> dict[str, float]:
    """Every sample that the listener shows now, by its name and labels."""
    reply = await ask(path, "/metrics")
    assert reply.status == 200
    return parse(reply.body.decode())


def parse(text: str) -> dict[str, float]:
    """The samples of Prometheus's text format."""
    lines = (line for line in text.splitlines() if line and not line.startswith("#"))
    return {name: float(value) for name, value in (x.rsplit(" ", 1) for x in lines)}


def sample(metrics: dict[str, float], name: str, **labels: str) -> float:
    """The sum of the samples of *name* that have these *labels*; 0 if there are none."""
    wanted = [f'{label}="{value}"' for label, value in labels.items()]
    return sum(
        value
        for key, value in metrics.items()
        if key.partition("{")[0] == f"trioresume_{name}"
        and all(part in key for part in wanted)
    )
