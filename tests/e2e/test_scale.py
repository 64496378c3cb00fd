"""Starting costs the same with any number of uploads in the directory.

In small; ``python -m bench.scale.startup`` does the same with a million.
"""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

from bench.scale.startup import TAIL, build
from tests.e2e.command import Service
from tests.e2e.soak import MIB
from tests.e2e.wire import ask
from tests.platforms import reads_memory

UNFINISHED = 1_000
FINISHED = 4_000
SLACK = 6 * MIB

pytestmark = reads_memory


async def test_memory_after_the_start_does_not_depend_on_what_is_stored(
    tmp_path: Path,
) -> None:
    """None of it is read before it is asked for; after ``kill -9`` no more than before."""
    resident = []
    for name, unfinished, finished in (("a", 0, 0), ("b", UNFINISHED, FINISHED)):
        build(tmp_path / name, unfinished=unfinished, finished=finished, distinct=100)
        with closing(Service(tmp_path / name, fresh=True)) as service:
            service.start()
            if unfinished:
                service.kill()  # the next start has to look for what that left
                service.start()
            resident.append(service.resident())
            if unfinished:
                # A token as in the URL has 22 characters, and so have those of build().
                token = f"unfinished{unfinished - 1:012}"
                answer = await ask(
                    service.address, "HEAD", f"/operations/{token}/content"
                )
                assert answer.fields["upload-offset"] == str(len(TAIL))
                name_of_last = f"{finished - 1:022}"
                found = await ask(service.address, "GET", f"/files/{name_of_last}")
                assert found.status == 200
            service.stop()
            service.check_log()
    assert resident[1] - resident[0] <= SLACK
