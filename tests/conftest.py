"""Fixtures that tests of every layer use; each folder adds its own."""

from __future__ import annotations
