"""ASGI and WSGI applications in this process, as targets."""
