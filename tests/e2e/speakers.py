"""One client for each dialect: how it begins an upload, asks for it, and goes on with it.

All say the same things, each in its own words, so that what one began another can be
told to go on with. They are put together from the specifications and share nothing with
the package.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit

import trio

from tests.e2e.command import Service
from tests.server.harness import Client, Reply

__all__ = ["SPEAKERS", "Rufh", "Seed", "Speaker", "Tus", "Visitor"]


class Visitor:
    """Requests to *service*, each on a connection of its own."""

    def __init__(self, service: Service) -> None:
        self.service = service

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        stream = await trio.open_tcp_stream(*self.service.address)
        try:
            yield Client(stream)
        finally:
            await trio.aclose_forcefully(stream)

    def head(
        self, method: str, path: str, fields: Mapping[str, str], length: int
    ) -> bytes:
        """A request's head as a client on this machine sends it."""
        lines = [f"{method} {path} HTTP/1.1", f"Host: 127.0.0.1:{self.service.port}"]
        lines += [f"{name}: {value}" for name, value in fields.items()]
        if "Transfer-Encoding" not in fields and method in ("POST", "PATCH"):
            lines.append(f"Content-Length: {length}")
        return "\r\n".join([*lines, "", ""]).encode("ascii")

    async def ask(
        self,
        method: str,
        path: str,
        fields: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> Reply:
        async with self.connect() as client:
            await client.send(self.head(method, path, fields or {}, len(body)) + body)
            return await client.reply(method)


@dataclass(frozen=True)
class Patch:
    """A PATCH of an upload: its fields, and what stands before the content."""

    fields: dict[str, str]
    before: bytes = b""


class Speaker(ABC):
    """What a dialect says. *length* None: not known yet."""

    name: str
    marks: Mapping[str, str] = {}
    completing_status = 201
    """What the file service answers, unless the dialect has an answer of its own."""
    partial_status = 204
    head_status = 200

    def __str__(self) -> str:
        return self.name

    @abstractmethod
    def creation(self, length: int | None) -> dict[str, str]:
        """The fields of the first request, which is to carry all of the content."""

    @abstractmethod
    def patch(self, offset: int, size: int, length: int | None, *, last: bool) -> Patch:
        """A PATCH of *size* bytes of content at *offset*."""

    async def silent(
        self, visitor: Visitor, client: Client, length: int, sent: bytes
    ) -> str:
        """Begin an upload on *client* and fall silent after *sent*; where it is."""
        head = visitor.head("POST", "/files/", self.creation(length), length)
        await client.send(head)
        fields = (await client.interim()).fields
        place = fields.get("request-content-location") or fields.get("location")
        await client.send(sent)
        return urlsplit(place or "").path

    def is_complete(self, reply: Reply) -> bool:
        """What an answer about the content says of its end."""
        return reply["upload-complete"] == "?1"


class Seed(Speaker):
    """A. Wright's draft, with ``message/byterange``."""

    name = "seed"

    def creation(self, length: int | None) -> dict[str, str]:
        fields = {"Prefer": "resume", "Expect": "100-continue"}
        return fields if length is not None else {**fields, **CHUNKED}

    def patch(self, offset: int, size: int, length: int | None, *, last: bool) -> Patch:
        total = "*" if length is None else str(length)
        what = f"{offset}-{offset + size - 1}" if size else "*"
        line = f"Content-Range: bytes {what}/{total}\r\n\r\n"
        return Patch({"Content-Type": "message/byterange"}, line.encode())


class Tus(Speaker):
    """tus 1.0.0."""

    name = "tus"
    marks: Mapping[str, str] = {"Tus-Resumable": "1.0.0"}
    completing_status = 204

    def creation(self, length: int | None) -> dict[str, str]:
        deferred = {"Upload-Defer-Length": "1"}
        known = deferred if length is None else {"Upload-Length": str(length)}
        return {**self.marks, **known}

    def patch(self, offset: int, size: int, length: int | None, *, last: bool) -> Patch:
        fields = {"Content-Type": "application/offset+octet-stream"}
        fields["Upload-Offset"] = str(offset)
        if length is not None:
            fields["Upload-Length"] = str(length)
        return Patch({**self.marks, **fields})

    async def silent(
        self, visitor: Visitor, client: Client, length: int, sent: bytes
    ) -> str:
        created = await visitor.ask("POST", "/files/", self.creation(length))
        path = urlsplit(created["location"]).path
        patch = self.patch(0, length, length, last=True)
        await client.send(visitor.head("PATCH", path, patch.fields, length) + sent)
        return path

    def is_complete(self, reply: Reply) -> bool:
        return reply["upload-offset"] == reply.get("upload-length")


class Rufh(Speaker):
    """Resumable Uploads for HTTP in one interop version; None: without one."""

    def __init__(self, number: int | None) -> None:
        self.number = number
        self.name = "RUFH" if number is None else f"RUFH {number}"
        self.inverted = number == 3
        if number is not None:
            self.marks = {"Upload-Draft-Interop-Version": str(number)}
        if number is not None and number <= 6:
            self.partial_status = 201
        if number in (3, 4):
            self.head_status = 204

    def completeness(self, complete: bool) -> dict[str, str]:
        name = "Upload-Incomplete" if self.inverted else "Upload-Complete"
        return {name: "?1" if complete != self.inverted else "?0"}

    def creation(self, length: int | None) -> dict[str, str]:
        return {**self.marks, **self.completeness(length is not None)}

    def patch(self, offset: int, size: int, length: int | None, *, last: bool) -> Patch:
        fields = {**self.marks, **self.completeness(last)}
        fields["Content-Type"] = "application/partial-upload"
        return Patch({**fields, "Upload-Offset": str(offset)})

    async def silent(
        self, visitor: Visitor, client: Client, length: int, sent: bytes
    ) -> str:
        if self.number is not None:
            return await super().silent(visitor, client, length, sent)
        # Without a 104 it is a first, empty request that tells where the upload is.
        fields = {**self.completeness(False), "Upload-Length": str(length)}
        created = await visitor.ask("POST", "/files/", fields)
        path = urlsplit(created["location"]).path
        patch = self.patch(0, length, length, last=True)
        await client.send(visitor.head("PATCH", path, patch.fields, length) + sent)
        return path

    def is_complete(self, reply: Reply) -> bool:
        if self.inverted:
            return reply["upload-incomplete"] == "?0"
        return reply["upload-complete"] == "?1"


CHUNKED = {"Transfer-Encoding": "chunked"}
SPEAKERS: tuple[Speaker, ...] = (
    Seed(),
    Tus(),
    *(Rufh(number) for number in (3, 4, 5, 6, 8, 10)),
    Rufh(None),
)
