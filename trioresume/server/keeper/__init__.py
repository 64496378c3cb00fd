"""How a keeper's command reaches the process that serves a data directory."""
