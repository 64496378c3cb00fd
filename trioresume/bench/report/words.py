"""A run in words: the verdict, each figure with its meaning, and what went wrong.

The table in the terminal and the HTML page take their texts from here, so both say the
same. Nothing is computed here. Every figure is a property of
:class:`~trioresume.bench.results.Results`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from trioresume.bench.report import units
from trioresume.bench.results import (
    CheckedBy,
    Ending,
    Generator,
    Latency,
    Results,
    Upload,
)
from trioresume.bench.settings import Protocol

__all__ = [
    "ENDINGS",
    "PROTOCOLS",
    "Figure",
    "Mood",
    "Verdict",
    "figures",
    "unhappy",
    "url_to_show",
    "verdict",
]

PROTOCOLS = {
    Protocol.AUTO: "not detected",
    Protocol.SEED: "Partial and Resumable Requests in HTTP",
    Protocol.RUFH: "Resumable Uploads for HTTP",
    Protocol.TUS: "tus 1.0.0",
    Protocol.PLAIN: "plain HTTP, without resumption",
}

ENDINGS = {
    Ending.DONE: "finished",
    Ending.CUT: "cut on purpose, and given up after too many attempts without progress",
    Ending.KILLED: "the server was killed on purpose, and the upload was given up",
    Ending.REFUSED: "no connection to the server",
    Ending.CLOSED: "the server closed the connection unexpectedly",
    Ending.TIMEOUT: "the server was silent for too long",
    Ending.REJECTED: "the server answered with a status that does not continue the upload",
    Ending.NOT_UNDERSTOOD: "the server's answer breaks the protocol",
    Ending.OFFSET_FELL: "the server forgot bytes that it had announced",
    Ending.OFFSET_BEYOND: "the server announced more bytes than were ever sent to it",
    Ending.FORGOTTEN: "the server no longer knew the upload",
    Ending.STOPPED: "stopped with the run; this is no failure",
}


class Mood(Enum):
    """How good or bad a verdict is."""

    GOOD = "good"
    ATTENTION = "attention"
    BAD = "bad"


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether the server passed, in one sentence, and the evidence for it."""

    mood: Mood
    headline: str
    detail: str


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: its name, its value, further values, and its meaning."""

    name: str
    value: str
    beside: str
    meaning: str


# ------------------------------------------------------------------------- verdict


def verdict(results: Results) -> Verdict:
    """Return the verdict: wrong and failed uploads first, then reasons to doubt a good run."""
    total, done = len(results.uploads), len(results.done)
    failed, wrong = sum(results.failures.values()), len(results.wrong)
    detail = " ".join(_checking(results))
    if wrong:
        stored = "the stored content differs from what was sent"
        also = f" {units.plural(failed, 'upload')} failed." if failed else ""
        return Verdict(
            Mood.BAD,
            f"Wrong content: {units.plural(wrong, 'upload')} of {done:,}",
            f"In {units.plural(wrong, 'finished upload')} {stored}.{also} {detail}",
        )
    if failed:
        return Verdict(
            Mood.BAD, f"Failed: {units.plural(failed, 'upload')} of {total:,}", detail
        )
    if not done:
        return Verdict(
            Mood.ATTENTION,
            "No result: no upload finished",
            "The run ended before any upload was complete.",
        )
    if results.stopped:
        return Verdict(
            Mood.ATTENTION,
            f"No failure, but {units.plural(results.stopped, 'upload')} of {total:,} "
            "did not finish",
            f"The run {_why_stopped(results)}. {detail}",
        )
    headline = f"All {units.plural(done, 'upload')} finished"
    if done == 1:
        headline = "The upload finished"
    if results.checks.get(CheckedBy.DIGEST, 0) == done:
        # "The upload finished and is intact", "All 2 uploads finished and are intact".
        headline += " and is intact" if done == 1 else " and are intact"
        return Verdict(Mood.GOOD, headline, detail)
    return Verdict(Mood.ATTENTION, f"{headline}; not all content was compared", detail)


def _why_stopped(results: Results) -> str:
    if results.interrupted:
        return "was interrupted"
    if results.settings.duration is not None:
        return f"was limited to {units.duration(results.settings.duration)}"
    return "ended early"


def _checking(results: Results) -> Iterator[str]:
    """Yield how the content of finished uploads was checked."""
    checks = results.checks
    if by_digest := checks.get(CheckedBy.DIGEST, 0):
        yield (
            f"{units.plural(by_digest, 'upload')} read back from the server and "
            "compared with what was sent, by digest."
        )
    if by_length := checks.get(CheckedBy.LENGTH, 0):
        yield (
            f"{units.plural(by_length, 'upload')} compared by length only, which "
            "does not find wrong bytes."
        )
    if results.unchecked:
        yield f"{units.plural(results.unchecked, 'finished upload')} not checked at all."


# ------------------------------------------------------------------------- figures


def figures(results: Results) -> list[Figure]:
    """Return all figures of the run, the most important first."""
    return [
        *_bytes(results),
        *_times(results),
        *_disturbances(results),
        *_costs(results),
    ]


def _bytes(results: Results) -> Iterator[Figure]:
    yield Figure(
        "Throughput",
        units.rate(results.throughput),
        f"{units.size(results.sent)} in {units.duration(results.seconds)}",
        "All content that was sent, with repeated bytes, divided by the duration of the load.",
    )
    yield Figure(
        "Goodput",
        units.rate(results.goodput),
        f"{units.size(results.stored)} in finished uploads",
        "Only the content of uploads that finished and are not wrong, divided by the same "
        "duration. This is the rate that users get.",
    )
    again = results.sent_again / results.sent if results.sent else 0.0
    yield Figure(
        "Sent again",
        units.size(results.sent_again),
        f"{units.share(again)} of what was sent",
        "Bytes that had to be sent again after a cut. The number is small if the server keeps "
        "the bytes that arrived before the cut.",
    )


def _times(results: Results) -> Iterator[Figure]:
    yield _latency(
        "Time to resume",
        results.resume,
        "From a cut to the first new byte that the server took. "
        "Waiting on purpose does not count.",
        "Nothing was resumed in this run.",
    )
    yield _latency(
        "Offset query",
        results.offset_query,
        "How long the server takes to say how much of an upload it has.",
        "The server was never asked how much it has.",
    )
    yield _latency(
        "Upload duration",
        results.upload_seconds,
        "From an upload's first connection to the server's final answer, cuts included.",
        "No upload finished.",
    )
    fairness = results.fairness
    yield Figure(
        "Fairness",
        "\u2013" if fairness is None else units.factor(fairness),
        "fastest upload to slowest",
        "How many times faster the fastest upload was than the slowest: 1 is fair."
        if fairness is not None
        else "A comparison needs two finished uploads.",
    )


def _latency(name: str, latency: Latency | None, meaning: str, without: str) -> Figure:
    if latency is None:
        return Figure(name, "\u2013", "", without)
    return Figure(
        name,
        f"{units.duration(latency.p50)} p50",
        f"{units.duration(latency.p90)} p90 \u00b7 {units.duration(latency.p99)} p99 \u00b7 "
        f"{units.duration(latency.max)} max",
        f"{meaning} Half of the {units.count(latency.count)} took no longer than p50, "
        "99 in 100 no longer than p99.",
    )


def _disturbances(results: Results) -> Iterator[Figure]:
    cuts = results.cuts
    kinds = " \u00b7 ".join(
        f"{n:,} {fault.kind.value.upper()} in the {fault.place.value}"
        if fault.place.value != "response"
        else f"{n:,} {fault.kind.value.upper()} before the response"
        for fault, n in sorted(cuts.items(), key=lambda item: -item[1])
    )
    yield Figure(
        "Cuts",
        units.count(sum(cuts.values())),
        kinds,
        "Connections that the load generator ended on purpose: FIN closes the connection in "
        "order, RST resets it, SILENCE leaves it open and never uses it again.",
    )
    if results.kills:
        down = [kill.up - kill.down for kill in results.kills if kill.up is not None]
        yield Figure(
            "Server kills",
            units.count(len(results.kills)),
            f"down for {units.duration(sum(down))} in all"
            if down
            else "never came back",
            "How often the server was killed and started again while uploads ran.",
        )
    failures = results.failures
    yield Figure(
        "Failed uploads",
        units.count(sum(failures.values())),
        " \u00b7 ".join(f"{n:,} {ending.value}" for ending, n in failures.items()),
        "Uploads that were given up. A cut alone is no failure, because the upload continues.",
    )


def _costs(results: Results) -> Iterator[Figure]:
    cpu, server = results.server_cpu_per_gib, results.server
    if server is not None and cpu is not None:
        user, system = results.server_user_per_gib, results.server_system_per_gib
        yield Figure(
            "Server CPU per GiB",
            f"{cpu:.2f} s",
            f"{user:.2f} s user \u00b7 {system:.2f} s system",
            "CPU seconds of the server for each GiB that was sent. User is its own code, "
            "system is the kernel's work for it. Child processes are included.",
        )
    if server is not None:
        yield Figure(
            "Server memory",
            units.size(server.peak_resident),
            "peak, resident",
            "The most memory that the server's processes held.",
        )
    if results.generators:
        busiest = max(results.generators, key=_busy)
        yield Figure(
            "Load generator",
            units.share(busiest.busy),
            f"of a core, {units.plural(len(results.generators), 'process', 'processes')}",
            "How busy the load generator's busiest process was. Near 100 % the load generator "
            "limits the rate, not the server.",
        )


def _busy(generator: Generator) -> float:
    return generator.busy


# ------------------------------------------------------------------------ uploads


def url_to_show(url: str) -> str:
    """Return *url* without user name and password, because people pass reports on."""
    parts = urlsplit(url)
    if "@" not in parts.netloc:
        return url
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def unhappy(results: Results) -> list[tuple[Upload, str]]:
    """Return wrong and failed uploads, each with the reason; wrong ones come first."""
    wrong = [
        (upload, f"wrong content: {upload.check.detail}" if upload.check else "")
        for upload in results.wrong
    ]
    failed = [
        (upload, ": ".join(filter(None, [ENDINGS[upload.ending], _detail(upload)])))
        for upload in results.uploads
        if upload.failed
    ]
    return wrong + failed


def _detail(upload: Upload) -> str:
    if upload.detail or not upload.attempts:
        return upload.detail
    last = upload.attempts[-1]
    return last.detail or (f"status {last.status}" if last.status else "")
