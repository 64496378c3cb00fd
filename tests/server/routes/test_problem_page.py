"""The page to which ``type`` of the problem documents leads."""

from __future__ import annotations

import pytest

from tests.server.harness import Recorder, memory_service
from trioresume import Config, Rejection
from trioresume.protocol.heads import RequestHead


async def refuse(head: RequestHead) -> Rejection:
    return Rejection(401)


@pytest.mark.parametrize(
    ("config", "page"),
    [
        (Config(), "/operations/problems"),
        (Config(operation_path="/-/"), "/-/problems"),
        (Config(root_path="/up"), "/up/operations/problems"),
        (
            Config(public_url="https://up.example/x"),
            "https://up.example/x/operations/problems",
        ),
    ],
)
async def test_type_leads_to_the_section_of_its_code(config: Config, page: str) -> None:
    """Also where a proxy removes a part of the path."""
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        missing = f"{config.operation_path}{'A' * 22}/content"
        reply = await client.request("GET", missing)
        assert reply.status == 404
        assert reply.json["type"] == f"{page}#not-found"
        here = page.removeprefix("https://up.example/x").removeprefix("/up")
        shown = await client.request("GET", here)
        assert (shown.status, shown["content-type"]) == (
            200,
            "text/html; charset=utf-8",
        )
        assert b'<section id="not-found">' in shown.body
        assert b"<script" not in shown.body
        assert "default-src 'none'" in (shown["content-security-policy"] or "")
        head = await client.request("HEAD", here)
        assert (head.status, head.body) == (200, b"")
        wrong = await client.request("POST", here, body=b"x")
        assert (wrong.status, wrong["allow"]) == (405, "GET, HEAD")


async def test_page_needs_no_credentials() -> None:
    """Who is refused can read why."""
    async with memory_service(Recorder(), Config(authenticate=refuse)) as service:
        client = service.connect()
        reply = await client.request("GET", "/x")
        assert reply.status == 401
        page = reply.json["type"].partition("#")[0]
        assert (await client.request("GET", page)).status == 200
