"""``Upload-Limit``: how much a server takes, as server and client know it.

Statement numbers such as C13 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass

from trioresume.protocol.heads import Fields
from trioresume.protocol.structured import integer_members

__all__ = ["UploadLimits"]

_LIMITS = ("max_size", "min_size", "max_append_size", "min_append_size")


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLimits:
    """The server's limits in bytes (C13). None means no limit."""

    max_size: int | None = None
    min_size: int | None = None
    """Content that is shorter and is sent whole gets no upload resource."""
    max_append_size: int | None = None
    min_append_size: int | None = None

    @classmethod
    def parse(cls, fields: Fields) -> UploadLimits:
        """Read ``Upload-Limit``. A malformed member sets no limit."""
        members = integer_members(fields, "upload-limit")
        return cls(**{name: members.get(name.replace("_", "-")) for name in _LIMITS})

    def field(self, lifetime: tuple[str, int] | None = None) -> str:
        """Return the value of ``Upload-Limit``.

        *lifetime* is the name of the member for the lifetime, and the seconds.
        """
        members: dict[str, int] = {}
        for name in _LIMITS:
            value: int | None = getattr(self, name)
            if value is not None:
                members[name.replace("_", "-")] = value
        if lifetime is not None:
            members[lifetime[0]] = lifetime[1]
        # An empty Dictionary cannot be sent. This member stands for "no limits".
        members = members or {"min-size": 0}
        return ", ".join(f"{name}={value}" for name, value in members.items())
