"""One upload of the benchmark in this process, without the generator's own ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from trioresume.bench import Ending, Settings, Upload
from trioresume.bench.check import check
from trioresume.bench.content import Region
from trioresume.bench.destination import destination_of
from trioresume.bench.pipe import Counts
from trioresume.bench.plan import plan
from trioresume.bench.protocol_probes import make_probe
from trioresume.bench.upload_run import Link, ServerLife, UploadRun

__all__ = ["drive"]


async def drive(
    settings: Settings,
    number: int = 0,
    *,
    life: ServerLife | None = None,
    started: Callable[[UploadRun], None] | None = None,
) -> Upload:
    """Upload *number* of the plan, with its check if it finished."""
    planned = plan(settings)[number]
    destination = destination_of(settings, planned.name)
    origin = destination.url.origin
    zero = time.monotonic()
    link = Link(
        settings,
        (origin.host, origin.port),
        origin,
        life or ServerLife(),
        lambda: time.monotonic() - zero,
    )
    probe = make_probe(settings.protocol, destination, planned.size)
    with Region.make(settings.seed, planned.size) as region:
        uploader = UploadRun(link, probe, planned, region, Counts())
        if started is not None:
            started(uploader)
        upload = await uploader.run()
        if upload.ending is Ending.DONE:
            upload = replace(upload, check=await check(link, probe, planned, region))
    return upload
