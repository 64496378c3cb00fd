"""HTTP/1.1 and 1.0: connections, exchanges, and the content of requests."""
