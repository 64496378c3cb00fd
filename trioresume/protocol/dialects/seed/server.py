"""The server's side of the seed. The package's docstring says what belongs to it.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from trioresume.protocol.byteranges import ACCEPT_PATCH, patch_reader
from trioresume.protocol.dialects.misplaced import check_whole, whole_length
from trioresume.protocol.dialects.server import (
    Append,
    AppendRules,
    Creation,
    Interim,
    Reply,
    ServerDialect,
    Upload,
    shared_content_fields,
)
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.heads import Fields, RequestHead

__all__ = ["SEED", "SeedServer", "acknowledgement"]


class SeedServer(ServerDialect):
    """The dialect of every request without another protocol's marker."""

    def creation(self, head: RequestHead, limits: UploadLimits) -> Creation:
        check_whole(head)
        # In an upload's record this field would say that tus began it: see is_partial.
        marked = "tus-resumable" in head.fields
        plain = head.fields.without("tus-resumable") if marked else None
        return Creation(length=whole_length(head), fields=plain)

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
