"""HTTP/1.1 as the client speaks it: one request at a time on a connection."""
