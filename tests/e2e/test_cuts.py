"""Two hundred uploads at once, on a link that cuts every one of them (R3, R16 to R26)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio

from tests.e2e.carriers import HTTP1, HTTP1_TLS, HTTP2, Carrier
from tests.e2e.command import Service
from tests.e2e.soak import KIB, check_file
from tests.e2e.uploads import Pace, Upload
from tests.e2e.wire import Wire, ask
from trioresume.testing import ChaosProxy, Direction, FaultKind, random_faults

COUNT = 200
COUNT_SECURED = 24
"""Over TLS: each connection costs both sides a handshake."""


def make_uploads(
    address: tuple[str, int],
    seed: int,
    count: int = COUNT,
    carrier: Carrier = HTTP1,
) -> list[Upload]:
    """Half of them create a file under a name, half leave the name to the service."""
    uploads = []
    for number in range(count):
        draw = random.Random(f"{seed}/{number}")
        put = number % 2 == 0
        upload = Upload(
            address,
            "PUT" if put else "POST",
            f"/files/{number}" if put else "/files/",
            draw.randbytes(draw.randint(1, 400 * KIB)),
            draw,
            Pace(32 * KIB),
            chunked=number % 5 == 0,
            carrier=carrier,
        )
        upload.digest = hashlib.sha256(upload.content).hexdigest()
        uploads.append(upload)
    return uploads


async def run_all(uploads: Iterable[Upload]) -> None:
    """All at once, each until it has its answer."""
    async with trio.open_nursery() as nursery:
        for upload in uploads:
            nursery.start_soon(upload.run)


@pytest.mark.slow
async def test_200_concurrent_uploads_survive_cuts_anywhere(
    service: Service, seed: int
) -> None:
    """FIN and RST in heads, bodies and responses: each file is stored once, and whole."""
    schedule = random_faults(seed, mean_bytes=150 * KIB, limit=10 * COUNT)
    async with ChaosProxy(service.address, schedule) as proxy:
        uploads = make_uploads(proxy.address, seed)
        await run_all(uploads)
        totals = proxy.totals
        print(totals)  # noqa: T201 - pytest shows it on failure and with -s
        struck = [fault for record in proxy.connections for fault in record.struck]
    for upload in uploads:
        upload.address = service.address
        await check_file(service, upload)
    cut_where = {(fault.kind, fault.direction) for fault in struck}
    assert cut_where == {
        (kind, direction)
        for kind in (FaultKind.FIN, FaultKind.RST)
        for direction in Direction
    }
    assert totals.cuts >= COUNT
    locations = {
        upload.answer.fields["location"] for upload in uploads if upload.answer
    }
    assert len(locations) == COUNT
    service.stop()
    # Exactly these files, whatever was cut: no operation brought forth two.
    assert service.file_names() == {location.split("/")[-1] for location in locations}
    # What got any content was finished; what else there is was cut before its 100 was
    # read, and holds nothing (R3).
    targets = {"/files/", *(upload.target for upload in uploads)}
    unfinished = service.rows(
        "SELECT target, state FROM operations WHERE state != 'done'"
    )
    assert all(
        target in targets and state == "receiving" for target, state in unfinished
    )
    assert service.unfinished() == []
    assert service.tails() == []


@pytest.mark.slow
@pytest.mark.parametrize("carrier", [HTTP1_TLS, HTTP2], ids=str)
async def test_uploads_over_tls_survive_cuts_anywhere(
    carrier: Carrier,
    make_service: Callable[..., Service],
    tmp_path: Path,
    seed: int,
    full: bool,
) -> None:
    """A cut in a handshake, a record or a frame is a cut: no end of content, no answer."""
    service = make_service(*carrier.options(tmp_path))
    service.start()
    count = 10 * COUNT_SECURED if full else COUNT_SECURED
    schedule = random_faults(seed, mean_bytes=120 * KIB, limit=10 * count)
    async with ChaosProxy(service.address, schedule) as proxy:
        uploads = make_uploads(proxy.address, seed, count, carrier)
        await run_all(uploads)
        totals = proxy.totals
        print(totals)  # noqa: T201 - pytest shows it on failure and with -s
    for upload in uploads:
        upload.address = service.address
        await check_file(service, upload)
    assert totals.cuts >= count
    locations = {
        upload.answer.fields["location"] for upload in uploads if upload.answer
    }
    assert len(locations) == count
    service.stop()
    assert service.file_names() == {location.split("/")[-1] for location in locations}
    assert service.unfinished() == []
    assert service.tails() == []


async def test_a_cut_in_the_head_leaves_no_trace(service: Service) -> None:
    """R3: no operation, no file; the service answers the next one."""
    head = (
        b"PUT /files/x HTTP/1.1\r\nHost: e2e.test\r\nExpect: 100-continue\r\n"
        b"Prefer: resume\r\nContent-Length: 5\r\n\r\n"
    )
    for size in range(1, len(head), 7):
        wire = await Wire.connect(service.address)
        await wire.send(head[:size])
        if size % 2:
            wire.reset()
        else:
            wire.close()
    missing = await ask(service.address, "HEAD", "/files/x")
    assert missing.status == 404
    service.stop()
    assert service.rows("SELECT * FROM operations") == []
