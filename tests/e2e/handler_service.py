"""A service with a handler of its own, to be killed: ``python -m tests.e2e.handler_service``.

The handler takes its time and keeps a journal outside the store: a line when a call
starts and one when it ends, each in a single ``write``. The journal is the witness for
how often a request was really processed (R31).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import signal
from pathlib import Path

import trio

import trioresume


def make_handler(
    journal: Path, delay: float, *, hangs: bool = False
) -> trioresume.Handler:
    """A handler that answers with its content's SHA-256 after *delay* seconds, or never."""

    def note(what: str, name: str) -> None:
        fd = os.open(journal, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        try:
            os.write(fd, f"{what} {name}\n".encode())
        finally:
            os.close(fd)

    async def handle(request: trioresume.Request) -> trioresume.Response:
        name = request.path.strip("/")
        note("start", name)
        digest = hashlib.sha256()
        async for block in request.body:
            digest.update(block)
        await trio.sleep(delay)
        if hangs:
            await trio.sleep_forever()
        note("end", name)
        return trioresume.Response(200, body=digest.hexdigest().encode())

    return handle


async def run(config: trioresume.Config, handler: trioresume.Handler) -> None:
    """Serve, and say so as ``trioresume serve`` does."""
    with trio.open_signal_receiver(signal.SIGTERM) as signals:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(trioresume.serve, handler, config)
            for url in server.urls:
                print(f"You can now upload files to: {url}/", flush=True)  # noqa: T201
            async for _ in signals:
                server.shutdown()
                break


def main() -> None:
    """Read the options and serve until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--bind", required=True)
    parser.add_argument("--data-dir", required=True)
    parser.add_argument("--journal", type=Path, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--hang-if", type=Path, help="never answer if this file exists")
    parser.add_argument("--chunk-size", type=int, default=4 * 1024 * 1024)
    parser.add_argument("--acknowledge-interval", type=float, default=0.05)
    parser.add_argument("--idempotent", action="store_true")
    options = parser.parse_args()
    handler = make_handler(
        options.journal,
        options.delay,
        hangs=options.hang_if is not None and options.hang_if.exists(),
    )
    if options.idempotent:
        handler = trioresume.idempotent(handler)
    config = trioresume.Config(
        bind=[options.bind],
        data_dir=options.data_dir,
        chunk_size=options.chunk_size,
        acknowledge_interval=options.acknowledge_interval,
    )
    trio.run(run, config, handler)


if __name__ == "__main__":
    main()
