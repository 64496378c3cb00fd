"""A store in another process: the wire to its keeper, and the client's side of it."""
