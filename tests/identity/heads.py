"""Heads of requests as authenticators get them."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from trioresume import Fields, RequestHead

__all__ = ["basic", "bearer", "head"]


def head(
    method: str = "GET",
    target: str = "/",
    fields: Mapping[str, str] | None = None,
    *,
    peer: str = "127.0.0.1",
    origin: str = "",
) -> RequestHead:
    """The head of a request without content."""
    return RequestHead(
        method=method,
        target=target,
        fields=Fields(fields or {}),
        http_version="1.1",
        peer=peer,
        origin=origin,
    )


def basic(name: str, password: str | bytes) -> dict[str, str]:
    """The field with a name and a password (RFC 7617)."""
    if isinstance(password, str):
        password = password.encode()
    data = base64.b64encode(name.encode() + b":" + password).decode()
    return {"Authorization": f"Basic {data}"}


def bearer(token: str) -> dict[str, str]:
    """The field with a token (RFC 6750)."""
    return {"Authorization": f"Bearer {token}"}
