"""Measurements of trioresume from a checkout; not part of the installed package.

``python -m bench.compare`` gives the same work to trioresume, to other servers
(``python -m bench.peers``) and to programs that show the machine's limits.
``python -m bench.memory`` watches the server's memory during one large upload. The
load generator is that of ``trioresume bench``. This runs on Linux only: the figures
come from ``/proc``, and the content is in a memfd.
"""
