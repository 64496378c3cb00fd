"""An ASGI application that writes the body of a PUT to a file and serves the file.

It writes in the event loop. The servers pass on the body in pieces of 64 KiB or less, and
a thread for each piece costs more than the write into the page cache. The application uses
neither asyncio nor trio, so it runs on every server.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

DIRECTORY = Path(os.environ["BENCH_DATA_DIR"])
BLOCK = 1 << 20

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


async def app(scope: Message, receive: Receive, send: Send) -> None:
    """Answer PUT and GET of a name; other methods get a 405."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    file = DIRECTORY / scope["path"].rpartition("/")[2]
    if scope["method"] == "PUT":
        complete = await store(file, receive)
        await answer(send, 201 if complete else 400)
    elif scope["method"] == "GET" and file.is_file():
        await serve(file, send)
    else:
        await answer(send, 404 if scope["method"] == "GET" else 405)


async def store(path: Path, receive: Receive) -> bool:
    """Write the body to *path*; return whether all of it arrived."""
    with path.open("wb", buffering=0) as file:
        while True:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            file.write(message.get("body", b""))
            if not message.get("more_body", False):
                return True


async def serve(path: Path, send: Send) -> None:
    """Send the content of *path*, in blocks."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        await start(send, 200, size)
        while block := file.read(BLOCK):
            await send({"type": "http.response.body", "body": block, "more_body": True})
        await send({"type": "http.response.body", "body": b""})


async def answer(send: Send, status: int) -> None:
    """Send a response without content."""
    await start(send, status, 0)
    await send({"type": "http.response.body", "body": b""})


async def start(send: Send, status: int, length: int) -> None:
    headers = [(b"content-length", str(length).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
