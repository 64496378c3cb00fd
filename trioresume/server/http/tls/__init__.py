"""TLS: certificates, handshakes, and sockets whose bytes are encrypted."""
