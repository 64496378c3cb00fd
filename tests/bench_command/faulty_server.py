"""A small server with faults built in: tus, Resumable Uploads for HTTP, and plain PUT and POST.

It keeps uploads in memory and does right what it is not told to do wrong.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, field
from enum import Enum, auto

import h11
import trio

__all__ = ["FaultyServer", "Flaw", "faulty_server"]


class Flaw(Enum):
    """What it does wrong."""

    DROPS_A_BYTE = auto()
    """One byte of the first append is not stored, though it counts."""
    FLIPS_BITS = auto()
    """Two bytes of the first append are stored as others."""
    OFFSET_BEYOND = auto()
    """The offset is told a gigabyte too high."""
    OFFSET_TEN_HIGH = auto()
    """The offset is told ten bytes too high."""
    OFFSET_FALLS = auto()
    """Each query is answered with less than the one before."""
    NO_OFFSET = auto()
    """Queries are answered without an offset."""
    BAD_OFFSET = auto()
    """The offset is no number."""
    OTHER_LENGTH = auto()
    """The length is told one byte too high."""
    LATE_OFFSET = auto()
    """Queries are answered after a third of a second."""
    BUSY = auto()
    """The first two queries are answered with 423."""
    FORGETS = auto()
    """Queries are answered with 404."""
    NEVER_ANSWERS = auto()
    """Appends are read, and never answered."""
    NEVER_READS = auto()
    """Appends are not even read."""
    HANGS_UP = auto()
    """Connections are closed in the middle of each append; what came is thrown away."""
    GARBAGE = auto()
    """Appends are answered in another protocol."""
    REFUSES = auto()
    """New uploads are answered with 403."""
    FAILS = auto()
    """New uploads are answered with 500."""
    ELSEWHERE = auto()
    """The Location is that of another server."""
    HASTY = auto()
    """Says that all is well when it has read the head."""
    CORRUPTS = auto()
    """A byte is another one when content is read back."""
    SHORTENS = auto()
    """The last byte is missing when content is read back."""
    LENGTHENS = auto()
    """A byte more is there when content is read back."""
    READS_ERROR = auto()
    """Reading back is answered with 500."""
    READS_NEVER = auto()
    """Reading back is not answered."""
    LOSES = auto()
    """What is finished is not there any more."""
    NO_READING = auto()
    """Reading back is answered with 405."""
    WRONG_LENGTH = auto()
    """Reading back is answered with 405, and the length told is one less."""


@dataclass
class Stored:
    """An upload."""

    length: int | None
    content: bytearray = field(default_factory=bytearray)
    complete: bool = False
    appends: int = 0
    told: int | None = None


@dataclass
class FaultyServer:
    """The running server; *interims* are the 104s of RUFH."""

    flaws: frozenset[Flaw]
    port: int = 0
    dialects: frozenset[str] = frozenset({"tus"})
    uploads: dict[str, Stored] = field(default_factory=dict)
    queries: int = 0
    requests: list[str] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/files/"

    async def serve(self, stream: trio.SocketStream) -> None:
        """One connection."""
        conn = _Conn(stream)
        try:
            while await self._request(conn):
                pass
        except (trio.BrokenResourceError, h11.RemoteProtocolError, _HangUp):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    async def _request(self, conn: _Conn) -> bool:
        head = await conn.head()
        if head is None:
            return False
        method, path = head.method.decode(), head.target.decode()
        fields = {n.decode().lower(): v.decode() for n, v in head.headers}
        self.requests.append(f"{method} {path}")
        self.headers.append(fields)
        match method:
            case "OPTIONS":
                await self._options(conn)
            case "POST" | "PUT":
                await self._create(conn, method, path, fields)
            case "PATCH":
                await self._append(conn, path, fields)
            case "HEAD":
                await self._query(conn, path)
            case "GET":
                await self._read(conn, path)
            case _:
                await conn.answer(405)
        return await conn.again()

    async def _options(self, conn: _Conn) -> None:
        fields = {"server": "faulty"}
        if "tus" in self.dialects:
            fields["tus-version"] = "1.0.0"
        if "rufh" in self.dialects:
            fields["upload-limit"] = "min-size=0"
        await conn.answer(204, fields)

    async def _create(
        self, conn: _Conn, method: str, path: str, fields: dict[str, str]
    ) -> None:
        if Flaw.REFUSES in self.flaws:
            return await conn.answer(403)
        if Flaw.FAILS in self.flaws:
            return await conn.answer(500)
        key = path if method == "PUT" else f"/files/{len(self.uploads)}"
        location = {"location": key}
        if Flaw.ELSEWHERE in self.flaws:
            location = {"location": "http://127.0.0.2/files/0"}
        if "tus-resumable" in fields:
            length = int(fields["upload-length"])
            self.uploads[key] = Stored(length, complete=length == 0)
            return await conn.answer(201, location)
        stored = self.uploads[key] = Stored(None)
        if "upload-complete" not in fields and "upload-incomplete" not in fields:
            if Flaw.HASTY in self.flaws:
                return await conn.answer(201, location)
            await self._store(conn, stored)
            stored.complete = True
            return await conn.answer(201, {} if method == "PUT" else location)
        if "upload-length" in fields:
            stored.length = int(fields["upload-length"])
        if "upload-draft-interop-version" in fields:
            await conn.interim(104, location)
        await self._store(conn, stored)
        stored.complete = _says_complete(fields)
        # A final ?1 has the Location of what was made, which here is nothing else.
        return await conn.answer(201, location)

    async def _append(self, conn: _Conn, path: str, fields: dict[str, str]) -> None:
        stored = self.uploads.get(path)
        if stored is None:
            return await conn.answer(404)
        if int(fields["upload-offset"]) != len(stored.content):
            here = {"upload-offset": str(len(stored.content))}
            return await conn.answer(409, here)
        await self._store(conn, stored)
        if "tus-resumable" in fields:
            stored.complete = len(stored.content) == stored.length
        else:
            stored.complete = _says_complete(fields)
        if Flaw.NEVER_ANSWERS in self.flaws:
            await trio.sleep_forever()
        return await conn.answer(204, {"upload-offset": str(len(stored.content))})

    async def _store(self, conn: _Conn, stored: Stored) -> None:
        if Flaw.NEVER_READS in self.flaws:
            await trio.sleep_forever()
        if Flaw.GARBAGE in self.flaws:
            await conn.stream.send_all(b"220 mail.example ESMTP\r\n\r\n")
            raise _HangUp
        before = len(stored.content)
        async with aclosing(conn.body()) as body:
            async for data in body:
                if Flaw.HANGS_UP in self.flaws and len(stored.content) > before:
                    del stored.content[before:]
                    raise _HangUp
                stored.content += data
        stored.appends += 1
        if stored.appends == 1 and len(stored.content) > 2:
            if Flaw.DROPS_A_BYTE in self.flaws:
                del stored.content[1]
                stored.content += b"?"
            if Flaw.FLIPS_BITS in self.flaws:
                stored.content[:2] = bytes(byte ^ 1 for byte in stored.content[:2])

    async def _query(self, conn: _Conn, path: str) -> None:
        self.queries += 1
        stored = self.uploads.get(path)
        finished = stored is not None and stored.complete
        gone = Flaw.FORGETS in self.flaws or (finished and Flaw.LOSES in self.flaws)
        if stored is None or gone:
            return await conn.answer(404)
        if Flaw.BUSY in self.flaws and self.queries <= 2:
            return await conn.answer(423)
        if Flaw.LATE_OFFSET in self.flaws:
            await trio.sleep(0.33)
        offset = len(stored.content)
        if Flaw.OFFSET_BEYOND in self.flaws:
            offset += 1 << 30
        if Flaw.OFFSET_TEN_HIGH in self.flaws:
            offset += 10
        if Flaw.OFFSET_FALLS in self.flaws:
            if stored.told is not None:
                offset = max(0, stored.told - 1)
            stored.told = offset
        if finished and Flaw.WRONG_LENGTH in self.flaws:
            offset -= 1
        told = "many" if Flaw.BAD_OFFSET in self.flaws else str(offset)
        fields = {
            "upload-offset": told,
            "upload-complete": "?1" if finished else "?0",
            "upload-incomplete": "?0" if finished else "?1",
            "content-length": str(offset),
        }
        if stored.length is not None:
            length = stored.length + (Flaw.OTHER_LENGTH in self.flaws)
            fields["upload-length"] = str(length)
        if Flaw.NO_OFFSET in self.flaws:
            del fields["upload-offset"]
        return await conn.answer(200, fields)

    async def _read(self, conn: _Conn, path: str) -> None:
        if self.flaws & {Flaw.NO_READING, Flaw.WRONG_LENGTH}:
            return await conn.answer(405)
        stored = self.uploads.get(path)
        if stored is None or Flaw.LOSES in self.flaws:
            return await conn.answer(404)
        if Flaw.READS_ERROR in self.flaws:
            return await conn.answer(500)
        if Flaw.READS_NEVER in self.flaws:
            await trio.sleep_forever()
        content = bytearray(stored.content)
        if Flaw.CORRUPTS in self.flaws and content:
            content[len(content) // 2] ^= 1
        if Flaw.SHORTENS in self.flaws:
            del content[-1:]
        if Flaw.LENGTHENS in self.flaws:
            content += b"?"
        return await conn.answer(200, body=bytes(content))


class _HangUp(Exception):
    """Close the connection."""


class _Conn:
    """h11 and a stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.SERVER)

    async def _event(self) -> object:
        while (event := self._h11.next_event()) is h11.NEED_DATA:
            self._h11.receive_data(await self.stream.receive_some(65536))
        return event

    async def head(self) -> h11.Request | None:
        event = await self._event()
        return event if isinstance(event, h11.Request) else None

    async def body(self) -> AsyncGenerator[bytes, None]:
        if self._h11.they_are_waiting_for_100_continue:
            await self.interim(100, {})
        while isinstance(event := await self._event(), h11.Data):
            yield bytes(event.data)
        if not isinstance(event, h11.EndOfMessage):
            raise _HangUp

    async def interim(self, status: int, fields: dict[str, str]) -> None:
        event = h11.InformationalResponse(status_code=status, headers=_wire(fields))
        await self.stream.send_all(self._h11.send(event) or b"")

    async def answer(
        self, status: int, fields: dict[str, str] | None = None, body: bytes = b""
    ) -> None:
        lines = dict(fields or {})
        if status != 204:
            lines.setdefault("content-length", str(len(body)))
        data = self._h11.send(h11.Response(status_code=status, headers=_wire(lines)))
        head_only = "content-length" in lines and int(lines["content-length"]) != len(
            body
        )
        if not head_only and body:
            data += self._h11.send(h11.Data(data=body)) or b""
        data += self._h11.send(h11.EndOfMessage()) or b""
        await self.stream.send_all(data)

    async def again(self) -> bool:
        while self._h11.their_state is h11.SEND_BODY:
            if not isinstance(await self._event(), h11.Data):
                break
        try:
            self._h11.start_next_cycle()
        except h11.LocalProtocolError:
            return False
        return True


def _wire(fields: dict[str, str]) -> list[tuple[str, str]]:
    return list(fields.items())


def _says_complete(fields: dict[str, str]) -> bool:
    return (
        fields.get("upload-complete") == "?1" or fields.get("upload-incomplete") == "?0"
    )


@asynccontextmanager
async def faulty_server(*flaws: Flaw) -> AsyncIterator[FaultyServer]:
    """A running one."""
    server = FaultyServer(frozenset(flaws))
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        server.port = listeners[0].socket.getsockname()[1]
        nursery.start_soon(trio.serve_listeners, server.serve, listeners)
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()
