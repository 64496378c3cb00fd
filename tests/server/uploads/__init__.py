"""Tests of ``trioresume/server/uploads``."""
