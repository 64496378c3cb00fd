"""The results of a run: what follows from the records, and their way through JSON."""

from __future__ import annotations

import json
from dataclasses import replace

import msgpack
import pytest

from trioresume.bench import (
    Attempt,
    BadRecord,
    Check,
    CheckedBy,
    Ending,
    Fault,
    FaultKind,
    FaultPlace,
    Faults,
    Generator,
    Kill,
    Latency,
    Machine,
    Protocol,
    Results,
    Series,
    ServerSample,
    ServerUsage,
    Settings,
    SizeKind,
    Sizes,
    Upload,
    from_json,
    to_json,
)
from trioresume.bench.document import summary
from trioresume.bench.records import HIDDEN, from_plain, to_plain
from trioresume.errors import CallerError

MIB = 1 << 20
CUT = Fault(FaultKind.RST, FaultPlace.BODY)


def attempt(begun: float, ended: float, first: int, last: int) -> Attempt:
    return Attempt(begun=begun, ended=ended, first=first, last=last, ending=Ending.DONE)


def upload(number: int, size: int, seconds: float) -> Upload:
    """One that went through at once."""
    return Upload(
        number=number,
        name=f"bench-1-{number}",
        size=size,
        begun=0.0,
        ended=seconds,
        ending=Ending.DONE,
        attempts=(attempt(0.0, seconds, 0, size),),
        check=Check(CheckedBy.DIGEST, True),
    )


CUT_ONCE = Upload(
    number=7,
    name="bench-1-7",
    size=10 * MIB,
    begun=1.0,
    ended=6.0,
    ending=Ending.DONE,
    attempts=(
        replace(attempt(1.0, 2.0, 0, 6 * MIB), ending=Ending.CUT, fault=CUT, think=1.0),
        replace(attempt(3.0, 6.0, 4 * MIB, 10 * MIB), offset_query=0.25, resume=0.5),
    ),
    check=Check(CheckedBy.LENGTH, True),
)

RESULTS = Results(
    settings=Settings(
        url="http://127.0.0.1:8080/files/",
        headers=(("authorization", "Bearer hush"),),
        sizes=Sizes(
            kind=SizeKind.LOGNORMAL, minimum=1, maximum=99, median=8, sigma=1.0
        ),
        faults=Faults(mean_bytes=MIB, kinds=(FaultKind.RST,)),
    ),
    protocol=Protocol.SEED,
    machine=Machine(cpus=2, cpu="x", kernel="y", python="3.11", trioresume="0"),
    started=1_700_000_000.0,
    seconds=8.0,
    uploads=(upload(0, 8 * MIB, 2.0), upload(1, 8 * MIB, 4.0), CUT_ONCE),
    series=Series(0.1, (1, 2), (0, 1), (0, 0)),
    generators=(Generator(process=0, user=1.0, system=2.0, seconds=8.0),),
    server=ServerUsage(
        pid=5,
        user=0.5,
        system=0.25,
        peak_resident=MIB,
        samples=(ServerSample(0.5, 0.1, 0.1, MIB),),
    ),
    kills=(Kill(1.0, 2.0), Kill(3.0, None)),
)


def test_json_carries_everything_but_secrets() -> None:
    """What is read equals what was written, except for the values of header fields."""
    text = to_json(RESULTS)
    assert "hush" not in text
    settings = replace(RESULTS.settings, headers=(("authorization", HIDDEN),))
    assert from_json(text) == replace(RESULTS, settings=settings)


def test_json_has_the_computed_figures() -> None:
    """A reader in another language need not compute percentiles."""
    document = json.loads(to_json(RESULTS))
    summary = document["summary"]
    assert document["settings"]["protocol"] == "auto"
    assert summary["sent_bytes"] == 28 * MIB
    assert summary["sent_again_bytes"] == 2 * MIB
    assert summary["throughput_bytes_per_second"] == 28 * MIB / 8
    assert summary["goodput_bytes_per_second"] == 26 * MIB / 8
    assert summary["resume"]["p50_seconds"] == 0.5
    assert summary["cuts"] == {"rst/body": 1}
    assert summary["server_total_cpu_seconds_per_gib"] == pytest.approx(
        0.75 * 1024 / 28
    )
    assert summary["ok"] is True


def test_msgpack_carries_settings_with_their_secrets() -> None:
    """That is how a process of the generator gets them."""
    packed = msgpack.packb(to_plain(RESULTS.settings, secrets=True))
    assert from_plain(Settings, msgpack.unpackb(packed)) == RESULTS.settings


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"format": 2}',
        '{"format": 1}',
        to_json(RESULTS).replace('"seed"', '"grain"'),
        to_json(RESULTS).replace('"cpus": 2', '"cpus": true'),
        to_json(RESULTS).replace('"cpus": 2', '"cpus": 2.5'),
        to_json(RESULTS).replace('"uploads": [', '"uploads": [7, '),
        to_json(RESULTS).replace(
            '"series": {', '"series": {"sent_bytes": 1, "x": {', 1
        ),
    ],
)
def test_what_is_no_result_is_refused(text: str) -> None:
    """A wrong shape is one clear error."""
    with pytest.raises(BadRecord):
        from_json(text)


def test_members_of_later_versions_are_passed_over() -> None:
    """A new member alone does not make old programs fail; a missing one is its default."""
    document = json.loads(to_json(RESULTS))
    document["novelty"] = 1
    del document["kills"]
    settings = replace(RESULTS.settings, headers=(("authorization", HIDDEN),))
    expected = replace(RESULTS, settings=settings, kills=())
    assert from_json(json.dumps(document)) == expected


def test_percentiles_are_of_the_nearest_rank() -> None:
    """Each is a sample that was seen."""
    assert Latency.of([]) is None
    assert Latency.of([3.0]) == Latency(1, 3.0, 3.0, 3.0, 3.0)
    hundred = Latency.of(float(n) for n in range(100, 0, -1))
    assert hundred == Latency(100, 50.0, 90.0, 99.0, 100.0)


def test_bytes_sent_again_count_each_time() -> None:
    """What a third attempt repeats counts twice, a gap that nobody sent not at all."""
    again = replace(
        CUT_ONCE,
        attempts=(
            attempt(0, 1, 0, 10),
            attempt(1, 2, 4, 8),
            attempt(2, 3, 2, 12),
            attempt(3, 4, 12, 12),
        ),
    )
    assert again.sent_again == (8 - 4) + (10 - 2)
    assert again.sent == 10 + 4 + 10


def test_thinking_is_not_the_servers_time() -> None:
    """The seconds of an upload leave out the waiting that was asked for."""
    assert CUT_ONCE.seconds == 4.0
    assert CUT_ONCE.rate == 10 * MIB / 4


def test_fairness_compares_the_fastest_with_the_slowest() -> None:
    assert RESULTS.fairness == 2.0
    assert replace(RESULTS, uploads=RESULTS.uploads[:1]).fairness is None


def test_failures_and_wrong_content_are_not_ok() -> None:
    """Either alone spoils a run; an upload that was stopped does not."""
    stopped = replace(CUT_ONCE, ending=Ending.STOPPED, check=None)
    failed = replace(CUT_ONCE, ending=Ending.TIMEOUT, check=None)
    wrong = replace(CUT_ONCE, check=Check(CheckedBy.DIGEST, False, "other bytes"))
    assert replace(RESULTS, uploads=(stopped,)).ok
    assert replace(RESULTS, uploads=(stopped,)).stopped == 1
    assert not replace(RESULTS, uploads=(failed,)).ok
    assert replace(RESULTS, uploads=(failed,)).failures == {Ending.TIMEOUT: 1}
    spoiled = replace(RESULTS, uploads=(wrong,))
    assert not spoiled.ok
    assert spoiled.wrong == (wrong,)
    assert spoiled.goodput == 0
    assert spoiled.checks == {}


def test_unchecked_uploads_are_counted() -> None:
    """Nobody takes "not checked" for "right"."""
    bare = replace(CUT_ONCE, check=None)
    asked = replace(CUT_ONCE, check=Check(CheckedBy.NONE, True))
    assert replace(RESULTS, uploads=(bare, asked)).unchecked == 2
    assert RESULTS.unchecked == 0
    assert RESULTS.checks == {CheckedBy.DIGEST: 2, CheckedBy.LENGTH: 1}


def test_a_busy_generator_says_that_it_was_the_limit() -> None:
    busy = Generator(process=1, user=4.0, system=3.9, seconds=8.0)
    assert not RESULTS.generator_was_limit
    assert replace(RESULTS, generators=(*RESULTS.generators, busy)).generator_was_limit


def test_an_empty_run_divides_by_nothing() -> None:
    """Interrupted at once: figures are None or zero, never an error."""
    empty = replace(RESULTS, uploads=(), seconds=0.0)
    assert empty.throughput == empty.goodput == 0
    assert empty.server_cpu_per_gib is None
    assert summary(empty).resume is None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Sizes(minimum=2, maximum=1),
        lambda: Sizes(minimum=1, maximum=2),
        lambda: Sizes(kind=SizeKind.LOGNORMAL),
        lambda: Faults(mean_bytes=0),
        lambda: Faults(kinds=()),
        lambda: Faults(kill_command="true"),
        lambda: Settings(url="http://x/", total=0),
        lambda: Settings(url="http://x/", processes=0),
        lambda: Settings(url="http://x/", idle_timeout=0),
        lambda: Settings(url="http://x/", duration=0),
        lambda: Settings(url="http://x/", rate=0),
        lambda: Settings(url="http://x/", chunk=0),
        lambda: Settings(url="http://x/", interop_version=11),
        lambda: Settings(url="http://x/", retries=-1),
    ],
)
def test_settings_that_make_no_sense_are_refused(make: object) -> None:
    assert callable(make)
    with pytest.raises(CallerError):
        make()
