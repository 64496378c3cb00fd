"""Resumable Uploads for HTTP for tests: the fields of its requests, and its answers."""

from __future__ import annotations

from collections.abc import Mapping

from tests.server.harness import CARRIER, Reply
from trioresume.protocol.dialects.rufh.versions import VERSIONS, Version

NEWEST = VERSIONS[max(VERSIONS)]


def says(version: Version, complete: bool) -> dict[str, str]:
    """The version and completeness of a request, as that version says them."""
    said = complete != version.says_incomplete
    return {
        "Upload-Draft-Interop-Version": str(version.number),
        version.completeness_field: "?1" if said else "?0",
    }


def appends(version: Version, offset: int, complete: bool) -> dict[str, str]:
    """The fields of an append."""
    fields = {**says(version, complete), "Upload-Offset": str(offset)}
    if version.needs_media_type:
        fields["Content-Type"] = "application/partial-upload"
    return fields


def completeness(version: Version, fields: Mapping[str, str] | Reply) -> bool | None:
    """What a response says of the upload, as that version says it."""
    said = fields.get(version.completeness_field)
    return None if said is None else (said == "?1") != version.says_incomplete


def path_of(location: str) -> str:
    """The path of an absolute location."""
    root = f"{CARRIER.get().scheme}://test"
    assert location.startswith(f"{root}/")
    return location.removeprefix(root)
