"""OPTIONS: what the server speaks, told to whoever asks (C13, C17, D2)."""

from __future__ import annotations

from typing import Literal

import pytest

from tests.server.harness import RESUME, Client, Recorder, memory_service
from trioresume import (
    Config,
    FileService,
    Principal,
    Rejection,
    Request,
    RequestHead,
    Response,
)
from trioresume.protocol.heads import Fields
from trioresume.server.api.config import Authenticator

LIMIT = 1000
MARKS: list[dict[str, str]] = [
    {},
    {"Tus-Resumable": "1.0.0"},
    {"Tus-Resumable": "0.2.2"},
    {"Upload-Draft-Interop-Version": "6"},
    {"Upload-Draft-Interop-Version": "6", "Upload-Complete": "?1"},
    RESUME,
]


def authenticating(status: Literal[401, 403, 429, 503]) -> Authenticator:
    """Knows everybody who says "Bearer x"."""

    async def authenticate(head: RequestHead) -> Principal | Rejection:
        if head.fields.get("authorization") == "Bearer x":
            return Principal("x")
        challenge = Fields({"www-authenticate": "Bearer", "x-secret": "1"})
        return Rejection(status, challenge)

    return authenticate


async def ask(client: Client, target: str, fields: dict[str, str]) -> str | None:
    """It is answered with 200, limits, and what tus wants to know; its challenge."""
    reply = await client.request("OPTIONS", target, fields)
    assert (reply.status, reply.body, reply.interims) == (200, b"", [])
    assert reply["upload-limit"] == f"max-size={LIMIT}"
    assert (reply["tus-version"], reply["tus-max-size"]) == ("1.0.0", str(LIMIT))
    assert reply.get("tus-resumable") is None
    assert reply.get("upload-complete") is None
    assert reply.get("x-secret") is None
    return reply.get("www-authenticate")


@pytest.mark.parametrize("marks", MARKS)
@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("credentials", ["Bearer x", "Bearer y", None])
async def test_everybody_is_told(
    credentials: str | None, status: Literal[401, 403], marks: dict[str, str]
) -> None:
    """C17: with right, wrong or no credentials, on files and names, and for the server."""
    config = Config(max_upload_size=LIMIT, authenticate=authenticating(status))
    fields = (
        {**marks} if credentials is None else {**marks, "Authorization": credentials}
    )
    async with memory_service(FileService(), config) as service:
        client = service.connect()
        for target in ("/files/", "/files", "/files/a", "*"):
            challenge = await ask(client, target, fields)
            # The page of --ui sees by it that a token is needed.
            assert challenge == (None if credentials == "Bearer x" else "Bearer")
        if credentials != "Bearer x":
            # Whether there is such an upload, or a name of that form, does not show.
            for target in ("/operations/none", "/elsewhere"):
                await ask(client, target, fields)
            refused = await client.request("POST", "/files/", fields, b"x")
            assert refused.status == status


async def test_stranger_is_told_of_no_upload() -> None:
    """R35, C17: the answer is the same whether there is one or not."""
    config = Config(authenticate=authenticating(401))
    known = {"Authorization": "Bearer x"}
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        made = await client.request("POST", "/", {**known, **RESUME}, b"x")
        nowhere = f"/operations/{'A' * 22}/content"
        answers = [
            (await client.request("OPTIONS", path, {})).fields.without("date")
            for path in (made.content, nowhere, "/")
        ]
        assert answers[0] == answers[1] == answers[2]
        assert "allow" not in answers[0]
        own = await client.request("OPTIONS", made.content, known)
        assert (own.status, own["allow"]) == (200, "HEAD, GET, PATCH, DELETE")


@pytest.mark.parametrize("status", [429, 503])
async def test_server_that_is_busy_says_so(status: Literal[429, 503]) -> None:
    """C17: that is about the moment, and not about who asks."""
    config = Config(authenticate=authenticating(status))
    async with memory_service(Recorder(), config) as service:
        assert (await service.connect().request("OPTIONS", "/")).status == status


@pytest.mark.parametrize(
    ("answered", "status"),
    [
        (200, 200),
        (204, 200),
        (405, 200),
        (501, 200),
        (202, 202),
        (404, 404),
        (403, 403),
    ],
)
async def test_handler_s_answer_is_completed(answered: int, status: int) -> None:
    """C17, D2: it need not know OPTIONS; what it says otherwise stands."""

    async def handler(request: Request) -> Response:
        assert request.method == "OPTIONS"
        return Response(answered, {"Allow": "PUT", "X-Own": "a"}, b"")

    async with memory_service(handler) as service:
        client = service.connect()
        for fields in MARKS:
            reply = await client.request("OPTIONS", "/", fields)
            assert reply.status == status
            assert ("upload-limit" in reply.fields) == (status < 300)
            assert reply["allow"] == "PUT"
            assert ("x-own" in reply.fields) == (answered not in (405, 501))


async def test_handler_is_not_asked_for_a_stranger() -> None:
    """C17: it would have to tell who asks."""
    config = Config(authenticate=authenticating(401))
    async with memory_service(handler := Recorder(), config) as service:
        assert (await service.connect().request("OPTIONS", "/")).status == 200
    assert handler.requests == []


@pytest.mark.parametrize("expects", [False, True])
@pytest.mark.parametrize("marks", MARKS)
async def test_content_of_options_is_passed_over(
    marks: dict[str, str], expects: bool
) -> None:
    """C17: a handler is asked as without it, and the answer is the same."""
    handler = Recorder(response=lambda body: Response(204))
    expect = {"Expect": "100-continue"} if expects else {}
    async with memory_service(handler) as service:
        for content in (b"a", b"a" * 300_000):
            client = service.connect()
            reply = await client.request("OPTIONS", "/", {**marks, **expect}, content)
            assert (reply.status, reply["upload-limit"]) == (200, "min-size=0")
            assert reply["tus-version"] == "1.0.0"
    assert handler.requests == [("OPTIONS", "/", b"")] * 2
