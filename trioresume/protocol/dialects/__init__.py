"""Dialects: the parts in which the protocols differ, for the client and for the server.

There is one kind of upload, one record of it and one receive path. A *dialect* has the
fields in which a request states something, and the fields, statuses and interim
responses of the answer. Each protocol has a room, with the side of the server, the side
of the client, and what both need: ``seed``, ``rufh`` and ``tus``. All of it is sans-IO
and holds no state.

The server's side, :class:`~trioresume.protocol.dialects.server.ServerDialect`::

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

The server asks :func:`~trioresume.protocol.dialects.classify.classify` once for each
request and keeps the answer in ``Exchange.dialect``. Takeover, receiving, durability
and completion are then the same for all dialects.

The client's side, :class:`~trioresume.protocol.dialects.client.ClientDialect`::

    begin()  ───► fields of the request that begins      offer()  ◄─── an interim response
    query()  ───► fields of a HEAD on the upload         held()   ◄─── its answer
    append() ───► fields, and a prefix, of a PATCH       is_step()◄─── its answer
                                                         created()◄─── a creation's answer

A few facts are class attributes: whether an upload is made before its content is sent,
whether its end has to be said, and how to proceed if the upload is complete but its
answer got lost.

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

The names that the server's parts share are exported here.
"""

from trioresume.protocol.dialects.classify import (
    DIALECTS,
    PLAIN,
    classify,
    discovery_fields,
    early_dialect,
    name_of_upload,
)
from trioresume.protocol.dialects.server import (
    Append,
    AppendRules,
    Creation,
    Interim,
    Reply,
    ServerDialect,
    Upload,
)
from trioresume.protocol.dialects.upload_limits import UploadLimits

__all__ = [
    "DIALECTS",
    "PLAIN",
    "Append",
    "AppendRules",
    "Creation",
    "Interim",
    "Reply",
    "ServerDialect",
    "Upload",
    "UploadLimits",
    "classify",
    "discovery_fields",
    "early_dialect",
    "name_of_upload",
]
