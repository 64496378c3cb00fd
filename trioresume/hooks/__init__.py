"""Hooks: other programs are told of uploads, and asked about them.

::

    events       what is told: the kinds, and tusd's JSON
    answers      what comes back, checked
    transports/  how: HTTP, an executable, a Python callable
    settings     the settings of an embedding program
    asking       one question or one delivery, with its limits of time
    dispatcher   delivers the events of the outbox
    progress     tells how far uploads are, while they arrive
    operations   the life of an upload, with its events in the commits of its changes
    service      the routes, with the questions before an upload begins or is cancelled
    engine       puts these together for one server

A server without hooks has none of this: the classes here take the place of the server's own
when it starts.
"""
