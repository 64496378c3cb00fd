"""The whole client against servers of tus and RUFH in memory, in virtual time."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Literal

import pytest
import trio
import trio.testing
from hypothesis import given, settings, strategies as st

from tests.client.http2_gateway import carrier, over_each_carrier
from tests.client.models import NO_CUTS, Plan, RufhModel, TusModel, UploadModel
from tests.client.peer import (
    PLAIN,
    TARGET,
    Dialogue,
    Model,
    Peer,
    modelled,
    scripted,
)
from trioresume.client import BodyInput, Client, Journal, Progress, RetryPolicy
from trioresume.errors import CallerError, TransferFailed

pytest_generate_tests = over_each_carrier
__all__ = ["carrier"]

Clock = trio.testing.MockClock
ProtocolName = Literal["auto", "seed", "rufh", "tus"]


def client(
    peer: Peer,
    protocol: ProtocolName,
    *,
    attempts: int = 50,
    buffer_size: int = 1 << 20,
    journal: Journal | None = None,
) -> Client:
    return Client(
        protocol=protocol,
        connector=peer,
        retry=RetryPolicy(attempts=attempts, first_delay=0.01, longest_delay=0.1),
        random=random.Random(0),
        buffer_size=buffer_size,
        journal=journal,
    )


def pattern(size: int) -> bytes:
    return random.Random(size).randbytes(size)


async def blocks(data: bytes, size: int = 700) -> AsyncIterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def cut_first(up: int | None = None, down: int | None = None, count: int = 1) -> Plan:
    """The first *count* connections break after so many bytes."""
    return lambda number: (up, down) if number < count else (None, None)


NAMED = {
    "Content-Type": "text/plain",
    "Content-Disposition": 'attachment; filename="a.txt"',
}


# tus.


async def test_tus_upload_is_made_and_then_filled() -> None:
    """D5, D6: length, name and type at the creation; the end is a 204 with a location."""
    model = TusModel()
    async with modelled(model) as peer, client(peer, "tus") as c:
        response = await c.request("POST", TARGET, body=b"hello", headers=NAMED)
    assert model.methods() == ["POST", "PATCH"]
    created = model.requests[0].fields
    assert created.get("upload-length") == "5"
    assert created.get("content-length") == "0"
    assert (
        created.get("upload-metadata") == "filename YS50eHQ=,filetype dGV4dC9wbGFpbg=="
    )
    assert "content-type" not in created
    assert model.requests[1].fields.get("content-length") == "5"
    assert model.processed == [b"hello"]
    assert (response.status, response.protocol, response.attempts) == (204, "tus", 1)
    assert response.headers.get("location") == "http://peer.test/up/0"


async def test_tus_gets_the_targets_response_where_it_has_an_address() -> None:
    """D8: and lets it be forgotten then (R29)."""
    model = TusModel(results=True)
    async with modelled(model) as peer, client(peer, "tus") as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert model.methods() == ["POST", "PATCH", "GET", "DELETE"]
    assert (response.status, response.body) == (201, b"done")
    assert response.headers.get("location") == "/thing"


@pytest.mark.parametrize("results", [False, True])
async def test_empty_tus_upload_is_complete_at_once(results: bool) -> None:
    """D6."""
    model = TusModel(results=results)
    async with modelled(model) as peer, client(peer, "tus") as c:
        response = await c.request("POST", TARGET)
    assert model.processed == [b""]
    assert response.status == 201
    location = "/thing" if results else "/up/0"
    assert response.headers.get("location") == location


async def test_tus_length_is_told_when_it_is_known() -> None:
    """D7: in pieces of half the buffer, the last of which has the length with it."""
    model = TusModel()
    data = pattern(10_000)
    async with modelled(model) as peer, client(peer, "tus", buffer_size=4000) as c:
        response = await c.request("POST", TARGET, body=blocks(data))
    assert model.processed == [data]
    assert model.requests[0].fields.get("upload-defer-length") == "1"
    patches = model.requests[1:]
    assert {request.method for request in patches} == {"PATCH"}
    sizes = [int(request.fields.get("content-length") or 0) for request in patches]
    assert sum(sizes) == 10_000
    assert max(sizes) == 2000
    assert [r.fields.get("upload-length") for r in patches][-1] == "10000"
    assert (response.attempts, response.bytes_resent) == (1, 0)


async def test_tus_goes_on_after_a_cut(autojump_clock: Clock) -> None:
    """D4, D5: from the offset that HEAD tells, in virtual time."""
    model = TusModel(cut_first(up=30_000))
    data = pattern(100_000)
    told: list[Progress] = []
    async with modelled(model) as peer, client(peer, "tus") as c:
        response = await c.request("POST", TARGET, body=data, on_progress=told.append)
    assert model.methods() == ["POST", "PATCH", "HEAD", "PATCH"]
    assert model.processed == [data]
    assert (response.status, response.attempts) == (204, 2)
    acknowledged = [progress.acknowledged for progress in told]
    assert acknowledged == sorted(acknowledged)
    assert told[-1].sent == 100_000


@pytest.mark.parametrize("tells", [False, True])
async def test_tus_conflict_leads_back_to_the_offset(
    tells: bool, autojump_clock: Clock
) -> None:
    """D5: many servers do not say the offset with a 409."""
    model = TusModel()
    model.tells_offset = tells
    data = pattern(1000)

    async with modelled(model) as peer, client(peer, "tus") as c:

        def steal(progress: Progress) -> None:
            # Somebody else writes between the creation and the first append.
            if model.uploads and not model.uploads[0].content:
                model.uploads[0].content += data[:300]

        await c.request("POST", TARGET, body=data, on_progress=steal)
    assert model.processed == [data]


async def test_tus_is_only_for_post() -> None:
    """An upload there is made in a collection; PUT would name it."""
    async with scripted() as peer, client(peer, "tus") as c:
        with pytest.raises(CallerError, match="POST"):
            await c.request("PUT", TARGET, body=b"x")


async def test_unknown_protocol_is_the_callers_error() -> None:
    """Typing errors end before anything is sent."""
    with pytest.raises(CallerError, match="auto, seed, rufh, tus"):
        Client(protocol="tsu")  # type: ignore[arg-type]


async def test_tus_location_elsewhere_is_not_followed() -> None:
    """Content and credentials go to the origin that the caller named, only."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(201, {"Location": "http://evil.test/up"})

    async with scripted(serve) as peer, client(peer, "tus") as c:
        with pytest.raises(TransferFailed, match="where it is"):
            await c.request("POST", TARGET, body=b"x")


async def test_tus_refusal_is_the_answer() -> None:
    """With what the server says about it."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(413, {}, b"too large")

    async with scripted(serve) as peer, client(peer, "tus") as c:
        response = await c.request("POST", TARGET, body=b"x")
    assert (response.status, response.body) == (413, b"too large")
    assert response.protocol == "plain"


# RUFH.


@pytest.mark.parametrize("method", ["POST", "PUT"])
async def test_rufh_content_waits_for_the_104(method: str) -> None:
    """C2, C11: one request where nothing goes wrong, and the target's own answer."""
    model = RufhModel()
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request(method, TARGET, body=b"hello", headers=NAMED)
    (request,) = model.requests
    assert request.method == method
    assert request.fields.get("upload-draft-interop-version") == "10"
    assert request.fields.get("upload-complete") == "?1"
    assert request.fields.get("content-type") == "text/plain"
    assert model.processed == [b"hello"]
    assert (response.status, response.body) == (200, b"olleh")
    assert (response.protocol, response.attempts) == ("rufh", 1)


async def test_rufh_goes_on_after_a_cut(autojump_clock: Clock) -> None:
    """C6, C8."""
    model = RufhModel(cut_first(up=30_000))
    data = pattern(100_000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request("POST", TARGET, body=data)
    assert model.methods() == ["POST", "HEAD", "PATCH"]
    last = model.requests[-1].fields
    assert last.get("upload-complete") == "?1"
    assert last.get("content-type") == "application/partial-upload"
    assert model.processed == [data]
    assert (response.body, response.attempts) == (data[::-1], 2)


@pytest.mark.parametrize("replays", [False, True])
async def test_lost_final_response_of_rufh(
    replays: bool, autojump_clock: Clock
) -> None:
    """C11: asked for again without content; else the server's word is the answer."""
    model = RufhModel(cut_first(down=400), replays=replays)
    data = pattern(1000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request("POST", TARGET, body=data)
    assert model.methods() == ["POST", "HEAD", "PATCH"]
    assert model.requests[-1].fields.get("content-length") == "0"
    assert model.processed == [data]
    if replays:
        assert (response.status, response.body) == (200, data[::-1])
    else:
        assert (response.status, response.body) == (204, b"")
        assert response.headers.get("location") == "http://peer.test/up/0"
        assert response.headers.get("upload-complete") == "?1"


@pytest.mark.parametrize("version", [3, 4, 5, 6, 7, 8, 9, 10])
async def test_rufh_finds_the_version_that_a_server_knows(
    version: int, autojump_clock: Clock
) -> None:
    """Refused before its content, a request is made again in the version before."""
    model = RufhModel(cut_first(up=5000, count=11 - version), version=version)
    data = pattern(20_000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        first = await c.request("POST", TARGET, body=data)
        asked = len(model.requests)
        await c.request("POST", TARGET, body=b"again")
    assert model.processed == [data, b"again"]
    assert first.body == data[::-1]
    posts = [r for r in model.requests[:asked] if r.method == "POST"]
    tried = [r.fields.get("upload-draft-interop-version") for r in posts]
    assert tried == [str(number) for number in range(10, version - 1, -1)]
    # What is known is not found out again.
    assert len(model.requests) == asked + 1


@pytest.mark.parametrize("version", [3, 8])
async def test_rufh_finds_a_version_among_servers_that_ignore_others(
    version: int, autojump_clock: Clock
) -> None:
    """C3: no 104 for a version that is not known; the content is held back meanwhile."""
    model = RufhModel(cut_first(up=5000, count=20), version=version, refuses=False)
    data = pattern(20_000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request("POST", TARGET, body=data)
    assert model.processed == [data]
    assert response.body == data[::-1]


async def test_rufh_server_that_knows_no_version_gets_a_plain_request(
    autojump_clock: Clock,
) -> None:
    """The last thing that is tried leaves nothing behind but an empty request."""
    model = RufhModel(version=99, refuses=False)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        for _ in range(2):
            response = await c.request("PUT", TARGET, body=b"x")
            assert (response.status, response.protocol) == (201, "plain")
    assert model.processed == [b"", b"x", b"x"]


@pytest.mark.parametrize("refuses", [False, True])
async def test_rufh_without_104s_makes_its_upload_first(
    refuses: bool, autojump_clock: Clock
) -> None:
    """C4: a proxy that drops interim responses does not cost the resumption."""
    plan = cut_first(up=30_000, count=12)
    model = RufhModel(plan, interims=False, refuses=refuses)
    data = pattern(100_000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request("POST", TARGET, body=data)
    assert response.body == data[::-1]
    assert model.processed == [data]
    posts = [r.fields for r in model.requests if r.method == "POST"]
    tried = [r.get("upload-draft-interop-version") for r in posts]
    # One version is refused, so the other is known, and its 104s get lost.
    assert tried == (
        ["10", "9", "10"] if refuses else [*map(str, range(10, 2, -1)), "10"]
    )
    assert posts[-1].get("upload-complete") == "?0"
    assert posts[-1].get("content-length") == "0"
    assert posts[-1].get("upload-length") == "100000"


async def test_rufh_sends_parts_where_a_request_is_limited() -> None:
    """C13: max-append-size, learnt from the refusal."""
    model = RufhModel(limit=3000)
    data = pattern(10_000)
    async with modelled(model) as peer, client(peer, "rufh") as c:
        response = await c.request("POST", TARGET, body=data)
    assert response.body == data[::-1]
    patches = [r.fields for r in model.requests if r.method == "PATCH"]
    assert [r.get("content-length") for r in patches] == ["3000"] * 3 + ["1000"]
    assert [r.get("upload-complete") for r in patches] == ["?0"] * 3 + ["?1"]
    assert (response.attempts, response.bytes_resent) == (1, 0)


async def test_rufh_content_that_cannot_be_read_twice_goes_in_parts() -> None:
    """So that a cut never needs what has left the buffer."""
    model = RufhModel()
    data = pattern(10_000)
    async with modelled(model) as peer:
        async with client(peer, "rufh", buffer_size=4000) as c:
            response = await c.request("POST", TARGET, body=blocks(data))
            again = await c.request("POST", TARGET, body=blocks(data))
    assert response.body == again.body == data[::-1]
    assert model.processed == [data, data]
    sizes = [r.fields.get("content-length") for r in model.requests]
    assert max(int(size or 0) for size in sizes) == 2000
    # Only the first request was stopped at the 104.
    chunked = [r for r in model.requests if "transfer-encoding" in r.fields]
    assert len(chunked) == 1


# Which one.


class Both(UploadModel):
    """A server that shows tus and RUFH, and knows what it is asked in."""

    def __init__(self) -> None:
        super().__init__()
        self.tus, self.rufh = TusModel(), RufhModel()

    async def at_target(self, dialogue: Dialogue) -> None:
        fields = dialogue.request.fields
        if dialogue.request.method == "OPTIONS":
            await dialogue.read_body()
            shown = {"Tus-Version": "1.0.0", "Tus-Extension": "creation"}
            await dialogue.respond(204, {**shown, "Upload-Limit": "min-size=0"})
            return
        if "tus-resumable" in fields:
            await self.tus.at_target(dialogue)
        elif "upload-complete" in fields:
            await self.rufh.at_target(dialogue)
        else:
            await dialogue.interim(100, {})  # a proxy's
            await dialogue.read_body()

    async def at_upload(self, dialogue: Dialogue, number: int) -> None:
        model = self.tus if "tus-resumable" in dialogue.request.fields else self.rufh
        await model.at_upload(dialogue, number)


async def test_seed_is_found_at_no_cost() -> None:
    """Its server is asked nothing that it is not asked anyway."""
    model = Model()
    async with modelled(model) as peer, client(peer, "auto") as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert [r.method for r in model.requests] == ["POST", "DELETE"]
    assert response.protocol == "seed"
    assert "upload-complete" not in model.requests[0].fields


async def test_tus_is_found_by_its_refusal() -> None:
    """D1: one request more, once; the next upload begins in tus."""
    model = TusModel()
    async with modelled(model) as peer, client(peer, "auto") as c:
        first = await c.request("POST", TARGET, body=b"hello")
        second = await c.request("POST", TARGET, body=b"again")
    assert model.methods() == ["POST", "POST", "PATCH", "POST", "PATCH"]
    assert model.processed == [b"hello", b"again"]
    assert first.protocol == second.protocol == "tus"
    assert first.attempts == 1


async def test_empty_content_finds_tus_too(autojump_clock: Clock) -> None:
    """There is nothing to resume, but it would be refused all the same."""
    model = TusModel()
    async with modelled(model) as peer, client(peer, "auto") as c:
        response = await c.request("POST", TARGET)
    assert model.processed == [b""]
    assert (response.status, response.protocol) == (201, "tus")


@pytest.mark.parametrize(("method", "protocol"), [("POST", "tus"), ("PUT", "rufh")])
async def test_server_is_asked_before_content_goes_without_an_offer(
    method: str, protocol: str, autojump_clock: Clock
) -> None:
    """tus first, which is for POST only; not a byte goes before it is known."""
    model = Both()
    async with modelled(model) as peer, client(peer, "auto") as c:
        response = await c.request(method, TARGET, body=b"hello")
    assert response.protocol == protocol
    assert model.tus.processed + model.rufh.processed == [b"hello"]
    assert model.methods()[:2] == [method, "OPTIONS"]


@pytest.mark.parametrize("refuses", [False, True])
async def test_rufh_is_found_by_asking(refuses: bool, autojump_clock: Clock) -> None:
    """C13: also if a request in the seed is refused."""
    model = RufhModel(refuses=refuses)
    async with modelled(model) as peer, client(peer, "auto") as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert (response.protocol, response.body) == ("rufh", b"olleh")
    assert model.processed == [b"hello"]


async def test_tus_without_deferred_lengths_is_no_use_for_a_stream(
    autojump_clock: Clock,
) -> None:
    """D7: a plain request is better than one that is refused."""
    seen: list[str] = []

    async def hold(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).method)
        assert await dialogue.read_body() == b"x" * 10
        await dialogue.respond(201, PLAIN)

    async def tell(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).method)
        await dialogue.read_body()
        version = {"Tus-Version": "1.0.0", "Tus-Extension": "creation"}
        await dialogue.respond(204, version)

    async with scripted(hold, tell) as peer, client(peer, "auto") as c:
        response = await c.request("POST", TARGET, body=blocks(b"x" * 10))
    assert seen == ["POST", "OPTIONS"]
    assert (response.status, response.protocol) == (201, "plain")


@pytest.mark.parametrize("status", [200, 204, 404, 405, 500])
@pytest.mark.parametrize("continues", [False, True])
async def test_plain_server_is_asked_once_while_the_content_waits(
    status: int, continues: bool, autojump_clock: Clock
) -> None:
    """Nothing is sent twice, or cut, for a server that speaks none of them."""
    seen: list[str] = []

    async def hold(dialogue: Dialogue) -> None:
        for _ in range(2):
            seen.append((await dialogue.read_head()).method)
            if continues:
                await dialogue.interim(100, {})
            assert await dialogue.read_body() == b"hello"
            await dialogue.respond(201, PLAIN, b"plain")

    async def tell(dialogue: Dialogue) -> None:
        seen.append((await dialogue.read_head()).method)
        await dialogue.read_body()
        await dialogue.respond(status, {"Allow": "POST"})
        await dialogue.silence()

    async with scripted(hold, tell) as peer, client(peer, "auto") as c:
        for _ in range(2):
            response = await c.request("POST", TARGET, body=b"hello")
            assert (response.body, response.protocol) == (b"plain", "plain")
            assert response.attempts == 1
    # A place that did not answer is asked again, since it may yet.
    expected = ["POST", "OPTIONS", "POST"]
    assert seen == expected if status < 300 else seen[:3] == expected


async def test_refusal_stands_when_nothing_else_is_spoken(
    autojump_clock: Clock,
) -> None:
    """The first answer is what the caller gets."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.respond(400, {}, b"the reason")
        await dialogue.cut()

    async def tell(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.read_body()
        await dialogue.respond(200, {}, b"another page")

    async with scripted(serve, tell) as peer, client(peer, "auto") as c:
        response = await c.request("POST", TARGET, body=b"hello")
    assert (response.status, response.body) == (400, b"the reason")


async def test_server_that_does_not_say_gets_its_content_in_the_end(
    autojump_clock: Clock,
) -> None:
    """An OPTIONS that is never answered holds an upload up for a while only."""

    async def serve(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        assert await dialogue.read_body() == b"hello"
        await dialogue.respond(201, PLAIN)

    async def silent(dialogue: Dialogue) -> None:
        await dialogue.read_head()
        await dialogue.silence()

    start = trio.current_time()
    async with scripted(serve, silent) as peer, client(peer, "auto") as c:
        assert (await c.request("POST", TARGET, body=b"hello")).status == 201
    assert trio.current_time() - start < 15


# Across runs. In real time: files are read in threads, which a jumping clock overtakes.


@pytest.mark.parametrize(
    ("model", "protocol"),
    [
        (TusModel, "auto"),
        (lambda: TusModel(results=True), "tus"),
        (lambda: RufhModel(version=6), "rufh"),
        (lambda: RufhModel(interims=False), "auto"),
    ],
)
@pytest.mark.parametrize("then", ["auto", "same"])
async def test_next_run_goes_on_in_the_protocol_that_the_last_began(
    model: Callable[[], UploadModel],
    protocol: ProtocolName,
    then: str,
    tmp_path: Path,
) -> None:
    """The journal knows it; nothing that was announced is sent again."""
    path = tmp_path / "file"
    data = pattern(400_000)
    path.write_bytes(data)
    journal = Journal(tmp_path / "journal")
    server = model()
    server.plan = lambda number: (300_000, None)
    async with modelled(server) as peer:
        async with client(peer, protocol, journal=journal, attempts=0) as c:
            with pytest.raises(TransferFailed) as caught:
                await c.request("POST", TARGET, body=path)
        assert caught.value.resumable
        begun = len(server.requests)
        held = len(server.uploads[-1].content)
        assert 0 < held < 400_000
        server.plan = NO_CUTS
        again: ProtocolName = "auto" if then == "auto" else protocol
        async with client(peer, again, journal=journal) as c:
            response = await c.request("POST", TARGET, body=path)
    assert response.ok
    assert server.processed == [data]
    resumed = server.requests[begun:]
    assert [r.method for r in resumed[:2]] == ["HEAD", "PATCH"]
    assert resumed[1].fields.get("upload-offset") == str(held)
    assert list((tmp_path / "journal").glob("*.upload")) == []


async def test_run_in_another_protocol_begins_again(tmp_path: Path) -> None:
    """Whoever names one wants that one."""
    path = tmp_path / "file"
    path.write_bytes(pattern(100_000))
    journal = Journal(tmp_path / "journal")
    server = Both()
    server.plan = lambda number: (50_000, None)
    async with modelled(server) as peer:
        async with client(peer, "tus", journal=journal, attempts=0) as c:
            with pytest.raises(TransferFailed):
                await c.request("POST", TARGET, body=path)
        server.plan = NO_CUTS
        async with client(peer, "rufh", journal=journal) as c:
            response = await c.request("POST", TARGET, body=path)
    assert response.protocol == "rufh"
    assert server.rufh.processed == [path.read_bytes()]


@pytest.mark.parametrize("model", [TusModel, RufhModel])
async def test_forgotten_upload_begins_again(
    model: Callable[[], UploadModel], tmp_path: Path
) -> None:
    """D7: it expired between the runs; nothing of it was processed."""
    path = tmp_path / "file"
    data = pattern(100_000)
    path.write_bytes(data)
    journal = Journal(tmp_path / "journal")
    server = model()
    server.plan = lambda number: (50_000, None)
    protocol: ProtocolName = "tus" if isinstance(server, TusModel) else "rufh"
    async with modelled(server) as peer:
        async with client(peer, protocol, journal=journal, attempts=0) as c:
            with pytest.raises(TransferFailed):
                await c.request("POST", TARGET, body=path)
        server.gone.add(0)
        server.plan = NO_CUTS
        async with client(peer, "auto", journal=journal) as c:
            # In memory a cut finds everything handed over, so that it might be done.
            response = await c.request("POST", TARGET, body=path, retry_unsafe=True)
    assert response.ok
    assert server.processed == [data]


# Any cut, anywhere.

cuts = st.lists(
    st.tuples(
        st.none() | st.integers(0, 3000),
        st.none() | st.integers(1, 900),
    ),
    max_size=12,
)


@settings(max_examples=120, deadline=None)
@given(
    plan=cuts,
    size=st.integers(0, 4000),
    kind=st.sampled_from(["bytes", "iterable", "small window"]),
    server=st.sampled_from(
        ["tus", "tus with results", "rufh", "rufh 3", "rufh without 104", "rufh parts"]
    ),
    protocol=st.sampled_from(["auto", "named"]),
)
def test_any_cuts_give_one_processing_and_the_right_answer(
    plan: list[tuple[int | None, int | None]],
    size: int,
    kind: str,
    server: str,
    protocol: str,
) -> None:
    """As in the seed: the content is processed once, or an error that is promised.

    Only what was all sent before there was an offer may end in one: an empty upload,
    whose creation is all there is of it, or a plain request, where the 104 got lost.
    """
    data = pattern(size)

    def plan_of(number: int) -> tuple[int | None, int | None]:
        return plan[number] if number < len(plan) else (None, None)

    models: dict[str, Callable[[], UploadModel]] = {
        "tus": lambda: TusModel(plan_of),
        "tus with results": lambda: TusModel(plan_of, results=True),
        "rufh": lambda: RufhModel(plan_of),
        "rufh 3": lambda: RufhModel(plan_of, version=3),
        "rufh without 104": lambda: RufhModel(plan_of, interims=False),
        "rufh parts": lambda: RufhModel(plan_of, limit=1500),
    }
    model = models[server]()

    async def run() -> None:
        body: BodyInput = data if kind == "bytes" else blocks(data)
        window = 1000 if kind == "small window" else 10_000
        name: ProtocolName = "tus" if isinstance(model, TusModel) else "rufh"
        async with (
            modelled(model) as peer,
            client(
                peer,
                name if protocol == "named" else "auto",
                buffer_size=window,
            ) as c,
        ):
            try:
                response = await c.request("POST", TARGET, body=body)
            except TransferFailed:
                # What was begun without an offer may have been all there is.
                assert size == 0 or "rufh" in server
                assert len(model.processed) <= 1
                return
            if not response.ok:
                # The question what else is spoken was cut, too, or not worth asking.
                assert protocol == "auto"
                return
        assert model.processed[-1:] == [data]
        if response.protocol != "plain":
            assert model.processed == [data]

    trio.run(run, clock=trio.testing.MockClock(autojump_threshold=0))
