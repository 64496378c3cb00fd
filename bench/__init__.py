"""Measurements of trioresume from a checkout; not part of the installed package.

``python -m bench.upload`` compares uploads into ``trioresume serve`` with the
bare loop of :mod:`bench.rawloop`; ``python -m bench.memory`` watches the
server's memory during one large upload. Linux only: the figures come from
``/proc``, the content lies in a memfd.
"""
