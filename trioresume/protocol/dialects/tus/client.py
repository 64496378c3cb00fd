"""The client's side of tus 1.0.0: POST makes an upload, PATCH fills it, HEAD tells how far it is.

Statement numbers such as D6 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from trioresume.protocol.byteranges import OFFSET_STREAM
from trioresume.protocol.dialects.client import (
    Answer,
    AppendRequest,
    ClientDialect,
    Locations,
)
from trioresume.protocol.dialects.marks import is_marked
from trioresume.protocol.dialects.seed.client import offered_locations
from trioresume.protocol.dialects.tus.fields import MARK, format_metadata, metadata_of
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.protocol.ranges import ContentRange
    from trioresume.protocol.urls import Url

__all__ = ["TUS", "TusClient"]

# In the POST these fields would describe its own content, and it has none (D6).
_ABOUT_THE_CONTENT = ("content-disposition", "content-type")


class TusClient(ClientDialect):
    """tus. It has no variants: a server refuses an extension that it lacks."""

    name = "tus"
    careful = True
    settles: ClassVar[bool] = True
    # 423: another request writes. 460: the server dropped content that arrived damaged.
    busy: ClassVar[frozenset[int]] = ClientDialect.busy | {423, 460}
    # "SHOULD return either the 404 Not Found, 410 Gone or 403 Forbidden".
    gone_when_asked: ClassVar[frozenset[int]] = ClientDialect.gone | {403}

    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        """Add length, name and type (D6). A request with its own metadata keeps it."""
        fields = own.without(*_ABOUT_THE_CONTENT).plus(MARK)
        metadata = metadata_of(own)
        if metadata and "upload-metadata" not in own:
            fields = fields.plus({"upload-metadata": format_metadata(metadata)})
        if length is None:
            return fields.plus({"upload-defer-length": "1"})
        return fields.plus({"upload-length": str(length)})

    def query(self) -> Fields:
        return MARK

    def append(
        self,
        range_: ContentRange,
        *,
        completes: bool,
        declares: bool = False,
        acknowledge: bool = False,
    ) -> AppendRequest:
        """Return the fields of a PATCH (D5). State a deferred length once it is known (D6)."""
        fields = MARK.plus(
            {"content-type": OFFSET_STREAM, "upload-offset": str(range_.start)}
        )
        if declares and range_.total is not None:
            fields = fields.plus({"upload-length": str(range_.total)})
        return AppendRequest(fields)

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Return the upload's location (D6), and that of the target's response if given (D8)."""
        value = answer.fields.get("location")
        believed = answer.status == 201 or (answer.ok and is_marked(answer))
        url = base.resolve(value) if value is not None and believed else None
        if url is None:
            return None
        offered = offered_locations(base, answer.fields) or Locations()
        return Locations(content=url, message=offered.message)

    def is_step(self, fields: Fields, *, completes: bool, open_ended: bool) -> bool:
        """True: no answer of tus is the target's own (D5)."""
        return True


TUS = TusClient()
"""The only instance, since it has no state."""
