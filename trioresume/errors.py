"""One tree of errors, split by fault, and one table of problem codes.

The side at fault decides what happens next:

* :class:`PeerError`: the peer sent something that it must not send. The error becomes
  an ``application/problem+json`` answer (RFC 9457), and the request changes nothing.
* :class:`CallerError`: the embedding program misused the Python API.
* :class:`StorageError`: the disk or the catalog could not do what was asked. Inside a
  request the error becomes a 5xx answer, and the service goes on.

Any other exception that leaves a request is a bug. The answer is a 500, and the log
gets a traceback.

Statement numbers such as G4 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "CallerError",
    "ChunkCorrupt",
    "ClientError",
    "CollectionCut",
    "ContentLost",
    "FormatVersionUnsupported",
    "OutcomeUnknown",
    "PeerError",
    "ProblemCode",
    "StaleWriter",
    "StorageConflict",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "StoreLocked",
    "TargetUnavailable",
    "TransferFailed",
    "TrioresumeError",
    "UploadForgotten",
    "UsageExceeded",
    "WorkersFailed",
]


class ProblemCode(Enum):
    """Every problem that this server reports: a stable code, a status and a title.

    Clients may rely on the code. It is the ``code`` member of the problem document. It
    is also the fragment of ``type``, unless *Resumable Uploads for HTTP* registers a
    type for the problem. The title is for people, and its wording may change.
    """

    MALFORMED_REQUEST = ("malformed-request", 400, "The request is malformed")
    BAD_CONTENT_RANGE = ("bad-content-range", 400, "The patch names no usable range")
    BAD_PATCH = ("bad-patch", 400, "The patch document is malformed")
    INCONSISTENT_LENGTH = (
        "inconsistent-length",
        400,
        "Two statements of the length contradict each other",
        "inconsistent-upload-length",
    )
    EXCESS_CONTENT = (
        "excess-content",
        400,
        "More content came than the length allows",
        "inconsistent-upload-length",
    )
    DIGEST_MISMATCH = (
        "digest-mismatch",
        400,
        "The content does not have the stated digest",
    )
    APPEND_TOO_SMALL = (
        "append-too-small",
        400,
        "The request has less content than the limit requires",
    )
    COMPLETED_UPLOAD = (
        "completed-upload",
        400,
        "The upload is complete and takes no more",
        "completed-upload",
    )
    LENGTH_OVER_LIMIT = (
        "length-over-limit",
        400,
        "The declared length is over the limit",
    )
    TLS_NEEDED = ("tls-needed", 400, "This port speaks TLS only: use https")
    BAD_FILE_NAME = ("bad-file-name", 400, "No file can be stored under this name")
    UPLOAD_REJECTED = (
        "upload-rejected",
        400,
        "A hook of the service refuses the upload",
    )
    TERMINATION_REJECTED = (
        "termination-rejected",
        400,
        "A hook of the service refuses to end the upload",
    )
    UNAUTHORIZED = ("unauthorized", 401, "Credentials are needed")
    FORBIDDEN = ("forbidden", 403, "Not allowed")
    NOT_FOUND = ("not-found", 404, "There is nothing here")
    METHOD_NOT_ALLOWED = ("method-not-allowed", 405, "The method is not allowed here")
    REQUEST_TIMEOUT = ("request-timeout", 408, "The request took too long to arrive")
    OFFSET_MISMATCH = (
        "offset-mismatch",
        409,
        "The range does not start at the current offset",
        "mismatching-upload-offset",
    )
    UPLOAD_COMPLETE = (
        "upload-complete",
        409,
        "The upload is complete already",
        "completed-upload",
    )
    SUPERSEDED = ("superseded", 409, "A newer request took over this upload")
    CONFLICT = ("conflict", 409, "The resource changed meanwhile")
    GONE = ("gone", 410, "The upload was cancelled, released or has expired")
    PRECONDITION_FAILED = ("precondition-failed", 412, "A precondition failed")
    TUS_VERSION_NOT_SUPPORTED = (
        "tus-version-not-supported",
        412,
        "This version of tus is not supported",
    )
    CONTENT_TOO_LARGE = ("content-too-large", 413, "The content is over the limit")
    URI_TOO_LONG = ("uri-too-long", 414, "The request target is too long")
    UNSUPPORTED_MEDIA_TYPE = (
        "unsupported-media-type",
        415,
        "The media type is not supported",
    )
    RANGE_NOT_SATISFIABLE = (
        "range-not-satisfiable",
        416,
        "The content has no byte in this range",
    )
    EXPECTATION_FAILED = ("expectation-failed", 417, "The expectation is not supported")
    RANGE_BEYOND_LENGTH = (
        "range-beyond-length",
        422,
        "The range goes beyond the length of the content",
    )
    TOO_MANY_REQUESTS = ("too-many-requests", 429, "Too many requests")
    TOO_MANY_UPLOADS = ("too-many-uploads", 429, "Too many uploads are open")
    CHECKSUM_MISMATCH = (
        "checksum-mismatch",
        460,
        "The content does not have the checksum that was sent with it",
    )
    HEADER_TOO_LARGE = ("header-too-large", 431, "The header section is too large")
    INTERNAL_ERROR = ("internal-error", 500, "The server failed")
    HOOK_FAILED = ("hook-failed", 500, "A hook of the service failed")
    INDETERMINATE = (
        "indeterminate",
        500,
        "The server stopped while it processed the request; whether it took effect is not known",
    )
    NOT_IMPLEMENTED = ("not-implemented", 501, "Not implemented")
    BAD_GATEWAY = ("bad-gateway", 502, "The server behind this one failed")
    OUTCOME_UNKNOWN = (
        "indeterminate",
        502,
        "The server behind this one was lost; whether the request took effect is not known",
    )
    GATEWAY_TIMEOUT = (
        "gateway-timeout",
        504,
        "The server behind this one did not answer in time",
    )
    SERVICE_UNAVAILABLE = (
        "service-unavailable",
        503,
        "The server cannot take the request now",
    )
    VERSION_NOT_SUPPORTED = (
        "version-not-supported",
        505,
        "Only HTTP/1.0 and HTTP/1.1 are supported",
    )
    INSUFFICIENT_STORAGE = ("insufficient-storage", 507, "The server has no space left")
    QUOTA_EXCEEDED = ("quota-exceeded", 507, "The quota leaves no room for the content")

    def __init__(
        self, code: str, status: int, title: str, registered: str | None = None
    ) -> None:
        self.code = code
        self.status = status
        self.title = title
        self.registered = registered
        """The name of the problem type in IANA's registry; None if the drafts register none."""

    def type_uri(self, page: str = "") -> str:
        """Return the ``type`` member of the problem document (RFC 9457, section 3.1.1).

        *page* is the server's own page of all problems, a URI reference with a full path.
        """
        if self.registered is not None:
            return f"https://iana.org/assignments/http-problem-types#{self.registered}"
        if page:
            return f"{page}#{self.code}"
        return f"urn:trioresume:problem:{self.code}"


class TrioresumeError(Exception):
    """The root of every error that trioresume raises on purpose."""


@dataclass(eq=False)
class PeerError(TrioresumeError):
    """The peer sent something wrong. The answer is a problem document.

    ``detail`` is shown to the peer. It says what was wrong with *this* request, and
    never repeats the peer's bytes unescaped (G4). ``fields`` are header fields of the
    answer, such as ``Upload-Offset``. ``members`` are further members of the problem
    document. With ``close`` the connection is closed after the answer, because its
    framing can no longer be trusted. ``body`` is the answer's content instead of the problem
    document, and ``status`` the status of that answer if it is not the problem's.
    """

    problem: ProblemCode
    detail: str = ""
    fields: tuple[tuple[str, str], ...] = ()
    members: Mapping[str, object] = field(default_factory=dict)
    close: bool = False
    body: bytes | None = None
    status: int | None = None

    def __str__(self) -> str:
        return f"{self.problem.code}: {self.detail or self.problem.title}"


class TargetUnavailable(PeerError):
    """The target cannot take the request now, and nothing of it happened: 503.

    A target or a handler raises it before it has any effect. The server keeps the content of
    a resumable request, and calls again when a request asks for the outcome, or after
    ``Config.retry_interval``. ``retry_after`` is in seconds.
    """

    def __init__(self, detail: str = "", *, retry_after: int = 2) -> None:
        super().__init__(
            ProblemCode.SERVICE_UNAVAILABLE,
            detail,
            fields=(("retry-after", str(retry_after)),),
        )


class CallerError(TrioresumeError):
    """The embedding program asked for something that makes no sense."""


class StorageError(TrioresumeError):
    """The store could not do what was asked. No part of it was done."""


class StorageFull(StorageError):
    """No space is left (ENOSPC, EDQUOT or a full catalog). The answer is a 507."""


class StorageUnavailable(StorageError):
    """The database or the object store could not be reached in time. The answer is a 503.

    What was asked may have been done, if the answer alone was lost.
    """


class OutcomeUnknown(StorageUnavailable):
    """The database was lost during a commit, and nobody can say yet whether it happened.

    Whatever the commit was about must be read again before anybody is told anything of it.
    """


class StorageConflict(StorageError):
    """A compare-and-set did not find the expected value. Nothing changed."""


class UsageExceeded(StorageConflict):
    """A submission would take somebody beyond a limit. Its argument names the limit.

    The argument is ``bytes``, ``open`` or ``total``, as in the fields of
    :class:`~trioresume.store.port.LimitUsage`.
    """

    @property
    def problem(self) -> ProblemCode:
        """The problem that a request is answered with (G5, G7)."""
        if self.args == ("open",):
            return ProblemCode.TOO_MANY_UPLOADS
        return ProblemCode.QUOTA_EXCEEDED


class StoreLocked(StorageError):
    """Another process serves this data directory."""


class CollectionCut(StorageError):
    """The service ended before the collection that it was asked for. Ask again."""


class FormatVersionUnsupported(StorageError):
    """The data directory has a format that this version does not know."""


class ChunkCorrupt(StorageError):
    """A chunk's bytes do not match its name, or the chunk is missing."""


class ContentLost(StorageError):
    """Bytes that were durable are gone. The upload cannot go on (C7)."""


class StaleWriter(StorageConflict):
    """A newer writer exists. This writer may not write any more (R21).

    If several processes share the store, also: this process does not own the operation.
    """


class WorkersFailed(TrioresumeError):
    """Worker processes cannot start, or end again and again at once."""


class ClientError(TrioresumeError):
    """The root of the errors that :class:`trioresume.Client` raises."""


class TransferFailed(ClientError):
    """The client gave up the request. ``__cause__`` is the last cause.

    ``resumable`` says that nothing is lost. Make the same request again: it goes on
    where this one ended, or it safely begins again.
    """

    def __init__(self, message: str, *, resumable: bool = False) -> None:
        super().__init__(message)
        self.resumable = resumable


class UploadForgotten(ClientError):
    """The server no longer knows the upload and its content cannot be sent again."""
