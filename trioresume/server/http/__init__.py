"""From the socket to an exchange: listeners, connections, HTTP/1.1, bodies in and out."""
