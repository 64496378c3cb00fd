"""Which clients take a ``100 Continue`` that they did not ask for with ``Expect``.

RFC 9110, section 15.2, has every client take any interim response, and ``Prefer: resume``
and ``Prefer: acknowledge`` are answered with 100s (R5, R30). But undici, the HTTP client
in Node, closes the connection at a 100, and reports an error: it never sends ``Expect``. It
takes other interim responses.

Two marks tell such a client, and cost others nothing:

* ``Sec-Fetch-Mode`` comes from an implementation of fetch: a browser's, or undici's. None
  of them shows its caller an interim response, so a 100 is of no use to any.
* ``User-Agent`` names Node's fetch or undici. A program that uses another interface of
  undici, which sends neither field, can send this one.

For the rest there is a setting: ``Config.continue_without_expect``.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trioresume.protocol.heads import Fields

__all__ = ["takes_unasked_continue"]

_PRODUCTS = frozenset({"node", "undici"})


def takes_unasked_continue(fields: Fields) -> bool:
    """Whether the sender of a request with *fields* can be sent a 100 without ``Expect``."""
    if "sec-fetch-mode" in fields:
        return False
    product, _, _ = (fields.get("user-agent") or "").partition(" ")
    return product.partition("/")[0].lower() not in _PRODUCTS
