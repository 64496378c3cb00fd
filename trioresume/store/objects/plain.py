"""Finished content as one ordinary object, which others can read: composed by the object store.

No byte passes through this node, except where S3 wants it: a part that is copied has at least
5 MiB, unless it is the last one. Content that was joined may have short chunks in its middle.
These are read, and put as a part together with the beginning of what follows them.

S3 takes 10,000 parts for an object. Content of more chunks is composed in two steps: groups of
chunks become objects for the moment, and these become the parts.

Everything here blocks.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import quote, urlsplit

import boto3
import botocore.config
import botocore.exceptions

from trioresume.errors import StorageError, StorageUnavailable
from trioresume.store.objects.address import ObjectsAddress
from trioresume.store.objects.places import ObjectPlace, Source

__all__ = [
    "LEAST_PART",
    "MOST_PARTS",
    "Part",
    "PlainObjects",
    "plan",
]

LEAST_PART = 5 * 1024 * 1024
LARGEST_PART = 5 * 1024 * 1024 * 1024
MOST_PARTS = 10_000
"""S3's limits: the least size of a part but the last, the largest one, and their number."""
_AT_ONCE = 8
"""Parts that are copied at the same time."""
_COMPOSING = "composing/"
"""Where the objects of the first of two steps are, below the service's prefix."""


@dataclass(frozen=True, slots=True)
class Part:
    """One part of the object: a range that is copied, or several that are read and put."""

    sources: tuple[Source, ...]

    @property
    def length(self) -> int:
        return sum(source.length for source in self.sources)


def plan(sources: Sequence[Source], *, least: int = LEAST_PART) -> list[Part]:
    """Return the parts of an object that consists of *sources*.

    Each part but the last has *least* bytes or more. Of the bytes that are read, no part has
    as much as twice *least*.
    """
    parts: list[Part] = []
    short: list[Source] = []
    """Ranges that are too small to be a part by themselves."""
    for whole in sources:
        source = whole
        if short and source.length:
            missing = least - sum(each.length for each in short)
            taken = min(source.length, missing)
            if source.length - taken < least:
                taken = source.length  # the rest would be too small again
            if sum(each.length for each in short) + taken >= 2 * least:
                taken = missing
            short.append(Source(source.name, taken, source.start))
            source = Source(source.name, source.length - taken, source.start + taken)
            if sum(each.length for each in short) >= least:
                parts.append(Part(tuple(short)))
                short = []
        if source.length >= least:
            parts.append(Part((source,)))
        elif source.length:
            short.append(source)
    if short:
        parts.append(Part(tuple(short)))
    return parts


class PlainObjects:
    """Composes objects. Threads: any."""

    def __init__(self, address: ObjectsAddress, *, client: Any = None) -> None:
        self.address = address
        config = botocore.config.Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"mode": "standard", "total_max_attempts": 6},
            s3={"addressing_style": "virtual" if address.virtual_host else "path"},
            signature_version="s3v4",
            max_pool_connections=2 * _AT_ONCE,
        )
        self._client = client or boto3.client(
            "s3",
            endpoint_url=address.endpoint,
            region_name=address.region,
            config=config,
        )

    def compose(
        self,
        sources: Sequence[Source],
        place: ObjectPlace,
        *,
        stop: Callable[[], bool] = lambda: False,
    ) -> None:
        """Make the object of *sources*, one after the other; replaces an object of that name.

        *stop* is asked between two parts, and ends it. Raises :class:`StorageError`. Nothing
        is left of an object that was not finished.
        """
        try:
            self._compose(sources, place, stop)
        except botocore.exceptions.ClientError as exc:
            raise _translated(exc, place) from exc
        except botocore.exceptions.BotoCoreError as exc:
            raise StorageUnavailable(
                f"composing {place.bucket}/{place.name}: {exc}"
            ) from exc

    def put(self, data: bytes, place: ObjectPlace) -> None:
        """Make an object of *data*: content that is too small for a chunk."""
        try:
            self._client.put_object(Body=data, **_target(place), **_described(place))
        except botocore.exceptions.ClientError as exc:
            raise _translated(exc, place) from exc
        except botocore.exceptions.BotoCoreError as exc:
            raise StorageUnavailable(
                f"putting {place.bucket}/{place.name}: {exc}"
            ) from exc

    def _compose(
        self, sources: Sequence[Source], place: ObjectPlace, stop: Callable[[], bool]
    ) -> None:
        parts = plan(sources)
        if not parts:
            self._client.put_object(Body=b"", **_target(place), **_described(place))
            return
        if len(parts) == 1 and len(parts[0].sources) == 1:
            (source,) = parts[0].sources
            if not source.start and source.length < LARGEST_PART:
                self._client.copy_object(
                    CopySource=self._source(source),
                    MetadataDirective="REPLACE",
                    **_target(place),
                    **_described(place),
                )
                return
        if len(parts) <= MOST_PARTS:
            self._join(parts, place, stop)
            return
        with _Temporary(self) as groups:
            for group in _grouped(parts):
                name = self.address.full_name(f"{_COMPOSING}{secrets.token_hex(16)}")
                groups.names.append(name)
                self._join(
                    group, ObjectPlace(bucket=self.address.bucket, name=name), stop
                )
            lengths = [sum(part.length for part in group) for group in _grouped(parts)]
            joined = [
                Part((Source(name, length),))
                for name, length in zip(groups.names, lengths, strict=True)
            ]
            if len(joined) > MOST_PARTS:
                raise StorageError(
                    f"{place.bucket}/{place.name} would have too many parts"
                )
            self._join(joined, place, stop)

    def _join(
        self, parts: Sequence[Part], place: ObjectPlace, stop: Callable[[], bool]
    ) -> None:
        target = _target(place)
        upload = self._client.create_multipart_upload(**target, **_described(place))
        upload_id = upload["UploadId"]

        def make(number: int, part: Part) -> dict[str, Any]:
            if stop():
                raise StorageError("the service was ended")
            return {
                "PartNumber": number,
                "ETag": self._make_part(target, upload_id, number, part),
            }

        try:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                made = list(pool.map(make, range(1, len(parts) + 1), parts))
            self._client.complete_multipart_upload(
                UploadId=upload_id, MultipartUpload={"Parts": made}, **target
            )
        except BaseException:
            try:
                self._client.abort_multipart_upload(UploadId=upload_id, **target)
            except (
                botocore.exceptions.ClientError,
                botocore.exceptions.BotoCoreError,
            ):
                pass  # a rule of the bucket removes what is left; trioresume doctor asks for it
            raise

    def _make_part(
        self, target: dict[str, str], upload_id: str, number: int, part: Part
    ) -> str:
        if len(part.sources) == 1:
            (source,) = part.sources
            answer = self._client.upload_part_copy(
                CopySource=self._source(source),
                CopySourceRange=f"bytes={source.start}-{source.start + source.length - 1}",
                UploadId=upload_id,
                PartNumber=number,
                **target,
            )
            return str(answer["CopyPartResult"]["ETag"])
        data = b"".join(self._read(source) for source in part.sources)
        answer = self._client.upload_part(
            Body=data, UploadId=upload_id, PartNumber=number, **target
        )
        return str(answer["ETag"])

    def _read(self, source: Source) -> bytes:
        answer = self._client.get_object(
            Bucket=self.address.bucket,
            Key=source.name,
            Range=f"bytes={source.start}-{source.start + source.length - 1}",
        )
        data: bytes = answer["Body"].read()
        if len(data) != source.length:
            raise StorageError(f"the object {source.name} is too short")
        return data

    def _source(self, source: Source) -> dict[str, str]:
        return {"Bucket": self.address.bucket, "Key": source.name}

    def delete(self, bucket: str, name: str) -> None:
        self._client.delete_object(Bucket=bucket, Key=name)

    def url(self, place: ObjectPlace) -> str:
        """Return the object's address, which works for whoever may read the bucket."""
        path = quote(place.name, safe="/-_.~")
        endpoint = self.address.endpoint
        if endpoint is None:
            region = self.address.region or "us-east-1"
            return f"https://{place.bucket}.s3.{region}.amazonaws.com/{path}"
        parts = urlsplit(endpoint)
        if self.address.virtual_host:
            # The endpoint's host begins with the service's own bucket.
            host = parts.netloc.removeprefix(f"{self.address.bucket}.")
            return f"{parts.scheme}://{place.bucket}.{host}/{path}"
        return f"{endpoint.rstrip('/')}/{place.bucket}/{path}"

    def signed(self, place: ObjectPlace, seconds: float) -> str:
        """Return an address with which anybody may read the object, for so long.

        The object is sent with its type and disposition of *place*, whatever it was put with.
        """
        more = {
            "ResponseContentType": place.content_type,
            "ResponseContentDisposition": place.disposition,
        }
        url: str = self._client.generate_presigned_url(
            "get_object",
            Params={**_target(place), **{n: v for n, v in more.items() if v}},
            ExpiresIn=int(seconds),
        )
        return url


class _Temporary:
    """Objects that exist for the block."""

    def __init__(self, plain: PlainObjects) -> None:
        self._plain = plain
        self.names: list[str] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in self.names:
            try:
                self._plain.delete(self._plain.address.bucket, name)
            except (
                botocore.exceptions.ClientError,
                botocore.exceptions.BotoCoreError,
            ):
                pass  # a rule of the bucket removes what is left


def _grouped(parts: Sequence[Part]) -> list[list[Part]]:
    """Return the parts in groups, each of which can be a part itself."""
    groups: list[list[Part]] = [[]]
    size = 0
    for part in parts:
        if size + part.length > LARGEST_PART or len(groups[-1]) == MOST_PARTS:
            groups.append([])
            size = 0
        groups[-1].append(part)
        size += part.length
    return groups


def _target(place: ObjectPlace) -> dict[str, str]:
    return {"Bucket": place.bucket, "Key": place.name}


def _described(place: ObjectPlace) -> dict[str, Any]:
    described: dict[str, Any] = {"Metadata": dict(place.metadata)}
    if place.content_type is not None:
        described["ContentType"] = place.content_type
    if place.disposition is not None:
        described["ContentDisposition"] = place.disposition
    return described


def _translated(exc: Any, place: ObjectPlace) -> StorageError:
    """Return the error for botocore's ClientError."""
    code = exc.response.get("Error", {}).get("Code", "")
    status = exc.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    said = f"composing {place.bucket}/{place.name}: the object store answers {status} ({code})"
    return StorageUnavailable(said) if status >= 500 else StorageError(said)
