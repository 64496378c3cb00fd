"""End to end: real processes, real sockets, real clients; killed, cut, resumed, compared.

``command`` runs the service, ``wire`` and ``uploads`` are a client that shares nothing
with the one under test, ``soak`` kills. What takes longer than CI has time for:

* ``TRIORESUME_E2E_FULL=1``: an upload of 1 GiB by the command, memory during 4 GiB, 200
  kills;
* ``python -m tests.e2e.soak --kills 1000``: kills for minutes on end;
* ``python -m tests.e2e.picture docs/howto``: the pictures of the pages, anew;
* ``python -m tests.e2e.page_throughput``: small files by the page and by Uppy;
* ``TRIORESUME_E2E_EXEC=1``: each command by an interpreter of its own (:mod:`tests.processes`);
* ``TRIORESUME_E2E_SEED=N``: what was drawn in a run that failed, once more.
"""
