"""What tus's fields say: values in, values or refusals out (section D)."""

from __future__ import annotations

import base64
import hashlib

import pytest
from hypothesis import given, strategies as st

from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects.tus.fields import (
    CHECKSUM_ALGORITHMS,
    Checksum,
    format_metadata,
    joined_references,
    metadata_of,
    parse_metadata,
    representation_fields,
    stated_length,
)
from trioresume.protocol.dialects.tus.server import is_partial
from trioresume.protocol.fields import header_safe
from trioresume.protocol.filenames import parse_content_disposition_filename
from trioresume.protocol.heads import Fields

CONTENT = b"The quick brown fox jumps over the lazy dog."


def refusal(function: object, *args: object) -> ProblemCode:
    """The problem that the call ends in."""
    with pytest.raises(PeerError) as caught:
        function(*args)  # type: ignore[operator]
    return caught.value.problem


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


# Lengths.


@pytest.mark.parametrize("length", [0, 1, 10**15 - 1])
def test_a_length_is_stated(length: int) -> None:
    """D6, G6."""
    assert stated_length(Fields({"Upload-Length": str(length)})) == length


def test_a_length_is_deferred() -> None:
    """D6: by a 1 and by nothing else."""
    assert stated_length(Fields({"Upload-Defer-Length": "1"})) is None


@pytest.mark.parametrize(
    "lines",
    [
        {},
        {"Upload-Length": "5", "Upload-Defer-Length": "1"},
        {"Upload-Defer-Length": "0"},
        {"Upload-Defer-Length": "true"},
        {"Upload-Length": "-1"},
        {"Upload-Length": "+1"},
        {"Upload-Length": "1.5"},
        {"Upload-Length": "1, 1"},
        {"Upload-Length": "0100"},
        {"Upload-Length": "00"},
        {"Upload-Length": ""},
        {"Upload-Length": "1" + "0" * 15},
    ],
)
def test_neither_or_both_or_a_malformed_length_is_refused(
    lines: dict[str, str],
) -> None:
    """D6, G6."""
    assert refusal(stated_length, Fields(lines)) is ProblemCode.MALFORMED_REQUEST


# Metadata.


def test_metadata_is_keys_and_what_their_base64_stands_for() -> None:
    """D6: a key may stand alone."""
    value = f"filename {b64(b'a b.txt')}, is_confidential,type dGV4dC9wbGFpbg=="
    assert parse_metadata(value) == {
        "filename": b"a b.txt",
        "is_confidential": b"",
        "type": b"text/plain",
    }


@pytest.mark.parametrize("value", ["", " ", ",", " , ,", "\t"])
def test_empty_metadata_is_none(value: str) -> None:
    """D6: tuspy sends an empty field."""
    assert parse_metadata(value) == {}


@pytest.mark.parametrize(
    "value",
    ["a YQ,a YQ==", "a YQ==,a", "é YQ==", "é\x01 YQ==", "a\x7f YQ==", "a\xa0 YQ=="],
)
def test_malformed_key_of_metadata_is_refused(value: str) -> None:
    """D6: keys are unique, and of printing ASCII."""
    assert refusal(parse_metadata, value) is ProblemCode.MALFORMED_REQUEST


@pytest.mark.parametrize("value", ["a YQ", "a Y%", "a YQ== YQ==", "a é", "a _-_-"])
def test_value_that_is_not_base64_means_nothing_or_is_refused(value: str) -> None:
    """D6: lenient by default, as other servers are."""
    assert parse_metadata(f"b YQ==,{value}") == {"b": b"a"}
    assert refusal(strictly, value) is ProblemCode.MALFORMED_REQUEST
    # It takes its key all the same.
    assert refusal(parse_metadata, f"{value},a YQ==") is ProblemCode.MALFORMED_REQUEST


def strictly(value: str) -> dict[str, bytes]:
    return parse_metadata(value, strict=True)


_KEYS = st.text(
    st.characters(min_codepoint=33, max_codepoint=126, exclude_characters=","),
    min_size=1,
)


@given(st.dictionaries(_KEYS, st.binary(max_size=20), max_size=5))
def test_all_metadata_reads_back(metadata: dict[str, bytes]) -> None:
    """D6: whatever bytes a client has to say."""
    value = ",".join(f"{key} {b64(data)}" for key, data in metadata.items())
    assert parse_metadata(value) == metadata
    assert parse_metadata(format_metadata(metadata)) == metadata


def test_fields_of_the_content_become_metadata() -> None:
    """What a server makes of it is what the client was told of the content."""
    fields = {
        "content-type": "text/plain; charset=utf-8",
        "content-disposition": "attachment; filename=\"_.txt\"; filename*=UTF-8''%C3%A4.txt",
    }
    metadata = metadata_of(Fields(fields))
    assert metadata == {
        "filename": "ä.txt".encode(),
        "filetype": b"text/plain; charset=utf-8",
    }
    assert representation_fields(metadata) == fields
    assert metadata_of(Fields()) == {}
    assert metadata_of(Fields({"content-disposition": "inline"})) == {}


@given(st.text(st.characters(max_codepoint=255)))
def test_any_text_is_metadata_or_refused(value: str) -> None:
    """Nothing else comes out of any bytes, and never an empty key."""
    try:
        keys = list(parse_metadata(value))
    except PeerError:
        keys = []
    assert all(keys)
    assert not any("," in key for key in keys)


@pytest.mark.parametrize(
    ("metadata", "disposition", "content_type"),
    [
        ({"filename": b"a.txt", "filetype": b"text/plain"}, "a.txt", "text/plain"),
        ({"name": b"b.png", "type": b"image/png"}, "b.png", "image/png"),
        ({"filename": b"a", "name": b"b"}, "a", None),
        ({"filename": b"", "name": b"b"}, "b", None),
        ({"filename": "über.txt".encode()}, "über.txt", None),
        ({"filename": b"../../etc/passwd"}, "passwd", None),
        ({"filename": b"a\r\nSet-Cookie: b"}, "aSet-Cookie: b", None),
        ({"filename": b"..", "type": b"text/html\r\nX: y"}, None, None),
        ({"filename": b"\xff\xfe", "filetype": b"\xff"}, None, None),
        (
            {"filename": b"\xff", "name": b"b", "filetype": b"x", "type": b"a/b"},
            "b",
            "a/b",
        ),
        ({"filename": b"..", "name": b"nul.txt"}, "_nul.txt", None),
        (
            {"filename": "a\u202f\u200d\u0378.png".encode()},
            "a\u202f\u200d\u0378.png",
            None,
        ),
        ({"filetype": b"text"}, None, None),
        ({"filetype": "text/plän".encode()}, None, None),
        ({}, None, None),
    ],
)
def test_metadata_becomes_what_http_has_for_it(
    metadata: dict[str, bytes], disposition: str | None, content_type: str | None
) -> None:
    """G4, G12, G14: a harmless name and a media type, or none."""
    fields = representation_fields(metadata)
    said = fields.get("content-disposition")
    assert (
        None if said is None else parse_content_disposition_filename(said)
    ) == disposition
    assert fields.get("content-type") == content_type


@given(st.dictionaries(st.sampled_from(["filename", "type"]), st.binary()))
def test_no_metadata_breaks_a_field(metadata: dict[str, bytes]) -> None:
    """G4: whatever is in it, what comes of it can be sent."""
    fields = representation_fields(metadata)
    assert all(value.isascii() and header_safe(value) for value in fields.values())


# Concatenation.


def test_a_part_is_told_by_its_fields() -> None:
    """D7; other dialects' requests may carry the field by accident."""
    marked = Fields({"Tus-Resumable": "1.0.0", "Upload-Concat": "partial"})
    assert is_partial(marked)
    assert joined_references(marked) is None
    assert not is_partial(Fields({"Upload-Concat": "partial"}))
    assert not is_partial(Fields({"Tus-Resumable": "1.0.0"}))
    assert joined_references(Fields({"Tus-Resumable": "1.0.0"})) is None


@pytest.mark.parametrize(
    "value", ["final;/a /b", "final; /a /b", "final;/a  /b ", "final ;\t/a /b"]
)
def test_a_final_upload_names_its_parts_in_order(value: str) -> None:
    """D7."""
    assert joined_references(Fields({"Upload-Concat": value})) == ("/a", "/b")


@pytest.mark.parametrize(
    "value",
    [
        "",
        "final",
        "final;",
        "final; ",
        "Final;/a",
        "partial;/a",
        "x",
        "partial, partial",
    ],
)
def test_any_other_concatenation_is_refused(value: str) -> None:
    """D7."""
    fields = Fields({"Upload-Concat": value})
    assert refusal(joined_references, fields) is ProblemCode.MALFORMED_REQUEST


# Checksums.


def checked(fields: dict[str, str], content: bytes, trailers: dict[str, str]) -> None:
    check = Checksum.of(Fields(fields))
    assert check is not None
    assert not check.keeps_prefix
    for at in range(0, len(content), 7):
        check.update(memoryview(content)[at : at + 7])
    check.verify(Fields(trailers))


def of(algorithm: str, content: bytes = CONTENT) -> dict[str, str]:
    digest = hashlib.new(algorithm, content).digest()
    return {"Upload-Checksum": f"{algorithm} {b64(digest)}"}


@pytest.mark.parametrize("algorithm", CHECKSUM_ALGORITHMS)
def test_a_checksum_is_that_of_the_content(algorithm: str) -> None:
    """D7: sha1, sha256, sha512 and md5, before the content or after it."""
    checked(of(algorithm), CONTENT, {})
    checked({"Trailer": "Upload-Checksum"}, CONTENT, of(algorithm))
    other = of(algorithm, b"other")
    problem = ProblemCode.CHECKSUM_MISMATCH
    assert refusal(checked, other, CONTENT, {}) is problem
    assert (
        refusal(checked, {"Trailer": "X, upload-checksum"}, CONTENT, other) is problem
    )
    assert problem.status == 460


def test_the_algorithms_are_those_of_the_contract() -> None:
    """D7; tus demands sha1."""
    assert CHECKSUM_ALGORITHMS == ("sha1", "sha256", "sha512", "md5")


@pytest.mark.parametrize(
    "value",
    ["", "sha1", "sha1 ", "sha1 %", "crc32 AAAAAA==", "SHA1 AA==", "sha1 AA== AA=="],
)
def test_unknown_and_malformed_checksums_are_refused(value: str) -> None:
    """D7: 400, before the content or after it."""
    problem = ProblemCode.MALFORMED_REQUEST
    assert refusal(Checksum.of, Fields({"Upload-Checksum": value})) is problem
    announced = {"Trailer": "Upload-Checksum"}
    assert refusal(checked, announced, CONTENT, {"Upload-Checksum": value}) is problem


def test_a_digest_of_another_length_is_a_mismatch() -> None:
    """It is a checksum that the content does not have."""
    short = {"Upload-Checksum": "sha1 AAAA"}
    assert refusal(checked, short, CONTENT, {}) is ProblemCode.CHECKSUM_MISMATCH


def test_an_announced_checksum_must_come() -> None:
    """D7: content is not taken for checked because its checksum is missing."""
    problem = ProblemCode.MALFORMED_REQUEST
    assert refusal(checked, {"Trailer": "Upload-Checksum"}, CONTENT, {}) is problem
    both = {"Trailer": "Upload-Checksum", **of("sha1")}
    assert refusal(Checksum.of, Fields(both)) is problem


def test_without_a_checksum_nothing_is_computed() -> None:
    """It is what the core protocol does."""
    assert Checksum.of(Fields({"Trailer": "Expires"})) is None
