"""The regression gate: the cost of a request, in numbers that other programs do not disturb.

``python -m bench.gate`` compares the numbers with the bounds in ``bench/gate/bounds.toml``
and exits with 1 if one is above its bound; ``.ci/run`` runs it. Elapsed time is no such
number: on a machine that others use it doubles without any change of the code. So the gate
counts:

* **calls** of functions, Python's and C's, in all threads of the service;
* **bytes and blocks** that the interpreter has allocated: the bytes of an idle connection
  and of a stalled upload, and the blocks that finished requests leave behind;
* **resident memory** of an idle connection over TLS and over HTTP/2, and of a stalled stream of
  HTTP/2: OpenSSL's memory is none of the interpreter's;
* **system calls**, by strace, where it is installed;
* the **way** of three requests through the code, in modules, classes and functions
  (``--trace`` counts only these, with the functions of each module; ``--names`` lists
  them); and
* **CPU time**, as the best of a few ratios to the bare loop (:mod:`bench.rawloop`), each
  measured within seconds. This number does vary, so its bound is wide.

One client does one thing after the other, so no number depends on the timing of concurrent
requests. A bound is a decision: ``python -m bench.gate --write`` replaces all bounds by the
measured figures and some slack (a tenth for most), and the commit message says what a
higher figure buys. If a figure is far below its bound, the gate says so: lower the bound
then.
"""
