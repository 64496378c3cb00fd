"""Requests that make much work of few bytes, against the real command (G5)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.command import Service
from tests.e2e.many_events import ATTACKS, attack, bare_h11

MIB = 1024 * 1024
MOST_MEMORY = 48 * MIB
"""Bytes beyond those before: pieces of the receive memory that are touched, and little."""
MOST_CPU = 0.9
"""As a multiple of :func:`bare_h11`: what h11 alone takes for 3 MiB in chunks of a byte. That
is 2.4 s on the machine of docs/threat-model.md, where the attacks take 0.3 of it at most, and
took 14.5 of it without the limits. The ratio does not depend on how fast the machine is."""
MOST_CPU_OF_REQUESTS = 3.2
"""The same for attacks that are thousands of requests: 1.2 of it at most."""


@pytest.mark.parametrize("name", ATTACKS)
async def test_much_work_of_few_bytes_is_bounded(
    name: str, make_service: Callable[..., Service]
) -> None:
    """The full form is ``python -m tests.e2e.many_events``; see its text."""
    service = make_service()
    service.start()
    before = bare_h11()
    figures = await attack(service, name)
    bare = (before + bare_h11()) / 2
    print(figures, f"bare h11: {bare:.1f} s")  # noqa: T201 - pytest shows it on failure
    most = MOST_CPU_OF_REQUESTS if ATTACKS[name].repeated else MOST_CPU
    assert figures.peak < MOST_MEMORY, figures
    assert figures.cpu < most * bare, (figures, bare)
    service.stop()
    service.check_log()
