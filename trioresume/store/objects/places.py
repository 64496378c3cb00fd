"""Where plain objects are made, and of what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from trioresume.errors import CallerError

__all__ = ["ObjectPlace", "Source"]

_MOST_METADATA = 2048
"""Bytes of names and values together that S3 takes as metadata."""


@dataclass(frozen=True, slots=True)
class Source:
    """An object, or bytes of it, that are part of the content."""

    name: str
    """With the service's prefix."""
    length: int
    start: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectPlace:
    """Where a finished file becomes an object, and as what."""

    bucket: str
    name: str
    content_type: str | None = None
    disposition: str | None = None
    """The ``Content-Disposition`` with which the object is sent."""
    metadata: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.bucket or not self.name or len(self.name.encode()) > 1024:
            raise CallerError("an object has a bucket, and a name of 1 to 1024 bytes")
        if self.name.startswith("/") or {".", "..", ""} & set(self.name.split("/")):
            raise CallerError(f"{self.name!r} cannot be the name of an object")
        size = sum(len(n) + len(v) for n, v in self.metadata.items())
        if size > _MOST_METADATA:
            raise CallerError(
                f"an object has at most {_MOST_METADATA} bytes of metadata, not {size}"
            )
        for name, value in self.metadata.items():
            if not (name.isascii() and value.isascii() and value.isprintable()):
                raise CallerError(
                    f"the metadata {name!r} is not printable ASCII; encode it"
                )
