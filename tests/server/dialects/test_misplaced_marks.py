"""Upload fields where their protocol defines nothing: E10, every cell of a table.

The table is: marks x resources x methods x with or without content. The rule, which is in
docs/supported-protocols.md, gives each cell its expectation:

* a *plain* answer is the one that the same request gets without the mark;
* a *refused* request changes nothing;
* only what a dialect defines begins an upload, or goes on with one.

:data:`MARKS` says for each mark what it is on the requests that can change something. All
other cells are plain.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Literal

import pytest
import trio.testing

from tests.server.harness import (
    Client,
    MemoryService,
    Recorder,
    Reply,
    memory_service,
)
from trioresume.store.port import FileRecord, OperationId, request_key
from trioresume.targets.files import FileService

pytestmark = pytest.mark.h1_only  # hundreds of cases, which no carrier changes

OLD = b"what is stored there"
NEW = b"hello"
"""The content of a request; it is the second half of the upload's."""
LENGTH = 10

Outcome = Literal["plain", "refused", "upload", "append"]
Outcomes = tuple[Outcome, Outcome]
"""Without content, and with it."""

PLAIN: Outcomes = ("plain", "plain")
REFUSED: Outcomes = ("refused", "refused")
UPLOAD: Outcomes = ("upload", "upload")
APPEND: Outcomes = ("append", "append")


@dataclass(frozen=True)
class Mark:
    """Fields, and what comes of them on each kind of request that can change something."""

    fields: dict[str, str]
    post: Outcomes = REFUSED
    """POST to the collection."""
    put: Outcomes = REFUSED
    """PUT of a file."""
    patch: Outcomes = REFUSED
    """PATCH of an upload's content that has 5 of 10 bytes."""
    stands_for: str | None = None
    """What a POST means on an operation's resources."""
    every: int | None = None
    """A status that every request but OPTIONS gets."""

    @property
    def is_range(self) -> bool:
        """Whether it is a field of HTTP's own, which the target judges."""
        return "Content-Range" in self.fields or "Content-Offset" in self.fields

    @property
    def says_whole(self) -> bool:
        """Whether it begins an upload that ends at once, and is answered as one."""
        said = self.fields.get("Upload-Complete"), self.fields.get("Upload-Incomplete")
        return said in (("?1", None), (None, "?0"))


TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = {"Content-Type": "application/offset+octet-stream"}
PARTIAL = {"Content-Type": "application/partial-upload"}
AT = {"Upload-Offset": "5"}
OVERRIDE = "X-HTTP-Method-Override"

MARKS: dict[str, Mark] = {
    "none": Mark({}, PLAIN, PLAIN),
    # tus. A POST of it needs a length, and tus's media type if it has content.
    "tus": Mark(TUS, put=PLAIN),
    "tus-whole": Mark(
        {**TUS, "Upload-Length": "5"}, ("upload", "refused"), ("refused", "plain")
    ),
    "tus-first-part": Mark({**TUS, "Upload-Length": "100"}, ("upload", "refused")),
    "tus-with-content": Mark({**TUS, **OCTETS, "Upload-Length": "100"}, UPLOAD),
    "tus-deferred": Mark({**TUS, "Upload-Defer-Length": "1"}, ("upload", "refused")),
    "tus-partial": Mark(
        {**TUS, "Upload-Length": "5", "Upload-Concat": "partial"},
        ("upload", "refused"),
    ),
    "tus-final": Mark({**TUS, "Upload-Concat": "final;/operations/x/content"}),
    "tus-media-type": Mark({**TUS, **OCTETS}),
    "tus-append": Mark({**TUS, **OCTETS, **AT}, patch=APPEND),
    "tus-offset": Mark({**TUS, **AT}),
    "tus-other-version": Mark({"Tus-Resumable": "0.2.2", **AT}, every=412),
    "tus-for-patch": Mark(
        {**TUS, **OCTETS, **AT, OVERRIDE: "PATCH"}, patch=APPEND, stands_for="PATCH"
    ),
    "tus-for-delete": Mark({**TUS, OVERRIDE: "DELETE"}, put=PLAIN, stands_for="DELETE"),
    "tus-for-head": Mark({**TUS, OVERRIDE: "HEAD"}, put=PLAIN, stands_for="HEAD"),
    "tus-and-rufh": Mark(
        {
            **TUS,
            "Upload-Length": "100",
            "Upload-Complete": "?0",
            "Upload-Draft-Interop-Version": "10",
        },
        ("upload", "refused"),
    ),
    "tus-and-resume": Mark({**TUS, **AT, "Prefer": "resume"}),
    # Fields of uploads alone, in no dialect's request.
    "offset": Mark(AT),
    "offset-0": Mark({"Upload-Offset": "0"}),
    "length-of-more": Mark({"Upload-Length": "100"}),
    "length-of-less": Mark({"Upload-Length": "3"}),
    "length-of-this": Mark(
        {"Upload-Length": "5"}, ("refused", "plain"), ("refused", "plain")
    ),
    "length-of-nothing": Mark(
        {"Upload-Length": "0"}, ("plain", "refused"), ("plain", "refused")
    ),
    "deferred": Mark({"Upload-Defer-Length": "1"}),
    "partial": Mark({"Upload-Concat": "partial"}),
    "final": Mark({"Upload-Concat": "final;/operations/x/content"}),
    "incomplete": Mark({"Upload-Incomplete": "?1"}),
    "complete-twice": Mark({"Upload-Complete": "?1, ?1"}, PLAIN, PLAIN),
    "more-twice": Mark({"Upload-Complete": "?0, ?0"}),
    "both": Mark({"Upload-Complete": "?1, ?0"}),
    "incomplete-twice": Mark({"Upload-Incomplete": "?1, ?1"}),
    "length-twice": Mark({"Upload-Length": "5, 100"}),
    "whole-length-twice": Mark({"Upload-Complete": "?1", "Upload-Length": "5, 100"}),
    "whole-offset-twice": Mark({"Upload-Complete": "?1", "Upload-Offset": "5, 5"}),
    "incomplete-0": Mark({"Upload-Incomplete": "?0"}, PLAIN, PLAIN),
    # A range of the whole; RFC 9110, section 14.5, speaks of PUT.
    "range": Mark({"Content-Range": "bytes 0-4/10"}),
    "range-of-all": Mark({"Content-Range": "bytes 0-4/5"}),
    "content-offset": Mark({"Content-Offset": "0;complete-length=10"}),
    # Media types of patches.
    "octets": Mark(OCTETS),
    "octets-at": Mark({**OCTETS, **AT}, patch=APPEND),
    "partial-upload": Mark(PARTIAL),
    "message-byterange": Mark({"Content-Type": "message/byterange"}),
    "multipart-byteranges": Mark({"Content-Type": "multipart/byteranges; boundary=x"}),
    "binary-byteranges": Mark({"Content-Type": "application/byteranges"}),
    # A method in a field.
    "for-patch": Mark({OVERRIDE: "PATCH"}, put=PLAIN, stands_for="PATCH"),
    "for-delete": Mark({OVERRIDE: "delete"}, put=PLAIN, stands_for="DELETE"),
    "for-put": Mark({OVERRIDE: "PUT"}, put=PLAIN, stands_for="nothing"),
    # The seed defines its preference for every request.
    "resume": Mark({"Prefer": "resume"}, PLAIN, PLAIN),
    "ignore": Mark({"Prefer": "resume=ignore-incomplete"}, PLAIN, PLAIN),
    "resume-offset": Mark({"Prefer": "resume", **AT}),
    "resume-length": Mark({"Prefer": "resume", "Upload-Length": "100"}),
}

for number in ("3", "4", "6", "10", "99", ""):
    known = number.isdigit() and 3 <= int(number) <= 10
    version = {"Upload-Draft-Interop-Version": number} if number else {}
    more, whole = ("Upload-Complete", "?0"), ("Upload-Complete", "?1")
    foreign = ("Upload-Incomplete", "?1")
    if number == "3":
        more, whole, foreign = (
            ("Upload-Incomplete", "?1"),
            ("Upload-Incomplete", "?0"),
            more,
        )
    media = PARTIAL if not known or int(number) >= 6 else {}
    name = f"rufh-{number or 'unversioned'}"
    MARKS |= {
        f"{name}-alone": Mark(version, PLAIN, PLAIN),
        f"{name}-more": Mark({**version, **dict([more])}, UPLOAD, UPLOAD),
        f"{name}-whole": Mark({**version, **dict([whole])}, PLAIN, PLAIN),
        f"{name}-foreign": Mark({**version, **dict([foreign])}),
        f"{name}-both": Mark({**version, **dict([whole, foreign])}),
        f"{name}-deferred": Mark(
            {**version, **dict([more]), "Upload-Defer-Length": "1"}, UPLOAD, UPLOAD
        ),
        f"{name}-partial": Mark(
            {**version, **dict([whole]), "Upload-Concat": "partial"}
        ),
        f"{name}-first-part": Mark(
            {**version, **dict([whole]), "Upload-Length": "100"}
        ),
        f"{name}-append": Mark(
            {**version, **media, **dict([whole]), **AT}, patch=("refused", "append")
        ),
        f"{name}-append-more": Mark(
            {**version, **media, **dict([more]), **AT}, patch=APPEND
        ),
        f"{name}-append-foreign": Mark({**version, **media, **dict([foreign]), **AT}),
        f"{name}-for-patch": Mark(
            {**version, **media, **dict([more]), **AT, OVERRIDE: "PATCH"},
            patch=APPEND,
            stands_for="PATCH",
        ),
        f"{name}-more-twice": Mark({**version, more[0]: f"{more[1]}, {more[1]}"}),
        f"{name}-append-twice": Mark(
            {**version, **media, more[0]: f"{more[1]}, {more[1]}", **AT}
        ),
        f"{name}-append-offset-twice": Mark(
            {**version, **media, **dict([more]), "Upload-Offset": "5, 5"}
        ),
        f"{name}-document": Mark(
            {
                **version,
                **dict([more]),
                "Content-Type": "message/byterange",
                "Upload-Offset": "5",
            }
        ),
    }

COLLECTION, FILE, NAME = "/files/", "/files/real.txt", "/files/none.txt"
COLLECTIONS = (COLLECTION, "/files")
TARGETS = (*COLLECTIONS, FILE, NAME)
RESOURCES = (*TARGETS, "content", "message", "result", "done", "done-message")
METHODS = ("GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE")

REFUSALS = {400, 403, 404, 405, 409, 412, 415}
ONLY_UPLOADS_HAVE = ("upload-offset", "upload-complete", "upload-incomplete")


@dataclass(frozen=True)
class Cell:
    """One request of the table."""

    name: str
    method: str
    resource: str
    content: bool

    @property
    def mark(self) -> Mark:
        return MARKS[self.name]

    @property
    def meant(self) -> str:
        """The method on an operation's resources."""
        if self.method == "POST" and self.mark.stands_for is not None:
            return self.mark.stands_for
        return self.method


@dataclass(frozen=True)
class State:
    """What a request can change."""

    files: dict[str, FileRecord]
    uploads: set[OperationId]
    offset: int | None
    """Of the upload of which half is there; None if it is gone."""
    done: bool
    """Whether the upload that is done still has its response."""


@dataclass(frozen=True)
class Table:
    """A service with a file, an upload of which half is there, and one that is done."""

    service: MemoryService
    client: Client
    places: dict[str, str]

    def state(self) -> State:
        store = self.service.store
        half, done = (
            OperationId(self.places[name].split("/")[2]) for name in ("content", "done")
        )
        is_there = half in store._operations
        record = store._operations.get(done)
        return State(
            {name: file for (_, name), file in store._files.items()},
            set(store._operations),
            store.offset(request_key(half)) if is_there else None,
            record is not None and record.response is not None,
        )

    async def content(self, name: str) -> bytes:
        return (await self.client.request("GET", f"/files/{name}")).body


@asynccontextmanager
async def prepared() -> AsyncIterator[Table]:
    async with memory_service(FileService()) as service:
        client = service.connect()
        assert (await client.request("PUT", FILE, {}, OLD)).status == 201
        begun = {**TUS, **OCTETS, "Upload-Length": str(LENGTH)}
        reply = await client.request("POST", COLLECTION, begun, b"12345")
        path = reply["location"].removeprefix("http://test")
        fields = {"Upload-Complete": "?1", "Prefer": "resume"}
        done = await client.request("PUT", "/files/done.txt", fields, b"done")
        assert done.status == 201
        places = {
            "content": path,
            "message": path.removesuffix("content") + "message",
            "result": path.removesuffix("content") + "result",
            "done": done.content,
            "done-message": done.message,
        }
        yield Table(service, client, places)


def expected(cell: Cell) -> Outcome:
    """What comes of a cell."""
    mark, index = cell.mark, 1 if cell.content else 0
    if mark.every is not None and cell.method != "OPTIONS":
        return "refused"
    if cell.resource in TARGETS:
        if cell.method == "POST" and cell.resource in COLLECTIONS:
            return mark.post[index]
        if cell.method == "PUT" and cell.resource in (FILE, NAME):
            return mark.put[index]
        if cell.method == "DELETE" and cell.content and cell.resource == FILE:
            # Content is judged in any request that changes something.
            return "plain" if mark.is_range or mark.put[1] == "plain" else "refused"
    elif cell.resource == "content" and cell.meant == "PATCH":
        return mark.patch[index]
    return "plain"


def plain_statuses(method: str, resource: str) -> set[int]:
    """The statuses of a target's answer to a request without marks."""
    if method == "OPTIONS":
        return {200}
    if resource in COLLECTIONS:
        return {201} if method == "POST" else {405}
    if resource == FILE:
        reads = {"GET": 200, "HEAD": 200}
        return {{**reads, "PUT": 204, "DELETE": 204}.get(method, 405)}
    return {{"PUT": 201, "POST": 405}.get(method, 404)}


def check_answer(cell: Cell, outcome: Outcome, reply: Reply) -> None:
    """The answer is one that the rule allows."""
    mark, method = cell.mark, cell.method
    if mark.every is not None and method != "OPTIONS":
        assert reply.status == mark.every
    elif outcome == "refused":
        assert reply.status in REFUSALS
    elif outcome == "upload":
        assert reply.status == 201
        assert "/operations/" in reply["location"]
    elif outcome == "append":
        assert reply.status in (201, 204)
    elif cell.resource in TARGETS and not (method == "POST" and mark.stands_for):
        allowed = plain_statuses(method, cell.resource)
        # What is refused anyway may be refused for the mark.
        if min(allowed) >= 400:
            allowed = REFUSALS
        assert reply.status in allowed
    if method != "HEAD" and reply.status >= 400:
        assert reply.get("content-type") == "application/problem+json"
        assert reply.code is not None
    marked = "Tus-Resumable" in mark.fields and method != "OPTIONS"
    assert ("tus-resumable" in reply.fields) == marked
    if outcome == "plain" and cell.resource in TARGETS and not mark.says_whole:
        for name in ONLY_UPLOADS_HAVE:
            assert name not in reply.fields or reply.status >= 400
        assert "/operations/" not in (reply.get("location") or "")


async def check_change(
    table: Table, cell: Cell, outcome: Outcome, before: State, after: State
) -> None:
    """What is stored changed as the rule allows, and not otherwise."""
    method, resource = cell.method, cell.resource
    body = NEW if cell.content else b""
    kept, new = dict(before.files), []
    if outcome == "plain":
        if resource == FILE and method in ("PUT", "DELETE"):
            del kept["real.txt"]
        if method == "PUT" and resource in (FILE, NAME):
            new = [body]
        if method == "POST" and resource in COLLECTIONS:
            new = [body]
    if outcome == "append" and cell.content and len(after.files) > len(before.files):
        new = [b"12345" + NEW]
    added = [name for name in after.files if after.files[name] not in kept.values()]
    assert [await table.content(name) for name in added] == new
    assert {n: f for n, f in after.files.items() if n not in added} == kept
    if outcome == "refused":
        assert after.uploads == before.uploads
    if outcome == "upload":
        assert len(after.uploads) == len(before.uploads) + 1
    meant = cell.meant
    if not (resource in ("content", "message") and meant == "DELETE"):
        moved = outcome == "append" and cell.content
        assert after.offset == (LENGTH if moved else LENGTH - len(NEW))
    if not (resource in ("done", "done-message") and meant == "DELETE"):
        assert after.done


async def check(table: Table, cell: Cell) -> bool:
    """Try one cell; whether it changed something."""
    before = table.state()
    path = table.places.get(cell.resource, cell.resource)
    body = NEW if cell.content else None
    try:
        reply = await table.client.request(cell.method, path, cell.mark.fields, body)
        outcome = expected(cell)
        check_answer(cell, outcome, reply)
        # A completed upload's file appears in the background.
        await trio.testing.wait_all_tasks_blocked()
        after = table.state()
        await check_change(table, cell, outcome, before, after)
    except AssertionError as exc:
        exc.add_note(str(cell))
        raise
    return after != before or reply.get("connection") == "close"


@pytest.mark.parametrize("name", MARKS)
async def test_mark_changes_nothing_where_it_means_nothing(name: str) -> None:
    """E10: on each resource, with each method, with and without content."""
    cells = [
        Cell(name, method, resource, content)
        for resource in RESOURCES
        for method in METHODS
        for content in (False, True)
    ]
    while cells:
        async with prepared() as table:
            while cells:
                if await check(table, cells.pop()):
                    break


@pytest.mark.parametrize("name", MARKS)
async def test_server_itself_is_asked_with_any_mark(name: str) -> None:
    """E10, C17: OPTIONS * is answered with what the server speaks."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        reply = await client.request("OPTIONS", "*", MARKS[name].fields)
        assert reply.status == 200
        assert reply["upload-limit"] == "min-size=0"
        assert reply["tus-version"] == "1.0.0"


@pytest.mark.parametrize("method", ["PUT", "POST", "PATCH", "REPORT", "DELETE"])
@pytest.mark.parametrize("name", MARKS)
async def test_handler_never_gets_a_part_for_the_whole(name: str, method: str) -> None:
    """E10: whatever methods it takes. A range of HTTP's own it judges itself."""
    mark, handler = MARKS[name], Recorder()
    outcome = (mark.post if method == "POST" else mark.put)[1]
    media_type = (mark.fields.get("Content-Type") or "").partition(";")[0]
    if method == "PATCH":
        if media_type.endswith(("/byterange", "/byteranges")) and len(mark.fields) == 1:
            outcome = "plain"  # a patch of the target's own, which any target may take
        elif "Tus-Resumable" in mark.fields:
            outcome = "refused"
    if mark.is_range:
        outcome = "plain"
    if method == "POST" and mark.stands_for and len(mark.fields) == 1:
        outcome = "plain"  # whether it understands the field is the handler's affair
    async with memory_service(handler) as service:
        reply = await service.connect().request(method, "/x", mark.fields, NEW)
        await trio.testing.wait_all_tasks_blocked()
    if outcome == "plain":
        assert handler.requests == [(method, "/x", NEW)], reply
    else:
        assert handler.requests == [], reply
