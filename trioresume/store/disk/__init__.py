"""Content in a directory: tails and chunks, and their writers and readers."""
