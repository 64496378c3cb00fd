"""Fuzzing of everything that reads a peer's bytes; see ``python -m tests.fuzz --help``."""
