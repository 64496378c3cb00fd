"""How long an operation is kept, from its record and the settings.

G5 and G11 are in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.protocol.operation import OperationState

if TYPE_CHECKING:
    from trioresume.server.api.config import Config
    from trioresume.store.port import OperationRecord

__all__ = ["ends_at", "guaranteed", "renewed"]

EXPIRY_SLACK = 60.0
"""An expiry moves only by more than about this many seconds, to save commits."""


def ends_at(record: OperationRecord, config: Config) -> float:
    """Return when an upload ends, even if it is resumed again and again (G5)."""
    return record.created_at + config.max_upload_lifetime


def renewed(record: OperationRecord, config: Config, now: float) -> float | None:
    """Return the new expiry after activity at *now*; None if the present one may stay."""
    lifetime, slack = _lifetime(record, config)
    expires_at = now + lifetime
    if record.state is OperationState.RECEIVING:
        expires_at = min(expires_at, ends_at(record, config))
    elif record.state is OperationState.GONE:
        return None
    return expires_at if expires_at > record.expires_at + slack else None


def guaranteed(record: OperationRecord, config: Config, now: float) -> int:
    """Return the seconds for which it is kept at least if no further request comes."""
    lifetime, slack = _lifetime(record, config)
    lifetime -= slack
    if record.state is OperationState.RECEIVING:
        lifetime = min(lifetime, ends_at(record, config) - now)
    return max(0, int(lifetime))


def _lifetime(record: OperationRecord, config: Config) -> tuple[float, float]:
    done = record.state is OperationState.DONE
    lifetime = config.response_lifetime if done else config.incomplete_lifetime
    return lifetime, min(EXPIRY_SLACK, lifetime / 10)
