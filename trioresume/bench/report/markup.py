"""HTML that is escaped because of its type: a plain string in it is always text."""

from __future__ import annotations

from html import escape

__all__ = ["Html", "element", "void"]


class Html(str):
    """A string that is markup already. Only this module and fixed text make one."""

    __slots__ = ()


def element(name: str, /, *children: str, **attributes: str | None) -> Html:
    """``<name …>children</name>``: children that are no :class:`Html` are escaped.

    An attribute None is left out; ``class_`` is ``class``, other underscores are
    hyphens.
    """
    inner = "".join(
        child if isinstance(child, Html) else escape(child) for child in children
    )
    return Html(f"{void(name, **attributes)}{inner}</{name}>")


def void(name: str, /, **attributes: str | None) -> Html:
    """``<name …>``, for elements that have no content."""
    written = "".join(
        f' {key.removesuffix("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{written}>")
