"""Tests of ``trioresume/server/async_store``."""
