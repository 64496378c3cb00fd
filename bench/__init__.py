"""Measurements of trioresume from a checkout; not part of the installed package.

``python -m bench.compare`` runs it beside other servers (``python -m bench.peers``)
and the machine's limits on the same work; ``python -m bench.memory`` watches the
server's memory during one large upload. The load is that of ``trioresume bench``.
Linux only: the figures come from ``/proc``, the content lies in a memfd.
"""
