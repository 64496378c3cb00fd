"""HTML with escaping by type: a plain string is always text and gets escaped."""

from __future__ import annotations

from html import escape

__all__ = ["Html", "element", "void"]


class Html(str):
    """A string that is already markup. Only this module and fixed texts make one."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | None) -> Html:
    """Return ``<name …>children</name>``. Children that are not :class:`Html` are escaped.

    An attribute None is left out. ``class_`` becomes ``class``, and other underscores
    become hyphens.
    """
    inner = "".join(
        child if isinstance(child, Html) else escape(child) for child in children
    )
    return Html(f"{void(name, **attributes)}{inner}</{name}>")


def void(name: str, /, **attributes: str | None) -> Html:
    """Return ``<name …>``, for elements without content."""
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>")
