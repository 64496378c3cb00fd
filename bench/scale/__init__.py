"""Measurements against how much is stored, rather than how fast it arrives."""
