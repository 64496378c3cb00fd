"""Stored files as plain objects: in a real object store, through the service."""

from __future__ import annotations

import itertools
import json
import random
import urllib.request
from collections.abc import Iterator
from typing import Any, cast
from urllib.parse import unquote, urlsplit

import boto3
import botocore.config
import pytest
import trio

from tests.s3_servers import S3Server, running
from tests.server.harness import memory_service
from trioresume import (
    CallerError,
    Config,
    FileService,
    ObjectFiles,
    ObjectPlace,
    Request,
)
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.address import parse_address
from trioresume.store.objects.s3 import S3Bucket
from trioresume.store.objects.scratch import Scratch
from trioresume.targets.object_files import ObjectPlacing
from trioresume.testing.memory_catalog import MemoryCatalog
from trioresume.testing.memory_store import MemoryStore

MIB = 1024 * 1024
DATA = random.Random(5).randbytes(11 * MIB + 7)
CHUNK = 5 * MIB
_numbers = itertools.count()


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    with running("versitygw", tmp_path_factory.mktemp("versitygw")) as server:
        yield server


@pytest.fixture
def store(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> ClusterStore:
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    bucket = S3Bucket(parse_address(s3.url(f"o{next(_numbers)}")))
    return ClusterStore(
        MemoryCatalog(chunk_size=CHUNK).join(),
        bucket,
        Scratch(None, memory=64 * MIB),
        chunk_size=CHUNK,
    )


@pytest.fixture
def client(s3: S3Server, store: ClusterStore) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=s3.endpoint,
        region_name="us-east-1",
        config=botocore.config.Config(s3={"addressing_style": "path"}),
    )


def service(store: ClusterStore, objects: ObjectFiles) -> Any:
    return memory_service(
        FileService("/", objects=objects), Config(), store=cast("Any", store)
    )


def fetch(address: str) -> tuple[bytes, Any]:
    with urllib.request.urlopen(address, timeout=20) as answer:
        return answer.read(), answer.headers


FIELDS = {
    "content-type": "video/mp4",
    "content-disposition": 'attachment; filename="a b.mp4"',
}


@pytest.mark.parametrize("data", [DATA, DATA[:7]])
async def test_file_is_an_object_when_its_response_comes(
    data: bytes, store: ClusterStore, client: Any
) -> None:
    """Under the name of the template, with its type and the name that its sender gave it."""
    objects = ObjectFiles(name="films/{digest}{suffix}")
    async with service(store, objects) as running_service:
        reply = await running_service.connect().request("POST", "/", FIELDS, data)
        assert reply.status == 201
        assert "films" not in reply["location"]  # the file, in this service
        name = f"films/{json.loads(reply.body)['digest']}.mp4"
        found = client.get_object(Bucket="uploads", Key=name)
        assert found["Body"].read() == data
        assert found["ContentType"] == "video/mp4"
        assert 'filename="a b.mp4"' in found["ContentDisposition"]
        path = urlsplit(reply["location"]).path
        got = await running_service.connect().request("GET", path)
        assert (got.status, got.body) == (200, data)
        assert "plain-object" not in got.fields


async def test_callable_chooses_bucket_name_and_metadata_for_each_request(
    store: ClusterStore, client: Any
) -> None:
    """And may leave a file as it is."""
    client.create_bucket(Bucket="tenant-a")

    def choose(request: Request) -> ObjectPlace | None:
        tenant = request.head.fields.get("x-tenant")
        if tenant is None:
            return None
        return ObjectPlace(
            bucket=f"tenant-{tenant}", name="in/x", metadata={"by": "me"}
        )

    objects = ObjectFiles(name=choose, location="object")
    async with service(store, objects) as running_service:
        fields = {**FIELDS, "x-tenant": "a"}
        reply = await running_service.connect().request("POST", "/", fields, DATA)
        assert reply["location"].endswith("/tenant-a/in/x")
        found = client.get_object(Bucket="tenant-a", Key="in/x")
        assert found["Body"].read() == DATA
        assert found["Metadata"] == {"by": "me"}
        reply = await running_service.connect().request("POST", "/", FIELDS, DATA)
        assert reply.status == 201
        assert "tenant" not in reply["location"]


async def test_location_and_downloads_may_be_signed_addresses(
    store: ClusterStore, client: Any
) -> None:
    """They work without credentials, and have the file's type and name."""
    objects = ObjectFiles(location="signed", redirects=True, signed_for=60)
    async with service(store, objects) as running_service:
        put = await running_service.connect().request("PUT", "/mine", FIELDS, DATA)
        assert put.status == 201
        moved = await running_service.connect().request("GET", "/mine")
        assert (moved.status, moved["cache-control"]) == (307, "no-store")
        for address in (put["location"], moved["location"]):
            content, headers = await trio.to_thread.run_sync(fetch, address)
            assert content == DATA
            assert headers["content-type"] == "video/mp4"
            assert 'filename="a b.mp4"' in headers["content-disposition"]
        assert "mine" not in unquote(urlsplit(put["location"]).path)


async def test_upload_whose_object_cannot_be_made_is_answered_so_and_kept(
    store: ClusterStore, client: Any
) -> None:
    """The client asks again once there is such a bucket; no byte is sent twice."""
    objects = ObjectFiles(name=lambda _: ObjectPlace(bucket="later", name="x"))
    async with service(store, objects) as running_service:
        fields = {"prefer": "respond-async=0"}
        reply = await running_service.connect().request("PUT", "/x", fields, DATA)
        assert reply.status == 500
        assert b"later" not in reply.body
        client.create_bucket(Bucket="later")
        reply = await running_service.connect().request("PUT", "/x", fields, DATA)
        assert reply.status == 201
        found = client.get_object(Bucket="later", Key="x")
        assert found["Body"].read() == DATA


def test_files_become_objects_only_in_an_object_store() -> None:
    """A service that cannot do what its settings say does not start."""
    with pytest.raises(CallerError, match="object store"):
        ObjectPlacing(ObjectFiles(), MemoryStore())


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"name": "{nothing}"}, "name of objects"),
        ({"location": "elsewhere"}, "file, object or signed"),
        ({"signed_for": 0}, "signed for 1 to"),
        ({"signed_for": 8 * 24 * 3600}, "signed for 1 to"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    settings: dict[str, Any], said: str
) -> None:
    """When they are made."""
    with pytest.raises(CallerError, match=said):
        ObjectFiles(**settings)
