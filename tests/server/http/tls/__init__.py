"""Tests of ``trioresume/server/http``."""
