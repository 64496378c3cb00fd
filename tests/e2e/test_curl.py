"""curl, which nobody here wrote, against the real command (R1 to R28)."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.e2e.command import Service
from tests.e2e.wire import Answer, parse_message
from tests.platforms import needs

pytestmark = needs("curl")

SIZE = 3_000_000
RESUMING = ("-H", "Expect: 100-continue", "-H", "Prefer: resume")
PATIENCE_SECONDS = 40
PATIENT = ("--expect100-timeout", str(PATIENCE_SECONDS))
"""Wait so long for a 100 that does not come: by itself curl sends after a second."""


@dataclass(frozen=True)
class Ran:
    """One run of curl: its exit code, every response head it saw, and the content."""

    code: int
    heads: list[Answer]
    body: bytes
    seconds: float

    @property
    def final(self) -> Answer:
        return self.heads[-1]


def curl(
    directory: Path,
    url: str,
    *options: str,
    stdin: BinaryIO | None = None,
    output: Path | None = None,
) -> Ran:
    """Run ``curl`` with *options* for *url*."""
    heads, body = directory / "heads", directory / "body"
    for path in (heads, body):
        path.unlink(missing_ok=True)
    command = ["curl", "-q", "-sS", "-D", str(heads), "-o", str(output or body)]
    command += [*options, url]
    started = time.monotonic()
    # As if there were no proxy settings in the environment.
    environment = {
        k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")
    }
    ran = subprocess.run(
        command,
        stdin=stdin or subprocess.DEVNULL,
        timeout=60,
        env=environment,
        check=False,
    )
    seconds = time.monotonic() - started
    content = body.read_bytes() if body.exists() else b""
    return Ran(ran.returncode, _heads(heads), content, seconds)


def _heads(path: Path) -> list[Answer]:
    if not path.exists():
        return []
    answers = []
    for raw in path.read_bytes().decode("ascii").split("\r\n\r\n"):
        if not raw.strip():
            continue
        first, *lines = raw.split("\r\n")
        fields = {}
        for line in lines:
            name, _, value = line.partition(":")
            fields[name.lower()] = value.strip()
        match = re.fullmatch(r"HTTP/1\.1 (\d{3}) ?.*", first)
        assert match, first
        answers.append(Answer(int(match[1]), fields))
    return answers


@pytest.fixture
def content(tmp_path: Path) -> Path:
    """A file to upload."""
    path = tmp_path / "content"
    path.write_bytes(os.urandom(SIZE))
    return path


def check_stored(directory: Path, url: str, content: Path) -> None:
    """What is there now is the file."""
    got = curl(directory, url)
    assert got.final.status == 200
    assert (
        hashlib.sha256(got.body).digest()
        == hashlib.sha256(content.read_bytes()).digest()
    )


@pytest.mark.parametrize("how", [("-T", "{}"), ("-X", "PUT", "--data-binary", "@{}")])
def test_put_is_told_its_locations_in_the_100(
    shared_service: Service,
    new_name: str,
    tmp_path: Path,
    content: Path,
    how: tuple[str, ...],
) -> None:
    """R1: curl sees one 100 with all three fields, and the same in its 201."""
    url = shared_service.root + new_name
    options = [option.format(content) for option in how]
    ran = curl(tmp_path, url, *options, *RESUMING)
    assert ran.code == 0
    assert [head.status for head in ran.heads] == [100, 201]
    for name in ("request-content-location", "response-message-location"):
        assert ran.heads[0].fields[name] == ran.final.fields[name]
    assert "content-location" in ran.heads[0].fields
    assert ran.final.fields["preference-applied"] == "resume=save-incomplete"
    check_stored(tmp_path, url, content)


def test_post_creates_a_file_of_its_own(
    shared_service: Service, tmp_path: Path, content: Path
) -> None:
    """POST answers 201 with the Location of what it stored, each time another one."""
    places = set()
    for _ in range(2):
        ran = curl(
            tmp_path,
            shared_service.root + "/files/",
            "--data-binary",
            f"@{content}",
            *RESUMING,
        )
        assert [head.status for head in ran.heads] == [100, 201]
        places.add(ran.final.fields["location"])
    assert len(places) == 2
    for place in places:
        check_stored(tmp_path, shared_service.root + place, content)


@pytest.mark.parametrize(
    ("method", "fields"), [("PUT", ()), ("POST", ()), ("PUT", RESUMING)]
)
def test_http_1_0_is_served_without_an_interim(
    shared_service: Service,
    new_name: str,
    tmp_path: Path,
    content: Path,
    method: str,
    fields: tuple[str, ...],
) -> None:
    """R7: Expect is ignored, no 1xx is sent, the final response has the fields."""
    url = shared_service.root + (new_name if method == "PUT" else "/files/")
    options = ["-0", "-X", method, "--data-binary", f"@{content}", *fields]
    ran = curl(tmp_path, url, *options)
    assert ran.code == 0
    assert [head.status for head in ran.heads] == [201]
    assert ("request-content-location" in ran.final.fields) == bool(fields)
    place = (
        url if method == "PUT" else shared_service.root + ran.final.fields["location"]
    )
    check_stored(tmp_path, place, content)


@pytest.mark.parametrize("resuming", [(), RESUMING])
@pytest.mark.parametrize(
    "how",
    [
        ("-T", "-"),
        ("-T", "{}", "-H", "Transfer-Encoding: chunked"),
        ("-X", "PUT", "--data-binary", "@{}", "-H", "Transfer-Encoding: chunked"),
    ],
)
def test_chunked_content_is_stored_unchunked(
    shared_service: Service,
    new_name: str,
    tmp_path: Path,
    content: Path,
    how: tuple[str, ...],
    resuming: tuple[str, ...],
) -> None:
    """R18, R19: content of unknown length, with and without the preference."""
    url = shared_service.root + new_name
    options = [option.format(content) for option in how]
    with content.open("rb") as stdin:
        ran = curl(tmp_path, url, *options, *resuming, stdin=stdin)
    assert ran.code == 0
    assert ran.final.status == 201
    check_stored(tmp_path, url, content)


def test_a_plain_upload_does_not_wait_for_a_100(
    shared_service: Service, new_name: str, tmp_path: Path, content: Path
) -> None:
    """Content over 1 MiB makes curl expect a 100 by itself, and wait for it."""
    url = shared_service.root + new_name
    ran = curl(tmp_path, url, *PATIENT, "-T", str(content))
    assert ran.final.status == 201
    assert ran.seconds < PATIENCE_SECONDS


def test_a_refusal_replaces_the_100_and_is_read(
    shared_service: Service, new_name: str, tmp_path: Path, content: Path
) -> None:
    """R10: 412 instead of the 100, without fields, for content never sent."""
    url = shared_service.root + new_name
    assert curl(tmp_path, url, "-T", str(content)).final.status == 201
    ran = curl(tmp_path, url, "-T", str(content), *RESUMING, "-H", "If-None-Match: *")
    assert [head.status for head in ran.heads] == [412]
    assert "request-content-location" not in ran.final.fields
    # The same for one that does not wait: it must not lose the answer to a reset.
    ran = curl(
        tmp_path, url, "-T", str(content), "-H", "Expect:", "-H", "If-None-Match: *"
    )
    assert ran.final.status == 412


@pytest.mark.parametrize("chunked", [False, True])
def test_curl_alone_resumes_an_upload(
    shared_service: Service, new_name: str, tmp_path: Path, content: Path, chunked: bool
) -> None:
    """R12, R15, R17: cut by its own time limit; HEAD, then PATCH of a file of the rest."""
    url = shared_service.root + new_name
    slow = ["--limit-rate", "2M", "--max-time", "0.7"]
    if chunked:
        slow += ["-H", "Transfer-Encoding: chunked"]
    cut = curl(tmp_path, url, "-T", str(content), *RESUMING, *slow)
    assert cut.code == 28  # the time is over
    (interim,) = cut.heads
    assert interim.status == 100
    place = shared_service.root + interim.fields["request-content-location"]

    asked = curl(tmp_path, place, "-I").final
    offset = int(asked.fields["upload-offset"])
    assert 0 < offset < SIZE
    assert asked.fields["content-length"] == str(offset)
    assert asked.fields["upload-complete"] == "?0"
    assert ("upload-length" in asked.fields) == (not chunked)

    middle = (offset + SIZE) // 2
    patched = patch(tmp_path, place, content, offset, middle)
    assert patched.final.status == 204
    assert patched.final.fields["upload-offset"] == str(middle)
    again = patch(tmp_path, place, content, offset, SIZE)  # R16: that is the past
    assert again.final.status == 409
    assert again.final.fields["upload-offset"] == str(middle)
    patched = patch(tmp_path, place, content, middle, SIZE)
    assert patched.final.status == 201

    message_at = shared_service.root + interim.fields["response-message-location"]
    replayed = curl(tmp_path, message_at)
    assert replayed.final.fields["content-type"] == "message/http"
    message = parse_message(replayed.body)
    assert message.status == 201
    assert message.body == patched.body
    assert message.fields["etag"] == patched.final.fields["etag"]
    check_stored(tmp_path, url, content)
    assert curl(tmp_path, message_at, "-X", "DELETE").final.status == 204
    assert curl(tmp_path, message_at).final.status == 410
    check_stored(tmp_path, url, content)


def patch(directory: Path, place: str, content: Path, start: int, stop: int) -> Ran:
    """PATCH bytes *start* to *stop* of *content*, as a file of ``message/byterange``."""
    part = directory / "part"
    head = f"Content-Range: bytes {start}-{stop - 1}/{SIZE}\r\n\r\n".encode()
    part.write_bytes(head + content.read_bytes()[start:stop])
    media_type = ("-H", "Content-Type: message/byterange")
    return curl(
        directory, place, "-X", "PATCH", *media_type, "--data-binary", f"@{part}"
    )


def test_a_cut_download_is_continued_with_a_range(
    shared_service: Service, new_name: str, tmp_path: Path, content: Path
) -> None:
    """R28 for files: ``curl -C -`` fetches what is missing, and only that."""
    url = shared_service.root + new_name
    curl(tmp_path, url, "-T", str(content))
    begun = tmp_path / "begun"
    begun.write_bytes(content.read_bytes()[: SIZE // 3])
    ran = curl(tmp_path, url, "-C", "-", output=begun)
    assert ran.code == 0
    assert ran.final.status == 206
    assert ran.final.fields["content-range"] == f"bytes {SIZE // 3}-{SIZE - 1}/{SIZE}"
    assert begun.read_bytes() == content.read_bytes()


def test_ranges_and_conditions_are_answered(
    shared_service: Service, new_name: str, tmp_path: Path, content: Path
) -> None:
    """R28, G14: several ranges, If-Range, 304, 416, HEAD, and the protecting fields."""
    url = shared_service.root + new_name
    etag = curl(tmp_path, url, "-T", str(content)).final.fields["etag"]
    whole = content.read_bytes()

    tail = curl(tmp_path, url, "-r", "-5")
    assert (tail.final.status, tail.body) == (206, whole[-5:])
    two = curl(tmp_path, url, "-r", "0-1,10-11")
    assert two.final.status == 206
    assert two.final.fields["content-type"].startswith("multipart/byteranges")
    assert whole[10:12] in two.body
    stale = curl(tmp_path, url, "-r", "0-1", "-H", 'If-Range: "other"')
    assert (stale.final.status, stale.body) == (200, whole)
    beyond = curl(tmp_path, url, "-r", f"{SIZE}-")
    assert beyond.final.status == 416
    assert beyond.final.fields["content-range"] == f"bytes */{SIZE}"
    unchanged = curl(tmp_path, url, "-H", f"If-None-Match: {etag}")
    assert (unchanged.final.status, unchanged.body) == (304, b"")
    head = curl(tmp_path, url, "-I").final
    assert head.fields["content-length"] == str(SIZE)
    assert head.fields["x-content-type-options"] == "nosniff"
    assert head.fields["content-disposition"].startswith("attachment")
    assert head.fields["content-security-policy"] == "sandbox; default-src 'none'"
