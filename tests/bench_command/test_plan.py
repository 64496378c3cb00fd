"""The schedule of a run, and what is uploaded."""

from __future__ import annotations

import os
from dataclasses import replace
from itertools import pairwise

import pytest
from blake3 import blake3

from trioresume.bench import (
    Fault,
    FaultKind,
    FaultPlace,
    Faults,
    Settings,
    SizeKind,
    Sizes,
)
from trioresume.bench.content import SLOT, Region, length_for, pieces
from trioresume.bench.destination import destination_of
from trioresume.bench.plan import Cuts, PlannedCut, cuts_of, plan
from trioresume.errors import CallerError

MIB = 1 << 20
SETTINGS = Settings(
    url="http://127.0.0.1/files/",
    total=500,
    sizes=Sizes(kind=SizeKind.UNIFORM, minimum=1, maximum=9 * MIB),
)
BODY = Fault(FaultKind.FIN, FaultPlace.BODY)
HEAD = Fault(FaultKind.RST, FaultPlace.HEAD)
RESPONSE = Fault(FaultKind.SILENCE, FaultPlace.RESPONSE)


def test_the_same_seed_makes_the_same_schedule() -> None:
    """Sizes, places and cuts; how many processes there are changes nothing."""
    faults = Faults(mean_bytes=MIB, places=tuple(FaultPlace))
    assert plan(SETTINGS) == plan(replace(SETTINGS, processes=7))
    assert plan(SETTINGS) != plan(replace(SETTINGS, seed=2))
    assert cuts_of(faults, 1, 5, 99 * MIB) == cuts_of(faults, 1, 5, 99 * MIB)
    assert cuts_of(faults, 1, 5, 99 * MIB) != cuts_of(faults, 2, 5, 99 * MIB)
    assert cuts_of(faults, 1, 5, 99 * MIB) != cuts_of(faults, 1, 6, 99 * MIB)


def test_sizes_are_spread_as_asked() -> None:
    uniform = [p.size for p in plan(SETTINGS)]
    assert min(uniform) < MIB < 8 * MIB < max(uniform) <= 9 * MIB
    bounded = Sizes(
        kind=SizeKind.LOGNORMAL, minimum=1000, maximum=10**6, median=10**4, sigma=2.0
    )
    sizes = sorted(p.size for p in plan(replace(SETTINGS, sizes=bounded)))
    assert sizes[0] == 1000
    assert sizes[-1] == 10**6
    assert 5000 < sizes[250] < 20_000


def test_uploads_do_not_share_content() -> None:
    """Each starts where no other one has a chunk, also when it is empty."""
    for sizes in (SETTINGS.sizes, Sizes(minimum=0, maximum=0)):
        planned = plan(replace(SETTINGS, sizes=sizes))
        for before, after in pairwise(planned):
            assert before.position + max(1, before.size) <= after.position
            assert after.position % SLOT == 0


def test_cuts_come_as_often_as_asked() -> None:
    """One every MiB in the mean, of every kind and place, and none beyond the end."""
    faults = Faults(mean_bytes=MIB, places=tuple(FaultPlace))
    cuts = cuts_of(faults, 1, 0, 1000 * MIB)
    assert 900 < len(cuts) < 1100
    assert {cut.fault.kind for cut in cuts} == set(FaultKind)
    assert {cut.fault.place for cut in cuts} == set(FaultPlace)
    assert all(a.after <= b.after for a, b in pairwise(cuts))
    assert cuts[-1].after < 1000 * MIB
    assert cuts_of(Faults(), 1, 0, 1000 * MIB) == []
    assert cuts_of(faults, 1, 0, 0) == []


def test_cuts_take_effect_in_their_places() -> None:
    """Heads before the bodies behind them, bodies at their byte, responses at an end."""
    cuts = Cuts(
        [
            PlannedCut(5, HEAD),
            PlannedCut(10, BODY),
            PlannedCut(20, RESPONSE),
            PlannedCut(30, HEAD),
            PlannedCut(40, BODY),
        ]
    )
    assert cuts.at_head() == HEAD
    assert cuts.at_head() is None
    assert cuts.before_cut(3) == 7
    assert cuts.before_cut(10) == 0
    assert cuts.at_response(10) is None
    assert cuts.at_body() == BODY
    assert cuts.at_head() == HEAD
    assert cuts.before_cut(25) == 15
    assert cuts.at_response(25) == RESPONSE
    assert cuts.at_response(25) is None
    assert cuts.at_body() == BODY
    assert cuts.before_cut(99) is None
    assert cuts.at_head() is None


@pytest.mark.parametrize("total", [0, 1, MIB - 3, MIB, 16 * MIB, 300 * MIB])
def test_the_region_is_as_long_as_needed_and_prime(total: int) -> None:
    """Only then do chunks of every size start at ever new places."""
    length = length_for(total)
    assert length >= min(total, 268_435_399)
    assert all(length % divisor for divisor in range(2, int(length**0.5) + 1))


def test_chunks_of_many_uploads_start_at_different_places() -> None:
    """A thousand uploads of 1 MiB and then as many of 64 share no start of a chunk."""
    length = length_for(65_000 * MIB)
    sizes = [MIB] * 1000 + [64 * MIB] * 1000
    starts: list[int] = []
    position = 0
    for size in sizes:
        starts += [(position + at) % length for at in range(0, size, SLOT)]
        position += -(-size // SLOT) * SLOT
    assert len(set(starts)) == len(starts)


def test_pieces_cover_a_stretch_that_goes_round_the_region() -> None:
    assert list(pieces(100, 90, 130)) == [(90, 10), (0, 100), (0, 20)]
    assert list(pieces(100, 250, 0)) == []


def test_digest_is_of_the_bytes_that_are_sent() -> None:
    """Read through the descriptor, as sendfile does; the same seed makes the same bytes."""
    with Region.make(7, MIB) as region, Region.make(7, MIB) as same:
        with Region.make(8, MIB) as other:
            assert other.digest(0, 1000) != region.digest(0, 1000)
        at = region.length - 1000
        data = os.pread(region.fd, 1000, at) + os.pread(region.fd, 4000, 0)
        assert region.read(at, 5000) == data
        assert region.digest(at, 5000) == blake3(data).digest()
        assert same.digest(at, 5000) == region.digest(at, 5000)


@pytest.mark.parametrize(
    ("url", "method", "expected"),
    [
        ("http://h/files/", None, "POST http://h/files/"),
        ("http://h/files/?a=/", None, "POST http://h/files/?a=/"),
        ("http://h/files/{id}", None, "PUT http://h/files/x"),
        ("http://h/files/", "PUT", "PUT http://h/files/x"),
        ("http://h/up", "POST", "POST http://h/up"),
        ("http://h:81/{id}/?n={id}", "POST", "POST http://h:81/x/?n=x"),
    ],
)
def test_targets(url: str, method: str | None, expected: str) -> None:
    """POST to a collection, PUT to a name."""
    target = destination_of(replace(SETTINGS, url=url, method=method), "x")
    assert f"{target.method} {target.url}" == expected


@pytest.mark.parametrize(
    ("url", "method"),
    [
        ("ftp://h/", None),
        ("/files/", None),
        ("http://me:pw@h/", None),
        ("http://h/", "PO ST"),
    ],
)
def test_targets_that_cannot_be_meant(url: str, method: str | None) -> None:
    with pytest.raises(CallerError):
        destination_of(replace(SETTINGS, url=url, method=method), "x")
