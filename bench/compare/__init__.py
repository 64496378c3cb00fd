"""``python -m bench.compare``: the same work for all servers, in turn, many times.

A *case* is a server and a protocol. A *work* is a number of uploads at once, with or
without cuts. A round runs every case on every work, in a new random order, with the
cases of one work next to each other. The first round is smaller, and its figures are
discarded. Only runs of the same round are compared.
"""
