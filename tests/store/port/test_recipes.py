"""Digests, recipes and keys: the names of things."""

from __future__ import annotations

import msgpack
import pytest
from blake3 import blake3

from trioresume.errors import CallerError, FormatVersionUnsupported
from trioresume.store.port import (
    ContentKey,
    OperationId,
    check_key,
    is_response_key,
    operation_of,
    request_key,
    response_key,
)
from trioresume.store.port.recipes import (
    DIGEST_LENGTH,
    JoinedRecipe,
    Recipe,
    digest_of,
    parse_recipe,
)

DIGESTS = [digest_of(b"one"), digest_of(b"two"), digest_of(b"three")]


def test_digest_is_a_multihash() -> None:
    """Two bytes say which hash it is and how long, so that it can change one day."""
    assert digest_of(b"data") == b"\x1e\x20" + blake3(b"data").digest()
    assert len(digest_of(b"data")) == DIGEST_LENGTH


def test_recipe_reads_back() -> None:
    """A recipe is its serialised form, and lists its chunks in order."""
    recipe = Recipe.build(8, 20, DIGESTS)
    again = Recipe.from_bytes(recipe.serialised)
    assert again == recipe
    assert again.digest == recipe.digest == digest_of(recipe.serialised)
    assert again.chunk_count == 3
    assert [again.chunk(index) for index in range(3)] == DIGESTS


def test_recipe_ends_with_its_digests() -> None:
    """Collection takes the serialised form apart from its end, without reading it all."""
    recipe = Recipe.build(8, 20, DIGESTS)
    assert recipe.serialised.endswith(b"".join(DIGESTS))
    assert list(msgpack.unpackb(recipe.serialised)) == ["v", "chunk", "len", "chunks"]


@pytest.mark.parametrize("length", [0, 16, 25])
def test_recipe_of_the_wrong_length_is_refused(length: int) -> None:
    """Chunks and length must agree."""
    with pytest.raises(ValueError):
        Recipe.build(8, length, DIGESTS)


def test_recipe_of_another_version_is_refused() -> None:
    """A later format is not guessed at."""
    packed = msgpack.packb({"v": 2, "chunk": 8, "len": 0, "chunks": b""})
    with pytest.raises(FormatVersionUnsupported):
        Recipe.from_bytes(packed)


def test_joined_recipe_reads_back() -> None:
    """It lists recipes and their lengths, ends with the digests, and is told apart."""
    joined = JoinedRecipe(tuple(DIGESTS), (3, 1, 2**40))
    assert joined.length == 2**40 + 4
    assert parse_recipe(joined.serialised) == joined
    assert joined.digest == digest_of(joined.serialised)
    assert joined.serialised.endswith(b"".join(DIGESTS))
    plain = Recipe.build(8, 20, DIGESTS)
    assert parse_recipe(plain.serialised) == plain
    with pytest.raises(FormatVersionUnsupported):
        JoinedRecipe.from_bytes(plain.serialised)


def test_joined_recipe_knows_where_a_byte_is() -> None:
    """The first byte of a part belongs to it and not to the one before."""
    joined = JoinedRecipe(tuple(DIGESTS), (3, 1, 2))
    places = [joined.locate(offset) for offset in range(joined.length)]
    assert places == [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0), (2, 1)]


@pytest.mark.parametrize("version", [0, 3])
def test_recipe_of_no_known_version_is_refused(version: int) -> None:
    """A later format is not guessed at, whatever its kind."""
    with pytest.raises(FormatVersionUnsupported):
        parse_recipe(msgpack.packb({"v": version, "len": 0}))


def test_keys_belong_to_their_operation() -> None:
    """Request and response content of one operation have two keys."""
    operation = OperationId("aZ09-_")
    assert request_key(operation) != response_key(operation)
    assert (
        operation_of(request_key(operation))
        == operation_of(response_key(operation))
        == operation
    )
    assert is_response_key(response_key(operation))
    assert not is_response_key(request_key(operation))


@pytest.mark.parametrize("key", ["a", "a.r", "aZ09-_", "a" * 128])
def test_well_formed_key_passes(key: str) -> None:
    """URL-safe base64 without padding, with or without the response's ending."""
    check_key(ContentKey(key))


@pytest.mark.parametrize("key", ["", ".", "..", ".r", "a.r.r", "a/b", "a\n", "a" * 129])
def test_malformed_key_is_refused(key: str) -> None:
    """Nothing else may become a file name (G12)."""
    with pytest.raises(CallerError):
        check_key(ContentKey(key))
