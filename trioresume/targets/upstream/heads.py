"""Which fields go to a backend, and which come back. Sans-IO.

What is sent is made anew from parsed fields. The rules are those of RFC 9110, section 7.6,
with a few that gateways have learnt:

* The fields that this server itself writes never come from a client, in no spelling. WSGI and
  CGI see ``X_Forwarded_For`` under the same name as ``X-Forwarded-For``.
* What ``Connection`` names is dropped first. So nobody can have a field removed that is
  written afterwards.
* The content is whole and its length is known. So the fields of the upload's protocol are
  dropped, and the digest of the first piece.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from trioresume.protocol.dialects.plain_request import UPLOAD_FIELDS
from trioresume.protocol.fields import split_list
from trioresume.protocol.forwarded import UNIX_PEER, host_of
from trioresume.protocol.heads import Fields, end_to_end_fields

if TYPE_CHECKING:
    from trioresume.protocol.heads import RequestHead
    from trioresume.targets.upstream.endpoints import Endpoint

__all__ = [
    "ForwardedWith",
    "conveyed_fields",
    "forwarded_fields",
    "is_upgrade",
    "public_fields",
    "returned_fields",
    "with_sender",
]

ForwardedWith = Literal["x-forwarded", "forwarded", "none"]
"""The fields that tell a backend who sent a request."""

_OWN = frozenset(
    {
        "forwarded",
        "x-forwarded-for",
        "x-forwarded-host",
        "x-forwarded-port",
        "x-forwarded-proto",
        "x-forwarded-server",
        "x-original-method",
        "x-original-uri",
        "x-forwarded-method",
        "x-forwarded-uri",
        "x-real-ip",
    }
)
"""Fields by which a proxy speaks to a backend."""

_FRAMING = frozenset(
    {"content-length", "expect", "host", "proxy-authorization", "transfer-encoding"}
)
"""Fields of a request that belong to one hop, or are written anew."""

_OF_UPLOADS = UPLOAD_FIELDS | {"incremental"}
"""The fields of the protocols: they describe how the content came, not the content."""

_ANSWERED_HERE = frozenset({"acknowledge", "resume", "transaction"})
"""Preferences that only this server can respect."""


def with_sender(head: RequestHead, family: ForwardedWith) -> Fields:
    """Return the fields of *head*, with those that say who sent it.

    The head that is recorded does not know its connection any more.
    """
    kept = Fields(line for line in head.fields if line[0].replace("_", "-") not in _OWN)
    return kept.plus(forwarded_fields(head, family))


def forwarded_fields(head: RequestHead, family: ForwardedWith) -> Fields:
    """Return the fields that tell who sent *head*, to which name, over what."""
    if family == "none":
        return Fields()
    client = (host_of(head.peer) or head.peer).strip("[]")
    if head.peer == UNIX_PEER:
        client = ""  # no node that these fields could name
    scheme = head.origin.partition("://")[0]
    if not scheme:
        scheme = "http" if head.tls is None else "https"
    host = head.fields.get("host") or ""
    if family == "x-forwarded":
        told = {"x-forwarded-for": client, "x-forwarded-proto": scheme}
        told |= {"x-forwarded-host": host}
        return Fields((name, value) for name, value in told.items() if value)
    node = f'"[{client}]"' if ":" in client else client or "unknown"
    said = f"for={node};proto={scheme}"
    if host:
        said += f';host="{host}"' if ":" in host else f";host={host}"
    return Fields({"forwarded": said})


def conveyed_fields(fields: Fields, *, is_recorded: bool) -> Fields:
    """Return the fields of a request that go on to the backend, without Host and framing.

    *fields* are those of :func:`with_sender`. *is_recorded* says that the content came by a
    protocol for uploads, or at least was stored.
    """
    kept = end_to_end_fields(fields)
    unwanted = set(_FRAMING)
    if is_recorded:
        unwanted |= _OF_UPLOADS
        if "upload-complete" in fields or "tus-resumable" in fields:
            unwanted.add("content-digest")  # of the first piece
    # Own fields that Connection named are back in: it must not remove them.
    own = [line for line in fields if line[0] in _OWN and line[0] not in kept]
    lines = [
        (name, value)
        for name, value in (*kept, *own)
        if name.replace("_", "-") not in unwanted and name != "prefer"
    ]
    wishes = _wishes(fields)
    if wishes:
        lines.append(("prefer", wishes))
    via = fields.get("via")
    lines = [line for line in lines if line[0] != "via"]
    lines.append(("via", f"{via}, 1.1 trioresume" if via else "1.1 trioresume"))
    return Fields(lines)


def _wishes(fields: Fields) -> str:
    """Return the preferences that the backend can respect."""
    if "prefer" in split_list((fields.get("connection") or "").lower()):
        return ""
    wishes = split_list(fields.get("prefer") or "")
    kept = [wish for wish in wishes if _name(wish) not in _ANSWERED_HERE]
    return ", ".join(kept)


def _name(preference: str) -> str:
    name, _, _ = preference.partition(";")[0].partition("=")
    return name.strip(" \t").lower()


def is_upgrade(fields: Fields) -> bool:
    """Whether the message asks for, or grants, another protocol on its connection."""
    named = split_list((fields.get("connection") or "").lower())
    return "upgrade" in named and "upgrade" in fields


def returned_fields(fields: Fields) -> Fields:
    """Return the fields of a response that go back to the client."""
    return end_to_end_fields(fields)


def public_fields(fields: Fields, endpoint: Endpoint, root: str) -> Fields:
    """Return the fields of a response, with locations that the client can reach.

    A backend that does not know its public name gives its own. *root* precedes the path in
    every location that clients are told.
    """
    if "location" not in fields and "content-location" not in fields:
        return fields
    return Fields(
        (name, _public(value, endpoint, root))
        if name in ("location", "content-location")
        else (name, value)
        for name, value in fields
    )


def _public(location: str, endpoint: Endpoint, root: str) -> str:
    try:
        parts = urlsplit(location)
        port = parts.port
    except ValueError:
        return location  # not a URI: it is the client's to judge
    path = location
    if parts.netloc:
        default = {"http": 80, "https": 443}.get(parts.scheme)
        origin = endpoint.origin
        same = (parts.hostname, port or default) == (origin.host, origin.port)
        if not same or parts.scheme not in ("", origin.scheme) or parts.username:
            return location
        path = location.partition("//")[2]
        path = path[len(parts.netloc) :]
        if not path.startswith("/"):
            path = "/" + path
    elif not location.startswith("/"):
        return location
    within = path == endpoint.base or path.startswith(
        (f"{endpoint.base}/", f"{endpoint.base}?")
    )
    if endpoint.base and not within:
        return location
    if not parts.netloc and not endpoint.base:
        return location
    path = path[len(endpoint.base) :] or "/"
    if path.startswith("//"):
        return location  # it would name another host
    return root + path
