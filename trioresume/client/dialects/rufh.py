"""Resumable Uploads for HTTP, in the versions that its drafts have."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, ClassVar

from trioresume.client.dialects.base import Dialect, Words
from trioresume.client.locations import Locations
from trioresume.protocol.byteranges import PARTIAL_UPLOAD
from trioresume.protocol.dialects.base import UploadLimits
from trioresume.protocol.dialects.rufh_versions import VERSIONS, Version
from trioresume.protocol.heads import Fields
from trioresume.protocol.message import UPLOAD_RESUMPTION_SUPPORTED

if TYPE_CHECKING:
    from trioresume.client.locations import Url
    from trioresume.client.steps import Answer
    from trioresume.protocol.fields import ContentRange

__all__ = ["NEWEST_RUFH", "Rufh"]


class Rufh(Dialect):
    """One version. With *careful* an upload is made empty first (C2, C4).

    That costs a round trip, and needs no 104, which many proxies drop.
    """

    explicit_completion: ClassVar[bool] = True
    replays: ClassVar[bool] = True
    settles: ClassVar[bool] = True

    def __init__(self, version: Version, *, careful: bool = False) -> None:
        self.version = version
        self.careful = careful
        number = version.number
        self.name = "rufh" if number is None else f"rufh-{number}"

    def carefully(self) -> Rufh:
        """The same version, without trust in 104s."""
        return Rufh(self.version, careful=True)

    def older(self) -> Rufh | None:
        """The version before this one; None if there is none."""
        numbers = [n for n in VERSIONS if n < (self.version.number or 0)]
        if not numbers:
            return None
        return Rufh(VERSIONS[max(numbers)], careful=self.careful)

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
    ) -> Words:
        """C8."""
        fields = self.version.fields
        if self.version.needs_media_type:
            fields = fields.plus({"content-type": PARTIAL_UPLOAD})
        fields = fields.plus({"upload-offset": str(range_.start)})
        line = self.version.completeness_line(complete=completes)
        return Words(fields.plus([line]))

    def offer(self, base: Url, status: int, fields: Fields) -> Locations | None:
        """C2: the first 104 says where the upload is."""
        if status != UPLOAD_RESUMPTION_SUPPORTED:
            return None
        return self._location(base, fields)

    def acknowledged(self, status: int, fields: Fields) -> int | None:
        """C12."""
        return self.offset(fields) if status == UPLOAD_RESUMPTION_SUPPORTED else None

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """C4: only if it is said that the upload goes on; else it is the target's."""
        said = self.completeness(answer.fields)
        if said is None:
            # Empty content that was taken for all there is has a Location as well.
            said = whole or not self.understood(answer.fields)
        return self._location(base, answer.fields) if answer.ok and not said else None

    def _location(self, base: Url, fields: Fields) -> Locations | None:
        value = fields.get("location")
        url = None if value is None else base.resolve(value)
        return None if url is None else Locations(content=url)

    def append_limit(self, fields: Fields) -> int | None:
        """C13."""
        return UploadLimits.parse(fields).max_append_size

    def completeness(self, fields: Fields) -> bool | None:
        return self.version.completeness(fields)

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """C4, C11; a server may leave it out of what is final anyway."""
        said = self.completeness(fields)
        return not completes if said is None else not said

    def recorded(self, answer: Answer) -> bool:
        """C11: the target's response, errors included, says that the upload is complete."""
        return self.completeness(answer.fields) is True

    def of_target(self, answer: Answer, upload: Url) -> Answer:
        """C19: with the target's ``Location``, where it had to make room for the upload's."""
        moved = answer.fields.get("content-location")
        location = answer.fields.get("location")
        if moved is None or location is None or upload.resolve(location) != upload:
            return answer
        fields = answer.fields.without("location").plus({"location": moved})
        return replace(answer, fields=fields)

    def understood(self, fields: Fields) -> bool:
        """Whether an answer shows that the server knows this version."""
        echo = any(name in fields for name, _ in self.version.fields)
        offset = self.offset(fields) is not None
        return echo or offset or self.completeness(fields) is not None


NEWEST_RUFH = Rufh(VERSIONS[max(VERSIONS)])
"""What is spoken unless a server is known to speak an older version only."""
