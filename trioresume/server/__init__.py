"""The server: it runs the protocol's decisions over sockets and a store, with trio.

``serving`` is the entry: it opens the store, listens and shuts down. ``connection`` reads
heads, ``service`` routes requests, ``operation`` and ``incoming`` hold an upload's state and
content, ``storage`` calls the store in threads. This layer imports ``protocol`` and ``store``,
and no layer above it.
"""
