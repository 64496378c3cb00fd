"""The parts of the service that every operation uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import AnyTarget
    from trioresume.server.async_store.storage import Storage
    from trioresume.server.uploads.hashing import Hashing
    from trioresume.server.uploads.quotas import Quotas

__all__ = ["Surroundings"]


@dataclass(frozen=True, slots=True)
class Surroundings:
    """The parts of the service that an operation uses."""

    storage: Storage
    target: AnyTarget
    config: Config
    clock: ServiceClock
    quotas: Quotas
    hashing: Hashing
    start: Callable[..., None]
    """``start(operation, function, *args)``: run it in the server's nursery, in use."""
