"""A tus client for tests: requests by hand, and what their answers tell."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping

from tests.server.harness import CARRIER, Client, MemoryService, Reply
from trioresume.protocol.operation import OperationState
from trioresume.store.port import OperationRecord

BODY = b"The quick brown fox jumps over the lazy dog." * 5
MARK = {"Tus-Resumable": "1.0.0"}
OCTETS = {**MARK, "Content-Type": "application/offset+octet-stream"}


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def sha1(data: bytes) -> dict[str, str]:
    return {"Upload-Checksum": f"sha1 {b64(hashlib.sha1(data).digest())}"}


def place(reply: Reply) -> str:
    """The path of the upload; told as an absolute URI, which some clients need (R4)."""
    location = reply["location"]
    root = f"{CARRIER.get().scheme}://test"
    assert location.startswith(f"{root}/operations/")
    return location.removeprefix(root)


async def create(
    client: Client,
    length: int | None = len(BODY),
    fields: Mapping[str, str] | None = None,
    target: str = "/files/",
) -> str:
    """Begin an upload; where it is."""
    stated = (
        {"Upload-Defer-Length": "1"}
        if length is None
        else {"Upload-Length": str(length)}
    )
    said = {**MARK, **stated, **(fields or {})}
    reply = await client.request("POST", target, said, b"")
    assert reply.status == 201, reply
    return place(reply)


async def append(
    client: Client,
    path: str,
    offset: int,
    data: bytes,
    fields: Mapping[str, str] | None = None,
) -> Reply:
    said = {**OCTETS, "Upload-Offset": str(offset), **(fields or {})}
    return await client.request("PATCH", path, said, data)


async def offset_of(client: Client, path: str) -> int:
    reply = await client.request("HEAD", path, MARK)
    assert reply.status == 200
    return int(reply["upload-offset"])


async def upload(
    client: Client, data: bytes, fields: Mapping[str, str] | None = None
) -> str:
    path = await create(client, len(data), fields)
    assert (await append(client, path, 0, data)).status == 204
    return path


def receiving(service: MemoryService) -> list[OperationRecord]:
    return service.store.operations_in([OperationState.RECEIVING], 10, None)


async def result(client: Client, path: str) -> bytes:
    """What the target answered, once it has (D8)."""
    message = path.removesuffix("content") + "message"
    reply = await client.request("GET", message, {"Prefer": "wait=5"})
    assert reply.status == 200, reply
    return reply.body
