"""Names that a template makes: in each dialect, with collisions, and by rule."""

from __future__ import annotations

import base64

import pytest
import trio
import trio.testing

from tests.server.harness import (
    RESUME,
    Client,
    MemoryService,
    memory_service,
)
from tests.server.rufh import NEWEST, says
from tests.server.tus import append, create, result
from trioresume import CallerError, Config, FileService, Rule

Clock = trio.testing.MockClock

BODY = b"some content"
PHOTO = {"Content-Disposition": 'attachment; filename="my photo.jpg"'}


async def _post(client: Client, dialect: str, body: bytes = BODY) -> str:
    """Upload in *dialect*; the location that the target's answer tells."""
    if dialect == "tus":
        name = base64.b64encode(b"my photo.jpg").decode()
        path = await create(client, len(body), {"Upload-Metadata": f"filename {name}"})
        assert (await append(client, path, 0, body)).status == 204
        lines = (await result(client, path)).decode().lower().splitlines()
        return next(li[10:] for li in lines if li.startswith("location: "))
    fields = {"plain": {}, "seed": RESUME, "rufh": says(NEWEST, True)}[dialect]
    reply = await client.request("POST", "/files/", {**PHOTO, **fields}, body)
    assert reply.status in (200, 201)
    location: str = reply.json["location"]
    # C19: what an interim response called the Location stays the Location.
    assert dialect == "rufh" or reply["location"] == location
    return location


@pytest.mark.parametrize("dialect", ["plain", "seed", "rufh", "tus"])
async def test_location_is_the_name_of_the_template(
    dialect: str, autojump_clock: Clock
) -> None:
    """The content's digest, the date and the client's suffix, however it was sent."""
    template = "{year}/{month}-{day}/{digest}{suffix}"
    async with memory_service(FileService(name_template=template)) as service:
        client = service.connect()
        location = await _post(client, dialect)
        assert location.startswith("/files/2023/11-14/")
        assert location.endswith(".jpg")
        got = await client.request("GET", location)
        assert (got.status, got.body) == (200, BODY)
        assert got["etag"].strip('"') in location
        assert 'filename="my photo.jpg"' in got["content-disposition"]
        # The same content has the same name.
        assert await _post(client, dialect) == location
        assert (await client.request("DELETE", location)).status == 204
        assert (await client.request("GET", location)).status == 404


async def test_taken_name_gets_a_number(autojump_clock: Clock) -> None:
    """Other content never replaces a file, and the same content is the same file."""
    async with memory_service(FileService(name_template="in/{name}")) as service:
        client = service.connect()
        found = [await _post(client, "plain", b"%d" % n) for n in range(10)]
        assert found[0] == "/files/in/my%20photo.jpg"
        assert found[1:9] == [f"/files/in/my%20photo-{n}.jpg" for n in range(2, 10)]
        assert found[9].startswith("/files/in/my%20photo-")
        assert len(found[9]) > len(found[8]) + 10
        again = await client.request("POST", "/files/", PHOTO, b"3")
        assert (again.status, again["location"]) == (200, found[3])
        for number, location in enumerate(found):
            assert (await client.request("GET", location)).body == b"%d" % number


async def test_many_uploads_of_one_name_at_once_all_get_one(
    autojump_clock: Clock,
) -> None:
    """Those that lose the race get random characters: nobody has to lose ten times."""
    found: list[str] = []

    async def upload(service: MemoryService, number: int) -> None:
        found.append(await _post(service.connect(), "plain", b"%d" % number))

    async with memory_service(FileService(name_template="{name}")) as service:
        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(upload, service, number)
        assert len(set(found)) == 40
        assert "/files/my%20photo.jpg" in found


async def test_upload_without_a_name_gets_one(autojump_clock: Clock) -> None:
    """A template never meets a missing field, and the operation's id stays secret."""
    template = "{principal}/{stem}{suffix}.{id}.{random}"
    async with memory_service(FileService(name_template=template)) as service:
        client = service.connect()
        reply = await client.request("POST", "/files/", RESUME, BODY)
        assert reply["location"].startswith("/files/anonymous/file.")
        token = reply.message.split("/")[2]
        assert token not in reply["location"]


@pytest.mark.parametrize(
    "path",
    [
        "/files/in//x",
        "/files/in/",
        "/files/in%2fx",
        "/files/in/../x",
        "/files/in/%2e%2e/in/x",
        "/files/./in/x",
        "/files/in%5cx",
    ],
)
async def test_other_spellings_are_not_the_file(
    path: str, autojump_clock: Clock
) -> None:
    """G12: one name has one path; and a client cannot choose a name of two segments."""
    async with memory_service(FileService(name_template="in/{name}")) as service:
        client = service.connect()
        fields = {"Content-Disposition": "attachment; filename=x"}
        reply = await client.request("POST", "/files/", fields, BODY)
        assert reply["location"] == "/files/in/x"
        for method in ("GET", "HEAD", "DELETE"):
            assert (await client.request(method, path)).status == 404
    async with memory_service(FileService(name_template="in/{name}")) as service:
        client = service.connect()
        assert (await client.request("PUT", "/files/in/x", {}, BODY)).status == 404


async def test_rule_has_a_template_of_its_own(autojump_clock: Clock) -> None:
    """A lifetime by the file's own path, and a refusal there, hold for what it names."""
    rules = [
        Rule(path="/files/tmp/", file_lifetime=10.0),
        Rule(path="/files/exe/", access="read-only"),
        Rule(path="/files", methods="POST", name_template="tmp/{name}"),
    ]
    async with memory_service(FileService(), Config(rules=rules)) as service:
        client = service.connect()
        location = await _post(client, "plain")
        assert location == "/files/tmp/my%20photo.jpg"
        await trio.sleep(11)
        assert (await client.request("GET", location)).status == 404
        rules[2] = Rule(name_template="exe/{name}")
        assert service.doorman.rulebook is not None
        service.doorman.rulebook.replace(rules)
        reply = await client.request("POST", "/files/", PHOTO, BODY)
        assert (reply.status, reply.code) == (405, "method-not-allowed")


def test_wrong_template_is_the_callers_error() -> None:
    """At the start, for the service and for a rule."""
    with pytest.raises(CallerError, match="name_template: there is no field"):
        FileService(name_template="{nonsense}")
    with pytest.raises(CallerError, match="name_template: there is no field"):
        Rule(name_template="{nonsense}")
