"""nginx, Caddy and HAProxy as processes, configured as docs/behind-a-proxy.md says.

A block of that page is taken as it stands; only names and ports are put in the place
of those that a reader has. TRIORESUME_E2E_NGINX, TRIORESUME_E2E_CADDY and
TRIORESUME_E2E_HAPROXY name other programs than those that are installed.
"""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
import time
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.certificates import authority, write_server_files
from tests.e2e.command import free_port

__all__ = [
    "CONFIGURATIONS",
    "MEASURED",
    "NAMES",
    "PAGE",
    "SECURED",
    "TITLES",
    "Proxy",
    "options",
    "run",
    "snippet",
    "unix_address",
]

TITLES = {"nginx": "nginx ", "caddy": "Caddy ", "haproxy": "HAProxy "}
NAMES = tuple(TITLES)
PAGE = Path(__file__).parents[2] / "docs/behind-a-proxy.md"
CONFIGURATIONS = [
    ["nginx", "a name of its own"],
    ["nginx", "a path of a name"],
    ["nginx", "a relay"],
    ["caddy", "a name of its own"],
    ["caddy", "a path of a name"],
    ["haproxy", "a name of its own"],
    ["haproxy", "a path of a name"],
    ["haproxy", "a relay"],
]
SECURED = [
    ["nginx", "TLS on both sides"],
    ["caddy", "TLS to the service"],
    ["caddy", "HTTP/2 to the service"],
    ["haproxy", "TLS on both sides"],
    ["haproxy", "HTTP/2 to the service"],
]
"""Proxy and title of each block of configuration on the page."""
_TEXT = PAGE.read_text("utf-8")
MEASURED = _TEXT.partition("## What was measured")[2]
START_SECONDS = 20.0

_PATH = f"{os.defpath}:/usr/local/sbin:/usr/sbin:/sbin:{os.environ.get('PATH', '')}"
# An installed nginx has these from its packages; what else it has is not wanted here.
_NGINX = """\
{modules}{user}daemon off;
pid {folder}/pid;
error_log stderr warn;
worker_processes 1;
events {{ }}
{what}
"""
_NGINX_HTTP = """\
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/unused;
    uwsgi_temp_path {folder}/unused;
    scgi_temp_path {folder}/unused;
{servers}
}}
"""
_CADDY = """\
{{
    admin off
    auto_https disable_redirects
    local_certs
    skip_install_trust
    default_bind 127.0.0.1
    grace_period 1s
}}
{sites}
"""


@dataclass(frozen=True)
class Proxy:
    """A running one. *tls_port* speaks HTTP/2, too; 0 if there is none."""

    name: str
    version: str
    port: int
    tls_port: int = 0

    @property
    def address(self) -> tuple[str, int]:
        return "127.0.0.1", self.port

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"


def snippet(name: str, title: str) -> str:
    """The page's block of configuration for the proxy *name* that is called *title*."""
    found = re.findall(
        rf"^```{name}\n# {title}\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL
    )
    assert len(found) == 1, title
    return str(found[0])


def unix_address(name: str, path: Path) -> str:
    """What the page's table writes in the place of ``127.0.0.1:8080``, for a socket at *path*."""
    (found,) = re.findall(rf"^\| {name} \| `(unix\S+)` \|$", _TEXT, re.MULTILINE)
    return str(found).replace("/run/trioresume/http.sock", str(path))


def options(name: str) -> list[str]:
    """What the page's ``behind-NAME.toml`` tells the service, as its command line."""
    (text,) = re.findall(
        rf"^# behind-{name}\.toml\n(.*?)^```$", _TEXT, re.MULTILINE | re.DOTALL
    )
    settings = tomllib.loads(text)["serve"]
    assert settings.pop("bind") == ["127.0.0.1:8080"]
    found = []
    for key, value in settings.items():
        for each in value if isinstance(value, list) else [value]:
            found += [f"--{key}", str(each)]
    return found


@contextmanager
def run(name: str, block: str, upstream: int, folder: Path) -> Iterator[Proxy]:
    """The proxy *name* with *block*, in front of what listens at port *upstream*."""
    chosen = os.environ.get(f"TRIORESUME_E2E_{name.upper()}", name)
    program = shutil.which(chosen, path=_PATH)
    if program is None:
        pytest.skip(f"{name} is not installed (on Debian: apt-get install {name})")
    block = block.replace("127.0.0.1:8080", f"127.0.0.1:{upstream}")
    port, tls_port = free_port(), free_port()
    if "/etc/ssl/" in block:
        _write_certificates(folder)
        block = block.replace("/etc/ssl/", f"{folder}/")
    if name == "nginx":
        built = _ask(program, "-V")
        command, tls_port = _nginx(program, built, block, port, folder), 0
    elif name == "haproxy":
        built = _ask(program, "-v")
        command, tls_port = _haproxy(program, block, port, folder), 0
    else:
        command = _caddy(program, block, port, tls_port, folder)
        built = _ask(program, "version")
    environment = {**os.environ, "XDG_DATA_HOME": str(folder)}
    environment["XDG_CONFIG_HOME"] = str(folder)
    log = folder / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
            cwd=folder,
        )
    try:
        _wait_for(port, process, log)
        version = re.search(r"\d+\.\d+\.\d+", built)
        assert version, built
        yield Proxy(name, version[0], port, tls_port)
    finally:
        process.terminate()
        try:
            process.wait(10)
        finally:
            process.kill()
            process.wait()


def _write_certificates(folder: Path) -> None:
    """Write the files that the page has in ``/etc/ssl``."""
    certificate, key = write_server_files(folder)
    (folder / "up.pem").write_bytes(certificate.read_bytes())
    (folder / "up.key").write_bytes(key.read_bytes())
    both = certificate.read_bytes() + key.read_bytes()
    (folder / "up-and-key.pem").write_bytes(both)
    authority().cert_pem.write_to_path(str(folder / "service-ca.pem"))


def _nginx(program: str, built: str, block: str, port: int, folder: Path) -> list[str]:
    modules = ""
    block = re.sub(r"listen (80|443)\b", f"listen 127.0.0.1:{port}", block)
    if block.startswith("stream"):
        what = block
        module = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
        if "--with-stream=dynamic" in built and module.exists():
            modules = f"load_module {module};\n"
    else:
        what = _NGINX_HTTP.format(folder=folder, servers=block)
    # Only root could change to another user, and is made to stay as it is.
    user = "user root root;\n" if os.geteuid() == 0 else ""
    file = folder / "nginx.conf"
    file.write_text(_NGINX.format(modules=modules, user=user, folder=folder, what=what))
    command = [program, "-p", str(folder), "-c", str(file), "-e", "stderr"]
    tried = subprocess.run(
        [*command, "-t"], capture_output=True, text=True, timeout=20, check=False
    )
    if 'unknown directive "stream"' in tried.stderr:
        pytest.skip("nginx has no stream module (on Debian: libnginx-mod-stream)")
    assert tried.returncode == 0, tried.stderr
    return command


def _caddy(
    program: str, block: str, port: int, tls_port: int, folder: Path
) -> list[str]:
    sites = re.sub(
        r"^\S+\.example \{",
        f"http://127.0.0.1:{port}, https://localhost:{tls_port} {{",
        block,
        flags=re.MULTILINE,
    )
    file = folder / "Caddyfile"
    file.write_text(_CADDY.format(sites=sites))
    return [program, "run", "--config", str(file), "--adapter", "caddyfile"]


def _haproxy(program: str, block: str, port: int, folder: Path) -> list[str]:
    file = folder / "haproxy.cfg"
    file.write_text(re.sub(r"bind :(80|443)\b", f"bind 127.0.0.1:{port}", block))
    command = [program, "-db", "-f", str(file)]
    tried = subprocess.run(
        [*command, "-c"], capture_output=True, text=True, timeout=20, check=False
    )
    assert tried.returncode == 0, tried.stderr
    return command


def _ask(program: str, question: str) -> str:
    """What *program* says of how it was built."""
    done = subprocess.run(
        [program, question], capture_output=True, text=True, timeout=20, check=True
    )
    return done.stdout + done.stderr


def _wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            ended = process.poll() is not None or time.monotonic() > deadline
            assert not ended, log.read_text()
            time.sleep(0.02)
        else:
            return
