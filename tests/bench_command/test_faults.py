"""The benchmark finds what is wrong with a server, each fault by its own name."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import trio

from tests.bench_command.driver import drive
from tests.bench_command.faulty_server import Flaw, faulty_server
from trioresume.bench import (
    BenchFailed,
    Check,
    CheckedBy,
    Ending,
    FaultKind,
    FaultPlace,
    Faults,
    Protocol,
    Settings,
    Sizes,
    Upload,
    Verify,
    run,
)
from trioresume.bench.destination import destination_of
from trioresume.bench.detect import detect
from trioresume.bench.load_connection import LoadConnection
from trioresume.bench.upload_run import Link, ServerLife, UploadRun

KIB = 1 << 10
SIZE = 600 * KIB

CUTS = Faults(mean_bytes=200 * KIB, kinds=(FaultKind.FIN,))

TUS = Settings(
    url="filled in",
    protocol=Protocol.TUS,
    total=1,
    sizes=Sizes(minimum=SIZE, maximum=SIZE),
    idle_timeout=0.4,
    retries=2,
)


async def drive_against(*flaws: Flaw, settings: Settings = TUS) -> Upload:
    async with faulty_server(*flaws) as server:
        return await drive(replace(settings, url=server.url))


@pytest.mark.parametrize("kind", FaultKind)
@pytest.mark.parametrize("place", FaultPlace)
@pytest.mark.parametrize(
    ("protocol", "version"),
    [
        (Protocol.TUS, None),
        (Protocol.RUFH, 3),
        (Protocol.RUFH, 6),
        (Protocol.RUFH, 8),
        (Protocol.RUFH, None),
        (Protocol.PLAIN, None),
    ],
)
async def test_a_good_server_is_found_good(
    protocol: Protocol, version: int | None, place: FaultPlace, kind: FaultKind
) -> None:
    """Whatever is cut and how, the upload arrives whole, and the books balance."""
    faults = Faults(mean_bytes=200 * KIB, kinds=(kind,), places=(place,))
    async with faulty_server() as server:
        settings = replace(
            TUS,
            url=server.url,
            protocol=protocol,
            interop_version=version,
            faults=faults,
            seed=3,
        )
        upload = await drive(settings)
    assert upload.ending is Ending.DONE, upload
    assert upload.check == Check(CheckedBy.DIGEST, True)
    assert upload.cuts
    assert upload.sent - upload.sent_again == SIZE


async def test_bytes_taken_between_the_look_and_the_reset_were_sent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server may take what seemed unsent a moment before the connection's reset."""
    monkeypatch.setattr(LoadConnection, "unsent", lambda self: 150 * KIB)
    faults = replace(CUTS, kinds=(FaultKind.RST,), places=(FaultPlace.BODY,))
    upload = await drive_against(settings=replace(TUS, faults=faults, seed=3))
    assert upload.ending is Ending.DONE, upload
    assert upload.cuts
    assert upload.sent - upload.sent_again == SIZE


@pytest.mark.parametrize(
    "flaw",
    [Flaw.DROPS_A_BYTE, Flaw.FLIPS_BITS, Flaw.CORRUPTS],
)
async def test_other_bytes_are_found(flaw: Flaw) -> None:
    """The length is right and the content is not."""
    upload = await drive_against(flaw)
    assert upload.ending is Ending.DONE
    assert upload.check == Check(CheckedBy.DIGEST, False, "other bytes than were sent")


@pytest.mark.parametrize(
    ("flaw", "detail"),
    [
        (Flaw.SHORTENS, f"{SIZE - 1} bytes, not {SIZE}"),
        (Flaw.LENGTHENS, f"reading back: more than {SIZE} bytes"),
        (Flaw.READS_ERROR, "reading back answered 500"),
        (Flaw.READS_NEVER, "reading back: the server is silent"),
    ],
)
async def test_content_that_cannot_be_read_right_is_found(
    flaw: Flaw, detail: str
) -> None:
    """A server that offers to read back has to do it."""
    upload = await drive_against(flaw)
    assert upload.check == Check(CheckedBy.DIGEST, False, detail)


async def test_length_stands_in_where_nothing_can_be_read_back() -> None:
    """And the result says so; whoever wants the digest fails instead."""
    upload = await drive_against(Flaw.NO_READING)
    assert upload.check == Check(CheckedBy.LENGTH, True)
    strict = replace(TUS, verify=Verify.DIGEST)
    upload = await drive_against(Flaw.NO_READING, settings=strict)
    assert upload.check is not None
    assert not upload.check.ok


async def test_a_wrong_length_is_found() -> None:
    upload = await drive_against(Flaw.WRONG_LENGTH)
    assert upload.check == Check(
        CheckedBy.LENGTH, False, f"{SIZE - 1} bytes, not {SIZE}"
    )


@pytest.mark.parametrize("protocol", [Protocol.TUS, Protocol.PLAIN])
async def test_a_lost_upload_is_found(protocol: Protocol) -> None:
    """A Location that leads nowhere is wrong content, not merely unreadable."""
    settings = replace(TUS, protocol=protocol)
    upload = await drive_against(Flaw.LOSES, settings=settings)
    assert upload.ending is Ending.DONE
    assert upload.check == Check(CheckedBy.LENGTH, False, "not there: 404")


async def test_what_is_not_checked_is_said() -> None:
    unchecked = replace(TUS, verify=Verify.NONE)
    upload = await drive_against(Flaw.CORRUPTS, settings=unchecked)
    assert upload.check == Check(CheckedBy.NONE, True, "not asked for")
    by_length = replace(TUS, verify=Verify.LENGTH)
    upload = await drive_against(Flaw.CORRUPTS, settings=by_length)
    assert upload.check == Check(CheckedBy.LENGTH, True)


@pytest.mark.parametrize(
    ("flaw", "ending"),
    [
        (Flaw.OFFSET_BEYOND, Ending.OFFSET_BEYOND),
        (Flaw.OFFSET_TEN_HIGH, Ending.OFFSET_BEYOND),
        (Flaw.OFFSET_FALLS, Ending.OFFSET_FELL),
        (Flaw.NO_OFFSET, Ending.NOT_UNDERSTOOD),
        (Flaw.BAD_OFFSET, Ending.NOT_UNDERSTOOD),
        (Flaw.OTHER_LENGTH, Ending.NOT_UNDERSTOOD),
        (Flaw.FORGETS, Ending.FORGOTTEN),
        (Flaw.NEVER_ANSWERS, Ending.TIMEOUT),
        (Flaw.NEVER_READS, Ending.TIMEOUT),
        (Flaw.HANGS_UP, Ending.CLOSED),
        (Flaw.GARBAGE, Ending.NOT_UNDERSTOOD),
        (Flaw.REFUSES, Ending.REJECTED),
        (Flaw.FAILS, Ending.REJECTED),
        (Flaw.ELSEWHERE, Ending.NOT_UNDERSTOOD),
    ],
)
async def test_each_fault_has_its_name(flaw: Flaw, ending: Ending) -> None:
    """Offsets never fall nor run ahead (C7); every wait is bounded, every retry counted."""
    settings = replace(TUS, faults=CUTS)
    with trio.fail_after(20):
        upload = await drive_against(flaw, settings=settings)
    if flaw is Flaw.NEVER_ANSWERS:
        # All of it is there: the query after the timeout finds that out.
        assert Ending.TIMEOUT in {a.ending for a in upload.attempts}
        assert upload.ending is Ending.DONE
        return
    assert upload.ending is ending, upload
    assert upload.failed
    assert upload.check is None


async def test_a_final_response_before_the_content_is_no_success() -> None:
    """Who says 201 to half a request has stored half a request."""
    big = replace(
        TUS,
        protocol=Protocol.PLAIN,
        sizes=Sizes(minimum=32 << 20, maximum=32 << 20),
        rate=4 << 20,
    )
    upload = await drive_against(Flaw.HASTY, settings=big)
    assert upload.ending is Ending.NOT_UNDERSTOOD
    assert "before all" in upload.detail


async def test_a_late_answer_shows_in_the_latencies() -> None:
    """The offset query takes as long as it took, and so does the time to resume."""
    upload = await drive_against(Flaw.LATE_OFFSET, settings=replace(TUS, faults=CUTS))
    assert upload.ending is Ending.DONE
    queries = [a.offset_query for a in upload.attempts if a.offset_query is not None]
    resumes = [a.resume for a in upload.attempts if a.resume is not None]
    assert queries
    assert resumes
    assert 0.33 <= min(queries) <= min(resumes) < 0.6


async def test_thinking_is_left_out_of_the_time_to_resume() -> None:
    """Waiting that was asked for is not the server's."""
    upload = await drive_against(settings=replace(TUS, faults=CUTS, think=0.2))
    resumes = [a.resume for a in upload.attempts if a.resume is not None]
    assert resumes
    assert max(resumes) < 0.2
    assert all(a.think >= 0.2 for a in upload.attempts[1:])
    assert upload.ended - upload.begun > 0.2 * (len(upload.attempts) - 1)


async def test_a_busy_server_is_asked_again() -> None:
    """423 on a query is no failure while retries are left."""
    upload = await drive_against(Flaw.BUSY, settings=replace(TUS, faults=CUTS))
    assert upload.ending is Ending.DONE
    assert [a.status for a in upload.attempts].count(423) == 2
    assert Ending.REJECTED in {a.ending for a in upload.attempts}


async def test_nobody_there_is_refused() -> None:
    async with faulty_server() as server:
        url = server.url
    upload = await drive(replace(TUS, url=url))
    assert upload.ending is Ending.REFUSED
    assert len(upload.attempts) == TUS.retries + 1


async def test_what_breaks_while_the_server_is_killed_is_the_kills_doing() -> None:
    """And an upload waits for the restart instead of wasting its retries."""
    life = ServerLife()
    life.down()
    async with faulty_server() as server:
        url = server.url
    async with trio.open_nursery() as nursery:

        async def revive() -> None:
            await trio.sleep(0.15)
            life.up()

        nursery.start_soon(revive)
        upload = await drive(replace(TUS, url=url), life=life)
    assert upload.ending is Ending.KILLED
    assert upload.attempts[0].ended >= 0.15


async def test_pace_is_kept() -> None:
    """600 KiB at 1 MiB/s take six tenths of a second.

    The answer comes while the pace still holds the sender back, and counts.
    """
    upload = await drive_against(settings=replace(TUS, rate=1 << 20))
    assert upload.ending is Ending.DONE
    assert 0.5 < upload.seconds < 10


async def test_chunks_bound_the_content_of_a_request() -> None:
    """With a tus chunk size, several PATCHes on one connection make the upload."""
    async with faulty_server() as server:
        settings = replace(TUS, url=server.url, chunk=256 * KIB)
        upload = await drive(settings)
        patches = sum(r.startswith("PATCH") for r in server.requests)
    assert upload.check == Check(CheckedBy.DIGEST, True)
    assert patches == 3
    assert len(upload.attempts) == 1


@pytest.mark.parametrize("version", [None, 6])
async def test_chunks_of_rufh_are_completed_explicitly(version: int | None) -> None:
    """Only the last request says that the upload is complete (C9)."""
    async with faulty_server() as server:
        settings = replace(
            TUS,
            url=server.url,
            protocol=Protocol.RUFH,
            interop_version=version,
            chunk=256 * KIB,
        )
        upload = await drive(settings)
        told = [h["upload-complete"] for h in server.headers if "upload-complete" in h]
    assert upload.check == Check(CheckedBy.DIGEST, True)
    assert told[-1] == "?1"
    assert set(told[:-1]) == {"?0"}


@pytest.mark.parametrize("protocol", [Protocol.TUS, Protocol.RUFH, Protocol.PLAIN])
async def test_an_upload_without_content(protocol: Protocol) -> None:
    empty = replace(TUS, protocol=protocol, sizes=Sizes(minimum=0, maximum=0))
    upload = await drive_against(settings=empty)
    assert upload.ending is Ending.DONE
    assert upload.check == Check(CheckedBy.DIGEST, True)


async def test_put_goes_to_the_uploads_own_name() -> None:
    """``{id}`` in the URL, or behind its slash, is the upload's name."""
    async with faulty_server() as server:
        settings = replace(TUS, protocol=Protocol.PLAIN, method="PUT")
        await drive(replace(settings, url=server.url))
        upload = await drive(replace(settings, url=server.url + "a-{id}.bin"))
        assert list(server.uploads) == ["/files/bench-1-0", "/files/a-bench-1-0.bin"]
    assert upload.check == Check(CheckedBy.DIGEST, True)


async def test_header_fields_go_with_every_request() -> None:
    """Credentials are needed for queries and for reading back as well."""
    async with faulty_server() as server:
        settings = replace(TUS, faults=CUTS, headers=(("authorization", "Bearer x"),))
        await drive(replace(settings, url=server.url))
        assert {"POST", "HEAD", "PATCH", "GET"} == {
            request.split()[0] for request in server.requests
        }
        assert all(h["authorization"] == "Bearer x" for h in server.headers)


async def test_stopping_is_no_failure() -> None:
    """What was found until then is told."""
    async with faulty_server(Flaw.NEVER_READS) as server:
        uploaders: list[UploadRun] = []
        async with trio.open_nursery() as nursery:

            async def stop() -> None:
                await trio.sleep(0.1)
                uploaders[0].stop()

            nursery.start_soon(stop)
            settings = replace(TUS, url=server.url, idle_timeout=30.0)
            upload = await drive(settings, started=uploaders.append)
    assert upload.ending is Ending.STOPPED
    assert not upload.failed
    assert 0.1 <= upload.ended < 5


@pytest.mark.parametrize(
    ("dialects", "found"),
    [
        ({"tus"}, Protocol.TUS),
        ({"rufh"}, Protocol.RUFH),
        ({"tus", "rufh"}, Protocol.RUFH),
        (set(), Protocol.PLAIN),
    ],
)
async def test_the_protocol_is_found_out(dialects: set[str], found: Protocol) -> None:
    """By asking, before any upload, and nothing is left behind."""
    async with faulty_server() as server:
        server.dialects = frozenset(dialects)
        settings = replace(TUS, url=server.url)
        destination = destination_of(settings, "probe")
        origin = destination.url.origin
        link = Link(
            settings, ("127.0.0.1", server.port), origin, ServerLife(), time.monotonic
        )
        assert await detect(link, destination) == (found, "faulty")


async def test_a_whole_run_finds_wrong_content() -> None:
    """In processes of its own, with the protocol that it found."""
    async with faulty_server(Flaw.CORRUPTS) as server:
        settings = replace(TUS, protocol=Protocol.AUTO, url=server.url, total=3)
        results = await run(settings)
    assert results.protocol is Protocol.TUS
    assert results.server_name == "faulty"
    assert len(results.done) == 3
    assert len(results.wrong) == 3
    assert not results.ok
    assert results.goodput == 0


async def test_a_run_against_nobody_fails_at_once() -> None:
    async with faulty_server() as server:
        url = server.url
    with pytest.raises(BenchFailed):
        await run(replace(TUS, url=url))
    with pytest.raises(BenchFailed):
        await run(replace(TUS, url="http://no-such-host.invalid/"))
