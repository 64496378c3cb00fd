"""The catalog in PostgreSQL, which several nodes of a cluster share."""
