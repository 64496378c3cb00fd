"""The real service killed with SIGKILL at any instant (G9, R31, promises 1, 2 and 4)."""

from __future__ import annotations

import hashlib
import json
import random
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import trio

from tests.e2e.carriers import HTTP1_TLS, HTTP2, Carrier
from tests.e2e.command import Service
from tests.e2e.soak import (
    KIB,
    MIB,
    Soak,
    check_file,
    delete_file,
    make_file_upload,
    run_all,
)
from tests.e2e.uploads import Pace, Upload

HANDLER_SERVICE = "tests.e2e.handler_service"
INDETERMINATE = "/operations/problems#indeterminate"

MakeService = Callable[..., Service]


@pytest.mark.slow
@pytest.mark.timeout(1200)  # a quarter of a minute, where nothing else runs
async def test_no_announced_byte_is_lost_by_many_kills(
    make_service: MakeService, seed: int, full: bool
) -> None:
    """G9: offsets never fall, and each file of the file service is whole in the end."""
    services = [make_service() for _ in range(2)]
    kills = 100 if full else 25
    soaks = [
        Soak(
            service,
            seed + number,
            make_file_upload,
            check_file,
            kills=kills,
            uploaders=4,
            delete=delete_file,
        )
        for number, service in enumerate(services)
    ]
    report = await run_all(soaks)
    print(report)  # noqa: T201 - pytest shows it on failure and with -s
    assert report.kills.total() == 2 * kills
    assert report.uploads > 0.8 * kills
    names = sum(len(service.file_names()) for service in services)
    assert names == report.uploads - report.deleted
    assert [upload for s in services for upload in s.unfinished()] == []


@pytest.mark.slow
@pytest.mark.parametrize("carrier", [HTTP1_TLS, HTTP2], ids=str)
async def test_no_announced_byte_is_lost_over_tls(
    carrier: Carrier, make_service: MakeService, tmp_path: Path, seed: int, full: bool
) -> None:
    """G9, over TLS and HTTP/2."""
    service = make_service(*carrier.options(tmp_path))
    kills = 100 if full else 3
    soak = Soak(
        service,
        seed,
        partial(make_file_upload, carrier=carrier),
        check_file,
        kills=kills,
        uploaders=4,
        delete=delete_file,
    )
    report = await soak.run()
    print(report)  # noqa: T201 - pytest shows it on failure and with -s
    assert report.kills.total() == kills
    assert report.cuts > 0
    assert len(service.file_names()) == report.uploads - report.deleted
    assert service.unfinished() == []


def upload_maker(smallest: int, largest: int) -> Callable[..., Upload]:
    """Makes uploads for the handler service, named so that its journal tells them apart."""

    def make(service: Service, number: int, draw: random.Random) -> Upload:
        return Upload(
            service.address,
            "POST",
            f"/{number}",
            draw.randbytes(draw.randint(smallest, largest)),
            draw,
            Pace(16 * KIB, pause=0.002),
            acknowledge=draw.random() < 0.7,
            chunked=draw.random() < 0.25,
        )

    return make


async def check_digest(service: Service, upload: Upload) -> None:
    """The handler has seen the right bytes."""
    del service
    answer = upload.answer
    assert answer is not None
    assert answer.status == 200, f"{answer} for {upload}"
    assert answer.body.decode() == upload.digest


async def check_doubt(service: Service, upload: Upload) -> None:
    """The crash came while the handler ran, and the response says just that."""
    del service
    answer = upload.answer
    assert answer is not None
    assert answer.status == 500, f"{answer} for {upload}"
    assert json.loads(answer.body)["type"] == INDETERMINATE, str(answer)


async def check_digest_or_doubt(service: Service, upload: Upload) -> None:
    """One or the other."""
    assert upload.answer is not None
    doubt = upload.answer.status == 500
    await (check_doubt if doubt else check_digest)(service, upload)


def read_journal(path: Path) -> tuple[Counter[str], Counter[str]]:
    """How often the handler started and ended, by the upload's name."""
    started: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for line in path.read_text().splitlines():
        what, name = line.split()
        (started if what == "start" else ended)[name] += 1
    return started, ended


@pytest.mark.slow
async def test_a_handler_runs_at_most_once_over_any_kills(
    make_service: MakeService, tmp_path: Path, seed: int
) -> None:
    """R31: a call that a crash cut is not made again; the response says indeterminate."""
    journal = tmp_path / "journal"
    service = make_service(
        "--journal", str(journal), "--delay", "0.05", module=HANDLER_SERVICE
    )
    make = upload_maker(1, 1 * MIB)
    soak = Soak(service, seed, make, check_digest_or_doubt, kills=8, after_last=0.08)
    print(await soak.run())  # noqa: T201 - pytest shows it on failure and with -s
    started, ended = read_journal(journal)
    assert set(started.values()) == {1}
    for upload in soak.finished:
        name = upload.target.strip("/")
        assert upload.answer is not None
        if upload.answer.status == 200:
            assert started[name] == ended[name] == 1


@pytest.mark.slow
async def test_small_chunks_and_an_idempotent_handler_survive_any_kills(
    make_service: MakeService, tmp_path: Path, seed: int
) -> None:
    """R31, G9: with 16 KiB chunks every kill is near a boundary; cut calls are repeated."""
    journal = tmp_path / "journal"
    service = make_service(
        *("--journal", str(journal), "--delay", "0.03", "--idempotent"),
        *("--chunk-size", str(16 * KIB + 1)),
        module=HANDLER_SERVICE,
    )
    make = upload_maker(100 * KIB, 2 * MIB)
    soak = Soak(service, seed, make, check_digest, kills=10, after_last=0.06)
    print(await soak.run())  # noqa: T201 - pytest shows it on failure and with -s
    started, _ = read_journal(journal)
    assert all(started[upload.target.strip("/")] >= 1 for upload in soak.finished)


@pytest.mark.slow
@pytest.mark.parametrize("idempotent", [False, True])
async def test_kills_while_processing_are_reported_or_repeated(
    make_service: MakeService, tmp_path: Path, idempotent: bool
) -> None:
    """R31, R32: each of many cut calls ends, though its client is back before recovery."""
    journal, hangs = tmp_path / "journal", tmp_path / "hangs"
    hangs.touch()
    service = make_service(
        *("--journal", str(journal), "--hang-if", str(hangs)),
        *(["--idempotent"] if idempotent else []),
        module=HANDLER_SERVICE,
    )
    service.start()
    make = upload_maker(1, 100)
    uploads = [make(service, n, random.Random(n)) for n in range(30)]
    async with trio.open_nursery() as nursery:
        for upload in uploads:
            upload.digest = hashlib.sha256(upload.content).hexdigest()
            nursery.start_soon(upload.run)
        await trio.to_thread.run_sync(_wait_for_lines, journal, len(uploads))
        await trio.to_thread.run_sync(service.kill)
        hangs.unlink()
        await trio.to_thread.run_sync(service.start)
    started, ended = read_journal(journal)
    for upload in uploads:
        name = upload.target.strip("/")
        assert started[name] == (2 if idempotent else 1)
        assert ended[name] == (1 if idempotent else 0)
        await (check_digest if idempotent else check_doubt)(service, upload)


def _wait_for_lines(journal: Path, count: int) -> None:
    deadline = time.monotonic() + 60
    while not journal.exists() or len(journal.read_text().splitlines()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.01)
