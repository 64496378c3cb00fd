"""The dialect tus: what its requests mean and how its answers read (section D)."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from tests.protocol.classified import classified
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.dialects import (
    AppendRules,
    Reply,
    Upload,
    UploadLimits,
    discovery_fields,
)
from trioresume.protocol.dialects.tus.server import EXTENSIONS, TUS, TusServer
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.parts import PatchLimits

LIMITS = UploadLimits(max_size=1000)
RULES = AppendRules(
    patch=PatchLimits(max_total=1000), lenient_unit=False, limits=LIMITS
)
MARK = {"Tus-Resumable": "1.0.0"}
OCTETS = {**MARK, "Content-Type": "application/offset+octet-stream"}


def head(
    method: str, fields: Mapping[str, str], length: int | None = 0, target: str = "/"
) -> RequestHead:
    return RequestHead(
        method=method,
        target=target,
        fields=Fields(fields),
        http_version="1.1",
        length=length,
    )


def post(fields: Mapping[str, str], length: int | None = 0) -> RequestHead:
    return head("POST", {**MARK, **fields}, length)


def upload(
    fields: Mapping[str, str] = MARK,
    *,
    offset: int = 3,
    length: int | None = 10,
    is_complete: bool = False,
) -> Upload:
    return Upload(
        content="/operations/x/content",
        absolute_content="http://test/operations/x/content",
        message="/operations/x/message",
        offset=offset,
        length=length,
        is_complete=is_complete,
        lifetime=60,
        expires_at=1_700_000_000.0,
        limits=LIMITS,
        fields=head("POST", fields).fields,
    )


def refused(function: object, *args: object) -> PeerError:
    with pytest.raises(PeerError) as caught:
        function(*args)  # type: ignore[operator]
    return TUS.problem(caught.value, LIMITS)


# Recognition.


def test_the_mark_decides() -> None:
    """E1: Tus-Resumable comes first, whatever else is there and whatever its value."""
    both = {"Tus-Resumable": "9", "Upload-Draft-Interop-Version": "6"}
    assert classified(head("PATCH", both), on_upload=True) is TUS
    assert classified(head("POST", both), on_upload=False) is TUS
    assert not isinstance(classified(head("POST", {}), on_upload=False), TusServer)


def test_the_media_type_alone_is_a_format_of_everyone_s() -> None:
    """E1, D1, R15: what is not marked is answered as a client without a marker is."""
    unmarked = head("PATCH", {"Content-Type": "application/offset+octet-stream"})
    assert not isinstance(classified(unmarked, on_upload=True), TusServer)


def test_options_is_in_no_dialect() -> None:
    """D1: it carries no version."""
    marked = classified(head("OPTIONS", {"Tus-Resumable": "9"}), on_upload=False)
    assert not isinstance(marked, TusServer)
    assert "tus-resumable" not in marked.fields


def test_discovery_tells_what_is_spoken() -> None:
    """D2."""
    fields = discovery_fields(LIMITS)
    assert fields.get("tus-version") == "1.0.0"
    assert (fields.get("tus-extension") or "").split(",") == list(EXTENSIONS)
    assert fields.get("tus-max-size") == "1000"
    assert fields.get("tus-checksum-algorithm") == "sha1,sha256,sha512,md5"
    assert "tus-max-size" not in discovery_fields(UploadLimits())


@pytest.mark.parametrize("version", ["0.2.2", "1.0", "", "1.0.0, 1.0.0", "2.0.0"])
def test_another_version_is_refused(version: str) -> None:
    """D1: 412, and which one is spoken."""
    error = refused(TUS.check, head("HEAD", {"Tus-Resumable": version}))
    assert error.problem.status == 412
    assert ("tus-version", "1.0.0") in error.fields
    TUS.check(head("HEAD", MARK))


@pytest.mark.parametrize(
    "meant", ["PATCH", "DELETE", "HEAD", "GET", "OPTIONS", "patch"]
)
def test_a_post_may_stand_for_another_method(meant: str) -> None:
    """D3: on POST only."""
    override = {"X-HTTP-Method-Override": meant}
    assert TUS.method(head("POST", override)) == meant.upper()
    assert TUS.method(head("HEAD", override)) == "HEAD"
    assert TUS.method(head("POST", {})) == "POST"


@pytest.mark.parametrize("meant", ["", "PUT", "POST", "BREW", "PATCH, DELETE"])
def test_a_post_stands_for_nothing_else(meant: str) -> None:
    """D3."""
    error = refused(TUS.method, head("POST", {"X-HTTP-Method-Override": meant}))
    assert error.problem is ProblemCode.MALFORMED_REQUEST


# Creation.


def test_an_upload_begins_with_its_length() -> None:
    """D6: it completes at its length, and is offered without any preference."""
    creation = TUS.creation(post({"Upload-Length": "10"}), LIMITS)
    assert (creation.length, creation.completes, creation.offers) == (10, None, True)
    assert not creation.explicit_completion
    assert creation.check is None
    deferred = TUS.creation(post({"Upload-Defer-Length": "1"}), LIMITS)
    assert (deferred.length, deferred.completes) == (None, None)


def test_too_long_an_upload_is_refused() -> None:
    """D6: 413, and how long it may be."""
    error = refused(TUS.creation, post({"Upload-Length": "1001"}), LIMITS)
    assert error.problem.status == 413
    assert ("tus-max-size", "1000") in error.fields
    assert TUS.creation(post({"Upload-Length": "1000"}), LIMITS).length == 1000
    assert TUS.creation(post({"Upload-Length": "1001"}), UploadLimits()).length == 1001


def test_content_with_the_creation_has_its_media_type() -> None:
    """D7: creation-with-upload; without content the type is of no interest."""
    length = {"Upload-Length": "10"}
    assert refused(TUS.creation, post(length, 5), LIMITS).problem.status == 415
    assert refused(TUS.creation, post(length, None), LIMITS).problem.status == 415
    assert TUS.creation(post({**OCTETS, **length}, 5), LIMITS).length == 10
    TUS.creation(post({**length, "Content-Type": "text/plain"}), LIMITS)
    longer = post({**OCTETS, **length}, 11)
    assert refused(TUS.creation, longer, LIMITS).problem.status == 413


def test_the_target_sees_what_the_metadata_says() -> None:
    """D6, G14: the metadata verbatim beside it; the POST's own type is a piece's."""
    metadata = "filename YS50eHQ=,filetype dGV4dC9wbGFpbg==,x  , y  "
    fields = {**OCTETS, "Upload-Length": "10", "Upload-Metadata": metadata}
    recorded = TUS.creation(post(fields, 5), LIMITS).fields
    assert recorded is not None
    assert recorded.get("upload-metadata") == metadata
    assert recorded.get_all("content-type") == ["text/plain"]
    assert recorded.get("content-disposition") == 'attachment; filename="a.txt"'
    bare = TUS.creation(post({**OCTETS, "Upload-Length": "10"}, 5), LIMITS).fields
    assert bare is not None
    assert "content-type" not in bare


@pytest.mark.parametrize(
    "fields",
    [
        {"Upload-Length": "1", "Upload-Metadata": "\xe4 YQ=="},
        {"Upload-Length": "0100"},
        {"Upload-Length": "00"},
        {"Upload-Length": "1", "Upload-Checksum": "crc32 AA=="},
        {"Upload-Length": "1", "Upload-Concat": "whole"},
        {"Upload-Length": "2", "Upload-Concat": "final;/a /b"},
        {"Upload-Defer-Length": "1", "Upload-Concat": "final;/a /b"},
        {"Upload-Concat": "partial"},
    ],
)
def test_what_makes_no_sense_begins_nothing(fields: dict[str, str]) -> None:
    """D6, D7: 400."""
    assert refused(TUS.creation, post(fields), LIMITS).problem.status == 400


def test_a_final_upload_is_made_of_others() -> None:
    """D7: it has no length and no content of its own."""
    final = {"Upload-Concat": "final;/a http://b/c"}
    creation = TUS.creation(post(final), LIMITS)
    assert creation.joins == ("/a", "http://b/c")
    assert creation.length is None
    assert refused(TUS.creation, post(final, 3), LIMITS).problem.status == 400
    assert TUS.creation(post({"Upload-Length": "1"}), LIMITS).joins is None


def test_a_mark_alone_changes_no_other_request() -> None:
    """E10: a GET or PUT of a file may carry it; a POST in another's name is no creation."""
    for request in (head("PUT", MARK, 5), head("DELETE", MARK), head("GET", MARK)):
        dialect = classified(request, on_upload=False)
        assert dialect is not TUS
        assert dialect.fields == TUS.fields
        creation = dialect.creation(request, LIMITS)
        assert creation.length == request.length
        assert (creation.completes, creation.offers) == (True, False)
        assert creation.fields == Fields()
        assert not dialect.needs_upload(request)
    for request in (
        post({"X-HTTP-Method-Override": "DELETE", "Upload-Length": "1"}),
        head("PATCH", MARK, 5),
    ):
        dialect = classified(request, on_upload=False)
        assert dialect is not TUS
        assert dialect.needs_upload(request)


# Appending.


def test_an_append_is_offset_octets() -> None:
    """D5: anything else is a 415 that says so."""
    append = TUS.append(head("PATCH", {**OCTETS, "Upload-Offset": "3"}, 5), RULES)
    assert append.reader.range is not None
    assert append.reader.range.first == 3
    assert append.reader.completes is None
    assert append.check is None
    for media_type in ("text/plain", "application/partial-upload", ""):
        fields = {**MARK, "Content-Type": media_type, "Upload-Offset": "3"}
        error = refused(TUS.append, head("PATCH", fields, 5), RULES)
        assert error.problem.status == 415
        assert ("accept-patch", "application/offset+octet-stream") in error.fields


@pytest.mark.parametrize(
    ("fields", "status"),
    [
        ({}, 400),
        ({"Upload-Offset": "-3"}, 400),
        ({"Upload-Offset": "3;a=b"}, 400),
        ({"Upload-Offset": "03"}, 400),
        ({"Upload-Offset": "3", "Upload-Length": "010"}, 400),
        ({"Upload-Offset": "3", "Upload-Length": "x"}, 400),
        ({"Upload-Offset": "3", "Upload-Length": "2"}, 400),
        ({"Upload-Offset": "3", "Upload-Length": "1001"}, 413),
        ({"Upload-Offset": "3", "Upload-Checksum": "x"}, 400),
    ],
)
def test_an_append_that_makes_no_sense_is_refused(
    fields: dict[str, str], status: int
) -> None:
    """D5, D6, D7, G6."""
    error = refused(TUS.append, head("PATCH", {**OCTETS, **fields}, 5), RULES)
    assert error.problem.status == status


def test_nothing_is_appended_to_a_final_upload() -> None:
    """D7: 403; whatever else is fine there."""
    final = Fields({**MARK, "Upload-Concat": "final;/a /b"})
    error = refused(TUS.check_upload, head("PATCH", MARK), final)
    assert error.problem.status == 403
    TUS.check_upload(head("HEAD", MARK), final)
    TUS.check_upload(head("PATCH", MARK), Fields(MARK))
    # The field means nothing on an upload that another dialect began.
    TUS.check_upload(head("PATCH", MARK), Fields({"Upload-Concat": "final;/a"}))


# Answers.


def test_every_answer_carries_the_version() -> None:
    """D1."""
    assert TUS.fields.get("tus-resumable") == "1.0.0"


def test_the_offset_tells_what_tus_wants_to_know() -> None:
    """D4: offset, length, metadata and concatenation, not to be stored."""
    said = {"Upload-Metadata": "a YQ==,b", "Upload-Concat": "partial"}
    reply = TUS.offset(upload({**MARK, **said}))
    assert reply.status == 200
    fields = reply.fields
    assert fields.get("upload-offset") == fields.get("content-length") == "3"
    assert fields.get("upload-length") == "10"
    assert fields.get("upload-metadata") == "a YQ==,b"
    assert fields.get("upload-concat") == "partial"
    assert fields.get("cache-control") == "no-store"
    assert fields.get("upload-expires") == "Tue, 14 Nov 2023 22:13:20 GMT"
    assert "upload-defer-length" not in fields


def test_a_length_that_is_not_known_is_deferred() -> None:
    """D4, D7."""
    fields = TUS.offset(upload(length=None)).fields
    assert fields.get("upload-defer-length") == "1"
    assert "upload-length" not in fields


def test_what_another_dialect_was_told_is_not_echoed() -> None:
    """D4: the metadata is tus's only where tus began the upload."""
    fields = TUS.offset(upload({"Upload-Metadata": "x"})).fields
    assert "upload-metadata" not in fields


def test_answers_have_tus_s_statuses() -> None:
    """D5, D6, D7: 201 with Location, 204 with the offset, and when it expires."""
    created = TUS.created(upload())
    assert created.status == 201
    assert created.fields.get("location") == "http://test/operations/x/content"
    appended = TUS.appended(upload())
    assert appended.status == 204
    for reply in (created, appended):
        assert reply.fields.get("upload-offset") == "3"
        assert reply.fields.get("upload-expires") == "Tue, 14 Nov 2023 22:13:20 GMT"
        assert reply.fields.get("response-message-location") == "/operations/x/message"
    assert TUS.cancelled().status == 204


def test_the_completing_request_is_answered_the_same_way() -> None:
    """D8: never with the target's response; what is complete does not expire."""
    whole = upload(offset=10, is_complete=True)
    last = TUS.completed(whole, Fields({"location": "/files/x"}), created=False)
    assert isinstance(last, Reply)
    assert (last.status, last.fields.get("location")) == (204, None)
    assert "upload-expires" not in last.fields
    only = TUS.completed(whole, Fields({"location": "/files/x"}), created=True)
    assert isinstance(only, Reply)
    assert only.status == 201
    assert only.fields.get("location") == "http://test/operations/x/content"
    part = upload({**MARK, "Upload-Concat": "partial"}, offset=10, is_complete=True)
    assert "upload-expires" in TUS.appended(part).fields
    assert not TUS.awaits_target


@pytest.mark.parametrize(
    ("problem", "status"),
    [
        (ProblemCode.EXCESS_CONTENT, 413),
        (ProblemCode.LENGTH_OVER_LIMIT, 413),
        (ProblemCode.CONTENT_TOO_LARGE, 413),
        (ProblemCode.OFFSET_MISMATCH, 409),
        (ProblemCode.INCONSISTENT_LENGTH, 400),
        (ProblemCode.GONE, 410),
        (ProblemCode.NOT_FOUND, 404),
        (ProblemCode.UNSUPPORTED_MEDIA_TYPE, 415),
        (ProblemCode.CHECKSUM_MISMATCH, 460),
    ],
)
def test_faults_have_tus_s_statuses(problem: ProblemCode, status: int) -> None:
    """D5, D6, D7, E6: too long is a 413."""
    told = (("upload-offset", "3"), ("upload-complete", "?0"))
    error = TUS.problem(PeerError(problem, fields=told), LIMITS)
    assert error.problem.status == status
    assert ("upload-offset", "3") in error.fields
    assert "upload-complete" not in dict(error.fields)
