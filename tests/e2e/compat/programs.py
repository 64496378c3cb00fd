"""The drivers as commands: built once, kept in a cache, skipped where a tool is missing."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import platformdirs
import pytest

from tests.e2e.compat.registry import Client

__all__ = ["command_of"]

DRIVERS = Path(__file__).with_name("drivers")
BUILD_SECONDS = 240
GO_MODULES = {
    "gohttp": "",
    "gotus": "github.com/eventials/go-tus",
    "tusgo": "github.com/bdragon300/tusgo",
}


def command_of(client: Client) -> list[str]:
    """The command that does trials with *client*; its arguments follow.

    Skips the test if the client's language, or its package, cannot be had here.
    """
    if client.driver == "python":
        return _python(client)
    if client.driver == "node":
        _need("node")
        return ["node", str(DRIVERS / "node.mjs"), client.key]
    if client.driver == "jdk":
        return [*_java("Jdk.java"), "Jdk"]
    if client.driver == "tusjava":
        return [*_java("TusJava.java", client.version), "TusJava"]
    return [str(_go(client.driver, client.version) / "program")]


def _python(client: Client) -> list[str]:
    if client.key == "wget":
        _need("wget")
    elif client.key.startswith("pycurl"):
        pytest.importorskip("pycurl", reason="pycurl has no wheel for this system")
    return [sys.executable, str(DRIVERS / "python_drivers.py"), client.key]


def _java(source: str, version: str = "") -> list[str]:
    _need("javac")
    path = DRIVERS / source

    def build(folder: Path) -> None:
        classes = []
        if version:
            _need("mvn")
            artifact = f"io.tus.java.client:tus-java-client:{version}"
            goal = ["mvn", "-q", "-B", "dependency:copy", f"-Dartifact={artifact}"]
            _build([*goal, f"-DoutputDirectory={folder}"], folder, is_fetching=True)
            classes = ["-cp", str(folder / f"tus-java-client-{version}.jar")]
        _build(["javac", "-d", str(folder), *classes, str(path)], folder)

    folder = _cached(f"{source}-{version}", [path], build)
    return [
        "java",
        "-cp",
        os.pathsep.join([str(folder), *map(str, folder.glob("*.jar"))]),
    ]


def _go(driver: str, version: str) -> Path:
    _need("go")
    source = DRIVERS / driver / "main.go"
    module = GO_MODULES[driver]

    def build(folder: Path) -> None:
        shutil.copy(source, folder)
        needs = f"\nrequire {module} {version}\n" if module else ""
        (folder / "go.mod").write_text(f"module compat\n\ngo 1.21\n{needs}")
        command = ["go", "build", "-mod=mod", "-o", "program", "."]
        _build(command, folder, is_fetching=bool(module))

    return _cached(f"{driver}-{version}", [source], build)


def _cached(name: str, sources: list[Path], build: Callable[[Path], None]) -> Path:
    """The folder that *build* filled from *sources*, now or in an earlier run."""
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources))
    safe = name.replace("/", "-").replace(" ", "-")
    cache = platformdirs.user_cache_path("trioresume-tests", ensure_exists=True)
    folder = cache / f"compat-{safe}-{digest.hexdigest()[:16]}"
    if not folder.exists():
        # A folder of that name is complete: it is built elsewhere, and then renamed.
        with tempfile.TemporaryDirectory(dir=cache, ignore_cleanup_errors=True) as new:
            build(Path(new))
            try:
                os.rename(new, folder)
            except OSError:
                if not folder.is_dir():
                    raise
    return folder


def _need(program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"{program} is not installed")


def _build(command: list[str], folder: Path, *, is_fetching: bool = False) -> None:
    done = subprocess.run(
        command,
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BUILD_SECONDS,
        check=False,
    )
    if done.returncode != 0 and is_fetching:
        pytest.skip(f"{command[0]} could not fetch it: {done.stderr[-500:]}")
    assert done.returncode == 0, done.stdout + done.stderr
