"""The seed: *Partial and Resumable Requests in HTTP*, the main protocol.

A client asks with ``Prefer: resume``. The server answers with a 100 that offers three
locations (R1): of the request's content, of the response message, and of the result.
After a cut the client asks the content's location how much arrived (HEAD, R12), and
appends the rest (PATCH, R15).

- ``server``: how requests without a marker are read, and how their answers are worded.
  The seed has no marker of its own. So its answers to HEAD and PATCH also serve clients
  that are in no dialect at all (section E of docs/supported-protocols.md).
  It also reads ``Prefer``: preferences combine with the other dialects.
- ``client``: the requests of a client, and how it reads the answers.

Statement numbers such as R1 are defined in docs/supported-protocols.md.
"""
