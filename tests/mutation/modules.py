"""Which modules are mutated, and which tests should notice.

The modules are those in which one wrong line can lose bytes, let a stranger in, or take
more memory or time than was promised. What only looks nice, words it, or measures it is
not among them.

The tests of a module are run in two steps. First come the files that bear its name,
and those that :data:`MORE` names. If they notice nothing, all tests of the module's folder
follow. A test marked ``alone`` is about time, and so is never run.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["MODULES", "MORE", "first_tests", "further_tests"]

ROOT = Path(__file__).parent.parent.parent

MODULES: dict[str, tuple[str, ...]] = {
    "store": (
        "catalog/accountant",
        "catalog/batch",
        "catalog/catalog",
        "catalog/chunk_lists",
        "catalog/read_only",
        "catalog/log_check",
        "catalog/outbox",
        "catalog/schema",
        "catalog/unreferenced",
        "catalog/usage_triggers",
        "catalog/whole_uploads",
        "disk/chunks",
        "disk/contents",
        "disk/doubts",
        "disk/opening",
        "disk/readers",
        "disk/recovery",
        "disk/start",
        "disk/tail_files",
        "disk/tails",
        "disk/unfinished",
        "file_system/data_dir",
        "file_system/disk_io",
        "file_system/free_space",
        "keeper/backup",
        "keeper/backup_directory",
        "keeper/export",
        "keeper/restore",
        "keeper/sweep",
        "keeper/verification",
        "doctor/bucket",
        "doctor/database",
        "doctor/examination",
        "objects/address",
        "objects/bucket",
        "objects/collection",
        "objects/holds",
        "objects/places",
        "objects/plain",
        "objects/prefixes",
        "objects/readers",
        "objects/s3",
        "objects/scratch",
        "objects/tails",
        "objects/writers",
        "postgres/batch",
        "postgres/catalog",
        "postgres/connections",
        "postgres/nodes",
        "postgres/questions",
        "postgres/schema",
        "postgres/sharing",
        "port/values",
        "port/recipes",
        "disk_store",
        "cluster_store",
        "remote/client",
        "remote/codec",
        "remote/ownership",
        "remote/wire",
        "remote/worker_store",
        "shared_disk_store",
    ),
    "server": (
        "api/access_log",
        "api/rulebook",
        "api/rules",
        "api/tokens",
        "async_store/receive_memory",
        "async_store/storage",
        "async_store/threads",
        "doorman",
        "http/connection_counts",
        "workers/channel",
        "workers/parent",
        "workers/worker",
        "workers/desk",
        "workers/keeper",
        "workers/process",
        "workers/seat",
        "workers/supervisor",
        "event_loop",
        "http/listeners",
        "keeper/changes",
        "keeper/hold",
        "keeper/intake",
        "http/asgi/body",
        "http/asgi/exchange",
        "http/base_exchange",
        "http/front",
        "http/http1/body",
        "http/http1/connection",
        "http/http2/body",
        "http/http2/connection",
        "http/http2/credit",
        "http/http2/engine",
        "http/http2/exchange",
        "http/http2/outbox",
        "http/local_sockets",
        "http/paced_body",
        "http/stored_body",
        "http/transport",
        "routes/concatenation",
        "routes/operation_resources",
        "routes/representation",
        "routes/router",
        "serving",
        "shared/operations",
        "shared/ownership",
        "shared/told",
        "uploads/expiry",
        "uploads/hashing",
        "uploads/incoming_content",
        "uploads/loaded_operation",
        "uploads/locations",
        "uploads/operation",
        "uploads/quotas",
        "uploads/receive",
        "uploads/receive_patch",
        "uploads/registry",
        "uploads/target_call",
        "uploads/turns",
        "admin/changes",
        "admin/site",
        "watch/admin",
        "watch/facts",
        "watch/requests",
    ),
    "hooks": (
        "answers",
        "asking",
        "dispatcher",
        "engine",
        "events",
        "operations",
        "progress",
        "service",
        "transports/executable",
        "transports/http",
    ),
    "protocol": (
        "allowance",
        "appending",
        "bhttp",
        "byteranges",
        "chunked",
        "clock",
        "conditional",
        "cors",
        "digests",
        "fields",
        "filenames",
        "forwarded",
        "framing",
        "heads",
        "http2_engine",
        "message",
        "multipart",
        "name_templates",
        "operation",
        "parts",
        "path_patterns",
        "ranges",
        "signed_address",
        "structured",
        "urls",
        "dialects/classify",
        "dialects/rufh/client",
        "dialects/rufh/server",
        "dialects/seed/client",
        "dialects/seed/server",
        "dialects/server",
        "dialects/tus/client",
        "dialects/tus/fields",
        "dialects/tus/server",
    ),
    "client": (
        "client",
        "content/file_source",
        "content/partial_file",
        "content/response_content",
        "content/sources",
        "content/window",
        "decisions/actions",
        "decisions/portals",
        "decisions/protocol_choice",
        "decisions/resumption",
        "decisions/retry",
        "decisions/transfer",
        "http/carriers",
        "http/http1/connection",
        "http/http1/exchange",
        "http/http2/connection",
        "http/http2/engine",
        "http/http2/exchange",
        "http/http2/frames",
        "http/http2/outbox",
        "http/pool",
        "http/requests",
        "http/response_sinks",
        "http/round_trip",
        "journal",
        "download",
        "parts",
        "runner",
    ),
    "identity": (
        "any_of",
        "downloads",
        "htpasswd",
        "jwk_sets",
        "jwt",
        "signed_addresses",
    ),
    "targets": (
        "on_success/directory",
        "on_success/worker",
        "object_files",
        "upstream/connections",
        "upstream/endpoints",
        "upstream/heads",
        "upstream/passing",
        "upstream/round_trip",
        "upstream/target",
        "upstream/auth_request",
    ),
}
"""The modules, by folder of the package."""

_CATALOG = "tests/store/contract/test_catalog.py"
_COLLECTION = "tests/store/contract/test_collection.py"
_CONTENT = "tests/store/contract/test_content.py"
_LOSSES = "tests/store/crashes/test_losses.py"
_ORDER = "tests/store/crashes/test_order.py"
_STORE = "tests/store/test_disk_store.py"
_HELD = "tests/server/test_held.py"
_PATCHES = "tests/protocol/test_patches.py"
_CLIENT = ("tests/client/test_client.py", "tests/client/test_protocols.py")

_CLIENT_HTTP2 = "tests/client/test_http2.py"
_HTTP2_CONNECTION = "tests/server/http/http2/test_connection.py"
_HTTP2_ENGINE = "tests/server/http/http2/test_engine.py"

_ONCE = "tests/targets/upstream/test_once.py"
_PASSING = "tests/targets/upstream/test_passing.py"

_BACKUP = "tests/store/keeper/test_backup.py"
_SHARING = "tests/store/contract/test_sharing.py"
_REMOTE = "tests/store/remote/test_keeper.py"
_SHARED = (
    "tests/server/shared/test_elsewhere.py",
    "tests/server/shared/test_owning.py",
    "tests/server/shared/test_processing.py",
    "tests/server/shared/test_walk.py",
)
_CATALOG = "tests/store/contract/test_catalog.py"
MORE: dict[str, tuple[str, ...]] = {
    "store/postgres/batch": (_CATALOG, "tests/store/contract/test_joining.py"),
    "store/postgres/catalog": (_CATALOG, _SHARING),
    "store/postgres/connections": (_CATALOG,),
    "store/postgres/nodes": (_SHARING,),
    "store/postgres/questions": (_CATALOG, "tests/store/contract/test_outbox.py"),
    "store/postgres/schema": (_CATALOG,),
    "store/postgres/sharing": (_SHARING,),
    "targets/upstream/connections": (
        "tests/targets/upstream/test_connections.py",
        _ONCE,
        _PASSING,
    ),
    "targets/upstream/endpoints": ("tests/targets/upstream/test_heads.py", _ONCE),
    "targets/upstream/round_trip": (_ONCE, _PASSING),
    "targets/upstream/target": (_ONCE, _PASSING),
    "server/workers/desk": (_SHARING,),
    "server/workers/keeper": (_SHARING, _REMOTE),
    "store/catalog/accountant": (_CATALOG, _STORE),
    "store/disk/contents": (_CONTENT,),
    "store/disk/opening": (_CONTENT,),
    "store/remote/client": (_SHARING, _REMOTE),
    "store/remote/codec": ("tests/store/remote/test_wire.py",),
    "store/remote/ownership": (_SHARING, _REMOTE),
    "store/remote/worker_store": (_SHARING, _REMOTE),
    "store/shared_disk_store": (_SHARING, _REMOTE),
    "server/workers/parent": ("tests/e2e/test_workers.py",),
    "server/workers/worker": ("tests/e2e/test_workers.py",),
    "server/workers/channel": ("tests/server/workers/test_supervisor.py",),
    "server/workers/process": ("tests/server/workers/test_supervisor.py",),
    "server/shared/operations": _SHARED,
    "server/shared/ownership": _SHARED,
    "server/api/rulebook": (
        "tests/server/api/test_rules.py",
        "tests/server/routes/test_rules.py",
    ),
    "store/catalog/batch": (_CATALOG, _CONTENT),
    "store/catalog/catalog": (_CATALOG,),
    "store/catalog/read_only": ("tests/store/keeper/test_inventory.py",),
    "store/catalog/schema": ("tests/store/catalog/test_schema.py", _STORE),
    "store/catalog/unreferenced": (_COLLECTION,),
    "store/keeper/backup_directory": (_BACKUP,),
    "server/keeper/intake": ("tests/server/keeper/test_imports.py",),
    "store/keeper/restore": (_BACKUP,),
    "store/objects/places": ("tests/store/objects/test_plain.py",),
    "store/objects/prefixes": ("tests/store/test_cluster_store.py", _CONTENT),
    "store/objects/writers": ("tests/store/test_cluster_store.py", _CONTENT),
    "store/disk/chunks": (_ORDER, _STORE, _LOSSES),
    "store/disk/doubts": (_LOSSES,),
    "store/disk/start": (_STORE, _LOSSES),
    "store/disk/readers": ("tests/store/contract/test_extents.py", _CONTENT),
    "store/disk/recovery": (_ORDER, _CONTENT, _LOSSES),
    "store/disk/tail_files": (_ORDER, _CONTENT, _LOSSES),
    "store/disk/tails": (
        _ORDER,
        _CONTENT,
        _LOSSES,
        "tests/store/disk/test_threads.py",
    ),
    "store/disk/unfinished": (_CONTENT, _LOSSES),
    "store/file_system/data_dir": (_STORE, _LOSSES),
    "store/file_system/disk_io": (
        "tests/store/file_system/test_direct_writes.py",
        _STORE,
    ),
    "store/file_system/free_space": ("tests/store/file_system/test_reserve.py",),
    "store/catalog/outbox": ("tests/store/contract/test_outbox.py",),
    "store/keeper/sweep": (_COLLECTION, _STORE),
    "store/port/values": ("tests/store/contract/test_joining.py",),
    "store/disk_store": (_ORDER, _CONTENT),
    "hooks/answers": ("tests/hooks/test_service.py", "tests/hooks/test_transports.py"),
    "hooks/asking": ("tests/hooks/test_service.py",),
    "hooks/engine": ("tests/hooks/test_operations.py",),
    "hooks/progress": ("tests/hooks/test_service.py",),
    "hooks/events": ("tests/hooks/test_operations.py",),
    "hooks/transports/executable": ("tests/hooks/test_transports.py",),
    "hooks/transports/http": ("tests/hooks/test_transports.py",),
    "server/event_loop": (
        "tests/server/event_loop/test_round_limit.py",
        "tests/server/event_loop/test_signals.py",
        "tests/server/event_loop/test_stall_watch.py",
    ),
    "server/http/asgi/body": ("tests/asgi/test_body.py", "tests/asgi/test_app.py"),
    "server/http/asgi/exchange": ("tests/asgi/test_app.py",),
    "server/admin/changes": ("tests/server/admin/test_site.py",),
    "server/watch/facts": ("tests/server/watch/test_admin.py",),
    "server/http/http2/body": (_HTTP2_CONNECTION,),
    "server/http/http2/credit": ("tests/server/http/http2/test_credit.py",),
    "server/http/http2/exchange": (_HTTP2_CONNECTION,),
    "server/http/http2/outbox": (_HTTP2_CONNECTION,),
    "server/uploads/target_call": (
        "tests/server/uploads/test_response_writer.py",
        _HELD,
        "tests/server/routes/test_result.py",
        "tests/server/test_failures.py",
    ),
    "server/http/listeners": ("tests/server/http/test_acceptor.py",),
    "server/http/front": (
        "tests/server/http/test_connection_limits.py",
        "tests/server/http/test_gateway.py",
    ),
    "server/http/http1/connection": (
        "tests/server/http/test_hostile.py",
        "tests/server/http/test_gateway.py",
        "tests/server/routes/test_result.py",
    ),
    "server/http/base_exchange": (
        "tests/server/http/test_gateway.py",
        "tests/server/test_failures.py",
        "tests/server/routes/test_result.py",
    ),
    "server/uploads/incoming_content": (
        _HELD,
        "tests/server/async_store/test_storage.py",
        "tests/server/routes/test_content.py",
    ),
    "server/routes/concatenation": ("tests/server/dialects/test_tus_extensions.py",),
    "server/uploads/operation": (
        _HELD,
        "tests/server/routes/test_content.py",
        "tests/server/routes/test_result.py",
    ),
    "server/uploads/loaded_operation": (
        _HELD,
        "tests/server/uploads/test_resting.py",
        "tests/server/uploads/test_expiry.py",
        "tests/server/routes/test_result.py",
    ),
    "server/uploads/turns": ("tests/server/uploads/test_takeover.py",),
    "server/uploads/quotas": (_HELD,),
    "server/uploads/locations": (
        "tests/server/routes/test_result.py",
        "tests/server/http/test_gateway.py",
    ),
    "server/uploads/registry": (
        "tests/server/uploads/test_resting.py",
        "tests/server/routes/test_content.py",
    ),
    "server/http/http1/body": (
        "tests/server/http/test_receiving.py",
        "tests/server/routes/test_content.py",
    ),
    "server/http/paced_body": (
        "tests/server/http/test_trickling.py",
        "tests/server/http/test_receiving.py",
        "tests/server/http/test_many_events.py",
    ),
    "server/routes/representation": ("tests/server/routes/test_downloads.py",),
    "server/routes/operation_resources": (
        "tests/server/routes/test_content.py",
        "tests/server/routes/test_result.py",
    ),
    "server/async_store/storage": (_HELD,),
    "server/routes/router": (
        "tests/server/routes/test_result.py",
        "tests/server/dialects/test_dialects.py",
    ),
    "server/doorman": (
        "tests/server/test_shutdown.py",
        "tests/server/http/test_connection_limits.py",
    ),
    "server/serving": ("tests/server/routes/test_starting.py",),
    "server/uploads/receive_patch": (
        _HELD,
        "tests/server/routes/test_transactions.py",
        "tests/server/routes/test_content.py",
    ),
    "server/uploads/receive": (
        "tests/server/routes/test_content.py",
        "tests/server/dialects/test_rufh.py",
    ),
    "protocol/bhttp": (_PATCHES,),
    "protocol/byteranges": (_PATCHES,),
    "protocol/digests": (
        "tests/server/dialects/test_rufh.py",
        "tests/server/dialects/test_tus_extensions.py",
    ),
    "protocol/multipart": (_PATCHES,),
    "protocol/parts": (_PATCHES,),
    "protocol/clock": ("tests/protocol/test_schedule.py",),
    "protocol/filenames": ("tests/protocol/test_disposition.py",),
    "protocol/heads": (
        "tests/protocol/test_message.py",
        "tests/protocol/test_forwarded.py",
    ),
    "protocol/ranges": (
        "tests/protocol/test_fields.py",
        "tests/protocol/test_content_offset.py",
    ),
    "protocol/conditional": ("tests/protocol/test_appending.py",),
    "protocol/dialects/server": (
        "tests/protocol/test_dialects.py",
        "tests/server/dialects/test_misplaced_marks.py",
    ),
    "protocol/dialects/classify": ("tests/protocol/test_dialects.py",),
    "protocol/dialects/rufh/server": (
        "tests/protocol/test_dialects.py",
        "tests/server/dialects/test_rufh.py",
    ),
    "protocol/dialects/seed/server": (
        "tests/protocol/test_dialects.py",
        "tests/protocol/test_preferences.py",
        "tests/server/http/test_unasked_continue.py",
    ),
    "protocol/dialects/tus/fields": ("tests/protocol/test_tus_fields.py",),
    "protocol/dialects/tus/server": (
        "tests/server/dialects/test_tus.py",
        "tests/protocol/test_tus_fields.py",
    ),
    "client/content/file_source": ("tests/client/test_sources.py",),
    "client/content/partial_file": ("tests/client/test_download.py",),
    "client/content/response_content": _CLIENT,
    "client/content/sources": ("tests/client/test_sources.py",),
    "client/content/window": ("tests/client/test_sources.py", *_CLIENT),
    "client/download": ("tests/client/test_download.py",),
    "client/parts": ("tests/client/test_parts.py",),
    "client/decisions/actions": _CLIENT,
    "client/decisions/portals": ("tests/protocol/test_client_dialects.py", *_CLIENT),
    "client/decisions/protocol_choice": ("tests/client/test_protocol_choice.py",),
    "client/decisions/resumption": ("tests/client/test_transfer.py", *_CLIENT),
    "client/decisions/retry": ("tests/client/test_retry.py",),
    "client/decisions/transfer": ("tests/client/test_transfer.py",),
    "client/http/carriers": (_CLIENT_HTTP2,),
    "client/http/http1/connection": ("tests/client/test_held.py",),
    "client/http/http1/exchange": ("tests/client/test_held.py", *_CLIENT),
    "client/http/http2/connection": (_CLIENT_HTTP2, *_CLIENT),
    "client/http/http2/engine": ("tests/client/test_http2_engine.py", _CLIENT_HTTP2),
    "client/http/http2/exchange": (_CLIENT_HTTP2, *_CLIENT),
    "client/http/http2/frames": ("tests/client/test_http2_engine.py",),
    "client/http/http2/outbox": (_CLIENT_HTTP2,),
    "client/http/pool": ("tests/client/test_held.py", "tests/client/test_sockets.py"),
    "client/http/requests": _CLIENT,
    "client/http/response_sinks": _CLIENT,
    "client/http/round_trip": ("tests/client/test_held.py", *_CLIENT),
    "client/runner": _CLIENT,
    "protocol/allowance": (_HTTP2_ENGINE, "tests/client/test_http2_engine.py"),
    "protocol/http2_engine": (_HTTP2_ENGINE, "tests/client/test_http2_engine.py"),
    "protocol/dialects/rufh/client": ("tests/client/test_protocols.py",),
    "protocol/dialects/seed/client": ("tests/client/test_client.py",),
    "protocol/dialects/tus/client": ("tests/client/test_protocols.py",),
}
"""Files of tests, beside those of its own name, that are about a module."""

FURTHER: dict[str, tuple[str, ...]] = {
    "hooks": ("tests/hooks",),
    "identity": ("tests/identity",),
    "targets": ("tests/targets/upstream", "tests/targets/on_success"),
    "store": ("tests/store",),
    "server": ("tests/server", "tests/targets"),
    # The server's tests are the ones that use each parser in earnest.
    "protocol": ("tests/protocol", "tests/fuzz", "tests/server"),
    "client": ("tests/client",),
}


def path_of(module: str) -> str:
    """The file of *module*, such as ``store/disk/tails``, relative to the project's root."""
    return f"trioresume/{module}.py"


def all_modules() -> list[str]:
    """The names of all modules that are mutated, such as ``store/disk/tails``."""
    return [f"{folder}/{name}" for folder, names in MODULES.items() for name in names]


def first_tests(module: str) -> list[str]:
    """The files of tests that should notice a fault in *module*; maybe none."""
    folder, _, name = module.replace("/dialects", "").rpartition("/")
    own = sorted((ROOT / "tests" / folder).glob(f"test_{name}.py"))
    paths = [str(path.relative_to(ROOT)) for path in own]
    return [*paths, *(path for path in MORE.get(module, ()) if path not in paths)]


def further_tests(module: str) -> list[str]:
    """What is run when :func:`first_tests` notice nothing."""
    return list(FURTHER[module.partition("/")[0]])
