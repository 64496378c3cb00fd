"""Each dialect is tested over each carrier."""

from __future__ import annotations

from tests.server.carriers import carrier, over_each_carrier as pytest_generate_tests

__all__ = ["carrier", "pytest_generate_tests"]
