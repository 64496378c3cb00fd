"""Several processes for one service: a parent that keeps the catalog, and its workers."""
