"""All servers on the same work, in turn, many times: ``python -m bench.compare``.

A *case* is a server and a protocol, a *work* is a number of uploads at once with or
without cuts. A round runs every case on every work, in an order drawn anew each
time, the cases of one work next to each other; the first round is smaller and thrown
away. Only runs of one round are set in relation.
"""
