"""What all connections of a service share, whatever they speak."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trioresume.protocol.framing import HeadLimits
from trioresume.server.api.config import upload_limits
from trioresume.server.async_store.receive_memory import ReceiveMemory
from trioresume.server.http.connection_limits import Admission
from trioresume.server.http.gateway import Gateway

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from trioresume.protocol.clock import ServiceClock
    from trioresume.server.api.config import Config
    from trioresume.server.http.exchange import Exchange

__all__ = ["Front"]


class Front:
    """The settings and the shared memory of all connections, and the service behind them.

    *handle* answers an exchange, or raises what
    :meth:`~trioresume.server.http.base_exchange.BaseExchange.answer` turns into a problem.
    """

    def __init__(
        self,
        handle: Callable[[Exchange], Awaitable[None]],
        config: Config,
        clock: ServiceClock,
    ) -> None:
        self.handle = handle
        self.config = config
        self.clock = clock
        self.memory = ReceiveMemory(config.receive_memory)
        self.admission = Admission(config)
        self.gateway = Gateway(config)
        self.upload_limits = upload_limits(config)
        self.head_limits = HeadLimits(config.max_header_size, config.max_header_fields)
