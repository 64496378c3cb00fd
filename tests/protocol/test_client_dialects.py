"""What the client says in each protocol, and what it reads out of answers."""

from __future__ import annotations

import pytest

from trioresume.protocol.dialects.client import Answer, ClientDialect, Locations
from trioresume.protocol.dialects.discovery import Discovery
from trioresume.protocol.dialects.rufh.client import NEWEST_RUFH, RufhClient
from trioresume.protocol.dialects.rufh.versions import UNVERSIONED, VERSIONS
from trioresume.protocol.dialects.seed.client import SEED
from trioresume.protocol.dialects.tus.client import TUS
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import encode_part_header
from trioresume.protocol.ranges import ContentRange
from trioresume.protocol.urls import Url

BASE = Url.parse("http://peer.test/files/")
UPLOAD = Url.parse("http://peer.test/up")
OWN = Fields(
    {
        "content-type": "text/plain",
        "content-disposition": "attachment; filename*=UTF-8''%C3%A4.txt",
        "x-own": "1",
    }
)
PART = ContentRange(10, 19, 100)
LAST = ContentRange(90, 99, 100)
END = ContentRange(None, None, 100)


def answer(status: int = 200, fields: dict[str, str] | None = None) -> Answer:
    return Answer(status, Fields(fields or {}))


def test_seed_asks_to_resume() -> None:
    """R2, R30."""
    assert dict(SEED.begin(OWN, 5, whole=True)) == {**dict(OWN), "prefer": "resume"}
    acknowledged = SEED.begin(OWN, None, whole=True, acknowledge=True)
    assert acknowledged.get("prefer") == "resume, acknowledge"


def test_seed_appends_a_byte_range() -> None:
    """R15."""
    words = SEED.append(PART, completes=False)
    assert dict(words.fields) == {"content-type": "message/byterange"}
    assert words.prefix == encode_part_header(PART)


def test_seed_offers_with_a_100_only() -> None:
    """R1."""
    fields = Fields({"request-content-location": "/up"})
    assert SEED.offer(BASE, 100, fields) == Locations(content=UPLOAD)
    assert SEED.offer(BASE, 104, fields) is None
    assert SEED.offer(BASE, 100, Fields()) is None


@pytest.mark.parametrize("number", VERSIONS)
def test_rufh_says_whether_more_will_come(number: int) -> None:
    """C2: each version in its own field; the length since there are limits."""
    dialect = RufhClient(VERSIONS[number])
    whole = dict(dialect.begin(OWN, 100, whole=True))
    empty = dict(dialect.begin(OWN, 100, whole=False))
    if number == 3:
        assert (whole["upload-incomplete"], empty["upload-incomplete"]) == ("?0", "?1")
    else:
        assert (whole["upload-complete"], empty["upload-complete"]) == ("?1", "?0")
    assert whole["upload-draft-interop-version"] == str(number)
    assert empty.get("upload-length") == ("100" if number >= 6 else None)
    assert whole["content-type"] == "text/plain"
    assert dict(dialect.query()) == {"upload-draft-interop-version": str(number)}


@pytest.mark.parametrize("number", VERSIONS)
def test_rufh_appends_at_an_offset(number: int) -> None:
    """C8; what completes says so, also without content."""
    dialect = RufhClient(VERSIONS[number])
    for range_, completes, offset in [
        (PART, False, "10"),
        (LAST, True, "90"),
        (END, True, "100"),
    ]:
        fields = dialect.append(range_, completes=completes).fields
        assert fields.get("upload-offset") == offset
        assert dialect.completeness(fields) is completes
        media_type = "application/partial-upload" if number >= 6 else None
        assert fields.get("content-type") == media_type


def test_rufh_without_a_version_marks_nothing() -> None:
    """What the RFC will have."""
    dialect = RufhClient(UNVERSIONED)
    assert (dialect.name, len(dialect.query())) == ("rufh", 0)
    assert "upload-complete" in dialect.begin(OWN, 5, whole=True)


def test_rufh_offers_with_the_first_104() -> None:
    """C2, C12."""
    fields = Fields({"location": "http://peer.test/up", "upload-limit": "max-age=60"})
    assert NEWEST_RUFH.offer(BASE, 104, fields) == Locations(content=UPLOAD)
    assert NEWEST_RUFH.offer(BASE, 100, fields) is None
    assert NEWEST_RUFH.offer(BASE, 104, Fields({"upload-offset": "5"})) is None
    elsewhere = Fields({"location": "http://evil.test/up"})
    assert NEWEST_RUFH.offer(BASE, 104, elsewhere) is None
    assert NEWEST_RUFH.acknowledged(104, Fields({"upload-offset": "5"})) == 5
    assert NEWEST_RUFH.acknowledged(100, Fields({"upload-offset": "5"})) is None


@pytest.mark.parametrize(
    ("fields", "whole", "made"),
    [
        ({"upload-complete": "?0"}, False, True),
        ({"upload-complete": "?0"}, True, True),
        ({"upload-complete": "?1"}, True, False),
        ({"upload-complete": "?1"}, False, False),
        # Servers that do not say it: what is known to be a part is a part.
        ({"upload-offset": "0"}, False, True),
        ({"upload-draft-interop-version": "10"}, False, True),
        ({"upload-offset": "5"}, True, False),
        # Another resource, made of empty content.
        ({}, False, False),
    ],
)
def test_location_of_rufh_is_the_uploads_while_it_goes_on(
    fields: dict[str, str], whole: bool, made: bool
) -> None:
    """C4."""
    got = answer(201, {"location": "/up", **fields})
    expected = Locations(content=UPLOAD) if made else None
    assert NEWEST_RUFH.created(BASE, got, whole=whole) == expected
    assert NEWEST_RUFH.created(BASE, answer(201, fields), whole=whole) is None


def test_tus_tells_name_and_type_as_metadata() -> None:
    """D6; fields about the content are not about a POST that has none."""
    fields = dict(TUS.begin(OWN, 5, whole=False))
    assert fields == {
        "x-own": "1",
        "tus-resumable": "1.0.0",
        "upload-length": "5",
        "upload-metadata": "filename w6QudHh0,filetype dGV4dC9wbGFpbg==",
    }
    assert "upload-metadata" not in TUS.begin(Fields(), 5, whole=False)


def test_tus_metadata_of_the_callers_own_stays() -> None:
    """It may say more."""
    own = OWN.plus({"upload-metadata": "title aGk="})
    fields = TUS.begin(own, None, whole=False)
    assert fields.get_all("upload-metadata") == ["title aGk="]
    assert fields.get("upload-defer-length") == "1"
    assert "upload-length" not in fields


def test_tus_appends_at_an_offset() -> None:
    """D5, D7: a deferred length is told with whatever is sent once it is known."""
    fields = TUS.append(PART, completes=False).fields
    assert dict(fields) == {
        "tus-resumable": "1.0.0",
        "content-type": "application/offset+octet-stream",
        "upload-offset": "10",
    }
    fields = TUS.append(LAST, completes=True, declares=True).fields
    assert fields.get("upload-length") == "100"
    open_ended = ContentRange(10, 19, None)
    fields = TUS.append(open_ended, completes=False, declares=True).fields
    assert "upload-length" not in fields


def test_tus_upload_is_where_its_creation_says() -> None:
    """D6, D8."""
    got = answer(201, {"location": "http://peer.test/up"})
    assert TUS.created(BASE, got, whole=False) == Locations(content=UPLOAD)
    fields = {"location": "/up", "response-message-location": "/message"}
    message = Url.parse("http://peer.test/message")
    expected = Locations(content=UPLOAD, message=message)
    assert TUS.created(BASE, answer(201, fields), whole=False) == expected
    assert TUS.created(BASE, answer(400, fields), whole=False) is None
    elsewhere = answer(201, {"location": "http://evil.test/up"})
    assert TUS.created(BASE, elsewhere, whole=False) is None


@pytest.mark.parametrize(
    ("dialect", "fields", "recorded"),
    [
        (SEED, {"response-message-location": "/m"}, True),
        (SEED, {"preference-applied": "resume=save-incomplete"}, True),
        (SEED, {"upload-complete": "?1"}, False),
        (NEWEST_RUFH, {"upload-complete": "?1"}, True),
        (NEWEST_RUFH, {"upload-complete": "?0"}, False),
        (RufhClient(VERSIONS[3]), {"upload-incomplete": "?0"}, True),
        (NEWEST_RUFH, {}, False),
        (TUS, {"response-message-location": "/m"}, False),
    ],
)
def test_targets_own_answer_is_told_from_trouble(
    dialect: ClientDialect, fields: dict[str, str], recorded: bool
) -> None:
    """R5, C11; in tus no answer is the target's."""
    assert dialect.recorded(answer(503, fields)) is recorded
    assert dialect.troubled(answer(503, fields)) is not recorded


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 507])
def test_trouble_is_the_same_in_every_protocol(status: int) -> None:
    """It passes."""
    assert all(each.troubled(answer(status)) for each in (SEED, NEWEST_RUFH, TUS))


def test_tus_has_trouble_of_its_own() -> None:
    """423: somebody else writes; 460: what arrived was dropped (D7)."""
    for status in (423, 460):
        assert TUS.troubled(answer(status))
        assert not NEWEST_RUFH.troubled(answer(status))


@pytest.mark.parametrize("value", ["-1", "1e3", "9999999999999999", "x", ""])
def test_malformed_offset_is_no_offset(value: str) -> None:
    """G6."""
    for dialect in (SEED, NEWEST_RUFH, TUS):
        assert dialect.offset(Fields({"upload-offset": value})) is None
    assert SEED.held(answer(200, {"upload-offset": value, "content-length": "7"})) == 7
    assert (
        TUS.held(answer(200, {"upload-offset": value, "content-length": "7"})) is None
    )


def test_append_limit_is_rufh_s() -> None:
    """C13."""
    fields = Fields({"upload-limit": "max-age=60, max-append-size=1000"})
    assert NEWEST_RUFH.append_limit(fields) == 1000
    assert NEWEST_RUFH.append_limit(Fields({"upload-limit": "min-size=0"})) is None
    assert SEED.append_limit(fields) is None


def test_discovery_reads_what_servers_show() -> None:
    """C13, D2: in whatever case and order, and nothing that is not there."""
    found = Discovery.of(
        Fields(
            {
                "tus-version": "1.0.0,0.2.2",
                "tus-extension": "Creation, creation-defer-length,termination",
                "upload-limit": "max-size=10,min-size=2",
            }
        )
    )
    assert found.tus
    assert found.rufh
    assert found.takes_tus(5)
    assert found.takes_tus(None)
    assert (found.limits.min_size, found.limits.max_size) == (2, 10)
    nothing = Discovery.of(Fields({"allow": "POST"}))
    assert not nothing.tus
    assert not nothing.rufh
    assert not nothing.takes_tus(5)


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"location": "/up", "content-location": "/things/1"}, "/things/1"),
        ({"location": str(UPLOAD), "content-location": "/things/1"}, "/things/1"),
        ({"location": "/up"}, "/up"),
        ({"location": "/things/1", "content-location": "/report"}, "/things/1"),
        ({"content-location": "/report"}, None),
    ],
)
def test_target_s_location_is_found_where_the_upload_s_took_its_place(
    fields: dict[str, str], location: str | None
) -> None:
    """C19: the server must not tell two in one field."""
    found = NEWEST_RUFH.of_target(answer(201, fields), UPLOAD)
    assert found.fields.get("location") == location
    assert SEED.of_target(answer(201, fields), UPLOAD).fields == Fields(fields)
