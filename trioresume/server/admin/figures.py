"""The admin page's live figures: what one look at a running service tells.

They are sums of the metrics, so that they hold for all processes of the service together.
"""

from __future__ import annotations

import time
from collections import defaultdict
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import trio

from trioresume.server.watch.exposition import report
from trioresume.server.watch.merging import merge

if TYPE_CHECKING:
    from trioresume.server.admin.recent import RecentErrors
    from trioresume.server.watch.view import View

__all__ = ["figures"]

_PREFIX = "trioresume_"


async def figures(view: View, errors: RecentErrors, began: float) -> dict[str, Any]:
    """Return the figures of *view*, for JSON. *began* is on the monotonic clock.

    What has to be looked up in the catalog or the disk may be some seconds old; it is None
    if it was not found in time.
    """
    facts = view.facts
    async with trio.open_nursery() as looks:
        looks.start_soon(facts.stored.refresh, facts.patience)
        looks.start_soon(facts.space.refresh, facts.patience)
    reports = [report(view)]
    if view.others is not None:
        reports += await view.others.reports(facts.patience)
    sums: dict[str, float] = defaultdict(float)
    queues: dict[str, float] = {}
    for metric in merge(reports):
        for sample in metric.samples:
            sums[sample.name] += sample.value
            if "queue" in sample.labels:
                queues[sample.labels["queue"]] = sample.value

    def total(name: str) -> int:
        return round(sums[_PREFIX + name])

    config = view.config
    # These are of the service, not of a process: every process would tell the same.
    stored, space = facts.stored.result, facts.space.result
    return {
        "version": version("trioresume"),
        "now": time.time(),
        "up": time.monotonic() - began,
        "stopping": view.doorman.stopping.is_set(),
        "connections": total("connections"),
        "requests": total("requests_running"),
        "received": total("received_bytes_total"),
        "sent": total("sent_bytes_total"),
        "created": total("uploads_created_total"),
        "finished": total("uploads_finished_total"),
        "resumed": total("upload_resumptions_total"),
        "cuts": total("upload_cuts_total"),
        "problems": total("errors_total"),
        "errors": errors.count,
        "memory": total("receive_memory_bytes"),
        "memory_used": total("receive_memory_used_bytes"),
        "queues": queues,
        "uploads": None
        if stored is None
        else {state.value: count for state, count in stored.uploads.items()},
        "open_uploads": None if stored is None else stored.usage.open_uploads,
        "stored_bytes": None if stored is None else stored.usage.bytes,
        "stored_limit": config.max_stored_bytes,
        "owner_limit": config.max_stored_bytes_per_principal,
        "uploads_limit": config.max_open_uploads_per_principal,
        "hooks": config.hooks is not None,
        "events": None if stored is None else stored.events,
        "disk_free": None if space is None else space.free,
        "disk_size": None if space is None else space.total,
        "disk_kept": None if space is None else space.kept,
    }
