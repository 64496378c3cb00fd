"""Tests of ``trioresume/server/keeper``."""
