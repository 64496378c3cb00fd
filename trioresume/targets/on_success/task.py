"""A task in the outbox: an action on success that is still to be done."""

from __future__ import annotations

import json
from dataclasses import dataclass

from trioresume.protocol.name_templates import safe_name
from trioresume.server.api.on_success import Action

__all__ = ["KIND", "Task"]

KIND = "task.on-success"
"""The kind of such a task."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """An action that is still to be done for a file, as the outbox keeps it."""

    action: Action
    owner: str | None
    name: str
    etag: str
    """Names the content: a file that has other content meanwhile has a task of its own."""

    def pack(self) -> bytes:
        """Return the task as the payload of an event."""
        return json.dumps(
            {
                "action": self.action.name,
                "directory": self.action.directory,
                "owner": self.owner,
                "name": self.name,
                "etag": self.etag,
            }
        ).encode()

    @classmethod
    def unpack(cls, payload: bytes) -> Task:
        """Read the payload of an event."""
        values = json.loads(payload)
        action = Action(values.pop("action"), values.pop("directory"))
        return cls(action=action, **values)

    @property
    def segments(self) -> list[str]:
        """The folders below the directory and the name there, each a harmless name."""
        return safe_name(self.name).split("/")
