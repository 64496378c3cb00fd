"""An upload in memory: its writer, its completion, quotas, expiry."""
