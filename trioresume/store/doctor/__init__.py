"""Probes of what a cluster is built on: each finding says what to do."""
