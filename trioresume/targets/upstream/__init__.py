"""A backend on the other side of HTTP: requests reach it once, and whole.

``heads`` has the rules for fields, ``endpoints`` the backends, ``connections`` the way to
them, ``round_trip`` one request and its response, ``passing`` requests that stream through.
``target`` and ``auth_request`` put them together. ``target`` tells what is promised.
"""
