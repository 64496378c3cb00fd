"""The newest libcurl, which pycurl brings, against the real command (C19, B10, R1).

It ends a transfer with an error when two responses to one request, interim ones included,
have different ``Location`` fields: after the upload was stored.
"""

from __future__ import annotations

import io
import secrets
from dataclasses import dataclass
from email.message import Message
from email.parser import HeaderParser
from urllib.parse import urlsplit

import pytest

from tests.e2e.command import Service
from tests.e2e.tus_uploads import request

pycurl = pytest.importorskip("pycurl", reason="pycurl has no wheel for this system")

CONTENT = secrets.token_bytes(300_000)


@dataclass(frozen=True)
class Ran:
    """What libcurl saw: each response's status line and fields, and the content."""

    responses: list[tuple[int, Message]]
    body: bytes

    @property
    def final(self) -> tuple[int, Message]:
        return self.responses[-1]

    @property
    def locations(self) -> set[str]:
        return {
            x for _, fields in self.responses for x in fields.get_all("location", [])
        }


def send(method: str, url: str, *lines: str, content: bytes = CONTENT) -> Ran:
    """Send a request; an error of libcurl's is raised."""
    heads, body = bytearray(), io.BytesIO()
    handle = pycurl.Curl()
    handle.setopt(pycurl.URL, url)
    handle.setopt(pycurl.NOPROXY, "*")
    handle.setopt(pycurl.TIMEOUT, 60)
    handle.setopt(pycurl.CUSTOMREQUEST, method)
    handle.setopt(pycurl.POSTFIELDS, content)
    handle.setopt(pycurl.HTTPHEADER, list(lines))
    handle.setopt(pycurl.HEADERFUNCTION, heads.extend)
    handle.setopt(pycurl.WRITEDATA, body)
    handle.perform()
    handle.close()
    responses = []
    for raw in heads.decode("latin-1").split("\r\n\r\n"):
        if raw:
            line, _, fields = raw.partition("\r\n")
            parsed = HeaderParser().parsestr(fields)
            responses.append((int(line.split()[1]), parsed))
    return Ran(responses, body.getvalue())


RUFH = [
    ("Upload-Draft-Interop-Version: 3", "Upload-Incomplete: ?0"),
    *(
        (f"Upload-Draft-Interop-Version: {number}", "Upload-Complete: ?1")
        for number in range(4, 11)
    ),
]
PREFERENCES = [
    (),
    ("Prefer: resume",),
    ("Prefer: processing",),
    ("Prefer: resume, processing, acknowledge",),
    ("Prefer: respond-async, wait=30, processing",),
]


def stored_at(service: Service, ran: Ran, method: str, name: str) -> str:
    """Where the file is, as far as the client was told."""
    if method == "PUT":
        return name
    _, fields = ran.final
    return fields["content-location"] or fields["location"] or ""


def check_stored(service: Service, place: str) -> None:
    response, body = request("GET", service.root + urlsplit(place).path)
    assert (response.status, body) == (200, CONTENT)


@pytest.mark.parametrize("preferences", PREFERENCES)
@pytest.mark.parametrize("version", RUFH, ids=lambda lines: lines[0][-2:].strip())
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_one_shot_upload_succeeds(
    method: str,
    version: tuple[str, str],
    preferences: tuple[str, ...],
    shared_service: Service,
    new_name: str,
) -> None:
    """C19: the 104 says where the upload is, the 201 repeats it."""
    target = "/files/" if method == "POST" else new_name
    ran = send(method, shared_service.root + target, *version, *preferences)
    status, fields = ran.final
    assert status == 201
    assert 104 in [status for status, _ in ran.responses]
    (location,) = ran.locations
    assert location.startswith(shared_service.root)
    assert fields["location"] == location
    if not any("resume" in line for line in preferences):
        check_stored(shared_service, stored_at(shared_service, ran, method, new_name))
    check_stored(shared_service, location)


@pytest.mark.parametrize("preferences", PREFERENCES)
@pytest.mark.parametrize("method", ["POST", "PUT"])
def test_plain_upload_keeps_the_file_s_location(
    method: str,
    preferences: tuple[str, ...],
    shared_service: Service,
    new_name: str,
) -> None:
    """B10, C19: a 102 says in another field where the message is."""
    target = "/files/" if method == "POST" else new_name
    ran = send(method, shared_service.root + target, *preferences)
    assert ran.final[0] == 201
    (location,) = ran.locations
    check_stored(shared_service, location)
    told = [f["response-message-location"] for s, f in ran.responses if s == 102]
    assert bool(told) == any("processing" in line for line in preferences)
    if told:
        response, body = request("GET", shared_service.root + (told[0] or ""))
        assert response.getheader("content-type") == "message/http"
        assert f"\r\nLocation: {location}\r\n".encode() in body


def test_answer_before_the_result_succeeds(shared_service: Service) -> None:
    """B11, C19: a 202 after a 104."""
    lines = (*RUFH[-1], "Prefer: respond-async, processing")
    ran = send("POST", f"{shared_service.root}/files/", *lines)
    status, fields = ran.final
    assert status in (201, 202)
    assert len(ran.locations) == 1
    if status == 202:
        place = fields["response-message-location"]
        url = shared_service.root + (place or "")
        response, _ = request("GET", url, {"Prefer": "wait=10"})
        assert response.status == 200


def test_upload_in_parts_succeeds(shared_service: Service) -> None:
    """C4: 104 and 201 have the same Location, and the last append the file's."""
    version = "Upload-Draft-Interop-Version: 10"
    first = send(
        "POST",
        f"{shared_service.root}/files/",
        version,
        "Upload-Complete: ?0",
        content=CONTENT[:1000],
    )
    (upload,) = first.locations
    last = send(
        "PATCH",
        upload,
        version,
        "Upload-Complete: ?1",
        "Upload-Offset: 1000",
        "Content-Type: application/partial-upload",
        content=CONTENT[1000:],
    )
    (location,) = last.locations
    check_stored(shared_service, location)
