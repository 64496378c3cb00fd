"""Addresses of objects: what they may have, and what is said of the others."""

from __future__ import annotations

import pytest

from trioresume.errors import CallerError
from trioresume.store.objects.address import ObjectsAddress, parse_address


def test_address_has_a_bucket_and_a_prefix() -> None:
    """Slashes at the prefix's ends mean nothing."""
    assert parse_address("s3://my-bucket") == ObjectsAddress(
        bucket="my-bucket", virtual_host=True
    )
    address = parse_address("s3://my.bucket/a/b_c/")
    assert (address.bucket, address.prefix) == ("my.bucket", "a/b_c")
    assert address.full_name("chunks/x") == "a/b_c/chunks/x"
    assert parse_address("s3://bucket").full_name("x") == "x"


def test_other_providers_have_an_endpoint() -> None:
    """With paths, because most have no names for each bucket."""
    address = parse_address(
        "s3://bucket/p?endpoint=https://s3.example:9000&region=eu&checksum=sha256"
    )
    assert address.endpoint == "https://s3.example:9000"
    assert (address.region, address.checksum) == ("eu", "sha256")
    assert not address.virtual_host
    assert str(address) == "s3://bucket/p at https://s3.example:9000"
    hosted = parse_address(
        "s3://bucket/p?endpoint=https://bucket.s3.example&style=host"
    )
    assert hosted.virtual_host


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("https://bucket/", "s3://BUCKET/PREFIX"),
        ("bucket", "s3://BUCKET/PREFIX"),
        ("http://key:secret@bucket/", "s3://BUCKET/PREFIX"),
        ("s3://bucket/?endpoint=http://key:secret@host", "AWS_ACCESS_KEY_ID"),
        ("s3:///prefix", "not the name of a bucket"),
        ("s3://A_B/prefix", "not the name of a bucket"),
        ("s3://key:secret@bucket/", "AWS_ACCESS_KEY_ID"),
        ("s3://bucket/a/../b", "cannot be a prefix"),
        ("s3://bucket/a//b", "cannot be a prefix"),
        ("s3://bucket/a%00b", "cannot be a prefix"),
        ("s3://bucket/?endpoint=ftp://x", "not an http or https URL"),
        ("s3://bucket/?end=x", "has end;"),
        ("s3://bucket/#x", "a fragment"),
        ("s3://bucket/?checksum=md5", "crc64nvme or sha256"),
        ("s3://bucket/?style=x", "path or host"),
    ],
)
def test_what_is_wrong_is_said(url: str, said: str) -> None:
    """Before anything is stored, and without the secret."""
    with pytest.raises(CallerError, match=said) as caught:
        parse_address(url)
    assert "secret" not in str(caught.value)
