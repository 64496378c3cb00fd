"""Says which results of a run are doubtful, and what the run does not show."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from trioresume.bench.report import units
from trioresume.bench.results import Results
from trioresume.bench.settings import Protocol

__all__ = ["limits", "suspicions"]

SHORT_SECONDS = 10.0
"""In shorter runs the beginning and the end distort the figures."""


def suspicions(results: Results) -> list[str]:
    """Return the reasons why figures of this run may be wrong or too low."""
    found: list[str] = []
    if results.generator_was_limit:
        found.append(
            "The load generator was a limit: one of its processes kept a core busy all the "
            "time, so the server may be faster than these figures. Use more --processes."
        )
    if results.interrupted:
        found.append(
            "The run was interrupted: the figures cover only the part before that."
        )
    if 0 < results.seconds < SHORT_SECONDS:
        found.append(
            f"The load lasted only {units.duration(results.seconds)}, so its beginning and "
            "its end distort the figures."
        )
    if any(kill.up is None for kill in results.kills):
        found.append("The server did not come back after it was killed.")
    return found


def limits(results: Results) -> list[str]:
    """Return what the run does not show, although a reader might think so."""
    settings = results.settings
    said = [
        "This is one run, and runs differ. To compare servers, run them in turns, several times."
    ]
    if _is_loopback(settings.url):
        said.append(
            "Server and load generator were on the same machine. No network between them "
            "lost or delayed anything, and both shared the same "
            f"{units.plural(results.machine.cpus, 'CPU')}."
        )
    else:
        said.append(
            "The network between the two machines is part of every figure, and other "
            "traffic on it was not measured."
        )
    said += _limits_of_faults(results)
    if results.server is None:
        said.append(
            "The server's CPU time and memory were not measured. --server-pid measures them."
        )
    for name, latency in (
        ("time to resume", results.resume),
        ("offset query", results.offset_query),
    ):
        if latency is not None and latency.count < 100:
            said.append(
                f"The p99 of the {name} comes from only "
                f"{units.plural(latency.count, 'sample')}: it is the maximum."
            )
    said.append(
        "Intact content says nothing about a power loss: the run did not test whether the "
        "content was on the disk when the server said so."
    )
    return said


def _limits_of_faults(results: Results) -> Iterator[str]:
    if results.protocol is Protocol.PLAIN:
        yield (
            "Uploads were plain requests: after a cut each began again from its first "
            "byte, so the run does not measure resumption."
        )
    if results.cuts:
        yield (
            "Cuts were made on purpose at the sending end. There were no slow or lossy "
            "links, no reordering, and no proxies that buffer."
        )
    else:
        yield "Nothing was cut, so the run does not show how the server handles cuts."
    if results.kills:
        yield (
            "Killing the server's process leaves the kernel's memory as it is. A crash of "
            "the machine is harder."
        )


def _is_loopback(url: str) -> bool:
    """Whether *url* is on this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
