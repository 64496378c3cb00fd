"""Tests of what watches a service."""
