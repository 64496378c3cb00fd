"""The server's side of the seed: ``Prefer`` (RFC 7240), the dialect, and its 100s.

The preferences combine with the other dialects. The package's docstring says what else
belongs to the seed.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import ClassVar

from trioresume.errors import PeerError
from trioresume.protocol.byteranges import ACCEPT_PATCH, patch_reader
from trioresume.protocol.dialects.server import (
    Append,
    AppendRules,
    Creation,
    Interim,
    Reply,
    ServerDialect,
    Upload,
    check_whole,
    shared_content_fields,
)
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.fields import (
    QUOTED_STRING,
    TOKEN,
    parse_integer,
    split_list,
    unquote_string,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.structured import integer_item

__all__ = [
    "SEED",
    "Preferences",
    "ResumeMode",
    "SeedServer",
    "Transaction",
    "acknowledgement",
    "parse_preferences",
    "preference_applied",
    "takes_unasked_continue",
]


# Prefer.


class ResumeMode(Enum):
    """What happens to a request that is cut (R22, R23)."""

    SAVE_INCOMPLETE = "save-incomplete"
    IGNORE_INCOMPLETE = "ignore-incomplete"


class Transaction(Enum):
    """Whether a patch applies as a whole or byte by byte (B9)."""

    ATOMIC = "atomic"
    PERSIST = "persist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Preferences:
    """What a client wishes, or what a server says that it did (Preference-Applied).

    ``wait`` is in seconds.
    """

    resume: ResumeMode | None = None
    wait: int | None = None
    acknowledge: bool = False
    transaction: Transaction | None = None
    processing: bool = False
    respond_async: bool = False


_PREFERENCE = re.compile(
    rf"({TOKEN})(?:[ \t]*+=[ \t]*+({TOKEN}|{QUOTED_STRING}))?+", re.DOTALL
)


def parse_preferences(fields: Fields) -> Preferences:
    """Return the preferences in *fields*. They are only wishes, so nothing raises.

    Names are compared without case, and the first of duplicates wins (RFC 7240,
    section 2). A preference that is malformed, unknown or has an unknown value counts
    as absent (R11), also if a duplicate with a known value follows.
    """
    return _parse(tuple(fields.get_all("prefer")))


# The preferences of a request are read several times, and clients repeat the same ones.
@lru_cache(maxsize=256)
def _parse(lines: tuple[str, ...]) -> Preferences:
    asked = _first_values(lines)
    return Preferences(
        resume=_resume_mode(asked.get("resume")),
        wait=_seconds(asked.get("wait")),
        acknowledge=asked.get("acknowledge") == "",
        transaction=_transaction(asked.get("transaction")),
        processing=asked.get("processing") == "",
        respond_async=asked.get("respond-async") == "",
    )


def _first_values(lines: tuple[str, ...]) -> dict[str, str]:
    """Return the values by name. A missing value is "", which means the same (section 2)."""
    values: dict[str, str] = {}
    # Line by line, so that an unterminated quoted string spoils only its own line.
    for line in lines:
        for member in split_list(line):
            # Parameters follow the first semicolon. The known preferences have none.
            parts = split_list(member, ";")
            match = _PREFERENCE.fullmatch(parts[0]) if parts else None
            if match is not None:
                values.setdefault(match[1].lower(), unquote_string(match[2] or ""))
    return values


def _resume_mode(value: str | None) -> ResumeMode | None:
    if value == "":
        return ResumeMode.SAVE_INCOMPLETE  # R2
    try:
        return ResumeMode(value)
    except ValueError:
        return None


def _transaction(value: str | None) -> Transaction | None:
    try:
        return Transaction(value)
    except ValueError:
        return None


def _seconds(value: str | None) -> int | None:
    if value is None:
        return None
    try:
        return parse_integer(value)
    except PeerError:
        return None


def preference_applied(applied: Preferences) -> str | None:
    """Return the value of ``Preference-Applied``; None if nothing was applied."""
    said: list[str] = []
    if applied.resume is not None:
        said.append(f"resume={applied.resume.value}")
    if applied.wait is not None:
        said.append(f"wait={applied.wait}")
    if applied.acknowledge:
        said.append("acknowledge")
    if applied.transaction is not None:
        said.append(f"transaction={applied.transaction.value}")
    if applied.processing:
        said.append("processing")
    if applied.respond_async:
        said.append("respond-async")
    return ", ".join(said) or None


# The dialect.


class SeedServer(ServerDialect):
    """The dialect of every request without another protocol's marker."""

    name: ClassVar[str] = "seed"
    adds_to_outcome: ClassVar[bool] = False

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        check_whole(head)
        # In an upload's record this field would say that tus began it: see is_partial.
        marked = "tus-resumable" in head.fields
        plain = head.fields.without("tus-resumable") if marked else None
        length = head.length
        if length is None:
            length = integer_item(head.fields, "upload-length")
        return Creation(length=length, fields=plain)

    def append(self, head: RequestHead, rules: AppendRules) -> Append:
        """Return what a PATCH adds, in any of the formats: its media type decides (R15)."""
        reader = patch_reader(
            head.fields.get("content-type"),
            head.fields,
            content_length=head.length,
            limits=rules.patch,
            lenient_unit=rules.lenient_unit,
        )
        return Append(reader=reader)

    def created(self, upload: Upload) -> Reply:
        """Raise: a first request ends the content, so it leaves no upload incomplete.

        Calling this is a bug.
        """
        raise NotImplementedError("without a marker the content's end is the upload's")

    def offset(self, upload: Upload) -> Reply:
        """Return the answer to HEAD (R12): ``Content-Length`` and ``Upload-Offset``
        tell how much arrived.
        """
        fields = self.content_fields(upload)
        return Reply(200, fields.plus({"content-length": str(upload.offset)}))

    def appended(self, upload: Upload) -> Reply:
        return Reply(204, self.content_fields(upload))

    def content_fields(self, upload: Upload) -> Fields:
        fields = {
            "upload-offset": str(upload.offset),
            "upload-complete": "?1" if upload.is_complete else "?0",
            "upload-limit": upload.limits.field(("max-age", upload.lifetime)),
            "accept-patch": ACCEPT_PATCH,
        }
        return shared_content_fields(upload).plus(fields)


SEED = SeedServer()
"""The only instance, since it has no state."""


def acknowledgement(offset: int) -> Interim:
    """Return the 100 that says that *offset* bytes are durable (R30)."""
    return Interim(100, Fields({"acknowledge": str(offset)}))


# Interim responses that nobody waits for.

_PRODUCTS = frozenset({"node", "undici"})


def takes_unasked_continue(fields: Fields) -> bool:
    """Return whether the sender of *fields* accepts a 100 without ``Expect``.

    RFC 9110, section 15.2, requires every client to accept any interim response. So
    ``Prefer: resume`` and ``Prefer: acknowledge`` are answered with 100s (R5, R30). But
    undici, the HTTP client in Node, never sends ``Expect``. It closes the connection at a
    100 and reports an error. It accepts other interim responses.

    Two marks show such a client. Other clients lose nothing by them:

    * ``Sec-Fetch-Mode`` comes from an implementation of fetch: a browser's, or undici's.
      None of them shows interim responses to its caller, so none of them needs a 100.
    * ``User-Agent`` names Node's fetch or undici. undici's other interfaces send neither
      field. A program that uses them can set this one.

    For all other clients there is a setting: ``Config.continue_without_expect``.
    """
    if "sec-fetch-mode" in fields:
        return False
    product, _, _ = (fields.get("user-agent") or "").partition(" ")
    return product.partition("/")[0].lower() not in _PRODUCTS
