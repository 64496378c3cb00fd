"""For the administrator: listing, verifying, repairing and sweeping a data directory."""
