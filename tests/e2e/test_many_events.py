"""Requests that make much work of few bytes, against the real command (G5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.command import Service
from tests.e2e.many_events import ATTACKS, attack

MIB = 1024 * 1024
MOST_MEMORY = 48 * MIB
"""Bytes beyond those before: pieces of the receive memory that are touched, and little."""
MOST_CPU = 15.0  # seconds, on a slow machine; without the limits it is 35 and more
"""Seconds. The figures in docs/threat-model.md are below one; tests run on busy machines."""


@pytest.mark.parametrize("name", ATTACKS)
async def test_much_work_of_few_bytes_is_bounded(
    name: str, make_service: Callable[..., Service]
) -> None:
    """The full form is ``python -m tests.e2e.many_events``; see its text."""
    service = make_service()
    service.start()
    figures = await attack(service, name)
    print(figures)  # noqa: T201 - pytest shows it on failure and with -s
    assert figures.peak < MOST_MEMORY, figures
    assert figures.cpu < MOST_CPU, figures
    service.stop()
    service.check_log()
