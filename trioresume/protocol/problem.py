"""Errors as problem documents: ``application/problem+json`` (RFC 9457).

Statement numbers such as G4 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import json

from trioresume.errors import PeerError
from trioresume.protocol.fields import header_safe
from trioresume.protocol.heads import Fields

__all__ = ["MEDIA_TYPE", "problem_response"]

MEDIA_TYPE = "application/problem+json"


def problem_response(error: PeerError, page: str = "") -> tuple[int, Fields, bytes]:
    """Return the status, fields and body of the answer to *error*; its own ones if it has any.

    *page* is the server's page of all problems. A problem's type leads to its section there,
    and a problem whose type is registered has a ``help`` that does.

    The sender adds ``Content-Length`` and obeys ``error.close``, because both belong to
    the connection. The body is ASCII. The encoder escapes all other characters, so
    nothing in it can act as a line end or a control sequence (G4).
    """
    problem = error.problem
    if error.body is not None:
        return error.status or problem.status, Fields(error.fields), error.body
    document: dict[str, object] = {
        **error.members,
        "type": problem.type_uri(page),
        "title": problem.title,
        "status": problem.status,
        "code": problem.code,
    }
    if page and problem.registered is not None:
        document["help"] = f"{page}#{problem.code}"
    if error.detail:
        document["detail"] = error.detail
    body = json.dumps(document, ensure_ascii=True, sort_keys=True, default=str)
    # A problem describes this one request, so no cache may give it to another.
    fields = Fields({"content-type": MEDIA_TYPE, "cache-control": "no-store"})
    safe = [(name, value) for name, value in error.fields if header_safe(value)]
    return problem.status, fields.plus(safe), body.encode("ascii") + b"\n"
