"""Names of objects: what is ours, and what is not."""

from __future__ import annotations

import pytest

from trioresume.errors import ChunkCorrupt
from trioresume.store.objects.bucket import (
    chunk_name,
    chunk_of,
    get_whole,
    key_and_generation,
    new_tail_name,
)
from trioresume.store.port import ChunkObject, OperationId, request_key, response_key
from trioresume.store.port.recipes import digest_of
from trioresume.testing.memory_catalog import MemoryBucket

KEY = request_key(OperationId("a_b-C1"))
DIGEST = digest_of(b"abc")


def test_chunk_is_found_by_its_name() -> None:
    """xx is the first byte of the hash, so that names spread."""
    chunk = ChunkObject(DIGEST, 17)
    name = chunk_name(chunk)
    assert name == f"chunks/{DIGEST[2:3].hex()}/{DIGEST.hex()}.17"
    assert chunk_of(name) == chunk


@pytest.mark.parametrize(
    "change",
    [
        lambda name: name + "0x",
        lambda name: name.replace("chunks", "chunk"),
        lambda name: name.removesuffix(".17"),
        lambda name: name.replace(".17", ".017"),
        lambda name: name.replace("chunks/", "chunks/0", 1),
        lambda name: name.upper(),
        lambda name: "chunks/00" + name[9:],
    ],
)
def test_other_names_are_not_ours(change: object) -> None:
    """The sweep leaves such objects alone."""
    assert callable(change)
    assert chunk_of(change(chunk_name(ChunkObject(DIGEST, 17)))) is None


def test_part_of_a_tail_tells_its_content_and_generation() -> None:
    """And no two have one name."""
    for key in (KEY, response_key(OperationId("a_b-C1"))):
        name = new_tail_name(key, 3)
        assert key_and_generation(name) == (key, 3)
        assert new_tail_name(key, 3) != name
    assert key_and_generation("tails/../3-0011223344556677") is None
    assert key_and_generation("tails/a/3-001122334455667") is None


def test_missing_and_short_objects_are_named() -> None:
    """The message says which object an administrator has to look for."""
    bucket = MemoryBucket()
    bucket.put("tails/x", b"abc")
    assert get_whole(bucket, "tails/x", 1, 2, "content") == b"bc"
    with pytest.raises(ChunkCorrupt, match=r"content is too short.*tails/x"):
        get_whole(bucket, "tails/x", 1, 3, "content")
    with pytest.raises(ChunkCorrupt, match=r"content is missing.*tails/y"):
        get_whole(bucket, "tails/y", 1, 3, "content")
