"""The file service: POST, PUT, GET, HEAD, DELETE (G12, G14, G16)."""

from __future__ import annotations

import base64
import re
from urllib.parse import quote, unquote

import pytest
import trio
import trio.testing

from tests.protocol.test_disposition import KEPT
from tests.server.harness import (
    BYTERANGE,
    RESUME,
    MemoryService,
    Reply,
    byterange,
    head,
    memory_service,
)
from tests.server.tus import MARK
from trioresume import CallerError, Config, FileService, Principal, RequestHead
from trioresume.protocol.filenames import parse_content_disposition_filename

Clock = trio.testing.MockClock

BODY = bytes(range(256)) * 2


async def _put(
    service: MemoryService,
    name: str,
    body: bytes = BODY,
    fields: dict[str, str] | None = None,
) -> Reply:
    client = service.connect()
    reply = await client.request("PUT", f"/files/{name}", fields or {}, body)
    await client.aclose()
    return reply


async def _get(
    service: MemoryService,
    name: str,
    fields: dict[str, str] | None = None,
    method: str = "GET",
) -> Reply:
    client = service.connect()
    reply = await client.request(method, f"/files/{name}", fields or {})
    await client.aclose()
    return reply


@pytest.mark.parametrize("body", [b"", b"x", BODY])
@pytest.mark.parametrize("resume", [False, True])
async def test_post_stores_under_a_new_name(
    body: bytes, resume: bool, autojump_clock: Clock
) -> None:
    """201 with Location, the file's ETag, its length and digest."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        reply = await client.request("POST", "/files/", RESUME if resume else {}, body)
        assert (reply.status, reply["content-type"]) == (201, "application/json")
        location = reply["location"]
        assert location.startswith("/files/")
        assert reply.json["location"] == location
        assert reply.json["length"] == len(body)
        assert reply.json["digest"]
        got = await client.request("GET", location)
        assert (got.status, got.body) == (200, body)
        assert got["etag"] == reply["etag"]
        other = await client.request("POST", "/files/", {}, body)
        assert other["location"] != location


async def test_public_url_comes_before_the_location(autojump_clock: Clock) -> None:
    """G13: as configured, whatever the Host says."""
    config = Config(public_url="https://up.example")
    async with memory_service(FileService(), config) as service:
        reply = await _put(service, "a b".replace(" ", "%20"))
        assert reply["location"] == "https://up.example/files/a%20b"


async def test_put_creates_and_replaces(autojump_clock: Clock) -> None:
    """201, then 204; readers see the one or the other, whole."""
    async with memory_service(FileService()) as service:
        first = await _put(service, "name")
        assert (first.status, first["location"]) == (201, "/files/name")
        second = await _put(service, "name", b"other")
        assert (second.status, second.body) == (204, b"")
        assert second["etag"] != first["etag"]
        assert (await _get(service, "name")).body == b"other"
        await trio.sleep(100_000 * 2)
        assert service.store.stored_bytes == len(b"other")


async def test_head_is_get_without_content(autojump_clock: Clock) -> None:
    """The same fields, the length included."""
    async with memory_service(FileService()) as service:
        await _put(service, "name", BODY, {"Content-Type": "text/plain"})
        got, shown = (
            await _get(service, "name"),
            await _get(service, "name", {}, "HEAD"),
        )
        assert shown.body == b""
        assert shown.fields == got.fields
        assert shown["content-length"] == str(len(BODY))


async def test_delete_removes_the_name(autojump_clock: Clock) -> None:
    """204, then 404 for all but a new PUT."""
    async with memory_service(FileService()) as service:
        await _put(service, "name")
        assert (await _get(service, "name", {}, "DELETE")).status == 204
        for method in ("GET", "HEAD", "DELETE"):
            assert (await _get(service, "name", {}, method)).status == 404
        assert (await _put(service, "name")).status == 201


async def test_delete_respects_if_match(autojump_clock: Clock) -> None:
    """412 unless it is still the file that the client means."""
    async with memory_service(FileService()) as service:
        etag = (await _put(service, "name"))["etag"]
        await _put(service, "name", b"other")
        reply = await _get(service, "name", {"If-Match": etag}, "DELETE")
        assert (reply.status, reply.code) == (412, "precondition-failed")
        assert (await _get(service, "name")).body == b"other"


async def test_ranges_and_conditions_of_a_get(autojump_clock: Clock) -> None:
    """RFC 9110, 13 and 14: 206, 304, 412, 416, If-Range, If-Modified-Since."""
    async with memory_service(FileService()) as service:
        etag = (await _put(service, "name"))["etag"]
        whole = await _get(service, "name")
        date = whole["last-modified"]
        for fields, status, body in [
            ({"Range": "bytes=1-3"}, 206, BODY[1:4]),
            ({"Range": "bytes=-3"}, 206, BODY[-3:]),
            ({"Range": "bytes=512-"}, 416, None),
            ({"Range": "bytes=1-3", "If-Range": etag}, 206, BODY[1:4]),
            ({"Range": "bytes=1-3", "If-Range": '"x"'}, 200, BODY),
            ({"If-None-Match": etag}, 304, b""),
            ({"If-None-Match": "*"}, 304, b""),
            ({"If-None-Match": '"x"'}, 200, BODY),
            ({"If-Match": '"x"'}, 412, None),
            ({"If-Match": etag}, 200, BODY),
            ({"If-Modified-Since": date}, 304, b""),
            ({"If-Unmodified-Since": "Sat, 01 Jan 2000 00:00:00 GMT"}, 412, None),
        ]:
            reply = await _get(service, "name", fields)
            assert reply.status == status, fields
            if body is not None:
                assert reply.body == body


async def test_equal_content_has_an_equal_etag(autojump_clock: Clock) -> None:
    """DESIGN, store: the validator is the content's digest."""
    async with memory_service(FileService()) as service:
        one, two = await _put(service, "one"), await _put(service, "two")
        assert one["etag"] == two["etag"]


async def test_representation_fields_are_kept_and_made_harmless(
    autojump_clock: Clock,
) -> None:
    """G14, G16: type, coding and language as they came; sandboxed, as attachment."""
    kept = {
        "Content-Type": "text/html; charset=utf-8",
        "Content-Encoding": "gzip",
        "Content-Language": "de",
    }
    async with memory_service(FileService()) as service:
        await _put(service, "page", BODY, {**kept, "X-Other": "not kept"})
        reply = await _get(service, "page")
        for name, value in kept.items():
            assert reply[name.lower()] == value
        assert "x-other" not in reply.fields
        assert reply["x-content-type-options"] == "nosniff"
        assert reply["content-security-policy"] == "sandbox; default-src 'none'"
        assert reply["content-disposition"] == 'attachment; filename="page"'
        assert reply.body == BODY
        await _put(service, "plain")
        plain = await _get(service, "plain")
        assert plain["content-type"] == "application/octet-stream"


@pytest.mark.parametrize(
    ("suggested", "shown"),
    [
        ('attachment; filename="a.txt"', 'attachment; filename="a.txt"'),
        ('attachment; filename="../../etc/passwd"', 'attachment; filename="passwd"'),
        (
            'attachment; filename="C:\\\\x\\\\evil.exe"',
            'attachment; filename="evil.exe"',
        ),
        ('inline; filename="a\\"b"', 'attachment; filename="a_b"; '),
        (
            "attachment; filename*=UTF-8''%E2%82%AC.txt",
            'attachment; filename="_.txt"; ',
        ),
        ("attachment; filename*=UTF-8''a%0d%0aSet-Cookie:x", "attachment; filename="),
        ("inline", 'attachment; filename="name"'),
        ("nonsense;;;", 'attachment; filename="name"'),
    ],
)
async def test_suggested_file_name_is_sanitised(
    suggested: str, shown: str, autojump_clock: Clock
) -> None:
    """G4, G14: never inline, never a path, never a second header."""
    async with memory_service(FileService()) as service:
        await _put(service, "name", BODY, {"Content-Disposition": suggested})
        reply = await _get(service, "name")
        assert reply["content-disposition"].startswith(shown)
        assert "set-cookie" not in reply.fields


NAMES = {
    "%2e%2e": 404,
    ".": 404,
    "..": 404,
    "%2E": 404,
    "..%2f..%2fetc%2fpasswd": 404,
    "a%2Fb": 404,
    "a/b": 404,
    "a%5Cb": 404,
    "a%00b": 400,
    "a%0Ab": 400,
    "a%7f": 400,
    "%ff": 400,
    "%e2%80%ae": 400,
    "a%C2%85b": 400,
    "a%E2%81%A6b": 400,
    "x" * 256: 400,
    "%C3%A9" * 128: 400,
    "CON": 201,
    "aux.c": 201,
    "a.%20": 201,
    "x" * 255: 201,
    ".hidden": 201,
    "...": 201,
    "a%20b": 201,
    "%C3%A9": 201,
    "a+b;c=d@e": 201,
    "%25": 201,
}


@pytest.mark.parametrize(("name", "status"), NAMES.items())
async def test_names_are_keys_and_never_paths(
    name: str, status: int, autojump_clock: Clock
) -> None:
    """G12: what could climb is no name, 404; what cannot be kept is a 400 for a PUT."""
    async with memory_service(FileService()) as service:
        reply = await _put(service, name)
        assert reply.status == status
        if status == 201:
            assert (await _get(service, reply["location"][7:])).body == BODY
        if status == 400:
            assert reply.code == "bad-file-name"
            assert reply.json["detail"]
        for method in ("GET", "HEAD", "DELETE"):
            found = await _get(service, name, {}, method)
            there = 204 if method == "DELETE" else 200
            assert found.status == (there if status == 201 else 404)


@pytest.mark.parametrize("name", KEPT)
async def test_names_are_kept_as_they_were_sent(
    name: str, autojump_clock: Clock
) -> None:
    """RFC 8187: blanks, joiners and unassigned code points too, in each way to name a file."""
    encoded = quote(name, safe="")
    suggestion = f"attachment; filename*=UTF-8''{encoded}"
    metadata = "filename " + base64.b64encode(name.encode()).decode()
    async with memory_service(FileService()) as service:
        put = await _put(service, encoded)
        assert put.status == 201
        assert unquote(put["location"]) == f"/files/{name}"
        client = service.connect()
        post = await client.request(
            "POST", "/files/", {"Content-Disposition": suggestion}, BODY
        )
        tus = await client.request(
            "POST",
            "/files/",
            {**MARK, "Upload-Length": "0", "Upload-Metadata": metadata},
        )
        message = await client.request("GET", tus["response-message-location"])
        located = re.search(rb"location: (\S+)", message.body, re.IGNORECASE)
        assert located is not None
        for location in (put["location"], post["location"], located[1].decode()):
            shown = await client.request("HEAD", location)
            offered = shown["content-disposition"]
            assert parse_content_disposition_filename(offered) == name
            assert "; filename*=UTF-8''" in offered or f'filename="{name}"' in offered


@pytest.mark.parametrize(
    ("sent", "offered"),
    [
        ("cod%E2%80%AEgpj.exe", 'filename="codgpj.exe"'),
        ("nul.tar.gz", 'filename="_nul.tar.gz"'),
        ("a%00b. ", 'filename="ab"'),
        ("a" * 300 + ".tar.gz", f'filename="{"a" * 248}.tar.gz"'),
    ],
)
async def test_dangers_of_a_suggested_name_are_removed(
    sent: str, offered: str, autojump_clock: Clock
) -> None:
    """G14: and nothing else; the file is stored."""
    disposition = {"Content-Disposition": f"attachment; filename*=UTF-8''{sent}"}
    async with memory_service(FileService()) as service:
        client = service.connect()
        post = await client.request("POST", "/files/", disposition, BODY)
        assert post.status == 201
        shown = await client.request("HEAD", post["location"])
        assert shown["content-disposition"] == f"attachment; {offered}"


@pytest.mark.parametrize(
    ("name", "offered"),
    [("CON", '; filename="_CON"'), ("a.%20", '; filename="a"'), ("...", "")],
)
async def test_names_in_the_path_are_offered_without_their_danger(
    name: str, offered: str, autojump_clock: Clock
) -> None:
    """The name is a key, and stays what it is; whoever saves the file gets another."""
    async with memory_service(FileService()) as service:
        await _put(service, name)
        shown = await _get(service, name)
        assert (shown.body, shown["content-disposition"]) == (
            BODY,
            f"attachment{offered}",
        )


async def test_spellings_of_one_name_are_one_file(autojump_clock: Clock) -> None:
    """RFC 3986, 6.2.2: percent-encoding of a letter makes no other name."""
    async with memory_service(FileService()) as service:
        await _put(service, "abc")
        assert (await _get(service, "%61b%63")).body == BODY
        assert (await _get(service, "abc?query")).body == BODY


@pytest.mark.parametrize("path", ["/", "/file", "/filesa", "/other/a", "/FILES/a"])
async def test_other_paths_are_404_before_any_content(
    path: str, autojump_clock: Clock
) -> None:
    """R10: the refusal replaces the 100."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        await client.send(
            head("PUT", path, {"Expect": "100-continue", **RESUME}, length=10)
        )
        reply = await client.reply()
        assert (reply.status, reply.interims) == (404, [])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("PUT", "/files/", "OPTIONS, POST"),
        ("PUT", "/files", "OPTIONS, POST"),
        ("GET", "/files", "OPTIONS, POST"),
        ("GET", "/files/", "OPTIONS, POST"),
        ("DELETE", "/files/", "OPTIONS, POST"),
        ("POST", "/files/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("PATCH", "/files/a", "DELETE, GET, HEAD, OPTIONS, PUT"),
    ],
)
async def test_other_methods_are_405_with_allow(
    method: str, path: str, allow: str, autojump_clock: Clock
) -> None:
    """RFC 9110, 15.5.6; OPTIONS tells the same."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        reply = await client.request(method, path)
        assert (reply.status, reply["allow"]) == (405, allow)
        options = await client.request("OPTIONS", path)
        assert (options.status, options["allow"]) == (200, allow)


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"Tus-Resumable": "1.0.0", "Upload-Length": "0"},
        {"Upload-Draft-Interop-Version": "10", "Upload-Complete": "?1"},
    ],
)
async def test_collection_needs_no_slash(
    fields: dict[str, str], autojump_clock: Clock
) -> None:
    """POST and OPTIONS, in each dialect; a query changes nothing."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        for path in ("/files", "/files/", "/files?a=b"):
            assert (await client.request("POST", path, fields, b"")).status == 201
            options = await client.request("OPTIONS", path, fields)
            assert (options.status, options["allow"]) == (200, "OPTIONS, POST")
    async with memory_service(FileService("/")) as service:
        assert (await service.connect().request("POST", "/", {}, b"a")).status == 201


TUS_PATCH = {
    "Tus-Resumable": "1.0.0",
    "Content-Type": "application/offset+octet-stream",
    "Upload-Offset": "0",
}


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("PATCH", TUS_PATCH),
        ("PATCH", {"Tus-Resumable": "1.0.0"}),
        ("PATCH", {"Content-Type": "application/offset+octet-stream"}),
        ("POST", {**TUS_PATCH, "X-HTTP-Method-Override": "PATCH"}),
        ("PATCH", {"Content-Type": "application/partial-upload"}),
        ("PATCH", {"Content-Type": "message/byterange"}),
        (
            "PATCH",
            {
                "Upload-Draft-Interop-Version": "5",
                "Upload-Offset": "0",
                "Upload-Complete": "?1",
            },
        ),
        (
            "POST",
            {
                "Upload-Draft-Interop-Version": "5",
                "Upload-Offset": "0",
                "Upload-Complete": "?1",
                "X-HTTP-Method-Override": "PATCH",
            },
        ),
    ],
)
async def test_append_to_an_unknown_name_is_404(
    method: str, fields: dict[str, str], autojump_clock: Clock
) -> None:
    """E10: its client then begins anew; on a file that exists it is a 405."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        for body in (b"", BODY):
            reply = await client.request(method, "/files/none", fields, body)
            assert (reply.status, reply.code) == (404, "not-found")
            assert ("tus-resumable" in reply.fields) == ("Tus-Resumable" in fields)
        await _put(service, "real")
        reply = await client.request(method, "/files/real", fields, BODY)
        assert (reply.status, "PUT" in reply["allow"]) == (405, True)
        assert (await _get(service, "real")).body == BODY
        assert (await _get(service, "none")).status == 404


async def test_partial_post_is_refused(autojump_clock: Clock) -> None:
    """RFC 9110, 14.5: a part of a file is no file of its own."""
    async with memory_service(FileService()) as service:
        for value in ("bytes 0-4/10", "bytes 0-4/5", "bytes */5", "x"):
            reply = await service.connect().request(
                "POST", "/files/", {"Content-Range": value}, b"hello"
            )
            assert (reply.status, reply.code) == (400, "malformed-request")
        assert service.store.stored_bytes == 0


async def test_partial_put_is_refused(autojump_clock: Clock) -> None:
    """RFC 9110, 14.5: it must not replace the whole."""
    async with memory_service(FileService()) as service:
        await _put(service, "name")
        reply = await _put(service, "name", b"x", {"Content-Range": "bytes 0-0/512"})
        assert reply.status == 400
        assert (await _get(service, "name")).body == BODY


async def test_failed_precondition_replaces_the_100(autojump_clock: Clock) -> None:
    """R10: looked at before any content is asked for."""
    async with memory_service(FileService()) as service:
        await _put(service, "name")
        for fields in ({"If-None-Match": "*"}, {"If-Match": '"x"'}):
            client = service.connect()
            wanted = {"Expect": "100-continue", **RESUME, **fields}
            await client.send(head("PUT", "/files/name", wanted, length=10))
            reply = await client.reply()
            assert (reply.status, reply.interims) == (412, [])
        missing = await _put(service, "none", b"x", {"If-Match": "*"})
        assert missing.status == 412


@pytest.mark.parametrize("crossing", ["create", "replace", "delete"])
async def test_precondition_is_looked_at_again_at_the_end(
    crossing: str, autojump_clock: Clock
) -> None:
    """What happened to the file while the content arrived counts: 412, and nothing lost."""
    async with memory_service(FileService()) as service:
        fields = {"If-None-Match": "*"}
        if crossing != "create":
            fields = {"If-Match": (await _put(service, "name"))["etag"]}
        client = service.connect()
        await client.send(head("PUT", "/files/name", {**RESUME, **fields}, length=5))
        await client.interim()
        await client.send(b"he")
        await trio.testing.wait_all_tasks_blocked()
        if crossing == "delete":
            assert (await _get(service, "name", {}, "DELETE")).status == 204
        else:
            await _put(service, "name", b"meanwhile")
        await client.send(b"llo")
        reply = await client.reply()
        assert (reply.status, reply.code) == (412, "precondition-failed")
        found = await _get(service, "name")
        if crossing == "delete":
            assert found.status == 404
        else:
            assert found.body == b"meanwhile"


@pytest.mark.parametrize("resume", [False, True])
async def test_of_many_creators_one_succeeds(
    resume: bool, autojump_clock: Clock
) -> None:
    """If-None-Match: * is a race that exactly one wins, with its own content."""
    async with memory_service(FileService()) as service:
        statuses: list[int] = []

        async def create(number: int) -> None:
            fields = {"If-None-Match": "*", **(RESUME if resume else {})}
            reply = await _put(service, "name", bytes([number]) * 100, fields)
            statuses.append(reply.status)

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(create, number)
        assert sorted(statuses) == [201] + [412] * 19
        body = (await _get(service, "name")).body
        assert body == body[:1] * 100


async def test_unconditional_writers_all_succeed(autojump_clock: Clock) -> None:
    """The last one stays; conflicts between them are looked at again, not reported."""
    async with memory_service(FileService()) as service:
        statuses: list[int] = []

        async def put(number: int) -> None:
            reply = await _put(service, "name", bytes([number]) * 100)
            statuses.append(reply.status)

        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(put, number)
        assert sorted(statuses) == [201] + [204] * 7


async def test_reader_goes_on_with_the_content_it_began(autojump_clock: Clock) -> None:
    """DESIGN, store: a file replaced and collected meanwhile is still whole for it."""
    body = bytes(range(256)) * 1000
    async with memory_service(FileService()) as service:
        await _put(service, "name", body)
        client = service.connect()
        await client.send(head("GET", "/files/name"))
        await trio.testing.wait_all_tasks_blocked()  # its pipe is full
        await _put(service, "name", b"other")
        await trio.sleep(30)
        reply = await client.reply()
        assert reply.body == body


async def test_file_appears_with_the_response_and_not_before(
    autojump_clock: Clock,
) -> None:
    """Promise 4: cut, resumed by PATCH, and then there, whole."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        await client.send(head("PUT", "/files/a", RESUME, length=512) + BODY[:100])
        interim = await client.interim()
        await trio.testing.wait_all_tasks_blocked()
        await client.aclose()
        assert (await _get(service, "a")).status == 404
        location = interim.fields.get("request-content-location") or ""
        client = service.connect()
        reply = await client.patch(location, 100, BODY[100:], 512)
        assert (reply.status, reply["location"]) == (201, "/files/a")
        assert (await _get(service, "a")).body == BODY
        again = await client.request(
            "PATCH", location, BYTERANGE, b"Content-Range: bytes */512\r\n\r\n"
        )
        assert again.body == reply.body
        # Deleting the record does not take the file along.
        assert (await client.request("DELETE", reply.message)).status == 204
        await trio.sleep(10)
        assert (await _get(service, "a")).body == BODY


async def test_cancelled_upload_publishes_nothing(autojump_clock: Clock) -> None:
    """R25: DELETE of the content; a later PATCH finds it gone."""
    async with memory_service(FileService()) as service:
        client = service.connect()
        await client.send(head("PUT", "/files/a", RESUME, length=512) + BODY[:100])
        interim = await client.interim()
        location = interim.fields.get("request-content-location") or ""
        await service.connect().request("DELETE", location)
        patch = byterange(100, BODY[100:], 512)
        reply = await service.connect().request("PATCH", location, BYTERANGE, patch)
        assert reply.status == 410
        assert (await _get(service, "a")).status == 404


async def _by_name(head: RequestHead) -> Principal:
    return Principal(head.fields.get("authorization") or "nobody")


async def test_each_principal_has_a_namespace(autojump_clock: Clock) -> None:
    """R35: what another one stored does not exist, on any method."""
    ann, bob = {"Authorization": "ann"}, {"Authorization": "bob"}
    config = Config(authenticate=_by_name)
    async with memory_service(FileService(), config) as service:
        assert (await _put(service, "a", b"ann's", ann)).status == 201
        for method in ("GET", "HEAD", "DELETE"):
            assert (await _get(service, "a", bob, method)).status == 404
        assert (await _put(service, "a", b"bob's", bob)).status == 201
        assert (await _get(service, "a", ann)).body == b"ann's"
        assert (await _get(service, "a", bob)).body == b"bob's"
        reply = await _get(service, "a", ann)
        assert "Authorization" in reply["vary"]


async def test_upload_over_the_limit_is_413_before_its_content(
    autojump_clock: Clock,
) -> None:
    """R10: a declared length over the limit is not asked for."""
    async with memory_service(FileService(), Config(max_upload_size=10)) as service:
        client = service.connect()
        fields = {"Expect": "100-continue", **RESUME}
        await client.send(head("PUT", "/files/a", fields, length=11))
        reply = await client.reply()
        assert (reply.status, reply.interims) == (413, [])
        assert (await _put(service, "a", bytes(10))).status == 201


@pytest.mark.parametrize("base", ["", "files/", "/files", "x"])
def test_base_path_must_have_slashes(base: str) -> None:
    """It is a prefix, compared as text."""
    with pytest.raises(CallerError):
        FileService(base)


async def test_base_path_can_be_the_root(autojump_clock: Clock) -> None:
    """The operations' paths still go before it."""
    async with memory_service(FileService("/")) as service:
        client = service.connect()
        reply = await client.request("PUT", "/name", RESUME, BODY)
        assert (reply.status, reply["location"]) == (201, "/name")
        assert (await client.request("GET", reply.message)).status == 200
