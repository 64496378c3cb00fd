"""ASGI as a carrier of exchanges: the requests come from somebody else's server."""
