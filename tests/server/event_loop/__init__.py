"""Tests of ``trioresume/server/event_loop``."""
