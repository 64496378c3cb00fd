"""Makes an upload's method and URL from the settings and the upload's name."""

from __future__ import annotations

import re

from trioresume.bench.probe import Destination
from trioresume.bench.settings import Settings
from trioresume.errors import CallerError
from trioresume.protocol.urls import Url

__all__ = ["destination_of"]

_PLACE = "{id}"
_METHOD = re.compile(r"[A-Z]{1,20}")


def destination_of(settings: Settings, name: str) -> Destination:
    """Return the target of the upload called *name*. Raises :class:`CallerError`."""
    text = settings.url
    collection = text.partition("?")[0].endswith("/") and _PLACE not in text
    method = settings.method or ("POST" if collection else "PUT")
    if _METHOD.fullmatch(method) is None:
        raise CallerError(f"{method!r} is no method")
    if method == "PUT" and collection:
        path, mark, query = text.partition("?")
        text = path + _PLACE + mark + query
    url = Url.parse(text.replace(_PLACE, name))
    return Destination(method, url, name, settings.chunk, settings.interop_version)
