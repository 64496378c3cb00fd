"""HTTP requests that survive any cut: a resumable-upload server and client.

The layers, from the inside out; imports point inward only::

    errors      one tree, one table of problem codes
    protocol    sans-IO: fields, patches, the operation's state table, schedule
    store       synchronous: chunks, tails, the catalog, and the port they implement
    server      trio: listeners, connections, the receive path, operations, expiry
    client      trio: a client that resumes
    targets     what a complete request is handed to
    cli         the command, built on nothing but what is exported here

What is exported here, and by :mod:`trioresume.testing`, is public; nothing else is.
"""

from trioresume.client import (
    BodyInput,
    Client,
    ClientResponse,
    Journal,
    Progress,
    RetryPolicy,
)
from trioresume.errors import (
    CallerError,
    ClientError,
    PeerError,
    ProblemCode,
    StorageError,
    StorageFull,
    StoreLocked,
    TransferFailed,
    TrioresumeError,
    UploadForgotten,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.server.config import Authenticator, Config, Principal, Rejection
from trioresume.server.messages import (
    CallPolicy,
    ContentFile,
    Handler,
    Request,
    RequestBody,
    Response,
    Target,
    idempotent,
)
from trioresume.server.serving import Server, serve
from trioresume.server.tokens import bearer_tokens, new_token
from trioresume.targets.files import FileService

__all__ = [
    "Authenticator",
    "BodyInput",
    "CallPolicy",
    "CallerError",
    "Client",
    "ClientError",
    "ClientResponse",
    "Config",
    "ContentFile",
    "Fields",
    "FileService",
    "Handler",
    "Journal",
    "PeerError",
    "Principal",
    "ProblemCode",
    "Progress",
    "Rejection",
    "Request",
    "RequestBody",
    "RequestHead",
    "Response",
    "RetryPolicy",
    "Server",
    "StorageError",
    "StorageFull",
    "StoreLocked",
    "Target",
    "TransferFailed",
    "TrioresumeError",
    "UploadForgotten",
    "bearer_tokens",
    "idempotent",
    "new_token",
    "serve",
]
