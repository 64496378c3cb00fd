"""The program of a worker process, started by its path: it must end with its parent from now on.

The package takes a while to import, and a parent may be killed meanwhile. Its worker would have
the listening sockets and the data directory's lock until it notices, and the service could not
start again. So this file imports nothing of the package before the system knows that this
process ends with its parent.

The words of its command line are: the parent's process id, and those of
:mod:`trioresume.cli.service.worker`.
"""

import os
import sys

_PR_SET_PDEATHSIG = 1
_SIGKILL = 9

if __name__ == "__main__":
    # Python puts the folder of this file first, whose modules are none of the top level.
    del sys.path[0]
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, _SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit(1)  # it has ended already

    from trioresume.cli.service.worker import main

    sys.exit(main(sys.argv[2:]))
