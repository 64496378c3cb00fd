"""One upload of the benchmark in this process, without the generator's own ones."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from trioresume.bench import Ending, Settings, Upload
from trioresume.bench.check import check
from trioresume.bench.content import Region
from trioresume.bench.dialects import make_dialect
from trioresume.bench.plan import plan
from trioresume.bench.targets import target_of
from trioresume.bench.upload import Link, ServerLife, Uploader

__all__ = ["drive"]


async def drive(
    settings: Settings,
    number: int = 0,
    *,
    life: ServerLife | None = None,
    started: Callable[[Uploader], None] | None = None,
) -> Upload:
    """Upload *number* of the plan, with its check if it finished."""
    planned = plan(settings)[number]
    target = target_of(settings, planned.name)
    origin = target.url.origin
    zero = time.monotonic()
    link = Link(
        settings,
        (origin.host, origin.port),
        origin,
        life or ServerLife(),
        lambda: time.monotonic() - zero,
    )
    dialect = make_dialect(settings.protocol, target, planned.size)
    with Region.make(settings.seed, planned.size) as region:
        uploader = Uploader(
            link,
            dialect,
            planned,
            region,
            on_sent=lambda count: None,
            on_cut=lambda: None,
            on_resumed=lambda: None,
        )
        if started is not None:
            started(uploader)
        upload = await uploader.run()
        if upload.ending is Ending.DONE:
            upload = replace(upload, check=await check(link, dialect, planned, region))
    return upload
