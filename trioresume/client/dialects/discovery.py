"""What a server says of itself in its answer to OPTIONS."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.protocol.dialects.base import UploadLimits
from trioresume.protocol.dialects.tus import VERSION
from trioresume.protocol.fields import split_list

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = ["Discovery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """Which protocols a server shows (C13, D2). The seed does not show here."""

    rufh: bool
    tus: bool
    extensions: frozenset[str]
    """Those of tus."""
    limits: UploadLimits

    @classmethod
    def of(cls, fields: Fields) -> Discovery:
        """What the *fields* of the answer say."""
        extensions = split_list((fields.get("tus-extension") or "").lower())
        return cls(
            rufh="upload-limit" in fields,
            tus=VERSION in split_list(fields.get("tus-version") or ""),
            extensions=frozenset(extensions),
            limits=UploadLimits.parse(fields),
        )

    def takes_tus(self, length: int | None) -> bool:
        """Whether an upload of *length* bytes can be made in tus; None: not known yet."""
        needs = {"creation"} if length is not None else {"creation-defer-length"}
        return self.tus and "creation" in self.extensions and needs <= self.extensions
