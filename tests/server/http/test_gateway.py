"""Behind a proxy, over sockets: locations, who is believed, interim responses."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import trio

from tests.server.harness import (
    RESUME,
    Client,
    Recorder,
    head,
    socket_service,
)
from trioresume import FileService, Principal, RequestHead

LOCAL = ["127.0.0.1"]
RUFH = {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?0"}
TUS = {"Tus-Resumable": "1.0.0", "Upload-Length": "5"}
FROM = {"X-Forwarded-For": "192.0.2.1"}
PIECE = 64 * 1024
SAID = {**FROM, "X-Forwarded-Proto": "https", "X-Forwarded-Host": "up.example"}


async def locations(client: Client, fields: Mapping[str, str]) -> set[str]:
    """What comes before the path of an upload that RUFH and tus clients are told."""
    found = set()
    for dialect in (RUFH, TUS):
        reply = await client.request("POST", "/files/", {**dialect, **fields}, b"")
        assert reply.status == 201
        told = [reply["location"]]
        told += [x for i in reply.interims if (x := i.fields.get("location"))]
        found |= {location.partition("/operations/")[0] for location in told}
    return found


@pytest.mark.parametrize(
    ("fields", "origin"),
    [
        ({}, ""),  # a trusted proxy that keeps silent is no authority
        (SAID, "https://up.example"),
        ({**FROM, "X-Forwarded-Proto": "https"}, "https://test"),
        ({**FROM, "X-Forwarded-Host": "up.example"}, ""),
        ({**SAID, "X-Forwarded-Proto": "javascript"}, ""),
        ({**SAID, "X-Forwarded-Host": "a/../b"}, "https://test"),
        ({"Forwarded": "for=192.0.2.1;proto=https;host=evil.example"}, ""),
        ({**SAID, "X-Forwarded-Host": "up.example:443"}, "https://up.example"),
        ({**SAID, "X-Forwarded-Host": "up.example:0443"}, "https://up.example"),
        ({**SAID, "X-Forwarded-Host": "up.example:80"}, "https://up.example:80"),
        ({**SAID, "X-Forwarded-Host": "up.example:8443"}, "https://up.example:8443"),
        ({**SAID, "X-Forwarded-Host": "[2001:db8::80]"}, "https://[2001:db8::80]"),
        ({**SAID, "X-Forwarded-Host": "[::1]:443"}, "https://[::1]"),
        ({**SAID, "X-Forwarded-Port": "8443"}, "https://up.example:8443"),
        ({**SAID, "X-Forwarded-Port": "443"}, "https://up.example"),
        # TLS ends at another proxy in front of the one that names its port.
        ({**SAID, "X-Forwarded-Port": "80"}, "https://up.example"),
        (
            {**FROM, "X-Forwarded-Proto": "https", "X-Forwarded-Port": "8443"},
            "https://test:8443",
        ),
        ({**FROM, "X-Forwarded-Port": "8443"}, ""),
        (
            {**SAID, "X-Forwarded-Host": "up.example:81", "X-Forwarded-Port": "8443"},
            "https://up.example:81",
        ),
        (
            {**SAID, "X-Forwarded-Host": "up.example:80", "X-Forwarded-Proto": "http"},
            "http://up.example",
        ),
        (
            {**SAID, "X-Forwarded-Host": "up.example:443", "X-Forwarded-Proto": "http"},
            "http://up.example:443",
        ),
    ],
)
async def test_trusted_proxy_says_where_the_request_was_sent_to(
    fields: dict[str, str], origin: str, tmp_path: Path
) -> None:
    """G13, R4: the scheme is what only the proxy knows."""
    async with (
        socket_service(FileService(), tmp_path, trusted_proxies=LOCAL) as service,
        service.connect() as client,
    ):
        assert await locations(client, fields) == {origin}


async def test_forwarded_is_believed_instead(tmp_path: Path) -> None:
    """G13: of the two families, the one that the proxies write."""
    settings = {"trusted_proxies": LOCAL, "forwarded_fields": "forwarded"}
    said = {"Forwarded": "for=192.0.2.1;proto=https;host=up.example"}
    async with (
        socket_service(FileService(), tmp_path, **settings) as service,
        service.connect() as client,
    ):
        assert await locations(client, said) == {"https://up.example"}
        assert await locations(client, SAID) == {""}


@pytest.mark.parametrize("trusted", [[], ["192.0.2.0/24"]])
async def test_others_are_not_believed(trusted: list[str], tmp_path: Path) -> None:
    """G13: their word is taken for a sign of a proxy, and for nothing else."""
    async with (
        socket_service(FileService(), tmp_path, trusted_proxies=trusted) as service,
        service.connect() as client,
    ):
        assert await locations(client, {}) == {"http://test"}
        assert await locations(client, SAID) == {""}
        assert await locations(client, {"Forwarded": "host=evil.example"}) == {""}
        assert await locations(client, {"X-Forwarded-Port": "8443"}) == {""}
        reply = await client.request("POST", "/files/", TUS, b"", version="1.0")
        assert reply["location"].startswith("/operations/")


async def test_location_is_relative_where_it_is_to_be(tmp_path: Path) -> None:
    """R4: for clients that resolve references, behind proxies that say nothing."""
    settings = {"trusted_proxies": LOCAL, "relative_locations": True}
    async with (
        socket_service(FileService(), tmp_path, **settings) as service,
        service.connect() as client,
    ):
        assert await locations(client, {}) == {""}
        assert await locations(client, SAID) == {""}


async def test_public_url_is_stronger_than_any_proxy(tmp_path: Path) -> None:
    """R4, G13: what is configured is true for everybody."""
    settings = {"trusted_proxies": LOCAL, "public_url": "https://our.example/up"}
    async with (
        socket_service(FileService(), tmp_path, **settings) as service,
        service.connect() as client,
    ):
        assert await locations(client, SAID) == {"https://our.example/up"}


async def test_nothing_that_is_stored_holds_what_a_proxy_said(tmp_path: Path) -> None:
    """G13: who asks for the response later may have come another way."""
    async with (
        socket_service(FileService(), tmp_path, trusted_proxies=LOCAL) as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/files/", {**RESUME, **SAID}, b"hello")
        assert reply["location"].startswith("/files/")
        message = await client.request("GET", reply.message, SAID)
        assert b"up.example" not in message.body


async def test_who_sent_it_is_told_to_whoever_asks(tmp_path: Path) -> None:
    """G13: the authenticator and the handler see the client, not the proxy."""
    seen: list[tuple[str, str]] = []

    async def note(head: RequestHead) -> Principal:
        seen.append((head.peer, head.origin))
        return Principal("anybody")

    async with (
        socket_service(
            Recorder(), tmp_path, trusted_proxies=LOCAL, authenticate=note
        ) as service,
        service.connect() as client,
    ):
        await client.request("GET", "/", SAID)
        lied = {"X-Forwarded-For": "192.0.2.9, 192.0.2.1, 127.0.0.1"}
        await client.request("GET", "/", {**SAID, **lied})
        await client.request("GET", "/")
    assert seen[0] == seen[1] == ("192.0.2.1", "https://up.example")
    assert seen[2][0].startswith("127.0.0.1:")
    assert seen[2][1] == ""


# A root path.


async def test_root_path_is_before_every_location(tmp_path: Path) -> None:
    """R1, R4, D6, D7: the proxy takes it off, and what comes back is without it."""
    async with (
        socket_service(FileService(), tmp_path, root_path="/up") as service,
        service.connect() as client,
    ):
        interim = await client.start(5, b"he", target="/files/")
        told = interim.fields
        for name in ("request-content-location", "response-message-location"):
            assert (told.get(name) or "").startswith("/up/operations/")
        await client.aclose()
        async with service.connect() as again:
            content = (told.get("request-content-location") or "").removeprefix("/up")
            done = await again.patch(content, 2, b"llo", 5)
            assert done["location"].startswith("/up/files/")
            assert done["content-location"].startswith("/up/operations/")
            file = await again.request("GET", done["location"].removeprefix("/up"))
            assert file.body == b"hello"
            assert await locations(again, {}) == {"http://test/up"}
            assert await locations(again, FROM) == {"/up"}
            # Nothing else is at the path with the root than without it.
            assert (await again.request("GET", done["location"])).status == 404


async def test_parts_are_found_by_their_public_names(tmp_path: Path) -> None:
    """D7: a client concatenates what it was told, whichever way it came."""
    settings = {"root_path": "/up", "trusted_proxies": LOCAL}
    async with (
        socket_service(FileService(), tmp_path, **settings) as service,
        service.connect() as client,
    ):
        parts = []
        for fields in (SAID, FROM):
            partial = {**TUS, "Upload-Concat": "partial", **fields}
            created = await client.request("POST", "/files/", partial, b"")
            parts.append(created["location"])
            path = "/operations/" + created["location"].partition("/operations/")[2]
            data = {
                "Tus-Resumable": "1.0.0",
                "Upload-Offset": "0",
                "Content-Type": "application/offset+octet-stream",
            }
            assert (await client.request("PATCH", path, data, b"hello")).status == 204
        assert parts[0].startswith("https://up.example/up/operations/")
        assert parts[1].startswith("/up/operations/")
        final = {"Tus-Resumable": "1.0.0", "Upload-Concat": f"final;{' '.join(parts)}"}
        joined = await client.request("POST", "/files/", {**final, **SAID}, b"")
        assert (joined.status, joined["upload-offset"]) == (201, "10")


# Interim responses.


@pytest.mark.parametrize(
    ("setting", "expected"),
    [("all", [104, 104]), ("locations", [104]), ("none", [])],
)
async def test_interim_responses_are_as_many_as_a_proxy_takes(
    setting: str, expected: list[int], tmp_path: Path
) -> None:
    """C2, C12: where the upload is, and how far it is, are two things to tell."""
    async with (
        socket_service(Recorder(), tmp_path, interim_responses=setting) as service,
        service.connect() as client,
    ):
        fields = {**RUFH, "Upload-Complete": "?1"}
        await client.send(head("POST", "/", fields, length=2 * PIECE) + bytes(PIECE))
        await trio.sleep(1.2)  # a bit more than between two of them
        await client.send(bytes(PIECE))
        reply = await client.reply()
        assert reply.status == 200
        statuses = [interim.status for interim in reply.interims]
        # The last one may be due or not when the content ends.
        assert statuses[: len(expected)] == expected
        assert len(statuses) <= len(expected) + (setting == "all")
        told = [interim.fields.get("location") for interim in reply.interims]
        assert all(told[:1])
        assert not any(told[1:])


@pytest.mark.parametrize(
    ("setting", "expected"), [("all", [100]), ("locations", [100]), ("none", [])]
)
async def test_unasked_100_can_be_done_without(
    setting: str, expected: list[int], tmp_path: Path
) -> None:
    """R5: the final response has the same fields."""
    async with (
        socket_service(Recorder(), tmp_path, interim_responses=setting) as service,
        service.connect() as client,
    ):
        reply = await client.request("POST", "/", RESUME, b"hello")
        assert [interim.status for interim in reply.interims] == expected
        assert "request-content-location" in reply.fields
        # One that is waited for comes all the same, with the fields (R1).
        await client.send(
            head("POST", "/", {**RESUME, "Expect": "100-continue"}, length=5)
        )
        assert "content-location" in (await client.interim()).fields
        await client.send(b"hello")
        assert (await client.reply()).body == b"got 5 bytes"


# Connections.


@pytest.mark.parametrize("trusted", [[], LOCAL])
async def test_silent_proxy_is_not_one_client(
    trusted: list[str], tmp_path: Path
) -> None:
    """G5: the limit of an address is not for a proxy that does not say whose each is."""
    settings = {"max_connections_per_address": 1, "trusted_proxies": trusted}
    async with (
        socket_service(Recorder(), tmp_path, **settings) as service,
        service.connect() as one,
    ):
        await one.start(5, b"he")
        for _ in range(3):
            async with service.connect() as other:
                if trusted:
                    assert (await other.request("GET", "/")).status == 200
                else:
                    assert (await other.reply()).status == 429


Said = tuple[str, dict[str, str], dict[str, str]]

FAMILIES: list[Said] = [
    ("x-forwarded", FROM, {"X-Forwarded-For": "192.0.2.2"}),
    ("forwarded", {"Forwarded": "for=192.0.2.1"}, {"Forwarded": "for=192.0.2.2"}),
    (
        "forwarded",
        {"Forwarded": 'for="[2001:db8:0:1::7]:4711"'},
        {"Forwarded": 'for="[2001:db8:0:2::7]"'},
    ),
    # What a client claims stands in front of the proxy's own word.
    (
        "x-forwarded",
        {"X-Forwarded-For": "192.0.2.9, 192.0.2.1"},
        {"X-Forwarded-For": "192.0.2.1, 192.0.2.2"},
    ),
]


@pytest.mark.parametrize(("family", "one", "other"), FAMILIES)
async def test_connections_are_counted_by_what_the_proxy_says(
    family: str, one: dict[str, str], other: dict[str, str], tmp_path: Path
) -> None:
    """G5, G13: each client that the proxy names has the limit to itself."""
    settings = {
        "max_connections_per_address": 2,
        "trusted_proxies": LOCAL,
        "forwarded_fields": family,
    }
    async with (
        socket_service(Recorder(), tmp_path, **settings) as service,
        service.connect() as first,
        service.connect() as second,
        service.connect() as third,
    ):
        await first.start(5, b"he", fields=one)
        await second.start(5, b"he", fields=one)
        # The connection is the proxy's: the refusal does not cost it, ...
        refused = await third.request("GET", "/", one)
        assert refused.status == 429
        assert refused["retry-after"]
        assert refused["content-type"] == "application/problem+json"
        # ... somebody else's request goes through on it, ...
        assert (await third.request("GET", "/", other)).status == 200
        # ... and the client's own, once one of its requests is over.
        await first.send(b"llo")
        assert (await first.reply()).status == 200
        assert (await third.request("GET", "/", one)).status == 200


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"X-Forwarded-For": "_hidden"},
        {"X-Forwarded-For": "unknown"},
        {"X-Forwarded-For": "127.0.0.1"},
    ],
)
async def test_client_that_is_not_named_is_not_counted(
    fields: dict[str, str], tmp_path: Path
) -> None:
    """All that a proxy hands on without an address would be one client's."""
    settings = {"max_connections_per_address": 1, "trusted_proxies": LOCAL}
    async with (
        socket_service(Recorder(), tmp_path, **settings) as service,
        service.connect() as one,
        service.connect() as other,
    ):
        await one.start(5, b"he", fields=fields)
        assert (await other.request("GET", "/", fields)).status == 200


async def test_refused_upload_of_a_proxy_writes_nothing(tmp_path: Path) -> None:
    """429 comes before the 100 and before any content is read."""
    settings = {"max_connections_per_address": 1, "trusted_proxies": LOCAL}
    recorder = Recorder()
    async with (
        socket_service(recorder, tmp_path, **settings) as service,
        service.connect() as one,
        service.connect() as other,
    ):
        await one.start(5, b"he", fields=FROM)
        fields = {**FROM, "Expect": "100-continue"}
        await other.send(head("POST", "/", {**fields, "Content-Length": "5"}))
        reply = await other.reply()
        assert (reply.status, reply.interims) == (429, [])
