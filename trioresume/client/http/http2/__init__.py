"""HTTP/2 as the client speaks it: many requests at once on a connection."""
