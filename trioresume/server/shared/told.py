"""What the owner of an operation tells the other processes, as bytes.

Each message is a JSON object. The processes may run different versions of this program for a
while, so a message that cannot be understood is ignored.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from trioresume.protocol.heads import Fields
from trioresume.protocol.operation import OperationState
from trioresume.protocol.progress import MOST_REMARK
from trioresume.server.api.handler import Progress
from trioresume.store.port import MOST_TOLD

__all__ = ["Interim", "Message", "Position", "decode", "encode"]


@dataclass(frozen=True, slots=True)
class Position:
    """How far the operation is, in its owner's memory."""

    state: OperationState
    offset: int
    """The durable offset, which the catalog has."""
    length: int | None
    progress: Progress | None = None
    is_answer: bool = False
    """Whether another process has asked, and everything that had arrived is durable."""


@dataclass(frozen=True, slots=True)
class Interim:
    """An interim response of the target."""

    status: int
    fields: Fields


Message = Position | Progress | Interim


def encode(message: Message) -> bytes | None:
    """Return the bytes of *message*; None if they are too many to be told."""
    told: dict[str, object]
    match message:
        case Position(state, offset, length, progress):
            told = {"state": state, "offset": offset, "length": length}
            if message.is_answer:
                told["answer"] = True
            if progress is not None:
                told["progress"] = _pack(progress)
        case Interim(status, fields):
            told = {"status": status, "fields": [list(pair) for pair in fields]}
        case Progress():
            told = {"progress": _pack(message)}
    data = json.dumps(told, separators=(",", ":")).encode()
    return data if len(data) <= MOST_TOLD else None


def decode(data: bytes) -> Message | None:
    """Return the message in *data*; None if it is none that this version knows."""
    try:
        told = json.loads(data)
        if "state" in told:
            return Position(
                OperationState(told["state"]),
                _count(told["offset"]),
                None if told["length"] is None else _count(told["length"]),
                _unpack(told["progress"]) if "progress" in told else None,
                told.get("answer") is True,
            )
        if "status" in told:
            fields = Fields((str(name), str(value)) for name, value in told["fields"])
            return Interim(_count(told["status"]), fields)
        return _unpack(told["progress"])
    except (KeyError, TypeError, ValueError):
        return None


def _pack(progress: Progress) -> list[object]:
    return [progress.done, progress.total, progress.remark[:MOST_REMARK]]


def _unpack(packed: Any) -> Progress:
    done, total, remark = packed
    return Progress(
        _count(done),
        None if total is None else _count(total),
        str(remark),
    )


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError("not a number of bytes")
    return value
