"""HTTP/2 on h2: a connection, its streams, and an exchange for each stream."""
