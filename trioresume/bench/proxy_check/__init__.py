"""Is a proxy all right? A few requests through it, with a verdict for each.

* ``wire``: one request on a connection of its own, whose content can be held back;
* ``findings``: what a check found, and what to change;
* ``checks``: the checks.
"""

from trioresume.bench.proxy_check.checks import ProxyChecks, check_proxy
from trioresume.bench.proxy_check.findings import Finding, Verdict

__all__ = ["Finding", "ProxyChecks", "Verdict", "check_proxy"]
