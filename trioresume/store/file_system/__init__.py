"""The local file system: its calls, the lock of a data directory, its free space."""
