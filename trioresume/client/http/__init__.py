"""HTTP as the client speaks it: connections, requests, and one round trip of both.

``connector`` makes connections and ``pool`` keeps them. ``requests`` makes the request
of an action, ``round_trip`` sends it and reads the response, and ``response_sinks`` say
where a response's content goes.
"""
