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
from trioresume.protocol.dialects.tus.fields import (
    MARK,
    PARTIAL,
    format_metadata,
    metadata_of,
)
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trioresume.protocol.ranges import ContentRange
    from trioresume.protocol.urls import Url

__all__ = ["TUS", "TUS_PART", "TusClient", "TusJoin"]

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


class TusPart(TusClient):
    """A partial upload (D7): a part of a file, which has no name or type of its own."""

    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        fields = super().begin(own, length, whole=whole, acknowledge=acknowledge)
        return fields.without("upload-metadata").plus({"upload-concat": PARTIAL})

    def created(self, base: Url, answer: Answer, *, whole: bool) -> Locations | None:
        """Return the upload's location only: there is no response of the target for a part."""
        locations = super().created(base, answer, whole=whole)
        return None if locations is None else Locations(content=locations.content)


class TusJoin(TusClient):
    """The request that joins partial uploads to one (D7). It has no content.

    *parts* are references to the partial uploads, in the order of their content.
    """

    def __init__(self, parts: Sequence[str]) -> None:
        self._parts = parts

    def begin(
        self, own: Fields, length: int | None, *, whole: bool, acknowledge: bool = False
    ) -> Fields:
        """Add name and type, and the parts. "The Client MUST NOT include Upload-Length"."""
        fields = super().begin(own, length, whole=whole, acknowledge=acknowledge)
        joined = f"final;{' '.join(self._parts)}"
        return fields.without("upload-length").plus({"upload-concat": joined})

    def offset(self, fields: Fields) -> int | None:
        """Return 0: the offset of a final upload counts the parts' bytes, none of this request."""
        return 0


TUS = TusClient()
"""The only instance, since it has no state."""

TUS_PART = TusPart()
"""The dialect of a part of a file."""
