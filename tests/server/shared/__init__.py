"""Services that share a store: each is a process of its own, played in memory."""
