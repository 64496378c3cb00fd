"""The client's side of *Resumable Uploads for HTTP*, in the versions of its drafts.

Statement numbers such as C2 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.byteranges import PARTIAL_UPLOAD
from trioresume.protocol.dialects.client import (
    Answer,
    AppendRequest,
    ClientDialect,
    Locations,
)
from trioresume.protocol.dialects.rufh.versions import VERSIONS, Version
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.heads import UPLOAD_RESUMPTION_SUPPORTED, Fields

if TYPE_CHECKING:
    from trioresume.protocol.ranges import ContentRange
    from trioresume.protocol.urls import Url

__all__ = ["NEWEST_RUFH", "RufhClient"]


class RufhClient(ClientDialect):
    """One version of the drafts. With *careful*, an empty request makes the upload (C2, C4).

    That costs a round trip. But it needs no 104, which many proxies drop.
    """

    explicit_completion: ClassVar[bool] = True
    replays: ClassVar[bool] = True
    settles: ClassVar[bool] = True

    def __init__(self, version: Version, *, careful: bool = False) -> None:
        self.version = version
        self.careful = careful
        number = version.number
        self.name = "rufh" if number is None else f"rufh-{number}"

    def carefully(self) -> RufhClient:
        """Return the same version without trust in 104s."""
        return RufhClient(self.version, careful=True)

    def older(self) -> RufhClient | None:
        """Return the version before this one; None if there is none."""
        numbers = [n for n in VERSIONS if n < (self.version.number or 0)]
        if not numbers:
            return None
        return RufhClient(VERSIONS[max(numbers)], careful=self.careful)

    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        line = self.version.completeness_line(complete=whole)
        fields = own.plus(self.version.fields).plus([line])
        # Upload-Length is as old as Upload-Limit (-05).
        if length is not None and self.version.limits:
            fields = fields.plus({"upload-length": str(length)})
        return fields

    def query(self) -> Fields:
        return self.version.fields

    def append(
        self,
        range_: ContentRange,
        *,
        completes: bool,
        declares: bool = False,
        acknowledge: bool = False,
    ) -> AppendRequest:
        """Return the fields of an append (C8)."""
        fields = self.version.fields
        if self.version.needs_media_type:
            fields = fields.plus({"content-type": PARTIAL_UPLOAD})
        fields = fields.plus({"upload-offset": str(range_.start)})
        line = self.version.completeness_line(complete=completes)
        return AppendRequest(fields.plus([line]))

    def offer(self, base: Url, status: int, fields: Fields) -> Locations | None:
        """Return the location in the first 104 (C2)."""
        if status != UPLOAD_RESUMPTION_SUPPORTED:
            return None
        return self._location(base, fields)

    def acknowledged(self, status: int, fields: Fields) -> int | None:
        """Return the offset in a 104 (C12)."""
        return self.offset(fields) if status == UPLOAD_RESUMPTION_SUPPORTED else None

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Return the upload's location if the answer says that the upload goes on (C4).

        Otherwise the ``Location`` is the target's.
        """
        said = self.completeness(answer.fields)
        if said is None:
            # A server that took the empty content for the whole also sends a Location.
            said = whole or not self.understood(answer.fields)
        return self._location(base, answer.fields) if answer.ok and not said else None

    def _location(self, base: Url, fields: Fields) -> Locations | None:
        value = fields.get("location")
        url = None if value is None else base.resolve(value)
        return None if url is None else Locations(content=url)

    def append_limit(self, fields: Fields) -> int | None:
        """Return the limit of one append (C13)."""
        return UploadLimits.parse(fields).max_append_size

    def completeness(self, fields: Fields) -> bool | None:
        return self.version.completeness(fields)

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """Whether the upload goes on (C4, C11). A final response may lack the field."""
        said = self.completeness(fields)
        return not completes if said is None else not said

    def recorded(self, answer: Answer) -> bool:
        """Whether it is the target's response: it says that the upload is complete (C11)."""
        return self.completeness(answer.fields) is True

    def of_target(self, answer: Answer, upload: Url) -> Answer:
        """Put the target's ``Location`` back where the upload's replaced it (C19)."""
        moved = answer.fields.get("content-location")
        location = answer.fields.get("location")
        if moved is None or location is None or upload.resolve(location) != upload:
            return answer
        fields = answer.fields.without("location").plus({"location": moved})
        return replace(answer, fields=fields)

    def understood(self, fields: Fields) -> bool:
        """Whether the answer shows that the server knows this version."""
        echo = any(name in fields for name, _ in self.version.fields)
        offset = self.offset(fields) is not None
        return echo or offset or self.completeness(fields) is not None


NEWEST_RUFH = RufhClient(VERSIONS[max(VERSIONS)])
"""The version to speak unless the server is known to speak only an older one."""
