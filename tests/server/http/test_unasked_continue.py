"""To whom a 100 goes that no ``Expect`` asked for (R5, R30), and to whom not."""

from __future__ import annotations

import pytest
import trio
import trio.testing

from tests.server.harness import Recorder, head, memory_service
from trioresume import Config
from trioresume.protocol.dialects.seed.server import takes_unasked_continue
from trioresume.protocol.heads import Fields

BODY = b"The quick brown fox jumps over the lazy dog."

SPARED = [
    {"User-Agent": "node", "Sec-Fetch-Mode": "cors"},
    {"User-Agent": "node"},
    {"User-Agent": "undici"},
    {"User-Agent": "Undici/6.21.0 (linux)"},
    {"User-Agent": "Mozilla/5.0 (X11; Linux x86_64)", "Sec-Fetch-Mode": "cors"},
    {"Sec-Fetch-Mode": "no-cors"},
]
TAKING: list[dict[str, str]] = [
    {},
    {"User-Agent": "curl/8.17.0"},
    {"User-Agent": "nodejs-like/1"},
    {"User-Agent": "Mozilla/5.0 (node)"},
    {"User-Agent": ""},
    {"Sec-Fetch-Site": "none"},
]


@pytest.mark.parametrize("fields", SPARED)
def test_clients_that_fail_are_told_by_their_marks(fields: dict[str, str]) -> None:
    assert not takes_unasked_continue(Fields(fields))


@pytest.mark.parametrize("fields", TAKING)
def test_all_others_take_it(fields: dict[str, str]) -> None:
    assert takes_unasked_continue(Fields(fields))


@pytest.mark.parametrize("body", [None, b"", BODY])
@pytest.mark.parametrize("prefer", ["resume", "resume=ignore-incomplete"])
@pytest.mark.parametrize("fields", SPARED)
async def test_marked_client_gets_no_100_that_it_did_not_ask_for(
    fields: dict[str, str], prefer: str, body: bytes | None
) -> None:
    """R5: the fields are in the final response, as ever."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        asked = {**fields, "Prefer": prefer}
        reply = await client.request("POST", "/", asked, body)
        assert (reply.status, reply.interims) == (200, [])
        assert (await client.request("GET", reply.message)).status == 200
        assert (await client.request("GET", reply.result)).status == 200


async def test_marked_client_that_expects_it_gets_it() -> None:
    """R1: Expect says that it can be taken."""
    async with memory_service(Recorder()) as service:
        client = service.connect()
        asked = {**SPARED[0], "Prefer": "resume", "Expect": "100-continue"}
        await client.send(head("POST", "/", asked, length=len(BODY)))
        assert (await client.interim()).status == 100
        await client.send(BODY)
        assert (await client.reply()).status == 200


@pytest.mark.parametrize(
    ("fields", "config", "taken"),
    [
        ({}, Config(), True),
        (SPARED[0], Config(), False),
        ({}, Config(continue_without_expect=False), False),
    ],
)
async def test_acknowledgements_are_100s_as_well(
    fields: dict[str, str],
    config: Config,
    taken: bool,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """R30."""
    async with memory_service(Recorder(), config) as service:
        client = service.connect()
        asked = {**fields, "Prefer": "resume, acknowledge"}
        await client.send(head("POST", "/", asked, length=len(BODY)) + BODY[:20])
        await trio.sleep(5)
        await client.send(BODY[20:])
        reply = await client.reply()
        acknowledged = [i.fields.get("acknowledge") for i in reply.interims]
        assert ("20" in acknowledged) == taken
        assert all(i.status == 100 for i in reply.interims)
        assert bool(reply.interims) == taken


async def test_other_interim_responses_are_not_concerned() -> None:
    """C2, B10: undici takes them; the setting is about 100 alone."""
    config = Config(continue_without_expect=False)
    asked = {
        **SPARED[0],
        "Prefer": "resume, processing",
        "Upload-Draft-Interop-Version": "10",
        "Upload-Complete": "?1",
    }
    async with memory_service(Recorder(), config) as service:
        reply = await service.connect().request("POST", "/", asked, BODY)
        assert [interim.status for interim in reply.interims] == [104, 102]
