"""Measures uploads that are cut and resumed: ``trioresume bench`` for programs.

:class:`Settings` describe a run, :func:`run` performs it, and :class:`Results` are the
findings. :func:`to_json` and :func:`from_json` carry results between programs.
"""

from trioresume.bench.comparison import Better, Figure, Quantity, Threshold
from trioresume.bench.document import from_json, to_json
from trioresume.bench.processes import BenchFailed
from trioresume.bench.proxy_check import Finding, ProxyChecks, Verdict, check_proxy
from trioresume.bench.records import BadRecord
from trioresume.bench.results import (
    Attempt,
    Check,
    CheckedBy,
    Ending,
    Fault,
    Generator,
    Kill,
    Latency,
    Machine,
    Results,
    Series,
    ServerSample,
    ServerUsage,
    Snapshot,
    Upload,
)
from trioresume.bench.run import run
from trioresume.bench.settings import (
    FaultKind,
    FaultPlace,
    Faults,
    Protocol,
    Settings,
    SizeKind,
    Sizes,
    Verify,
)

__all__ = [
    "Attempt",
    "BadRecord",
    "BenchFailed",
    "Better",
    "Check",
    "CheckedBy",
    "Ending",
    "Fault",
    "FaultKind",
    "FaultPlace",
    "Faults",
    "Figure",
    "Finding",
    "Generator",
    "Kill",
    "Latency",
    "Machine",
    "Protocol",
    "ProxyChecks",
    "Quantity",
    "Results",
    "Series",
    "ServerSample",
    "ServerUsage",
    "Settings",
    "SizeKind",
    "Sizes",
    "Snapshot",
    "Threshold",
    "Upload",
    "Verdict",
    "Verify",
    "check_proxy",
    "from_json",
    "run",
    "to_json",
]
