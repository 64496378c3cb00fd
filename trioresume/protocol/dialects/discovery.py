"""Reads which protocols a server announces in its answer to OPTIONS.

Statement numbers such as C13 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from trioresume.protocol.dialects.tus.fields import VERSION
from trioresume.protocol.dialects.upload_limits import UploadLimits
from trioresume.protocol.fields import split_list

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = ["Discovery"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Discovery:
    """The protocols that a server announces (C13, D2). The seed is not announced."""

    rufh: bool
    tus: bool
    extensions: frozenset[str]
    """The extensions of tus."""
    limits: UploadLimits

    @classmethod
    def of(cls, fields: Fields) -> Discovery:
        """Read the *fields* of the answer."""
        extensions = split_list((fields.get("tus-extension") or "").lower())
        return cls(
            rufh="upload-limit" in fields,
            tus=VERSION in split_list(fields.get("tus-version") or ""),
            extensions=frozenset(extensions),
            limits=UploadLimits.parse(fields),
        )

    def takes_tus(self, length: int | None) -> bool:
        """Whether tus can make an upload of *length* bytes; None: length not known yet."""
        needs = {"creation"} if length is not None else {"creation-defer-length"}
        return self.tus and "creation" in self.extensions and needs <= self.extensions

    @property
    def joins(self) -> bool:
        """Whether tus can join uploads that are parts of a file (D7)."""
        return self.takes_tus(0) and "concatenation" in self.extensions
