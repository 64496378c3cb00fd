"""What a reader of a run should doubt, and what the run does not show."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address
from urllib.parse import urlsplit

from trioresume.bench.report import units
from trioresume.bench.results import Results
from trioresume.bench.settings import Protocol

__all__ = ["limits", "suspicions"]

SHORT_SECONDS = 10.0
"""Shorter runs are marked by how they begin and end."""


def suspicions(results: Results) -> list[str]:
    """Why figures of this very run may be wrong or too low."""
    found: list[str] = []
    if results.generator_was_limit:
        found.append(
            "The load generator was a limit: a process of it kept its core busy all the "
            "time, so the server may be faster than these figures. Use more --processes."
        )
    if results.interrupted:
        found.append(
            "The run was interrupted: the figures are of the part that was done."
        )
    if 0 < results.seconds < SHORT_SECONDS:
        found.append(
            f"The load lasted only {units.duration(results.seconds)}, so its beginning and "
            "its end weigh heavily."
        )
    if any(kill.up is None for kill in results.kills):
        found.append("The server did not come back after it was killed.")
    return found


def limits(results: Results) -> list[str]:
    """What a reader might think was shown, and was not."""
    settings = results.settings
    said = [
        "It is one run, and runs differ; to compare servers, run them in turns, several times."
    ]
    if _is_loopback(settings.url):
        said.append(
            "Server and load generator were on the same machine: there was no network in "
            "between to lose or delay anything, and both competed for the same "
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
            "The server's CPU time and memory were not measured; --server-pid does that."
        )
    for name, latency in (
        ("time to resume", results.resume),
        ("offset query", results.offset_query),
    ):
        if latency is not None and latency.count < 100:
            said.append(
                f"The p99 of the {name} is that of only "
                f"{units.plural(latency.count, 'sample')}: it is their maximum."
            )
    said.append(
        "That content is intact now says nothing about a power loss: whether the server "
        "had it on the disk when it said so was not tested."
    )
    return said


def _limits_of_faults(results: Results) -> Iterator[str]:
    if results.protocol is Protocol.PLAIN:
        yield (
            "Uploads were plain requests: after a cut each began again from its first "
            "byte, so this is no measure of resumption."
        )
    if results.cuts:
        yield (
            "Cuts were made on purpose at the sending end. Links that are slow, lossy or "
            "reorder, and proxies that buffer, were not there."
        )
    else:
        yield "Nothing was cut, so it does not show how the server takes cuts."
    if results.kills:
        yield (
            "Killing the server's process leaves the kernel's memory as it is: that is "
            "milder than a crash of the machine."
        )


def _is_loopback(url: str) -> bool:
    """Whether *url* is of this machine."""
    host = urlsplit(url).hostname or ""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
