"""Problem documents."""

from __future__ import annotations

import json
import re

from hypothesis import given, strategies as st

from trioresume.cli.serve import serve
from trioresume.cli.upload import upload
from trioresume.errors import PeerError, ProblemCode
from trioresume.protocol.heads import Fields
from trioresume.protocol.problem import problem_response
from trioresume.protocol.problem_help import HELP, problem_page

REGISTRY = "https://iana.org/assignments/http-problem-types"


def test_a_problem_says_what_when_and_how_to_go_on() -> None:
    """RFC 9457, with the error's own fields and members."""
    error = PeerError(
        ProblemCode.OFFSET_MISMATCH,
        "the offset is 5",
        fields=(("Upload-Offset", "5"),),
        members={"expected-offset": 5},
    )
    status, fields, body = problem_response(error)
    assert status == 409
    assert fields == Fields(
        {
            "content-type": "application/problem+json",
            "cache-control": "no-store",
            "upload-offset": "5",
        }
    )
    assert json.loads(body) == {
        "type": f"{REGISTRY}#mismatching-upload-offset",
        "title": "The range does not start at the current offset",
        "status": 409,
        "code": "offset-mismatch",
        "detail": "the offset is 5",
        "expected-offset": 5,
    }


def test_types_are_registered_or_the_project_s_own() -> None:
    """C8, C9: the drafts register three types; every other one is a URN of ours."""
    types = {problem.code: problem.type_uri() for problem in ProblemCode}
    assert types["offset-mismatch"] == f"{REGISTRY}#mismatching-upload-offset"
    assert types["inconsistent-length"] == f"{REGISTRY}#inconsistent-upload-length"
    assert types["upload-complete"] == f"{REGISTRY}#completed-upload"
    assert types["gone"] == "urn:trioresume:problem:gone"


def test_type_leads_to_the_page_of_the_server() -> None:
    """A registered type stays what it is, and has a ``help``."""
    page = "/up/operations/problems"
    own = json.loads(problem_response(PeerError(ProblemCode.GONE), page)[2])
    assert own["type"] == f"{page}#gone"
    assert "help" not in own
    registered = PeerError(ProblemCode.OFFSET_MISMATCH)
    told = json.loads(problem_response(registered, page)[2])
    assert told["type"] == f"{REGISTRY}#mismatching-upload-offset"
    assert told["help"] == f"{page}#offset-mismatch"


def test_every_code_has_a_cause_and_a_cure() -> None:
    """In sentences; and each option that they name is one of the command."""
    assert set(HELP) == {problem.code for problem in ProblemCode}
    options = {
        name for command in (serve, upload) for p in command.params for name in p.opts
    }
    page = problem_page().decode("ascii")
    for code, words in HELP.items():
        assert f'<section id="{code}">' in page
        for text in words:
            assert text.endswith(".")
            named = set(re.findall(r"(?<!\S)--[a-z-]+[a-z]", text))
            assert named <= options, code


def test_members_cannot_replace_the_standard_ones() -> None:
    """RFC 9457, section 3.2."""
    error = PeerError(ProblemCode.GONE, members={"status": 200, "code": "fine"})
    document = json.loads(problem_response(error)[2])
    assert (document["status"], document["code"]) == (410, "gone")


@given(st.sampled_from(ProblemCode), st.text(), st.text())
def test_nothing_echoed_leaves_its_place(
    code: ProblemCode, detail: str, value: str
) -> None:
    """G4: the body is one line of ASCII, and an unsafe field is left out."""
    error = PeerError(
        code, detail, fields=(("X-Echo", value),), members={"echo": value}
    )
    status, fields, body = problem_response(error)
    assert status == code.status
    assert body.isascii()
    assert body.count(b"\n") == 1
    assert not any(char in (fields.get("x-echo") or "") for char in "\r\n\0")
    assert json.loads(body)["echo"] == value
