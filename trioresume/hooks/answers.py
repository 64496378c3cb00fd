"""What a receiver answers, checked. The JSON is tusd's."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from trioresume.errors import PeerError, ProblemCode, TrioresumeError
from trioresume.protocol.fields import TOKEN, header_safe
from trioresume.protocol.heads import Fields, end_to_end_fields, has_content

__all__ = [
    "FileChange",
    "HookAnswer",
    "HookFailed",
    "HookResponse",
    "parse_answer",
    "refusal",
]

MOST_BODY = 64 * 1024
"""Bytes of a response's content: a recorded one has to fit into the catalog."""
_FIELD_NAME = re.compile(TOKEN)
_KEY = re.compile(r"[!-+\--~]+")
"""A key of tus's metadata: printable ASCII without a blank and a comma."""
_MEMBERS = {
    "HTTPResponse": dict,
    "RejectUpload": bool,
    "RejectTermination": bool,
    "StopUpload": bool,
    "ChangeFileInfo": dict,
}


class HookFailed(TrioresumeError):
    """A receiver could not be reached, failed, or gave an answer that makes no sense.

    With *may_pass*, another attempt may succeed soon.
    """

    def __init__(self, reason: str, *, may_pass: bool = False) -> None:
        super().__init__(reason)
        self.may_pass = may_pass


@dataclass(frozen=True, slots=True)
class HookResponse:
    """A response that a receiver wants the client to get. Status 0: the usual one."""

    status: int = 0
    fields: Fields = field(default_factory=Fields)
    body: bytes = b""


@dataclass(frozen=True, slots=True, kw_only=True)
class FileChange:
    """What ``pre-create`` changes of an upload. None: as it was."""

    name: str | None = None
    metadata: Mapping[str, str] | None = None
    lifetime: float | None = None
    """Seconds for which the later file is kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HookAnswer:
    """The answer of a receiver."""

    rejects: bool = False
    """Whether the upload, its cancellation or its continuation is refused."""
    response: HookResponse | None = None
    change: FileChange = FileChange()


def refusal(code: ProblemCode, response: HookResponse | None) -> PeerError:
    """Return the error that answers a refusal: *response*, or the problem document of *code*."""
    if response is None:
        return PeerError(code, close=True)
    return PeerError(
        code,
        fields=tuple(response.fields),
        close=True,
        body=response.body,
        status=response.status or None,
    )


def parse_answer(data: bytes | Mapping[str, Any] | None) -> HookAnswer:
    """Read an answer. Nothing, or an empty object, changes nothing.

    Raises :class:`HookFailed` for anything that is not an answer. Members that are not known
    are ignored, because receivers are older or newer than this server.
    """
    if data is None:
        return HookAnswer()
    found: Any = data
    if isinstance(data, bytes):
        if not data.strip():
            return HookAnswer()
        try:
            found = json.loads(data)
        except (ValueError, RecursionError):
            raise HookFailed("the answer is not JSON") from None
    if not isinstance(found, Mapping):
        raise HookFailed("the answer is not a JSON object")
    for name, kind in _MEMBERS.items():
        if found.get(name) is not None and not isinstance(found[name], kind):
            raise HookFailed(f"{name} in the answer is no {kind.__name__}")
    stops = ("RejectUpload", "RejectTermination", "StopUpload")
    return HookAnswer(
        rejects=any(bool(found.get(name)) for name in stops),
        response=_response(found.get("HTTPResponse")),
        change=_change(found.get("ChangeFileInfo") or {}),
    )


def _response(found: Mapping[str, Any] | None) -> HookResponse | None:
    if not found:
        return None
    status, body = found.get("StatusCode") or 0, found.get("Body") or ""
    if not isinstance(status, int) or not (status == 0 or 200 <= status <= 599):
        raise HookFailed("StatusCode in the answer is no status of a final response")
    if not isinstance(body, str):
        raise HookFailed("Body in the answer is no text")
    content = body.encode("utf-8", "surrogatepass")
    if len(content) > MOST_BODY:
        raise HookFailed(f"Body in the answer is longer than {MOST_BODY} bytes")
    if status and content and not has_content(status):
        raise HookFailed(f"a response with status {status} has no content")
    return HookResponse(status, _fields(found.get("Header") or {}), content)


def _fields(found: Any) -> Fields:
    if not isinstance(found, Mapping):
        raise HookFailed("Header in the answer is no object")
    lines: list[tuple[str, str]] = []
    for name, value in found.items():
        values = value if isinstance(value, list) else [value]
        for each in values:
            if not isinstance(each, str) or not header_safe(each):
                raise HookFailed("a field in the answer cannot be sent")
            lines.append((name, each))
        if not isinstance(name, str) or _FIELD_NAME.fullmatch(name) is None:
            raise HookFailed("a field in the answer has a name that cannot be sent")
    return end_to_end_fields(Fields(lines)).without("content-length")


def _change(found: Mapping[str, Any]) -> FileChange:
    name = found.get("ID")
    storage = found.get("Storage")
    if not name and isinstance(storage, Mapping):
        name = storage.get("Path")
    if name is not None and not isinstance(name, str):
        raise HookFailed("ID in the answer is no text")
    lifetime = found.get("Lifetime")
    if lifetime is not None and (
        isinstance(lifetime, bool)
        or not isinstance(lifetime, (int, float))
        or not 1 <= lifetime <= 1e10
    ):
        raise HookFailed("Lifetime in the answer is no number of seconds")
    metadata = found.get("MetaData")
    if metadata is not None:
        if not isinstance(metadata, Mapping):
            raise HookFailed("MetaData in the answer is no object")
        for key, value in metadata.items():
            if not isinstance(key, str) or _KEY.fullmatch(key) is None:
                raise HookFailed("MetaData in the answer has a key that tus cannot say")
            if not isinstance(value, str):
                raise HookFailed("MetaData in the answer has a value that is no text")
            try:
                value.encode()
            except UnicodeEncodeError:
                raise HookFailed("MetaData in the answer is no Unicode text") from None
    return FileChange(name=name or None, metadata=metadata, lifetime=lifetime)
