"""Finished content as plain objects, composed by a real server."""

from __future__ import annotations

import itertools
import random
import urllib.request
from typing import Any

import boto3
import botocore.config
import pytest
from hypothesis import given, strategies as st

from tests.s3_servers import S3Server
from tests.store.cluster_stand import S3Stand
from tests.store.helpers import KEY, begin, do, record, seal_all, store_content
from trioresume.errors import CallerError, StorageError, StorageUnavailable
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects import plain as plain_module
from trioresume.store.objects.places import ObjectPlace, Source
from trioresume.store.objects.plain import (
    LEAST_PART,
    PlainObjects,
    plan,
)
from trioresume.store.objects.s3 import S3Bucket
from trioresume.store.port import (
    CreateOperation,
    FreezeContent,
    JoinContents,
    OperationId,
)

MIB = 1024 * 1024
DATA = random.Random(3).randbytes(12 * MIB + 5)
_names = itertools.count()


@pytest.fixture
def client(s3: S3Server, credentials: None) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )


@pytest.fixture
def plain(bucket: S3Bucket) -> PlainObjects:
    return PlainObjects(bucket.address)


@pytest.fixture
def place() -> ObjectPlace:
    return ObjectPlace(
        bucket="uploads",
        name=f"plain/a b\u00e9 {next(_names)}.mp4",
        content_type="video/mp4",
        disposition='attachment; filename="a.mp4"',
        metadata={"owner": "alice"},
    )


def put(bucket: S3Bucket, *lengths: int) -> tuple[list[Source], bytes]:
    sources, whole, at = [], b"", 0
    for number, length in enumerate(lengths):
        data = DATA[at : at + length]
        bucket.put(f"chunks/{number}", data)
        sources.append(Source(bucket.address.full_name(f"chunks/{number}"), length))
        whole += data
        at += length
    return sources, whole


def unfinished(client: Any) -> list[Any]:
    return list(client.list_multipart_uploads(Bucket="uploads").get("Uploads", []))


@pytest.mark.parametrize(
    "lengths",
    [
        (),
        (7,),
        (6 * MIB,),
        (5 * MIB, 5 * MIB, 3),
        (MIB, 5 * MIB, 2 * MIB, 2 * MIB, 7),
        (5 * MIB, 100, 6 * MIB),
    ],
)
def test_object_has_the_bytes_and_what_was_said_of_it(
    lengths: tuple[int, ...],
    bucket: S3Bucket,
    plain: PlainObjects,
    place: ObjectPlace,
    client: Any,
) -> None:
    """Whole chunks, short ones in the middle, one alone, none at all."""
    sources, whole = put(bucket, *lengths)
    plain.compose(sources, place)
    found = client.get_object(Bucket=place.bucket, Key=place.name)
    assert found["Body"].read() == whole
    assert found["ContentType"] == "video/mp4"
    assert found["ContentDisposition"] == place.disposition
    assert found["Metadata"] == {"owner": "alice"}
    with urllib.request.urlopen(plain.signed(place, 60), timeout=10) as answer:
        assert answer.read() == whole
        assert answer.headers["content-disposition"] == place.disposition
    assert unfinished(client) == []


def test_composing_again_replaces_the_object(
    bucket: S3Bucket, plain: PlainObjects, place: ObjectPlace, client: Any
) -> None:
    """As after a crash between the object and the commit."""
    sources, whole = put(bucket, 5 * MIB, 10)
    plain.compose(sources, place)
    plain.compose(sources, place)
    assert (
        client.get_object(Bucket=place.bucket, Key=place.name)["Body"].read() == whole
    )


def test_too_many_parts_are_composed_in_two_steps(
    bucket: S3Bucket,
    plain: PlainObjects,
    place: ObjectPlace,
    client: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The objects in between are removed."""
    monkeypatch.setattr(plain_module, "MOST_PARTS", 2)
    monkeypatch.setattr(plain_module, "LARGEST_PART", 11 * MIB)
    sources, _ = put(bucket, 5 * MIB, 5 * MIB)
    sources = [*sources, sources[0], sources[1]]
    plain.compose(sources, place)
    found = client.get_object(Bucket=place.bucket, Key=place.name)["Body"].read()
    assert found == DATA[: 10 * MIB] * 2
    left = client.list_objects_v2(
        Bucket="uploads", Prefix=bucket.address.full_name("composing/")
    )
    assert left["KeyCount"] == 0


def test_composition_that_fails_leaves_nothing(
    s3: S3Server, bucket: S3Bucket, plain: PlainObjects, place: ObjectPlace, client: Any
) -> None:
    """A chunk is missing, the service ends, or there is no such bucket."""
    sources, _ = put(bucket, 5 * MIB, 5 * MIB)
    missing = Source(bucket.address.full_name("chunks/none"), 5 * MIB)
    with pytest.raises(StorageError, match="NoSuchKey"):
        plain.compose([*sources, missing], place)
    with pytest.raises(StorageError, match="ended"):
        plain.compose(sources, place, stop=lambda: True)
    if s3.kind != "weed":  # which makes a bucket that is not there
        elsewhere = ObjectPlace(bucket="not-there", name="x")
        with pytest.raises(StorageError, match="NoSuchBucket"):
            plain.compose(sources, elsewhere)
    assert unfinished(client) == []
    with pytest.raises(Exception, match=r"NoSuchKey|Not Found"):
        client.get_object(Bucket=place.bucket, Key=place.name)


def test_store_that_is_away_is_unavailable(
    bucket: S3Bucket, place: ObjectPlace
) -> None:
    """The upload is completed later."""
    config = botocore.config.Config(
        retries={"total_max_attempts": 1}, connect_timeout=1
    )
    client = boto3.client(
        "s3", endpoint_url="http://127.0.0.1:9", region_name="x", config=config
    )
    plain = PlainObjects(bucket.address, client=client)
    with pytest.raises(StorageUnavailable):
        plain.compose([Source("x", 5 * MIB), Source("y", 1)], place)
    with pytest.raises(StorageUnavailable):
        plain.put(b"abc", place)


@pytest.fixture
def large(bucket: S3Bucket) -> ClusterStore:
    stand = S3Stand(bucket)
    stand.store.close = lambda: None  # type: ignore[method-assign]
    stand.bucket.address = bucket.address  # type: ignore[attr-defined]
    stand.store = stand._open(5 * MIB)
    return stand.store


def test_stored_content_is_composed_of_its_chunks(
    large: ClusterStore, place: ObjectPlace, client: Any
) -> None:
    """Frozen, joined of others, and before it is frozen."""
    plain = large.plain
    assert plain is not None
    one = store_content(large, DATA)
    two = store_content(large, DATA[:100], "two")
    join = JoinContents(OperationId("three"), (one, two, one))
    do(large, CreateOperation(record("three")), join)
    writer = begin(large, "four")
    seal_all(large, writer.append(DATA[: 6 * MIB]))
    last = [seal.run() for seal in writer.finish()]
    four = large.sealed_content(writer.key, last)  # type: ignore[attr-defined]
    for content, key, whole in (
        (one, KEY, DATA),
        (join.content, KEY, DATA + DATA[:100] + DATA),
        (four, writer.key, DATA[: 6 * MIB]),  # type: ignore[attr-defined]
    ):
        with large.sources(key, content) as sources:
            plain.compose(sources, place)
        found = client.get_object(Bucket=place.bucket, Key=place.name)["Body"].read()
        assert found == whole
    do(large, *last, FreezeContent(writer.key, four))  # type: ignore[attr-defined]


@given(st.lists(st.integers(0, 3 * LEAST_PART), max_size=30))
def test_plan_covers_everything_within_the_limits(lengths: list[int]) -> None:
    """Every part but the last is large enough, and little is read."""
    sources = [Source(str(at), length) for at, length in enumerate(lengths)]
    parts = plan(sources)
    assert all(part.length >= LEAST_PART for part in parts[:-1])
    covered = dict.fromkeys(map(str, range(len(lengths))), 0)
    order = []
    for part in parts:
        if len(part.sources) > 1:
            assert part.length < 2 * LEAST_PART
        for source in part.sources:
            assert source.start == covered[source.name]
            assert source.length
            covered[source.name] += source.length
            order.append(int(source.name))
    assert list(covered.values()) == lengths
    assert order == sorted(order)


@pytest.mark.parametrize(
    ("bucket_name", "name", "metadata"),
    [
        ("", "x", {}),
        ("b", "", {}),
        ("b", "/x", {}),
        ("b", "a//b", {}),
        ("b", "a/../b", {}),
        ("b", "é" * 600, {}),
        ("b", "x", {"a": "é"}),
        ("b", "x", {"a": "b\nc"}),
        ("b", "x", {"a": "b" * 2048}),
    ],
)
def test_place_that_cannot_be_is_refused(
    bucket_name: str, name: str, metadata: dict[str, str]
) -> None:
    """By what a callable made of a request, so an error and not a strange object."""
    with pytest.raises(CallerError):
        ObjectPlace(bucket=bucket_name, name=name, metadata=metadata)
