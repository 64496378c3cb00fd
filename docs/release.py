"""Build what a release consists of, and try it: ``python -m docs.release``.

It builds the sdist and, from it, the wheel with the page of ``--ui``, and checks both. Then it
installs the wheel into a fresh environment, and uploads with it outside the checkout: the
command and the server are killed in the middle, and go on.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parent.parent
SECONDS = 300
SIZE = 16 * 1024 * 1024
READY = "You can now upload files to: "


def run(command: Sequence[object], folder: Path) -> str:
    """Run *command* in *folder*. Return what it printed; leave with that if it fails."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if done.returncode != 0:
        sys.exit(f"{command[0]} failed:\n{done.stdout}")
    return done.stdout


def build(work: Path) -> Path:
    """Return the wheel. It is made from the sdist, has the page, and an index would take both."""
    tools = work / "tools"
    run([sys.executable, "-m", "venv", tools], work)
    run([tools / "bin/pip", "install", "--quiet", "build", "twine"], work)
    dist = work / "dist"
    run([tools / "bin/python", "-m", "build", "--outdir", dist, ROOT], work)
    run([tools / "bin/twine", "check", "--strict", *dist.iterdir()], work)
    (wheel,) = dist.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        if "trioresume/ui/dist/page.js" not in archive.namelist():
            sys.exit("The wheel lacks the page of --ui. Are node and npm installed?")
    return wheel


def start(trioresume: Path, work: Path, bind: str) -> tuple[subprocess.Popen[str], str]:
    """Start a server with the page. Return it and its address."""
    server = subprocess.Popen(
        [trioresume, "serve", "--ui", "--bind", bind, "--data-dir", work / "data"],
        cwd=work,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert server.stdout is not None
    for line in server.stdout:
        if line.startswith(READY):
            return server, line.removeprefix(READY).strip()
    sys.exit(f"The server did not start: {server.wait()}")


def stored(work: Path) -> int:
    """How many bytes the data directory has."""
    files = (work / "data").rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def try_wheel(wheel: Path, work: Path) -> None:
    """Upload with what the wheel installs; kill both sides in the middle."""
    run([sys.executable, "-m", "venv", work / "env"], work)
    run([work / "env/bin/pip", "install", "--quiet", wheel], work)
    trioresume = work / "env/bin/trioresume"
    content = os.urandom(SIZE)
    (work / "big.bin").write_bytes(content)
    server, url = start(trioresume, work, "127.0.0.1:0")
    command: list[Path | str] = [trioresume, "upload", "--quiet", "big.bin", url]
    upload: subprocess.Popen[str] | None = None
    try:
        before = stored(work)
        slowly = [*command, "--limit-rate", "2MiB"]
        upload = subprocess.Popen(slowly, cwd=work, text=True)
        deadline = time.monotonic() + 60
        while stored(work) < before + SIZE // 4:
            if upload.poll() is not None or time.monotonic() > deadline:
                sys.exit("The upload was not cut in the middle.")
            time.sleep(0.05)
        for process in (upload, server):
            process.send_signal(signal.SIGKILL)
            process.wait()
        server, url = start(trioresume, work, url.split("/")[2])
        if "big.bin" not in run([trioresume, "uploads", "ls"], work):
            sys.exit("The command forgot its unfinished upload.")
        address = run(command, work).split()[-1]
        with urllib.request.urlopen(address, timeout=60) as answer:
            if answer.read() != content:
                sys.exit("The stored file differs.")
        with urllib.request.urlopen(url.replace("/files/", "/ui/"), timeout=60) as page:
            if b"page.js" not in page.read():
                sys.exit("The page of --ui is not served.")
    finally:
        for left in [server] if upload is None else [server, upload]:
            if left.poll() is None:
                left.kill()
                left.wait()


def main() -> None:
    """Build, check and try."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        os.environ["XDG_STATE_HOME"] = str(work / "state")
        wheel = build(work)
        try_wheel(wheel, work)
        sys.stdout.write(f"{wheel.name} is in order.\n")


if __name__ == "__main__":
    main()
