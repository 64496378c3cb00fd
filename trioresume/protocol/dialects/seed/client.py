"""The client's side of the seed: ``Prefer: resume``, HEAD, PATCH with ``message/byterange``.

Statement numbers such as B13 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.byteranges import MESSAGE
from trioresume.protocol.dialects.client import (
    Answer,
    AppendRequest,
    ClientDialect,
    Locations,
)
from trioresume.protocol.fields import maybe_integer
from trioresume.protocol.heads import Fields
from trioresume.protocol.parts import encode_part_header
from trioresume.protocol.structured import boolean_item

if TYPE_CHECKING:
    from trioresume.protocol.ranges import ContentRange
    from trioresume.protocol.urls import Url

__all__ = ["PLAIN", "SEED", "SEED_WITH_RANGES", "SeedClient", "offered_locations"]


class SeedClient(ClientDialect):
    """The seed. To a server that does not know it, the request is a plain one."""

    acknowledges: ClassVar[bool] = True
    tells_processing: ClassVar[bool] = True

    def __init__(self, name: str, *, ranges_only: bool = False) -> None:
        self.name = name
        self.ranges_only = ranges_only
        """Whether the server knows no ``Content-Offset`` (B13)."""

    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        return own.plus({"prefer": "resume, acknowledge" if acknowledge else "resume"})

    def append(
        self,
        range_: ContentRange,
        *,
        completes: bool,
        declares: bool = False,
        acknowledge: bool = False,
    ) -> AppendRequest:
        fields = Fields({"content-type": MESSAGE})
        if acknowledge:
            fields = fields.plus({"prefer": "acknowledge"})
        prefix = encode_part_header(range_, ranges_only=self.ranges_only)
        return AppendRequest(fields, prefix)

    def offer(self, base: Url, status: int, fields: Fields) -> Locations | None:
        """Return the locations in the 100 (R1)."""
        return offered_locations(base, fields) if status == 100 else None

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Return the location of the response message, which the final response repeats (R5).

        The response is for clients that the 100 did not reach. Its Content-Location may
        be the target's own, so it is not used.
        """
        offered = offered_locations(base, answer.fields)
        if offered is None or offered.message is None:
            return None
        return Locations(message=offered.message)

    def acknowledged(self, status: int, fields: Fields) -> int | None:
        """Return the count in an Acknowledge (R30)."""
        return maybe_integer(fields.get("acknowledge")) if status == 100 else None

    def held(self, answer: Answer) -> int | None:
        """Return ``Upload-Offset``, or else the ``Content-Length`` of a 200 (R12)."""
        offset = self.offset(answer.fields)
        if offset is None and answer.status == 200:
            offset = maybe_integer(answer.fields.get("content-length"))
        return offset

    def completeness(self, fields: Fields) -> bool | None:
        return boolean_item(fields, "upload-complete")

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """Whether the upload goes on (R17). Without the field, content with a length is
        complete.
        """
        said = self.completeness(fields)
        return open_ended if said is None else not said

    def recorded(self, answer: Answer) -> bool:
        """Whether it is the target's answer: it repeats the operation's fields (R5, R11)."""
        applied = answer.fields.get("preference-applied") or ""
        return "response-message-location" in answer.fields or "resume" in applied


SEED = SeedClient("seed")

SEED_WITH_RANGES = SeedClient("seed", ranges_only=True)
"""The seed for a server of *Byte Range PATCH* before draft -05."""

PLAIN = SeedClient("plain")
"""For a server that was asked and speaks no protocol. It is not asked again."""


def offered_locations(base: Url, fields: Fields) -> Locations | None:
    """Return what a 100's *fields* offer; None if they offer no way to resume.

    ``Content-Location`` alone is no offer, because any server may send that field.
    """
    found = [
        None if (value := fields.get(name)) is None else base.resolve(value)
        for name in (
            "request-content-location",
            "response-message-location",
            "content-location",
        )
    ]
    locations = Locations(*found)
    if locations.content is None and locations.message is None:
        return None
    return locations
