"""Fakes and fault injectors, for this project's tests and for yours.

* :class:`ChaosProxy`: a TCP proxy that cuts, stalls and throttles on a schedule.
* :class:`MemoryStore`: a store without a disk, with faults and crashes as switches.
* :func:`memory_transport_pair`: connected in-memory transports with switches.
"""

from trioresume.testing.memory_store import MemoryStore
from trioresume.testing.proxy import (
    ChaosProxy,
    ConnectionPlan,
    ConnectionRecord,
    Direction,
    Ending,
    Fault,
    FaultKind,
    Schedule,
    Totals,
    no_faults,
    random_faults,
    scripted_faults,
)
from trioresume.testing.streams import MemoryTransport, memory_transport_pair

__all__ = [
    "ChaosProxy",
    "ConnectionPlan",
    "ConnectionRecord",
    "Direction",
    "Ending",
    "Fault",
    "FaultKind",
    "MemoryStore",
    "MemoryTransport",
    "Schedule",
    "Totals",
    "memory_transport_pair",
    "no_faults",
    "random_faults",
    "scripted_faults",
]
