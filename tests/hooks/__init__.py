"""Tests of trioresume.hooks."""
