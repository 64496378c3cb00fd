"""Probes of a bucket: everything that the store of objects relies on.

They put small objects, and one of 5 MiB, below ``doctor/`` in the service's prefix, and delete
them. They change nothing else.
"""

from __future__ import annotations

import secrets
import statistics
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import botocore.exceptions

from trioresume.errors import StorageError
from trioresume.store.doctor.findings import ProbeResult, Verdict, probed
from trioresume.store.objects.address import ObjectsAddress
from trioresume.store.objects.places import ObjectPlace, Source
from trioresume.store.objects.plain import (
    LEAST_PART,
    PlainObjects,
)
from trioresume.store.objects.s3 import S3Bucket

__all__ = ["examine_bucket"]

_RACERS = 8
_SKEW_NOTED = 5.0
_SKEW_REFUSED = 900.0
"""Seconds between the clocks: S3 refuses signatures that are older than 15 minutes."""
_SLOW = 0.5
"""Seconds for a small put: each announced offset waits for one."""
_POLICY = (
    "give the credentials s3:GetObject, s3:PutObject, s3:DeleteObject,"
    " s3:AbortMultipartUpload and s3:ListBucket, see docs/howto/cluster.md"
)


def examine_bucket(
    address: ObjectsAddress, *, now: Callable[[], float] = time.time
) -> Iterator[ProbeResult]:
    """Probe the bucket at *address*, one thing after the other.

    If the bucket cannot be reached, or refuses to store anything, that is the only finding.
    """
    patient = _Examination(address, now)
    first = patient.reach()
    yield first
    if first.verdict is Verdict.FAULT:
        return
    try:
        yield from probed("bucket", patient.probes(), _worded)
    finally:
        patient.clean_up()


def _worded(exc: Exception) -> str | None:
    if isinstance(
        exc,
        (
            StorageError,
            botocore.exceptions.ClientError,
            botocore.exceptions.BotoCoreError,
        ),
    ):
        return str(exc).partition("\n")[0]
    return None


def _finding(
    probe: str, is_right: bool, said: str, otherwise: str, advice: str
) -> ProbeResult:
    if is_right:
        return ProbeResult("bucket", probe, Verdict.GOOD, said)
    return ProbeResult("bucket", probe, Verdict.FAULT, otherwise, advice)


class _Examination:
    def __init__(self, address: ObjectsAddress, now: Callable[[], float]) -> None:
        self._address = address
        self._now = now
        self._bucket = S3Bucket(address, patience=3.0, request_timeout=30.0)
        self._plain = PlainObjects(address)
        self._client: Any = self._plain._client
        self._base = f"doctor/{secrets.token_hex(8)}"
        self._put: set[str] = set()

    def _name(self, name: str) -> str:
        name = f"{self._base}/{name}"
        self._put.add(name)
        return name

    def probes(self) -> list[tuple[str, Callable[[], ProbeResult], str]]:
        return [
            ("permissions", self._permissions, _POLICY),
            ("conditional put", self._conditional_put, _CONDITIONAL),
            ("conditional put, at once", self._race, _CONDITIONAL),
            ("checksum", self._checksum, _CHECKSUM),
            ("range", self._range, "choose a provider that answers ranges"),
            ("part copy", self._part_copy, _PART_COPY),
            ("list after put", self._listing, "see the provider's documentation"),
            ("clock", self._clock, "have the clocks of all nodes set by NTP"),
            ("speed", self._speed, ""),
            ("versioning", self._versioning, ""),
            ("unfinished uploads", self._lifecycle, ""),
        ]

    def reach(self) -> ProbeResult:
        try:
            self._bucket.list("doctor/", "", 1)
            self._bucket.put(self._name("first"), b"x")
        except StorageError as exc:
            advice = (
                "look at the endpoint, at the name of the bucket, and at AWS_ACCESS_KEY_ID and"
                f" AWS_SECRET_ACCESS_KEY; {_POLICY}"
            )
            return ProbeResult("bucket", "reach", Verdict.FAULT, str(exc), advice)
        return ProbeResult(
            "bucket", "reach", Verdict.GOOD, f"{self._address} can be reached"
        )

    def _permissions(self) -> ProbeResult:
        name = self._name("permissions")
        self._bucket.put(name, b"abc")
        read = self._bucket.get(name, 0, 3)
        self._bucket.delete([name])
        gone = self._bucket.get(name, 0, 3) is None
        return _finding(
            "permissions",
            read == b"abc" and gone,
            "objects can be put, read, listed and deleted",
            "an object that was deleted can be read still"
            if not gone
            else "an object has other bytes than were put",
            "the bucket cannot be used",
        )

    def _conditional_put(self) -> ProbeResult:
        name = self._name("once")
        first = self._bucket.put_absent(name, b"first")
        second = self._bucket.put_absent(name, b"second")
        kept = self._bucket.get(name, 0, 10)
        return _finding(
            "conditional put",
            first and not second and kept == b"first",
            "a put with If-None-Match does not replace an object",
            "a put with If-None-Match replaced an object",
            _CONDITIONAL,
        )

    def _race(self) -> ProbeResult:
        name = self._name("race")
        with ThreadPoolExecutor(_RACERS) as pool:
            won = sum(
                pool.map(
                    lambda racer: self._bucket.put_absent(name, bytes([racer]) * 1000),
                    range(_RACERS),
                )
            )
        return _finding(
            "conditional put, at once",
            won == 1,
            f"of {_RACERS} such puts at once, one succeeds",
            f"of {_RACERS} such puts at once, {won} succeeded",
            _CONDITIONAL,
        )

    def _checksum(self) -> ProbeResult:
        name = self._address.full_name(self._name("checksum"))
        wrong = "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
        try:
            self._client.put_object(
                Bucket=self._address.bucket,
                Key=name,
                Body=b"abc",
                ChecksumSHA256=wrong,
            )
        except botocore.exceptions.ClientError as exc:
            status = exc.response["ResponseMetadata"]["HTTPStatusCode"]
            is_right, said = status == 400, f"it answers {status}"
        else:
            is_right, said = False, "it takes them"
        if is_right:
            return ProbeResult(
                "bucket", "checksum", Verdict.GOOD, "bytes that changed are refused"
            )
        return ProbeResult(
            "bucket",
            "checksum",
            Verdict.WARNING,
            f"the store does not refuse bytes with a wrong checksum: {said}",
            _CHECKSUM,
        )

    def _range(self) -> ProbeResult:
        name = self._name("range")
        self._bucket.put(name, bytes(range(100)))
        found = self._bucket.get(name, 10, 5)
        return _finding(
            "range",
            found == bytes(range(10, 15)),
            "a part of an object can be read",
            "a request for a part of an object is answered with something else",
            "choose a provider that answers ranges",
        )

    def _part_copy(self) -> ProbeResult:
        large, small = self._name("large"), self._name("small")
        self._bucket.put(large, bytes(LEAST_PART))
        self._bucket.put(small, b"end")
        full = self._address.full_name
        place = ObjectPlace(
            bucket=self._address.bucket, name=full(self._name("composed"))
        )
        sources = [Source(full(large), LEAST_PART), Source(full(small), 3)]
        self._plain.compose(sources, place)
        found = self._bucket.get(f"{self._base}/composed", LEAST_PART - 1, 10)
        return _finding(
            "part copy",
            found == b"\0end",
            "objects can be composed of others",
            "an object that was composed of others has other bytes",
            _PART_COPY,
        )

    def _listing(self) -> ProbeResult:
        name = self._name("listed")
        self._bucket.put(name, b"x")
        seen = self._is_listed(name)
        self._bucket.delete([name])
        gone = not self._is_listed(name)
        if seen and gone:
            return ProbeResult(
                "bucket", "list after put", Verdict.GOOD, "listings are up to date"
            )
        return ProbeResult(
            "bucket",
            "list after put",
            Verdict.WARNING,
            "an object that was put or deleted just now is listed late",
            "nothing has to be done: only the sweep lists objects, and it looks again later",
        )

    def _is_listed(self, name: str) -> bool:
        listed = self._bucket.list(f"{self._base}/", "", 1000)
        return any(each.name == name for each in listed)

    def _clock(self) -> ProbeResult:
        name = self._name("clock")
        before = self._now()
        self._bucket.put(name, b"x")
        after = self._now()
        answer = self._client.head_object(
            Bucket=self._address.bucket, Key=self._address.full_name(name)
        )
        there = answer["LastModified"].timestamp()
        # The date has whole seconds.
        skew = max(before - 1 - there, there - after - 1, 0.0)
        if skew < _SKEW_NOTED:
            return ProbeResult(
                "bucket",
                "clock",
                Verdict.GOOD,
                "this clock and that of the object store agree",
            )
        return ProbeResult(
            "bucket",
            "clock",
            Verdict.FAULT if skew > _SKEW_REFUSED else Verdict.WARNING,
            f"this clock and that of the object store differ by {skew:.0f} s",
            "have the clocks of all nodes set by NTP: signatures of another time are refused",
        )

    def _speed(self) -> ProbeResult:
        times = []
        for number in range(5):
            name = self._name(f"speed-{number}")
            start = time.monotonic()
            self._bucket.put(name, b"x" * 1024)
            times.append(time.monotonic() - start)
        median = statistics.median(times)
        said = f"a small put takes {median * 1000:.0f} ms"
        if median < _SLOW:
            return ProbeResult("bucket", "speed", Verdict.GOOD, said)
        return ProbeResult(
            "bucket",
            "speed",
            Verdict.WARNING,
            said,
            "each announced offset waits for a put: use a bucket in the region of the nodes",
        )

    def _versioning(self) -> ProbeResult:
        try:
            answer = self._client.get_bucket_versioning(Bucket=self._address.bucket)
        except botocore.exceptions.ClientError:
            answer = {}  # not allowed, or not known: then there is nothing to warn of
        if answer.get("Status") != "Enabled":
            return ProbeResult(
                "bucket", "versioning", Verdict.GOOD, "deleted objects are gone"
            )
        return ProbeResult(
            "bucket",
            "versioning",
            Verdict.WARNING,
            "the bucket keeps versions of deleted objects, which are paid for",
            "add a lifecycle rule that removes versions that are not current, or end versioning",
        )

    def _lifecycle(self) -> ProbeResult:
        try:
            answer = self._client.get_bucket_lifecycle_configuration(
                Bucket=self._address.bucket
            )
            rules = answer.get("Rules", [])
        except botocore.exceptions.ClientError:
            rules = []
        if any("AbortIncompleteMultipartUpload" in rule for rule in rules):
            return ProbeResult(
                "bucket",
                "unfinished uploads",
                Verdict.GOOD,
                "parts of objects that were not finished are removed",
            )
        return ProbeResult(
            "bucket",
            "unfinished uploads",
            Verdict.WARNING,
            "no lifecycle rule removes the parts of objects that were not finished",
            "if finished files become plain objects, add a rule with"
            " AbortIncompleteMultipartUpload after one day: a node that dies leaves such parts",
        )

    def clean_up(self) -> None:
        try:
            self._bucket.delete(sorted(self._put))
        except StorageError:
            pass  # it was said already that nothing can be deleted


_CONDITIONAL = (
    "use a store that keeps If-None-Match (Amazon S3 since 2024, Google, R2, MinIO, Ceph 19,"
    " versitygw, SeaweedFS): without it two nodes replace each other's objects"
)
_CHECKSUM = (
    "bytes that change on their way are noticed when they are read only; use https, or ask the"
    " provider"
)
_PART_COPY = "finished files cannot become plain objects there; everything else works"
