"""Imports point one way only, and the inner layers stay free of what is outside them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "trioresume"

# What each layer may import of the package besides itself. ``server`` and
# ``client`` stand side by side: neither knows the other.
MAY_IMPORT: dict[str, set[str]] = {
    "errors": set(),
    "text": set(),
    "protocol": {"errors", "text"},
    "store": {"errors", "protocol"},
    "ui": {"errors"},
    "server": {"errors", "text", "protocol", "store", "ui"},
    "client": {"errors", "protocol", "store"},
    "identity": {"errors", "text", "protocol", "server", "client"},
    "targets": {"errors", "text", "protocol", "store", "ui", "server", "client"},
    "bench": {"errors", "protocol", "client", "text"},
    # The command uses what an embedding program could use, and no more; beside that,
    # how text is read, and shown on a terminal.
    "cli": {"errors", "text", "trioresume", "asgi", "bench"},
}
MAY_IMPORT["hooks"] = MAY_IMPORT["targets"] | {"targets"}
MAY_IMPORT["asgi"] = MAY_IMPORT["hooks"] | {"hooks"}
MAY_IMPORT["testing"] = MAY_IMPORT["asgi"]
# The package itself: what it exports comes from any layer that is not the command's.
MAY_IMPORT["trioresume"] = MAY_IMPORT["asgi"] | {"identity"}
MAY_IMPORT["__main__"] = {"cli"}
MAY_IMPORT["hatch_build"] = set()  # hatchling runs it, without the package

CONCURRENCY = {"trio", "asyncio", "threading", "multiprocessing", "concurrent", "queue"}
WORLD = {
    "datetime",
    "fcntl",
    "glob",
    "io",
    "mmap",
    "os",
    "pathlib",
    "random",
    "select",
    "selectors",
    "shutil",
    "signal",
    "socket",
    "sqlite3",
    "ssl",
    "subprocess",
    "tempfile",
    "time",
}
# Sans-IO: no files, no sockets, no clocks, nobody to wait for. The store may
# have threads call it, but it does not know of trio.
FORBIDDEN: dict[str, set[str]] = {
    "errors": CONCURRENCY | WORLD | {"h11"},
    "text": CONCURRENCY | WORLD | {"h11"},
    "protocol": CONCURRENCY | WORLD,
    "store": {"trio", "asyncio", "socket", "h11"},
}


def modules() -> list[Path]:
    """Every module of the package."""
    return sorted(PACKAGE.rglob("*.py"))


def layer_of(path: Path) -> str:
    """The folder or the top-level module that *path* belongs to."""
    first = path.relative_to(PACKAGE).parts[0]
    return "trioresume" if first == "__init__.py" else first.removesuffix(".py")


def imports(path: Path) -> Iterator[str]:
    """The absolute dotted name of everything *path* imports, wherever it does so.

    Imports for type checkers count: a type is knowledge, too.
    """
    package = ["trioresume", *path.relative_to(PACKAGE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"), path)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*base, *filter(None, [node.module])])
            # `from trioresume import errors` imports a layer, not the package.
            yield from (
                f"{origin}.{alias.name}" if origin == "trioresume" else origin
                for alias in node.names
            )


def imported_layer(name: str) -> str | None:
    """The layer that the dotted *name* belongs to, None outside the package."""
    first, _, rest = name.partition(".")
    if first != "trioresume":
        return None
    second = rest.partition(".")[0]
    is_module = (PACKAGE / second).is_dir() or (PACKAGE / f"{second}.py").is_file()
    return second if second and is_module else "trioresume"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_inward_only(path: Path) -> None:
    """No module imports one of an outer layer, not even for type checking."""
    layer = layer_of(path)
    allowed = MAY_IMPORT[layer] | {layer}
    outward = {
        name
        for name in imports(path)
        if (target := imported_layer(name)) is not None and target not in allowed
    }
    assert not outward


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_inner_layers_do_no_io(path: Path) -> None:
    """The protocol knows no clock, file, socket or trio; the store knows no trio."""
    layer = layer_of(path)
    roots = {name.partition(".")[0] for name in imports(path)}
    forbidden = FORBIDDEN.get(layer, set())
    if path.parent == PACKAGE / "store" / "remote":
        forbidden = forbidden - {"socket"}  # the catalog is at its other end
    assert not roots & forbidden
    if layer in ("errors", "protocol", "text"):
        calls = {
            node.func.id
            for node in ast.walk(ast.parse(path.read_text("utf-8"), path))
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name)
        }
        assert not calls & {"open", "input", "print"}


# What each wing of the server may import of the others. ``serving`` puts them together.
WINGS: dict[str, set[str]] = {"event_loop": set(), "parts": set()}
WINGS["async_store"] = {"event_loop"}
WINGS["api"] = {"async_store", "parts"}
WINGS["http"] = {"event_loop", "async_store", "api"}
WINGS["uploads"] = WINGS["http"] | {"http"}
WINGS["shared"] = WINGS["uploads"] | {"uploads"}
WINGS["keeper"] = {"uploads"}
WINGS["routes"] = WINGS["uploads"] | {"uploads"}
WINGS["doorman"] = WINGS["http"] | {"http"}
WINGS["watch"] = WINGS["doorman"] | {"parts", "uploads", "doorman"}
WINGS["admin"] = WINGS["watch"] | {"watch", "keeper"}
WINGS["checks"] = WINGS["http"] | {"http"}
WINGS["serving"] = {*WINGS}
WINGS["workers"] = {*WINGS}
CLIENT_WINGS: dict[str, set[str]] = {
    "decisions": set(),
    "content": {"decisions"},
    "http": {"decisions", "content"},
}
"""The same for the client. The modules beside the wings put them together."""
STORE_WINGS: dict[str, set[str]] = {"port": set(), "file_system": set()}
STORE_WINGS["catalog"] = {"port", "file_system"}
STORE_WINGS["disk"] = STORE_WINGS["catalog"] | {"catalog"}
STORE_WINGS["keeper"] = STORE_WINGS["disk"] | {"disk"}
STORE_WINGS["remote"] = STORE_WINGS["disk"] | {"disk"}
STORE_WINGS["objects"] = {"port"}
STORE_WINGS["postgres"] = {"port", "catalog"}
STORE_WINGS["doctor"] = {"port", "objects"}
STORE_WINGS["disk_store"] = STORE_WINGS["keeper"] | {"keeper"}
STORE_WINGS["shared_disk_store"] = STORE_WINGS["disk_store"] | {"disk_store", "remote"}
STORE_WINGS["cluster_store"] = {"port", "objects"}
STORE_WINGS["open_cluster"] = {"port", "objects", "postgres", "cluster_store"}
"""The same for the store. The modules beside the wings put them together."""
LAYERS = {"server": WINGS, "client": CLIENT_WINGS, "store": STORE_WINGS}
SINGLE_MODULES = {
    "event_loop",
    "parts",
    "checks",
    "doorman",
    "serving",
    "disk_store",
    "cluster_store",
    "open_cluster",
    "shared_disk_store",
}
"""Wings of one module."""
MOST_MODULES = 13
"""A wing with more modules wants to be two."""


def wing_of(layer: str, path: Path) -> str:
    """The folder or the module below *layer* that *path* belongs to."""
    return path.relative_to(PACKAGE / layer).parts[0].removesuffix(".py")


def modules_in(*layers: str) -> list[Path]:
    """Every module of *layers*."""
    return [
        path for layer in layers for path in sorted((PACKAGE / layer).rglob("*.py"))
    ]


@pytest.mark.parametrize(
    "path", modules_in(*LAYERS), ids=lambda p: str(p.relative_to(PACKAGE))
)
def test_wings_point_one_way(path: Path) -> None:
    """No wing imports one that is built on it, not even for type checking."""
    layer = layer_of(path)
    wings = LAYERS[layer]
    wing = wing_of(layer, path)
    if wing == "__init__" or (layer == "client" and path.parent.name == "client"):
        return
    prefix = f"trioresume.{layer}."
    known = {
        n.removeprefix(prefix).partition(".")[0] for n in imports(path) if prefix in n
    }
    assert known <= wings[wing] | {wing}


# What answers requests knows of ``http`` only this port, whatever carries the requests.
HTTP_PORT = {
    "trioresume.server.http.exchange",
    "trioresume.server.http.stored_body",
}
CARRIERS = {"h11", "h2", "hpack", "hyperframe", "select", "socket", "ssl"}


@pytest.mark.parametrize(
    "path",
    [
        path
        for wing in ("routes", "uploads")
        for path in sorted((PACKAGE / "server" / wing).glob("*.py"))
    ],
    ids=lambda p: str(p.relative_to(PACKAGE)),
)
def test_routes_and_uploads_know_only_the_port_of_http(path: Path) -> None:
    """They import no carrier: neither HTTP/1.1's modules, nor h11, h2, TLS or sockets."""
    names = set(imports(path))
    assert {n for n in names if n.startswith("trioresume.server.http")} <= HTTP_PORT
    assert not {n.partition(".")[0] for n in names} & CARRIERS


@pytest.mark.parametrize("module", sorted(HTTP_PORT))
def test_the_port_of_http_knows_no_carrier(module: str) -> None:
    """The port's modules import none of the others of ``http``, and no carrier."""
    names = set(imports(PACKAGE.parent / (module.replace(".", "/") + ".py")))
    assert {n for n in names if n.startswith("trioresume.server.http")} <= HTTP_PORT
    assert not {n.partition(".")[0] for n in names} & CARRIERS


def test_carriers_do_not_know_each_other() -> None:
    """Each folder in ``http`` is a carrier: it imports from ``http`` itself, not from another."""
    http = PACKAGE / "server" / "http"
    carriers = {p.name for p in http.iterdir() if (p / "__init__.py").exists()}
    for path in http.rglob("*.py"):
        own = path.relative_to(http).parts[0]
        known = {
            n.removeprefix("trioresume.server.http.").partition(".")[0]
            for n in imports(path)
        }
        assert known & carriers <= {own}, path


def test_carriers_of_the_client_are_behind_their_port() -> None:
    """``http1`` and ``http2`` do not know each other, and only the pool knows both."""
    http = PACKAGE / "client" / "http"
    for path in http.rglob("*.py"):
        prefix = "trioresume.client.http."
        known = {n.removeprefix(prefix).partition(".")[0] for n in imports(path)}
        own = path.relative_to(http).parts[0]
        if own != "pool.py":
            assert known & {"http1", "http2"} <= {own}, path


@pytest.mark.parametrize("layer", LAYERS)
def test_wings_are_small_and_known(layer: str) -> None:
    """Every folder is a wing in the order above, and no wing is a heap."""
    folders = [p.parent for p in (PACKAGE / layer).rglob("*/__init__.py")]
    outer = {folder.name for folder in folders if folder.parent == PACKAGE / layer}
    assert outer == LAYERS[layer].keys() - SINGLE_MODULES
    for folder in (PACKAGE / layer, *folders):
        held = [p for p in folder.glob("*.py") if p.name != "__init__.py"]
        assert len(held) <= MOST_MODULES, folder.name


def test_the_command_knows_only_the_face_of_the_benchmark() -> None:
    """``trioresume.bench`` and its ``report`` are public, the modules within are not."""
    names = {name for path in (PACKAGE / "cli").glob("*.py") for name in imports(path)}
    public = {"trioresume.bench", "trioresume.bench.report"}
    assert {n for n in names if imported_layer(n) == "bench"} <= public


def test_every_layer_is_known() -> None:
    """A new folder or top-level module needs its place in the order."""
    assert {layer_of(path) for path in modules()} <= set(MAY_IMPORT)


def test_the_order_has_no_way_back() -> None:
    """The table above is itself free of cycles, once the package's own face is left out."""
    remaining = {k: v - {"trioresume", k} for k, v in MAY_IMPORT.items()}
    while remaining:
        free = {name for name, needs in remaining.items() if not needs & set(remaining)}
        assert free, f"a cycle among {sorted(remaining)}"
        for name in free:
            del remaining[name]
