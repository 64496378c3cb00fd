"""Dialects: how clients speak to the one engine, and how it answers them.

There is one kind of upload, one record of it and one receive path. A *dialect* is the
part in which the protocols differ: the fields in which a request states something, and
the fields, statuses and interim responses of the answer. It is sans-IO and holds no
state::

    request head ──creation()──► Creation   the upload that a request to a target begins
                 ──append()────► Append     the content that a PATCH of an upload adds

    Upload ──announcement()─► Interim       says where the upload is
           ──progress()─────► Interim       says how much is durable
           ──created()──────► Reply         answers a first request that leaves it incomplete
           ──offset()───────► Reply         answers HEAD
           ──appended()─────► Reply         answers a PATCH that leaves it incomplete
           ──completed()────► Fields        is added to the target's own response,
                              or a Reply    replaces the target's response
           ──cancelled()────► Reply         answers DELETE
    PeerError ──problem()───► PeerError     the same fault in the dialect's words

The server (:mod:`trioresume.server.routes.router`, :mod:`~trioresume.server.routes.operation_resources`) asks
:func:`classify` once for each request and keeps the answer in ``Exchange.dialect``.
Takeover, receiving, durability and completion are then the same for all dialects.

:class:`Dialect` itself is the seed's. What no other dialect overrides is the answer to
a client without any marker, the *union answer* (section E of
docs/supported-protocols.md). The seed's resources and preferences combine with any
other dialect. So they are not here but in the server, under ``Prefer: resume``.

The dialects disagree about an upload itself in one point only: when it is complete.
Three rules decide, by the request that writes its end:

* a request that says so (RUFH's ``Upload-Complete: ?1``) completes the upload, and so
  does the seed's first request;
* a request that denies it (``?0``) does not complete the upload, wherever it ends;
* a request that says nothing (a byte range, a tus PATCH) completes the upload if it
  ends at the length.

``Creation.explicit_completion`` is stored with the upload. If it is not set, and an
upload is found whole after a crash or a full disk, the next request for it completes
it.
"""

from trioresume.protocol.dialects.base import (
    Append,
    AppendRules,
    Creation,
    Dialect,
    Interim,
    Reply,
    Upload,
    UploadLimits,
)
from trioresume.protocol.dialects.classify import UNION, classify, discovery_fields

__all__ = [
    "UNION",
    "Append",
    "AppendRules",
    "Creation",
    "Dialect",
    "Interim",
    "Reply",
    "Upload",
    "UploadLimits",
    "classify",
    "discovery_fields",
]
