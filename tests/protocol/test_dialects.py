"""Dialects, sans-IO: which one a request is in, and the table of RUFH's versions."""

from __future__ import annotations

import pytest

from tests.protocol.classified import classified
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects import (
    Interim,
    Reply,
    ServerDialect,
    Upload,
    UploadLimits,
)
from trioresume.protocol.dialects.rufh.server import RufhServer
from trioresume.protocol.dialects.rufh.versions import VERSIONS, Version
from trioresume.protocol.dialects.seed.server import SEED
from trioresume.protocol.heads import Fields, RequestHead

MARK = "upload-draft-interop-version"


def request(method: str, *, length: int | None = 0, **fields: str) -> RequestHead:
    """A head; ``a_b`` is the field ``a-b``."""
    lines = {name.replace("_", "-"): value for name, value in fields.items()}
    return RequestHead(
        method=method,
        target="/",
        fields=Fields(lines),
        http_version="1.1",
        length=length,
    )


def version_of(dialect: ServerDialect) -> int | str | None:
    """The interop version, "unversioned", or None for the union."""
    if not isinstance(dialect, RufhServer):
        assert dialect is SEED
        return None
    return dialect.version.number or "unversioned"


PARTIAL = "application/partial-upload"
ON_TARGET: list[tuple[RequestHead, int | str | None]] = [
    (request("POST"), None),
    (request("POST", prefer="resume"), None),
    (request("POST", upload_draft_interop_version="6"), None),
    (request("POST", upload_draft_interop_version="6", upload_complete="?1"), 6),
    (request("POST", upload_draft_interop_version="3", upload_incomplete="?0"), 3),
    (request("POST", upload_draft_interop_version="3", upload_complete="?0"), None),
    (request("POST", upload_draft_interop_version="6", upload_incomplete="?0"), None),
    (request("POST", upload_complete="?0"), "unversioned"),
    (request("POST", upload_complete="yes"), None),
    (
        request("POST", upload_draft_interop_version="99", upload_complete="?0"),
        "unversioned",
    ),
    (request("GET", upload_draft_interop_version="6", upload_complete="?1"), None),
]
ON_UPLOAD: list[tuple[RequestHead, int | str | None]] = [
    (request("HEAD"), None),
    (request("GET"), None),
    (request("DELETE"), None),
    (request("HEAD", upload_draft_interop_version="4"), 4),
    (request("HEAD", upload_draft_interop_version="2"), None),
    (request("PATCH", content_type="message/byterange"), None),
    (request("PATCH", content_type=PARTIAL), "unversioned"),
    (request("PATCH", content_type=f"{PARTIAL}; a=b"), "unversioned"),
    (request("PATCH", content_type=PARTIAL, upload_draft_interop_version="7"), 7),
]


@pytest.mark.parametrize(("head", "expected"), ON_TARGET)
def test_dialect_of_a_request_to_a_target(
    head: RequestHead, expected: int | str | None
) -> None:
    """E1: a known version with its completeness field; else the newest; else none."""
    assert version_of(classified(head, on_upload=False)) == expected


@pytest.mark.parametrize(("head", "expected"), ON_UPLOAD)
def test_dialect_of_a_request_on_an_upload(
    head: RequestHead, expected: int | str | None
) -> None:
    """E1: by version, a PATCH by its media type as well; without a marker the union."""
    assert version_of(classified(head, on_upload=True)) == expected


def upload(
    *, offset: int = 5, length: int | None = 10, complete: bool = False
) -> Upload:
    """An upload to speak of."""
    return Upload(
        content="/operations/a/content",
        absolute_content="http://x/operations/a/content",
        message="/operations/a/message",
        offset=offset,
        length=length,
        is_complete=complete,
        lifetime=3600,
        expires_at=1_700_000_000.0,
        limits=UploadLimits(max_size=1000),
        fields=request("POST").fields,
    )


def dialect(number: int) -> RufhServer:
    """RUFH in one of its versions."""
    return RufhServer(VERSIONS[number], interims=True)


EXPECTED = {
    # version: creation in parts, HEAD, append in part, completion
    3: (
        (201, {"upload-offset": "5", "upload-incomplete": "?1"}),
        (204, {"upload-offset": "5", "upload-incomplete": "?1"}),
        (201, {"upload-offset": "5", "upload-incomplete": "?1"}),
        {"upload-offset": "5", "upload-incomplete": "?0"},
    ),
    4: (
        (201, {"upload-offset": "5", "upload-complete": "?0"}),
        (204, {"upload-offset": "5", "upload-complete": "?0"}),
        (201, {"upload-offset": "5", "upload-complete": "?0"}),
        {"upload-offset": "5", "upload-complete": "?1"},
    ),
    5: (
        (201, {"upload-offset": "5", "upload-complete": "?0"}),
        (200, {"content-length": "5", "upload-offset": "5", "upload-complete": "?0"}),
        (201, {"upload-offset": "5", "upload-complete": "?0"}),
        {"upload-offset": "5", "upload-complete": "?1"},
    ),
    6: (
        (201, {"upload-complete": "?0", "upload-limit": "max-size=1000, expires=3600"}),
        (200, {"upload-length": "10", "upload-limit": "max-size=1000, expires=3600"}),
        (201, {"upload-offset": "5", "upload-complete": "?0"}),
        {"upload-offset": "5", "upload-complete": "?1"},
    ),
    7: (
        (201, {"upload-complete": "?0", "upload-limit": "max-size=1000, max-age=3600"}),
        (200, {"upload-length": "10", "upload-limit": "max-size=1000, max-age=3600"}),
        (204, {"upload-offset": "5", "upload-complete": "?0"}),
        {"upload-offset": "5", "upload-complete": "?1"},
    ),
}
EXPECTED[8] = EXPECTED[9] = EXPECTED[10] = EXPECTED[7]


def test_every_version_is_expected_something_of() -> None:
    """The table above and the one in the code have the same rows."""
    assert EXPECTED.keys() == VERSIONS.keys() == set(range(3, 11))


@pytest.mark.parametrize("number", EXPECTED)
def test_answers_of_each_version(number: int) -> None:
    """C3, C4, C6, C8, C11, C13: what each draft says, written down a second time."""
    spoken = dialect(number)
    created, shown, appended, completed = EXPECTED[number]

    def check(reply: Reply, expected: tuple[int, dict[str, str]]) -> None:
        status, fields = expected
        assert reply.status == status
        assert {name: reply.fields.get(name) for name in fields} == fields

    check(spoken.created(upload()), created)
    check(spoken.offset(upload()), shown)
    check(spoken.appended(upload()), appended)
    for by_creation in (True, False):
        further = spoken.completed(upload(complete=True), Fields(), created=by_creation)
        assert isinstance(further, Fields)
        assert dict(further.without("location")) == completed
        assert ("location" in further) == by_creation
    early = spoken.announcement(upload())
    assert isinstance(early, Interim)
    assert early.fields.get(MARK) == str(number)
    assert early.fields.get("location") == "http://x/operations/a/content"
    assert ("upload-limit" in early.fields) == (number >= 6)
    assert spoken.shows_progress == (number >= 5)
    assert (ProblemCode.EXCESS_CONTENT in spoken.invalidated_by) == (number >= 7)


@pytest.mark.parametrize("number", VERSIONS)
def test_no_field_of_another_version_is_used(number: int) -> None:
    """C1: Upload-Incomplete is interop version 3's alone, and it has nothing else."""
    spoken = dialect(number)
    unknown = "upload-complete" if number == 3 else "upload-incomplete"
    error = spoken.problem(PeerError(ProblemCode.OFFSET_MISMATCH), UploadLimits())
    fields = [
        spoken.created(upload()).fields,
        spoken.offset(upload()).fields,
        spoken.appended(upload()).fields,
        Fields(error.fields),
    ]
    assert not any(unknown in told for told in fields)


def test_limits_without_any_are_said_in_one_way() -> None:
    """C13: an empty dictionary cannot be sent."""
    assert UploadLimits().field() == "min-size=0"
    assert UploadLimits().field(("max-age", 5)) == "max-age=5"
    both = UploadLimits(max_size=9, min_append_size=0)
    assert both.field() == "max-size=9, min-append-size=0"


def test_limits_read_back() -> None:
    """C13: what cannot be understood limits nothing."""
    for limits in (
        UploadLimits(),
        UploadLimits(max_size=9, min_append_size=5),
        UploadLimits(min_size=1, max_append_size=10**15 - 1),
    ):
        told = limits.field(("max-age", 5))
        assert UploadLimits.parse(Fields({"upload-limit": told})) == limits
    malformed = "max-size=-1, min-size=a, max-append-size=?1"
    assert UploadLimits.parse(Fields({"upload-limit": malformed})) == UploadLimits()
    assert UploadLimits.parse(Fields()) == UploadLimits()


@pytest.mark.parametrize("version", VERSIONS.values(), ids=str)
@pytest.mark.parametrize("complete", [False, True])
def test_completeness_reads_back(version: Version, *, complete: bool) -> None:
    """C1: in each version's own words; anything else says nothing."""
    line = version.completeness_line(complete=complete)
    assert version.completeness(Fields([line])) is complete
    for value in ("1", "?2", "?1, ?1", ""):
        fields = Fields({version.completeness_field: value})
        assert version.completeness(fields) is None


def test_union_has_no_words_for_an_upload_that_is_not_complete() -> None:
    """A request without a marker begins none, so that nobody asks it for them."""
    assert not SEED.shows_progress
    with pytest.raises(NotImplementedError, match="the content's end is the upload's"):
        SEED.created(upload())
    with pytest.raises(NotImplementedError, match="only a dialect with a word for it"):
        SEED.progress(5)
