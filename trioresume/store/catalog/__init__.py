"""The catalog: operations, files and references, in SQLite."""
