"""The probes of a bucket: on a real server, and on one that lacks something."""

from __future__ import annotations

import time

import pytest

from tests.s3_servers import S3Server
from trioresume.store.doctor.bucket import examine_bucket
from trioresume.store.doctor.findings import ProbeResult, Verdict
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket


def by_probe(found: list[ProbeResult]) -> dict[str, ProbeResult]:
    return {each.probe: each for each in found}


def test_good_bucket_has_no_fault_and_nothing_is_left(
    bucket: S3Bucket,
) -> None:
    """versitygw has all that is needed."""
    found = list(examine_bucket(bucket.address))
    faults = [each for each in found if each.verdict is Verdict.FAULT]
    assert faults == []
    assert {
        "reach",
        "permissions",
        "conditional put",
        "conditional put, at once",
        "checksum",
        "range",
        "part copy",
        "list after put",
        "clock",
        "speed",
        "versioning",
        "unfinished uploads",
    } == by_probe(found).keys()
    assert by_probe(found)["checksum"].verdict is Verdict.GOOD
    assert all(each.advice for each in found if each.verdict is not Verdict.GOOD)
    assert bucket.list("", "", 100) == []


def test_bucket_that_cannot_be_reached_is_the_only_finding(
    s3: S3Server, credentials: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With where to look: nobody there, no such bucket, wrong credentials."""
    if s3.kind == "weed":
        pytest.skip("SeaweedFS makes a bucket that is not there")
    for url in (
        "s3://uploads/?endpoint=http://127.0.0.1:9&region=x",
        s3.url().replace("uploads", "none"),
    ):
        (only,) = examine_bucket(parse_address(url))
        assert (only.probe, only.verdict) == ("reach", Verdict.FAULT)
        assert "AWS_ACCESS_KEY_ID" in only.advice
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    (only,) = examine_bucket(parse_address(s3.url()))
    assert "wrong" not in only.said


def test_store_without_conditional_puts_is_a_fault(
    bucket: S3Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nodes would replace each other's objects."""

    def put(self: S3Bucket, name: str, data: memoryview | bytes) -> bool:
        self.put(name, data)
        return True

    monkeypatch.setattr(S3Bucket, "put_absent", put)
    found = by_probe(list(examine_bucket(bucket.address)))
    for probe in ("conditional put", "conditional put, at once"):
        assert found[probe].verdict is Verdict.FAULT
        assert "If-None-Match" in found[probe].advice


@pytest.mark.parametrize(
    ("seconds", "verdict"), [(30.0, Verdict.WARNING), (-2000.0, Verdict.FAULT)]
)
def test_clock_that_is_wrong_is_said_by_how_much(
    seconds: float, verdict: Verdict, bucket: S3Bucket
) -> None:
    """S3 refuses signatures of another time."""
    found = by_probe(
        list(examine_bucket(bucket.address, now=lambda: time.time() + seconds))
    )
    assert found["clock"].verdict is verdict
    (told,) = (int(word) for word in found["clock"].said.split() if word.isdecimal())
    assert abs(seconds) - 5 <= told <= abs(seconds) + 5
