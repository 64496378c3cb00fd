"""Signed addresses: one kind of request, and then the upload that it has begun."""

from __future__ import annotations

import base64
import json
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.identity.heads import bearer, head
from tests.server.harness import (
    BYTERANGE,
    Client,
    MemoryService,
    Recorder,
    byterange,
    memory_service,
)
from tests.server.rufh import NEWEST, appends, path_of, says
from tests.server.tus import MARK, append, create, offset_of
from tests.targets.upstream.backend import backend
from tests.targets.upstream.test_once import front
from trioresume import (
    AnyOf,
    CallerError,
    Config,
    Fields,
    FileService,
    Principal,
    Rejection,
    Request,
    Response,
    SignedAddresses,
    SigningKey,
    bearer_tokens,
    new_token,
    sign_download,
    sign_upload,
)
from trioresume.protocol.operation import OperationState
from trioresume.server.uploads.locations import OPEN

KEY = SigningKey.new("new")
OLD = SigningKey.new("old")
HOST = "https://up.example"
BODY = bytes(range(256)) * 2

Sign = Callable[..., str]


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return write(tmp_path / "keys", "# the first one signs", "", KEY.line, OLD.line)


def upload_target(path: str = "/files/", **what: Any) -> str:
    """The target of a signed request for an upload; ``ann`` owns it."""
    url = sign_upload(f"{HOST}{path}", KEY, **{"principal": "ann", **what})
    return url.removeprefix(HOST)


def download_target(path: str, **what: Any) -> str:
    url = sign_download(f"{HOST}{path}", KEY, **{"principal": "ann", **what})
    return url.removeprefix(HOST)


class Clock:
    """The time by which addresses end."""

    def __init__(self) -> None:
        self.now = time.time()

    def __call__(self) -> float:
        return self.now


class Service:
    """A file service in memory that knows signed addresses, and ann and bob by tokens."""

    def __init__(self, service: MemoryService, clock: Clock, tokens: dict[str, str]):
        self.service = service
        self.clock = clock
        self.tokens = tokens

    def connect(self) -> Client:
        return self.service.connect()

    def records(self) -> list[Any]:
        return self.service.store.operations_in([*OperationState], 99, None)

    def files(self, owner: str, name: str) -> bytes | None:
        file = self.service.store.file(owner, name)
        if file is None:
            return None
        reader = self.service.store.open_reader(file.content)
        length, read = file.content.length, b""
        while len(read) < length:
            read += reader.read(len(read), length)
        return read


@asynccontextmanager
async def serving(
    tmp_path: Path, keys: Path, **settings: Any
) -> AsyncIterator[Service]:
    clock = Clock()
    tokens = {}
    lines = []
    for name in ("ann", "bob"):
        tokens[name], line = new_token(name)
        lines.append(line)
    known = AnyOf(
        SignedAddresses(keys, clock=clock),
        bearer_tokens(write(tmp_path / "tokens", *lines)),
    )
    target = settings.pop("target", None) or FileService()
    async with memory_service(
        target, Config(authenticate=known, **settings)
    ) as service:
        yield Service(service, clock, tokens)


# The authenticator alone.


async def verdict(
    known: SignedAddresses, method: str, target: str
) -> Principal | Rejection:
    return await known(head(method, target))


async def test_request_counts_for_the_signed_principal(keys: Path) -> None:
    """And has the limits, and the target without the signature."""
    known = SignedAddresses(keys)
    target = upload_target(
        "/files/a?b=c", max_size=9, media_type="Image/*", method="PUT"
    )
    found = await verdict(known, "PUT", target)
    assert isinstance(found, Principal)
    assert (found.name, found.is_asked_again) == ("ann", False)
    assert found.grant is not None
    assert found.grant.target == "/files/a?b=c"
    assert (found.grant.max_size, found.grant.media_type) == (9, "image/*")
    found = await verdict(known, "HEAD", download_target("/files/a", principal=""))
    assert isinstance(found, Principal)
    assert found.name == ""


async def test_without_a_signature_others_are_asked(keys: Path) -> None:
    """401, so that :class:`AnyOf` goes on."""
    found = await verdict(SignedAddresses(keys), "GET", "/a?designed=x")
    assert isinstance(found, Rejection)
    assert (found.status, "www-authenticate" in found.headers) == (401, True)


def changed(target: str, **claims: object) -> str:
    """*target* with other claims under the old mac."""
    before, _, signed = target.partition("signed=")
    encoded, _, mac = signed.partition(".")
    said = json.loads(base64.urlsafe_b64decode(encoded + "=="))
    text = json.dumps({**said, **claims}, separators=(",", ":"))
    forged = base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()
    return f"{before}signed={forged}.{mac}"


STRANGE = SigningKey.new("new")


@pytest.mark.parametrize(
    ("method", "target", "message"),
    [
        ("GET", upload_target(), "another method"),
        ("PUT", upload_target(), "another method"),
        ("PATCH", upload_target(), "another method"),
        ("DELETE", upload_target(), "another method"),
        ("POST", download_target("/files/"), "another method"),
        ("POST", upload_target("/files/a"), None),
        ("POST", upload_target("/files/a").replace("/a?", "/b?"), "another path"),
        ("POST", upload_target("/files/a").replace("/a?", "/a/?"), "another path"),
        ("POST", upload_target("/files/").replace("/?", "/../x?"), "another path"),
        ("POST", upload_target() + "&x=y", "query"),
        ("POST", upload_target("/files/?x=y").replace("x=y", "x=z"), "query"),
        ("POST", upload_target("/files/?x=y").replace("x=y&", ""), "query"),
        ("POST", upload_target("/files/?x=y"), None),
        (
            "PUT",
            upload_target("/f/", method="PUT", prefix=True).replace("/?", "/a?"),
            None,
        ),
        (
            "PUT",
            upload_target("/f/", method="PUT", prefix=True).replace("/?", "/%2e%2e/a?"),
            "another path",
        ),
        (
            "PUT",
            upload_target("/f/", method="PUT", prefix=True).replace("/f", ""),
            "path",
        ),
        ("POST", upload_target(now=time.time() - 9999), "not valid any more"),
        ("POST", changed(upload_target(), sub="bob"), "signature"),
        ("POST", changed(upload_target(), exp=2**40), "signature"),
        ("POST", changed(upload_target(), kid="old"), "signature"),
        ("POST", changed(upload_target(), kid="none"), "signature"),
        ("POST", upload_target() + "x", "signature"),
        ("POST", upload_target() + "\xff", "signature"),
        ("POST", upload_target()[:-1], "signature"),
        (
            "POST",
            upload_target() + "&" + upload_target().partition("?")[2],
            "signature",
        ),
        ("POST", "/files/?signed=", "signature"),
        ("POST", "/files/?signed=.", "signature"),
        ("POST", "/files/?signed=a.b.c", "signature"),
        ("POST", "/files/?signed=" + "a" * 5000, "signature"),
        (
            "POST",
            sign_upload(f"{HOST}/files/", STRANGE).removeprefix(HOST),
            "signature",
        ),
        ("POST", sign_upload(f"{HOST}/files/", OLD).removeprefix(HOST), None),
    ],
)
async def test_anything_else_is_refused(
    method: str, target: str, message: str | None, keys: Path
) -> None:
    """403 for good: other credentials do not help, and the client learns what is wrong."""
    found = await verdict(SignedAddresses(keys), method, target)
    if message is None:
        assert isinstance(found, Principal)
    else:
        assert isinstance(found, Rejection)
        assert found.status == 403
        assert message in found.detail


@pytest.mark.parametrize(
    "field", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"]
)
@pytest.mark.parametrize("meant", ["DELETE", " delete ", "post, DELETE", "DELETE,POST"])
async def test_no_field_makes_another_method_of_it(
    field: str, meant: str, keys: Path
) -> None:
    """A backend that believes such a field would delete, with an address for an upload."""
    signed = SignedAddresses(keys)
    sent = head("POST", upload_target(), {field: meant})
    found = await signed(sent)
    assert isinstance(found, Rejection)
    assert (found.status, "another method" in found.detail) == (403, True)
    same = replace(sent, fields=Fields({field: "POST"}))
    assert isinstance(await signed(same), Principal)


async def test_keys_are_rotated(keys: Path) -> None:
    """The new one signs while the old one verifies; then the old one is removed."""
    known = SignedAddresses(keys)
    assert SigningKey.read(keys) == (KEY, OLD)
    old = sign_upload(f"{HOST}/files/", OLD).removeprefix(HOST)
    assert isinstance(await verdict(known, "POST", old), Principal)
    write(keys, KEY.line)
    known.reload()
    assert isinstance(await verdict(known, "POST", old), Rejection)
    assert isinstance(await verdict(known, "POST", upload_target()), Principal)
    write(keys, "")
    with pytest.raises(CallerError, match="no key"):
        known.reload()
    assert isinstance(await verdict(known, "POST", upload_target()), Principal)


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "no key"),
        (["a"], "line 1: not 'ID SECRET'"),
        (["a b c"], "line 1: not 'ID SECRET'"),
        (["a short"], "line 1: the secret of a key has at least 32"),
        (["", f"a/b {'x' * 40}"], "line 2"),
        ([f"a {'x' * 40}", f"a {'y' * 40}"], "line 2: the key was named before"),
        (["a " + "\u00e4" * 40], "line 1: not 'ID SECRET'"),
    ],
)
def test_file_that_cannot_be_used_is_refused(
    lines: list[str], message: str, tmp_path: Path
) -> None:
    """It names the line, and repeats nothing of it."""
    path = write(tmp_path / "keys", *lines)
    with pytest.raises(CallerError, match=message) as caught:
        SignedAddresses(path)
    assert "short" not in str(caught.value)
    assert KEY.secret not in repr(KEY)


@pytest.mark.parametrize(
    "what",
    [
        {"method": "PATCH"},
        {"method": "GET"},
        {"expires_in": 0},
        {"max_size": -1},
        {"media_type": "image"},
        {"media_type": "*/*"},
        {"media_type": "image/png; a=b"},
        {"principal": "a\nb"},
        {"principal": "a" * 5000},
        {"prefix": True, "path": "/files"},
        {"path": "/?signed=x"},
    ],
    ids=str,
)
def test_address_that_makes_no_sense_is_not_signed(what: dict[str, Any]) -> None:
    """Otherwise its first user would find out."""
    with pytest.raises(CallerError):
        upload_target(**what)


# The service, in every dialect.


async def test_tus_uploads_and_goes_on_after_the_address_has_expired(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """Without any other credential. The file is the signed principal's."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        path = await create(client, len(BODY), target=upload_target())
        assert "signed" not in path
        assert (await append(client, path, 0, BODY[:100])).status == 204
        service.clock.now += 10_000
        reply = await client.request("POST", upload_target(now=0), MARK, b"")
        assert (reply.status, reply.code) == (403, "forbidden")
        client = service.connect()
        assert await offset_of(client, path) == 100
        assert (await append(client, path, 100, BODY[100:])).status == 204
        (record,) = service.records()
        assert record.principal == "ann"
        assert record.target == "/files/"


async def test_rufh_uploads_in_pieces(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """And learns that it is complete; the locations have no signature."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        target = upload_target("/files/a.bin", method="PUT")
        fields = says(NEWEST, complete=False)
        reply = await client.request("PUT", target, fields, BODY[:100])
        assert "signed" not in str(reply)
        place = path_of(reply["location"])
        service.clock.now += 10_000
        reply = await client.request(
            "PATCH", place, appends(NEWEST, 100, complete=True), BODY[100:]
        )
        assert reply.status == 201
        assert "signed" not in str(reply)
        assert service.files("ann", "a.bin") == BODY


async def test_seed_goes_on_after_a_cut(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """All three locations work without a credential, also to release everything."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        interim = await client.start(len(BODY), BODY[:50], target=upload_target())
        place = interim.fields.get("request-content-location") or ""
        message = interim.fields.get("response-message-location") or ""
        await client.aclose()
        assert "signed" not in str(interim)
        service.clock.now += 10_000
        client = service.connect()
        reply = await client.request(
            "PATCH", place, BYTERANGE, byterange(50, BODY[50:], len(BODY))
        )
        assert reply.status == 201
        reply = await client.request("GET", message)
        assert (reply.status, b"201 Created" in reply.body) == (200, True)
        assert (await client.request("DELETE", message)).status == 204
        assert (await client.request("GET", message)).status == 410


async def test_plain_post_is_enough(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """A form of a browser, or curl."""
    async with serving(tmp_path, keys) as service:
        reply = await service.connect().request("POST", upload_target(), {}, BODY)
        assert reply.status == 201
        assert "signed" not in str(reply)


async def test_parts_are_uploaded_and_joined(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """tus's concatenation; the limit of the size holds for the whole."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        target = upload_target(max_size=len(BODY), media_type="image/png")
        places = []
        for part in (BODY[:200], BODY[200:]):
            fields = {"Upload-Concat": "partial"}
            place = await create(client, len(part), fields, target)
            assert (await append(client, place, 0, part)).status == 204
            places.append(place)
        for joined, status in (([*places, places[0]], 413), (places, 201)):
            fields = {
                **MARK,
                "Upload-Concat": "final;" + " ".join(joined),
                "Upload-Metadata": "filetype aW1hZ2UvcG5n",
            }
            reply = await client.request("POST", target, fields, b"")
            assert reply.status == status


async def test_stranger_gets_nowhere(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """Not to an upload that was begun with a token, nor without knowing the location."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        fields = bearer(service.tokens["ann"])
        owned = await create(client, 9, fields)
        open_ = await create(client, 9, target=upload_target())
        assert (await client.request("HEAD", owned, MARK)).status == 401
        bob = bearer(service.tokens["bob"])
        assert (await client.request("HEAD", owned, {**MARK, **bob})).status == 404
        assert (await client.request("HEAD", open_, MARK)).status == 200
        guessed = open_.replace(open_[12:16], "AAAA")
        none = await client.request("GET", guessed)
        never = await client.request("GET", f"/operations/{'A' * 21}B/content")
        assert (none.status, none.body) == (404, never.body)
        for letter in "BRhx":
            twin = f"{owned[: -len('/content') - 1]}{letter}/content"
            assert (await client.request("HEAD", twin, MARK)).status == 404
        signed = upload_target("/operations/", method="PUT", prefix=True)
        target = owned + "?" + signed.partition("?")[2]
        assert (await client.request("PUT", target, {}, b"")).status == 403


async def test_session_that_expires_meanwhile_does_no_harm(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """A wrong token, or somebody else's, beside the location changes nothing."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        path = await create(client, len(BODY), target=upload_target())
        expired = bearer("expired")
        assert (await append(client, path, 0, BODY[:9], expired)).status == 204
        bob = bearer(service.tokens["bob"])
        assert (await append(client, path, 9, BODY[9:], bob)).status == 204
        (record,) = service.records()
        assert record.principal == "ann"


@pytest.mark.parametrize(
    "kind", ["plain", "chunked", "tus", "deferred", "rufh", "seed"]
)
async def test_more_bytes_than_signed_are_refused(
    kind: str, keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """As soon as it is known: from the head, or when they come."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        target = upload_target(max_size=100)
        if kind == "plain":
            reply = await client.request("POST", target, {}, BODY)
        elif kind == "chunked":
            data = b"%x\r\n%b\r\n0\r\n\r\n" % (len(BODY), BODY)
            await client.send(
                f"POST {target} HTTP/1.1\r\nHost: test\r\n"
                "Transfer-Encoding: chunked\r\n\r\n".encode()
                + data
            )
            reply = await client.reply()
        elif kind == "tus":
            fields = {**MARK, "Upload-Length": "101"}
            reply = await client.request("POST", target, fields, b"")
        elif kind == "deferred":
            path = await create(client, None, target=target)
            assert (await append(client, path, 0, BODY[:100])).status == 204
            for rest in service.service.store.operations_in([*OperationState], 9, None):
                assert rest.length is None
            reply = await append(client, path, 100, b"x")
            await client.aclose()
            client = service.connect()
            assert await offset_of(client, path) == 100
        elif kind == "rufh":
            fields = says(NEWEST, complete=False)
            reply = await client.request("POST", target, fields, BODY[:60])
            place = path_of(reply["location"])
            more = appends(NEWEST, 60, complete=True)
            reply = await client.request("PATCH", place, more, BODY[60:])
        else:
            client = service.connect()
            await client.send(
                f"POST {target} HTTP/1.1\r\nHost: test\r\nPrefer: resume\r\n"
                f"Content-Length: {len(BODY)}\r\n\r\n".encode()
            )
            reply = await client.reply()
        expected = (413, "content-too-large")
        if kind == "rufh":
            expected = (400, "length-over-limit")  # it is the patch that is wrong: B7
        assert (reply.status, reply.code) == expected


async def test_limit_is_kept_over_a_restart(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """It is in the record, and nobody but the service sees it there."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        path = await create(client, None, target=upload_target(max_size=100))
        (record,) = service.records()
        assert record.fields.get(":max-size") == "100"
        service.service.operations._unload(  # as after a restart
            service.service.operations._loaded[record.id]
        )
        service.service.operations._resting.clear()
        assert (await append(client, path, 0, BODY[:101])).status == 413
        client = service.connect()
        assert (await append(client, path, 0, BODY[:100])).status == 204
        stated = {"Upload-Length": "100"}
        assert (await append(client, path, 100, b"", stated)).status == 204


async def test_field_of_a_client_is_no_limit(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """No request has a field whose name has a colon."""
    async with serving(tmp_path, keys) as service:
        fields = {":max-size": "10000"}
        reply = await service.connect().request("POST", upload_target(), fields, b"x")
        assert reply.status == 400
        assert service.records() == []


@pytest.mark.parametrize(
    ("wanted", "type_", "status"),
    [
        ("image/png", "image/png", 201),
        ("image/png", "Image/PNG; a=b", 201),
        ("image/*", "image/svg+xml", 201),
        ("image/png", "image/jpeg", 415),
        ("image/*", "imagery/png", 415),
        ("image/*", "text/html", 415),
        ("image/*", None, 415),
        ("image/*", "image", 415),
    ],
)
@pytest.mark.parametrize("is_tus", [False, True])
async def test_media_type_is_the_signed_one(
    wanted: str,
    type_: str | None,
    status: int,
    is_tus: bool,
    keys: Path,
    tmp_path: Path,
    autojump_clock: object,
) -> None:
    """415, before any content; tus says it in its metadata."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        target = upload_target(media_type=wanted)
        fields = {} if type_ is None else {"Content-Type": type_}
        if is_tus:
            fields = {**MARK, "Upload-Length": "0"}
            if type_ is not None:
                value = base64.b64encode(type_.encode()).decode()
                fields["Upload-Metadata"] = f"filetype {value}"
        reply = await client.request("POST", target, fields, b"")
        assert reply.status == status


async def test_download_by_address(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """GET, HEAD and ranges of one file of its owner."""
    async with serving(tmp_path, keys) as service:
        client = service.connect()
        ann = bearer(service.tokens["ann"])
        assert (await client.request("PUT", "/files/a", ann, BODY)).status == 201
        assert (await client.request("GET", "/files/a")).status == 401
        target = download_target("/files/a")
        reply = await client.request("GET", target)
        assert (reply.status, reply.body) == (200, BODY)
        assert (await client.request("HEAD", target)).status == 200
        reply = await client.request("GET", target, {"Range": "bytes=1-2"})
        assert (reply.status, reply.body) == (206, BODY[1:3])
        assert (await client.request("DELETE", target)).status == 403
        other = download_target("/files/a", principal="bob")
        assert (await client.request("GET", other)).status == 404


async def test_prefix_of_a_proxy_belongs_to_the_address(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """The address is the one that clients know; the service gets the path without it."""
    for settings in ({"root_path": "/up"}, {"public_url": "https://up.example/up/"}):
        async with serving(tmp_path, keys, **settings) as service:
            client = service.connect()
            seen = upload_target("/up/files/").removeprefix("/up")
            assert (await client.request("POST", seen, {}, b"x")).status == 201
            reply = await client.request("POST", upload_target(), {}, b"x")
            assert reply.status == 403


async def test_signature_is_seen_by_nobody(
    keys: Path,
    tmp_path: Path,
    autojump_clock: object,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Not in the log, not by the handler, not in the records, not in a failure."""
    caplog.set_level(logging.DEBUG)
    handler = Recorder()
    async with serving(tmp_path, keys, target=handler) as service:
        target = upload_target("/a?b=c", max_size=999)
        fields = {"Prefer": "resume"}
        reply = await service.connect().request("POST", target, fields, BODY)
        assert reply.status == 200
        expired = upload_target("/a?b=c", now=0)
        reply = await service.connect().request("POST", expired, fields, BODY)
        assert reply.status == 403
        assert "signed=" not in str(reply)
        assert handler.requests == [("POST", "/a?b=c", BODY)]
        (record,) = service.records()
        assert (record.target, record.method) == ("/a?b=c", "POST")
        assert "signed" not in str(record)
        place = f"/operations/{record.id}/message?{target.partition('?')[2]}"
        reply = await service.connect().request("GET", place)
        assert reply.status == 200
        assert "signed" not in str(reply)
    assert "signed=" not in caplog.text


async def test_page_of_another_origin_uploads(
    keys: Path, tmp_path: Path, autojump_clock: object
) -> None:
    """A browser asks first, without the method that was signed; then it may read the answer."""
    async with serving(
        tmp_path, keys, cors_origins=["https://shop.example"]
    ) as service:
        client = service.connect()
        target = upload_target(media_type="image/*")
        asks = {
            "Origin": "https://shop.example",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        assert (await client.request("OPTIONS", target, asks)).status == 204
        fields = {"Origin": "https://shop.example", "Content-Type": "image/png"}
        reply = await client.request("POST", target, fields, b"x")
        assert reply.status == 201
        assert reply["access-control-allow-origin"] == "https://shop.example"
        reply = await client.request("OPTIONS", target, {"Origin": "https://x"})
        assert reply.status == 200  # what the server speaks is no secret: C17


async def test_backend_never_sees_it(keys: Path, tmp_path: Path) -> None:
    """Neither a request that streams through, nor one that is recorded, nor the limit."""
    async with backend() as behind:
        config = {"authenticate": SignedAddresses(keys)}
        async with front(tmp_path, behind.url, config=config) as service:
            async with service.connect() as client:
                target = upload_target("/a?b=c", max_size=999)
                assert (await client.request("POST", target, {}, b"x")).status == 200
                fields = {"Prefer": "resume"}
                reply = await client.request("POST", target, fields, b"xyz")
                assert reply.status == 200
        assert [seen.target for seen in behind.seen] == ["/a?b=c", "/a?b=c"]
        assert b"signed" not in behind.received
        assert b"max-size" not in behind.received


async def test_failure_of_a_handler_is_logged_without_the_id(
    tmp_path: Path, keys: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The id of an upload by a signed address is all its credential."""

    ids: list[str] = []

    async def fails(request: Request) -> Response:
        ids.append(str(request.operation_id))
        raise RuntimeError("a bug")

    async with serving(tmp_path, keys, target=fails) as service:
        target = upload_target("/files/", method="POST")
        reply = await service.connect().request("POST", target, {}, b"content")
        assert reply.status == 500
    (own,) = ids
    assert own[-1] in OPEN
    logged = "\n".join(each.getMessage() for each in caplog.records)
    assert own not in logged
    assert f"the handler of {own[:10]}... failed" in logged
