"""HTTP requests that survive any cut: a resumable-upload server and client.

The layers, from the inside out; imports point inward only::

    errors      one tree, one table of problem codes
    text        decoding text, and the characters that are dangerous to show
    protocol    sans-IO: fields, patches, the operation's state table, schedule
    store       synchronous: chunks, tails, the catalog, and the port they implement
    server      trio: listeners, connections, the receive path, operations, expiry
    client      trio: a client that resumes
    identity    who sent a request: passwords, JWTs, signed addresses
    targets     the handlers of complete requests, such as the file service
    hooks       who is told of uploads, and asked about them
    bench       load with cuts, against any server, and its measurements
    cli         the command, which uses only the names exported here

The public names are those exported here, by :mod:`trioresume.bench` and by
:mod:`trioresume.testing`.
"""

from trioresume.client import (
    BodyInput,
    Client,
    ClientResponse,
    ClientTls,
    Journal,
    ProcessingProgress,
    Progress,
    ProtocolName,
    RememberedUpload,
    RetryPolicy,
    upload,
)
from trioresume.errors import (
    CallerError,
    ClientError,
    CollectionCut,
    PeerError,
    ProblemCode,
    StorageError,
    StorageFull,
    StorageUnavailable,
    StoreLocked,
    TargetUnavailable,
    TransferFailed,
    TrioresumeError,
    UploadForgotten,
    WorkersFailed,
)
from trioresume.hooks.answers import HookFailed
from trioresume.hooks.events import HookEvent, HookKind
from trioresume.hooks.settings import Hooks
from trioresume.hooks.transports.executable import ExecutableHooks
from trioresume.hooks.transports.http import HTTPHooks
from trioresume.hooks.transports.transport import HookFunction, HookTransport
from trioresume.identity.any_of import AnyOf
from trioresume.identity.downloads import Downloads
from trioresume.identity.htpasswd import PasswordFile
from trioresume.identity.jwt import JsonWebTokens
from trioresume.identity.signed_addresses import (
    SignedAddresses,
    SigningKey,
    sign_download,
    sign_upload,
)
from trioresume.protocol.heads import Fields, RequestHead
from trioresume.protocol.signed_address import without_signature
from trioresume.protocol.tls_facts import ClientCertificate, TLSFacts
from trioresume.server.api.access_log import AccessLog
from trioresume.server.api.client_certificates import client_certificates
from trioresume.server.api.config import (
    Authenticator,
    Config,
    Grant,
    Principal,
    Rejection,
)
from trioresume.server.api.handler import (
    CallPolicy,
    ContentFile,
    Handler,
    Request,
    RequestBody,
    Response,
    Target,
    idempotent,
)
from trioresume.server.api.rules import Rule
from trioresume.server.api.tls import Certificate, TLSSettings
from trioresume.server.api.tokens import BearerTokens, bearer_tokens, new_token
from trioresume.server.api.watching import WatchSettings
from trioresume.server.checks import Finding, check_config
from trioresume.server.keeper.backup import BackupReport, backup, restore
from trioresume.server.keeper.changes import Keeper, open_keeper
from trioresume.server.keeper.collect import collect
from trioresume.server.keeper.control_socket import ask_to_retry as retry
from trioresume.server.keeper.imports import (
    Imported,
    ImportSource,
    ImportState,
    import_directory,
)
from trioresume.server.keeper.outbox import change_events
from trioresume.server.serving import Server, serve
from trioresume.server.workers.parent import Workforce, serve_workers
from trioresume.server.workers.seat import Seat, take_seat
from trioresume.server.workers.worker import serve_worker
from trioresume.store.doctor.examination import examine
from trioresume.store.doctor.findings import ProbeResult, Verdict
from trioresume.store.keeper.export import Export, Exported, ExportState, Metadata
from trioresume.store.keeper.inventory import (
    Inventory,
    StoredEvent,
    StoredFile,
    StoredUpload,
    Totals,
)
from trioresume.store.keeper.verification import Damage, DamageKind, Verification
from trioresume.store.objects.places import ObjectPlace
from trioresume.store.port import Collected
from trioresume.targets.applications.asgi import ASGITarget
from trioresume.targets.applications.wsgi import WSGITarget
from trioresume.targets.files import FileService
from trioresume.targets.object_files import ObjectFiles
from trioresume.targets.upstream.auth_request import AuthRequest
from trioresume.targets.upstream.target import UpstreamTarget
from trioresume.ui.appearance import PageAppearance

__all__ = [
    "ASGITarget",
    "AccessLog",
    "AnyOf",
    "AuthRequest",
    "Authenticator",
    "BackupReport",
    "BearerTokens",
    "BodyInput",
    "CallPolicy",
    "CallerError",
    "Certificate",
    "Client",
    "ClientCertificate",
    "ClientError",
    "ClientResponse",
    "ClientTls",
    "Collected",
    "CollectionCut",
    "Config",
    "ContentFile",
    "Damage",
    "DamageKind",
    "Downloads",
    "ExecutableHooks",
    "Export",
    "ExportState",
    "Exported",
    "Fields",
    "FileService",
    "Finding",
    "Grant",
    "HTTPHooks",
    "Handler",
    "HookEvent",
    "HookFailed",
    "HookFunction",
    "HookKind",
    "HookTransport",
    "Hooks",
    "ImportSource",
    "ImportState",
    "Imported",
    "Inventory",
    "Journal",
    "JsonWebTokens",
    "Keeper",
    "Metadata",
    "ObjectFiles",
    "ObjectPlace",
    "PageAppearance",
    "PasswordFile",
    "PeerError",
    "Principal",
    "ProbeResult",
    "ProblemCode",
    "ProcessingProgress",
    "Progress",
    "ProtocolName",
    "Rejection",
    "RememberedUpload",
    "Request",
    "RequestBody",
    "RequestHead",
    "Response",
    "RetryPolicy",
    "Rule",
    "Seat",
    "Server",
    "SignedAddresses",
    "SigningKey",
    "StorageError",
    "StorageFull",
    "StorageUnavailable",
    "StoreLocked",
    "StoredEvent",
    "StoredFile",
    "StoredUpload",
    "TLSFacts",
    "TLSSettings",
    "Target",
    "TargetUnavailable",
    "Totals",
    "TransferFailed",
    "TrioresumeError",
    "UploadForgotten",
    "UpstreamTarget",
    "Verdict",
    "Verification",
    "WSGITarget",
    "WatchSettings",
    "WorkersFailed",
    "Workforce",
    "backup",
    "bearer_tokens",
    "change_events",
    "check_config",
    "client_certificates",
    "collect",
    "examine",
    "idempotent",
    "import_directory",
    "new_token",
    "open_keeper",
    "restore",
    "retry",
    "serve",
    "serve_worker",
    "serve_workers",
    "sign_download",
    "sign_upload",
    "take_seat",
    "upload",
    "without_signature",
]
