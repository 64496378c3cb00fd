"""Tests of ``trioresume/server/api``."""
