"""Tests of ``trioresume/server/routes``."""
