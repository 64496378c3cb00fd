"""The regression gate: what a request costs, in numbers that no other program can spoil.

``python -m bench.gate`` compares them with the bounds in ``bench/gate/bounds.toml`` and
exits with 1 if one is exceeded; ``.ci/run`` does. Time would be no such number: on a
machine that others use it doubles without any fault of ours. So it counts

* **calls** of functions, Python's and C's, in all threads of the service;
* **bytes and blocks** that the interpreter has allocated: what an idle connection and a
  stalled upload hold, and what requests leave behind when they are over;
* **system calls**, by strace, where there is one;
* the **way** of three requests through the code, in modules, classes and functions
  (``--trace`` counts only these, ``--names`` lists them); and
* **CPU time**, as the best of a few ratios to the bare loop (:mod:`bench.rawloop`), each
  taken within seconds: this one does waver, and its bound is wide.

One client does one thing after the other, so that nothing depends on what happens to
come together. A bound is a decision: ``python -m bench.gate --write`` puts what was
measured, and a tenth more, in the place of all bounds, and the commit that does so says
what the higher figure buys. A figure that fell far below its bound is told: then the
bound should follow.
"""
