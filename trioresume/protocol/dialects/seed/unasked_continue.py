"""Decide which clients can take a ``100 Continue`` without having sent ``Expect``.

RFC 9110, section 15.2, requires every client to accept any interim response. So
``Prefer: resume`` and ``Prefer: acknowledge`` are answered with 100s (R5, R30). But
undici, the HTTP client in Node, never sends ``Expect``. It closes the connection at a
100 and reports an error. It accepts other interim responses.

Two marks show such a client. Other clients lose nothing by them:

* ``Sec-Fetch-Mode`` comes from an implementation of fetch: a browser's, or undici's.
  None of them shows interim responses to its caller, so none of them needs a 100.
* ``User-Agent`` names Node's fetch or undici. undici's other interfaces send neither
  field. A program that uses them can set this one.

For all other clients there is a setting: ``Config.continue_without_expect``.

Statement numbers such as R5 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = ["takes_unasked_continue"]

_PRODUCTS = frozenset({"node", "undici"})


def takes_unasked_continue(fields: Fields) -> bool:
    """Return whether the sender of *fields* accepts a 100 without ``Expect``."""
    if "sec-fetch-mode" in fields:
        return False
    product, _, _ = (fields.get("user-agent") or "").partition(" ")
    return product.partition("/")[0].lower() not in _PRODUCTS
