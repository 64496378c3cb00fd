"""Decide a request's dialect, once for each request. The first that recognises it wins.

::

    Tus-Resumable                                     tus
    a known interop version                           that version of RUFH
    a valid Upload-Complete                           the newest RUFH, without 104s
    PATCH of an upload                                by media type
    anything else                                     the seed, which has no marker

Statement numbers such as C13 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.protocol.dialects.rufh import server as rufh
from trioresume.protocol.dialects.seed.server import SEED, parse_preferences
from trioresume.protocol.dialects.server import ServerDialect
from trioresume.protocol.dialects.tus import server as tus
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.heads import Fields

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead

__all__ = [
    "DIALECTS",
    "PLAIN",
    "classify",
    "discovery_fields",
    "early_dialect",
    "name_of_upload",
]

PLAIN = "plain"
"""What metrics and logs call a request in no protocol for resumable uploads."""

DIALECTS = (PLAIN, SEED.name, rufh.RufhServer.name, tus.TUS.name)
"""What they call all others, too."""


def early_dialect(head: RequestHead) -> ServerDialect:
    """Return the dialect in which a request is refused before its resource is known.

    Only tus asks for its own form then (D1). All its requests are marked. A PATCH that only
    has tus's media type is one of the union's formats (R15) and gets the target's response
    (R17). OPTIONS belongs to no dialect: it carries no version, and its answer is about all
    of them.
    """
    is_marked = "tus-resumable" in head.fields and head.method != "OPTIONS"
    return tus.TUS if is_marked else SEED


def classify(
    head: RequestHead,
    early: ServerDialect,
    *,
    on_upload: bool,
    any_interop_version: bool = False,
    strict_metadata: bool = False,
) -> ServerDialect:
    """Return the dialect of a request to an upload's own resources or to a target.

    *early* is what :func:`early_dialect` returned for *head*.
    With *any_interop_version*, a request without an interop version is in the dialect
    of the future RFC, which has no version. *strict_metadata* is for tus.
    """
    if early is tus.TUS:
        return tus.TUS if on_upload else tus.at_target(head, strict_metadata)
    found = rufh.recognise(
        head, on_upload=on_upload, any_interop_version=any_interop_version
    )
    return found or SEED


def name_of_upload(fields: Fields) -> str:
    """Return the name of the dialect that began an upload, from its recorded *fields*."""
    names = {name for name, _ in fields}
    if "tus-resumable" in names:
        return tus.TUS.name
    if "upload-complete" in names or "upload-incomplete" in names:
        return rufh.RufhServer.name
    asks = "prefer" in names and parse_preferences(fields).resume is not None
    return SEED.name if asks else PLAIN


def discovery_fields(limits: UploadLimits) -> Fields:
    """Return what the answer to an OPTIONS to a target says about all dialects (C13, D2)."""
    return tus.tus_discovery(limits).plus({"upload-limit": limits.field()})
