"""Much hashing for few bytes, against the real command (C15)."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.e2e.command import Service
from tests.e2e.hashing import attack

SECONDS = 1.5
CLAIM = f"Repr-Digest: sha-256=:{'A' * 43}=:"


@pytest.mark.parametrize("asked", ["Want-Repr-Digest: sha-512=1, sha-256=2", CLAIM])
async def test_hashing_for_few_bytes_is_bounded(
    asked: str, make_service: Callable[..., Service]
) -> None:
    """Forty requests name 24 GiB each. The full form is ``python -m tests.e2e.hashing``."""
    service = make_service()
    service.start()
    figures = await attack(service, SECONDS, asked)
    print(figures)  # noqa: T201 - pytest shows it on failure and with -s
    # It was as much as there were processors, and went on for minutes.
    assert figures.cpu < 1.3 * SECONDS, figures
    assert figures.afterwards < 0.2 * SECONDS, figures
    service.stop()
    service.check_log()
