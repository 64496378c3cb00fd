"""Content in an S3-compatible object store: chunks, and tails that were announced."""
