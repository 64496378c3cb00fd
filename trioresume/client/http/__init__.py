"""HTTP as the client speaks it: connections, requests, and one round trip of both.

``connector`` makes connections, ``carriers`` says with which version of HTTP, and ``pool``
keeps and shares them. ``requests`` makes the request of an action, ``round_trip`` sends it
and reads the response, and ``response_sinks`` say where a response's content goes.
``exchange`` is the port between a round trip and the carriers ``http1`` and ``http2``.
"""
