"""Nothing grows with bad requests: the real command's memory (G6, promise 5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.bad_requests import ARGUMENTS, ENVIRONMENT, SLACK, run
from tests.e2e.command import Service
from tests.platforms import reads_memory

pytestmark = reads_memory


@pytest.mark.slow
def test_memory_does_not_grow_with_bad_requests(
    make_service: Callable[..., Service],
) -> None:
    """The full form is ``python -m tests.e2e.bad_requests``; see its text."""
    service = make_service(*ARGUMENTS, environment=ENVIRONMENT)
    service.start()
    report = run(service, 6000)
    print(report)  # noqa: T201 - pytest shows it on failure and with -s
    assert report.requests == 6000
    assert report.statuses.total() == 6000
    assert set(report.statuses) == {400, 404, 405, 412, 414, 417, 431, 505}
    assert report.after_all - report.after_first <= SLACK
    assert service.rows("SELECT count(*) FROM operations WHERE state != 'gone'") == [
        (0,)
    ]
