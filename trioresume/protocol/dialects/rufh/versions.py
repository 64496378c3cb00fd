"""The drafts of *Resumable Uploads for HTTP*, as one table of their differences.

``Upload-Draft-Interop-Version`` tells the drafts apart. What they share is code in
:mod:`trioresume.protocol.dialects.rufh`. Each difference is a column here.

Statement numbers such as R12 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.protocol.heads import Fields
from trioresume.protocol.structured import boolean_item

__all__ = ["INTEROP_VERSION", "UNVERSIONED", "VERSIONS", "Version"]

INTEROP_VERSION = "upload-draft-interop-version"


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """How one version of the drafts works. The defaults are those of the newest version."""

    number: int | None
    """The interop version; None for a request that names no known version."""
    drafts: str = ""
    completeness_field: str = "upload-complete"
    """The name of the Boolean field; ``upload-incomplete`` means the opposite."""
    defaults_to_complete: bool = False
    """Whether an append without that field is the last one."""
    needs_media_type: bool = True
    """Whether an append must be ``application/partial-upload``."""
    forbids_fields: bool = False
    """Whether HEAD and DELETE with a field of an append are refused."""
    head_status: int = 200
    """The answer to HEAD. A 204 has no ``Content-Length``, so where both are allowed it
    is 200 (R12).
    """
    partial_status: int = 204
    """The answer to an append that leaves the upload incomplete."""
    shows_progress: bool = True
    """Whether 104s tell the offset while content arrives."""
    limits: bool = True
    """Whether the version has ``Upload-Limit``."""
    lifetime_limit: str = "max-age"
    """The member of ``Upload-Limit`` for the lifetime."""
    invalidates: bool = True
    """Whether content beyond the length ends the upload for good (C10)."""
    refuses_completed_with_400: bool = False
    """Whether an append to a complete upload gets a 400; otherwise it gets a 409."""
    forgets: bool = False
    """Whether an inactive upload must be a 404, also if the server knows that it is gone."""

    @property
    def says_incomplete(self) -> bool:
        """Whether the Boolean means the opposite of ``Upload-Complete``."""
        return self.completeness_field == "upload-incomplete"

    @property
    def fields(self) -> Fields:
        """The fields that mark every message of this version."""
        if self.number is None:
            return Fields()
        return Fields({INTEROP_VERSION: str(self.number)})

    def completeness(self, fields: Fields) -> bool | None:
        """Return whether *fields* say that the upload ends; None if nothing valid (C1)."""
        said = boolean_item(fields, self.completeness_field)
        return said if said is None else said != self.says_incomplete

    def contradicted(self, fields: Fields) -> bool:
        """Whether another version's field says that more content is to come.

        If this version's own field does not say the same, believing that field would
        take a part for the whole.
        """
        if self.completeness(fields) is False:
            return False
        if self.says_incomplete:
            return boolean_item(fields, "upload-complete") is False
        return boolean_item(fields, "upload-incomplete") is True

    def completeness_line(self, *, complete: bool) -> tuple[str, str]:
        """Return the field that says whether the upload is, or will be, complete."""
        said = complete != self.says_incomplete
        return self.completeness_field, "?1" if said else "?0"


VERSIONS: dict[int, Version] = {
    version.number: version
    for version in (
        Version(
            number=3,
            drafts="-01",
            completeness_field="upload-incomplete",
            defaults_to_complete=True,
            needs_media_type=False,
            forbids_fields=True,
            head_status=204,
            partial_status=201,
            shows_progress=False,
            limits=False,
            invalidates=False,
            forgets=True,
        ),
        Version(
            number=4,
            drafts="-02",
            defaults_to_complete=True,
            needs_media_type=False,
            forbids_fields=True,
            head_status=204,
            partial_status=201,
            shows_progress=False,
            limits=False,
            invalidates=False,
            forgets=True,
        ),
        Version(
            number=5,
            drafts="-03",
            defaults_to_complete=True,
            needs_media_type=False,
            forbids_fields=True,
            partial_status=201,
            limits=False,
            invalidates=False,
            forgets=True,
        ),
        Version(
            number=6,
            drafts="-04, -05",
            defaults_to_complete=True,
            forbids_fields=True,
            partial_status=201,
            lifetime_limit="expires",
            invalidates=False,
            refuses_completed_with_400=True,
            forgets=True,
        ),
        Version(number=7, drafts="-06 to -08"),
        Version(number=8, drafts="-09 to -11"),
        Version(number=9, drafts="-12"),
        Version(number=10, drafts="-13"),
    )
    if version.number is not None
}

UNVERSIONED = Version(number=None)
"""The future RFC's behaviour. As long as there are drafts, it gets no 104 (C3)."""
