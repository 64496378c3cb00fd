"""Models of servers of tus and of RUFH, for the client's tests.

As short as they can be, and written from PROTOCOL.md, sections C and D, not from the
server in this package. *plan* says for each connection after how many bytes up and down
it breaks; ``processed`` has the content of each upload that was completed.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import aclosing
from dataclasses import dataclass, field

import trio

from tests.client.peer import PLAIN, CutStream, Dialogue, Received

Plan = Callable[[int], tuple[int | None, int | None]]

NO_CUTS: Plan = lambda _: (None, None)  # noqa: E731


@dataclass
class Upload:
    content: bytearray = field(default_factory=bytearray)
    length: int | None = None
    complete: bool = False


class UploadModel(ABC):
    """What both have in common: uploads under ``/up/N``."""

    def __init__(self, plan: Plan = NO_CUTS) -> None:
        self.plan = plan
        self.uploads: list[Upload] = []
        self.processed: list[bytes] = []
        self.requests: list[Received] = []
        self.gone: set[int] = set()

    def methods(self) -> list[str]:
        return [request.method for request in self.requests]

    async def serve(self, number: int, stream: trio.abc.Stream) -> None:
        dialogue = Dialogue(CutStream(stream, *self.plan(number)))
        while True:
            request = await dialogue.read_head()
            self.requests.append(request)
            found = re.fullmatch(r"/up/(\d+)(/message)?", request.target)
            if found is None:
                await self.at_target(dialogue)
            elif found[2]:
                await self.at_message(dialogue, self.uploads[int(found[1])])
            elif int(found[1]) in self.gone:
                await dialogue.read_body()
                await dialogue.respond(404)
            else:
                await self.at_upload(dialogue, int(found[1]))

    @abstractmethod
    async def at_target(self, dialogue: Dialogue) -> None: ...

    @abstractmethod
    async def at_upload(self, dialogue: Dialogue, number: int) -> None: ...

    async def at_message(self, dialogue: Dialogue, upload: Upload) -> None:
        """There is none, unless a dialect has one."""
        await dialogue.read_body()
        await dialogue.respond(404)

    def complete(self, upload: Upload) -> None:
        if not upload.complete:
            upload.complete = True
            self.processed.append(bytes(upload.content))

    async def receive(self, dialogue: Dialogue, upload: Upload) -> None:
        async with aclosing(dialogue.pieces()) as pieces:
            async for piece in pieces:
                upload.content += piece

    async def refuse(self, dialogue: Dialogue, status: int, **fields: str) -> None:
        await dialogue.read_body()
        lines = {name.replace("_", "-"): value for name, value in fields.items()}
        await dialogue.respond(status, lines, b"no")


class TusModel(UploadModel):
    """tus 1.0.0; with *results* the response of the target has an address (D8)."""

    def __init__(self, plan: Plan = NO_CUTS, *, results: bool = False) -> None:
        super().__init__(plan)
        self.results = results
        self.extensions = "creation,creation-defer-length"
        self.tells_offset = True
        """Whether a conflict says what the offset is."""

    async def at_target(self, dialogue: Dialogue) -> None:
        fields = dialogue.request.fields
        if dialogue.request.method == "OPTIONS":
            version = {"Tus-Version": "1.0.0", "Tus-Extension": self.extensions}
            await dialogue.read_body()
            await dialogue.respond(204, version)
            return
        if fields.get("tus-resumable") != "1.0.0" or dialogue.request.method != "POST":
            # As servers do that read no content of what they refuse.
            await dialogue.respond(412, {"Tus-Version": "1.0.0"}, b"no")
            await dialogue.cut()
        length = fields.get("upload-length")
        assert (length is None) == (fields.get("upload-defer-length") == "1")
        await dialogue.read_body()
        upload = Upload(length=None if length is None else int(length))
        self.uploads.append(upload)
        self._settle(upload)
        location = f"/up/{len(self.uploads) - 1}"
        answer = {"Location": location, "Tus-Resumable": "1.0.0"}
        if self.results:
            answer["Response-Message-Location"] = f"{location}/message"
        await dialogue.respond(201, answer)

    def _settle(self, upload: Upload) -> None:
        if len(upload.content) == upload.length:
            self.complete(upload)

    async def at_upload(self, dialogue: Dialogue, number: int) -> None:
        upload, request = self.uploads[number], dialogue.request
        assert request.fields.get("tus-resumable") == "1.0.0"
        if request.method == "HEAD":
            await dialogue.read_body()
            await dialogue.respond(200, self._about(upload))
            return
        assert request.method == "PATCH"
        assert request.fields.get("content-type") == "application/offset+octet-stream"
        assert "transfer-encoding" not in request.fields  # not every server takes it
        if request.fields.get("upload-offset") != str(len(upload.content)):
            told = self._about(upload) if self.tells_offset else {}
            await self.refuse(dialogue, 409, **told)
            return
        stated = request.fields.get("upload-length")
        if stated is not None:
            assert upload.length is None
            upload.length = int(stated)
        await self.receive(dialogue, upload)
        self._settle(upload)
        await dialogue.respond(204, self._about(upload))

    def _about(self, upload: Upload) -> dict[str, str]:
        fields = {"Upload-Offset": str(len(upload.content))}
        if upload.length is None:
            return {**fields, "Upload-Defer-Length": "1"}
        return {**fields, "Upload-Length": str(upload.length)}

    async def at_message(self, dialogue: Dialogue, upload: Upload) -> None:
        await dialogue.read_body()
        if dialogue.request.method == "DELETE":
            await dialogue.respond(204)
            return
        assert upload.complete
        message = b"HTTP/1.1 201 Created\r\nLocation: /thing\r\n\r\ndone"
        await dialogue.respond(200, {"Content-Type": "message/http"}, message)


class RufhModel(UploadModel):
    """RUFH in one *version*; others are refused, or unknown and so plain requests.

    With *interims* False its 104s get lost, *replays* is whether it repeats the final
    response, *limit* the most content that it takes in one append.
    """

    def __init__(
        self,
        plan: Plan = NO_CUTS,
        *,
        version: int = 10,
        refuses: bool = True,
        interims: bool = True,
        replays: bool = True,
        limit: int | None = None,
    ) -> None:
        super().__init__(plan)
        self.version = version
        self.refuses = refuses
        self.interims = interims
        self.replays = replays
        self.limit = limit

    async def at_target(self, dialogue: Dialogue) -> None:
        request = dialogue.request
        if request.method == "OPTIONS":
            await dialogue.read_body()
            await dialogue.respond(204, self._limits)
        elif request.fields.get("upload-draft-interop-version") != str(self.version):
            if self.refuses:
                await dialogue.respond(412, {}, b"no")
                await dialogue.cut()
            self.processed.append(await dialogue.read_body())
            await dialogue.respond(201, PLAIN, b"plain")
        elif self._is_too_long(request):
            await dialogue.respond(413, {"Upload-Complete": "?0", **self._limits})
            await dialogue.cut()
        else:
            await self._begin(dialogue)

    @property
    def _limits(self) -> dict[str, str]:
        limit = "min-size=0" if self.limit is None else f"max-append-size={self.limit}"
        return {"Upload-Limit": limit}

    def _is_too_long(self, request: Received) -> bool:
        size = int(request.fields.get("content-length") or 0)
        return self.limit is not None and size > self.limit

    async def _begin(self, dialogue: Dialogue) -> None:
        self.uploads.append(Upload())
        location = f"/up/{len(self.uploads) - 1}"
        mark = {"Upload-Draft-Interop-Version": str(self.version)}
        if self.interims:
            await dialogue.interim(104, {**mark, "Location": location, **self._limits})
        if "expect" in dialogue.request.fields:
            await dialogue.interim(100, {})
        await self.receive(dialogue, self.uploads[-1])
        await self._answer(dialogue, self.uploads[-1], {**mark, "Location": location})

    @property
    def _field(self) -> str:
        return "Upload-Incomplete" if self.version == 3 else "Upload-Complete"

    def _state(self, *, complete: bool) -> dict[str, str]:
        return {self._field: "?1" if complete != (self.version == 3) else "?0"}

    async def _answer(
        self, dialogue: Dialogue, upload: Upload, fields: dict[str, str]
    ) -> None:
        said = dialogue.request.fields.get(self._field)
        assert said in ("?0", "?1")
        if (said == "?1") == (self.version == 3):
            offset = {"Upload-Offset": str(len(upload.content))}
            answer = {**fields, **offset, **self._state(complete=False)}
            await dialogue.respond(201 if "Location" in fields else 204, answer)
            return
        self.complete(upload)
        await self._final(dialogue, upload)

    async def _final(self, dialogue: Dialogue, upload: Upload) -> None:
        body = bytes(upload.content)[::-1]
        await dialogue.respond(200, self._state(complete=True), body)

    async def at_upload(self, dialogue: Dialogue, number: int) -> None:
        upload, request = self.uploads[number], dialogue.request
        assert request.fields.get("upload-draft-interop-version") == str(self.version)
        if request.method == "HEAD":
            await dialogue.read_body()
            offset = {"Upload-Offset": str(len(upload.content))}
            state = self._state(complete=upload.complete)
            await dialogue.respond(204, {**offset, **state})
            return
        assert request.method == "PATCH"
        if self.version >= 6:
            media_type = request.fields.get("content-type")
            assert media_type == "application/partial-upload"
        if upload.complete:
            await dialogue.read_body()
            if self.replays:
                await self._final(dialogue, upload)
            else:
                await dialogue.respond(400, self._state(complete=False), b"over")
        elif request.fields.get("upload-offset") != str(len(upload.content)):
            state = self._state(complete=False)
            await self.refuse(
                dialogue, 409, **state, Upload_Offset=str(len(upload.content))
            )
        else:
            assert not self._is_too_long(request)
            await self.receive(dialogue, upload)
            await self._answer(dialogue, upload, {})
