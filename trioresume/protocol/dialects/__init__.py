"""Dialects: how one engine is spoken to, and how it answers.

There is one kind of upload, one record of it, one receive path. A *dialect* is the part
of a protocol that differs: which fields a request says things with, and which fields,
statuses and interim responses say them back. It is sans-IO and holds no state::

    request head ──creation()──► Creation   what a request to a target begins
                 ──append()────► Append     what a PATCH of an upload's content adds

    Upload ──announcement()─► Interim       the upload exists, here it is
           ──progress()─────► Interim       so much of it is durable
           ──created()──────► Reply         the first request is over, the upload is not
           ──offset()───────► Reply         how far it is (HEAD)
           ──appended()─────► Reply         a PATCH is over, the upload is not
           ──completed()────► Fields        what to add to the target's own response,
                              or a Reply    what to answer in its stead
           ──cancelled()────► Reply         it is gone
    PeerError ──problem()───► PeerError     the same fault in the dialect's words

The server (:mod:`trioresume.server.service`, :mod:`~trioresume.server.resources`) asks
:func:`classify` once for each request, keeps the answer in ``Exchange.dialect``, and
then does for all dialects the same: takeover, receiving, durability, completion.

:class:`Dialect` itself is the seed's: what no other dialect overrides is what a client
without any marker gets, the *union answer* (PROTOCOL, section E). Its resources and
preferences combine with any other dialect, and are therefore not here but in the
server, under ``Prefer: resume``.

When an upload is complete is the one thing in which the dialects disagree about an
upload rather than about words. Three rules decide, for whoever writes its end:

* a request that says it completes (RUFH's ``Upload-Complete: ?1``, and the seed's first
  request, whose end is the end) completes;
* one that says it does not (``?0``) does not, wherever it ends;
* one that says nothing (a byte range, a tus PATCH) completes if it ends at the length.

``Creation.explicit_completion`` is remembered with the upload: without it, an upload
found whole after a crash or a full disk is completed by the next visit.
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
