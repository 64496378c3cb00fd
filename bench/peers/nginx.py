"""nginx with its DAV module: the fastest way to write a body to a file over HTTP."""

from __future__ import annotations

import getpass
import grp
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from bench.peers.cache import InstallFailed, run_logged
from bench.peers.peer import Carrier, Certificate, Launch, Peer

__all__ = ["NGINX", "NginxProxy"]

_CONFIGURATION = """\
{user}worker_processes auto;
worker_rlimit_nofile 16384;
pid {root}/pid;
daemon off;
error_log stderr error;
events {{ worker_connections 8192; }}
http {{
    access_log off;
    server_tokens off;
    default_type application/octet-stream;
    sendfile on;
    client_max_body_size 0;
    client_body_buffer_size 1m;
    # On the same filesystem, so that a finished upload is renamed and not copied:
    client_body_temp_path {root}/incoming;
    proxy_temp_path {root}/unused;
    fastcgi_temp_path {root}/unused;
    uwsgi_temp_path {root}/unused;
    scgi_temp_path {root}/unused;
    server {{
        listen 127.0.0.1:{port} backlog=4096;  # TLS is added here
        location /files/ {{
            root {root}/stored;
            dav_methods PUT DELETE;
        }}
    }}
}}
"""


@dataclass(frozen=True, kw_only=True)
class Nginx(Peer):
    """Debian's nginx: the installed one, or else one from the package, only unpacked."""

    @property
    def version(self) -> str:
        return "debian"

    def install(self, at: Path, log: Path) -> None:
        found = shutil.which("nginx", path=f"{os.defpath}:/usr/local/sbin:/usr/sbin")
        if found is not None and "http_dav_module" in _build(Path(found)):
            (at / "nginx").symlink_to(found)
            return
        for tool in ("apt-get", "dpkg-deb"):
            if shutil.which(tool) is None:
                raise InstallFailed(f"no nginx with http_dav_module, and no {tool}")
        run_logged(["apt-get", "download", "nginx"], log, cwd=at)
        (package,) = at.glob("nginx_*.deb")
        run_logged(["dpkg-deb", "--extract", str(package), str(at / "root")], log)
        (at / "nginx").symlink_to(at / "root" / "usr" / "sbin" / "nginx")
        if "http_dav_module" not in _build(at / "nginx"):
            raise InstallFailed("the package's nginx does not run, or has no DAV")

    def launch(self, at: Path, data_dir: Path, port: int) -> Launch:
        (data_dir / "stored" / "files").mkdir(parents=True, exist_ok=True)
        # nginx started by root would change to another user, so tell it to keep this one.
        group = grp.getgrgid(os.getegid()).gr_name
        user = f"user {getpass.getuser()} {group};\n" if os.geteuid() == 0 else ""
        configuration = data_dir / "nginx.conf"
        configuration.write_text(
            self.configuration().format(root=data_dir, port=port, user=user)
        )
        program = str(at / "nginx")
        return Launch(
            command=(
                *(program, "-p", str(data_dir), "-c", str(configuration)),
                *("-e", "stderr"),
            )
        )

    def configuration(self) -> str:
        """Return the text of the configuration, with gaps for root, port and user."""
        return _CONFIGURATION

    def secure(self, launch: Launch, certificate: Certificate) -> Launch:
        configuration = Path(launch.command[launch.command.index("-c") + 1])
        text = configuration.read_text()
        text = text.replace(
            "backlog=4096;  # TLS is added here",
            "backlog=4096 ssl http2;"
            f" ssl_certificate {certificate.certfile};"
            f" ssl_certificate_key {certificate.keyfile};"
            " http2_max_concurrent_streams 1000;",
        )
        configuration.write_text(text)
        return launch

    def resolved_version(self, at: Path) -> str:
        found = re.search(r"nginx/(\S+)", _build(at / "nginx"))
        return found[1] if found else self.version


_PROXY = """\
        location / {{{{
            proxy_pass {backend};
            proxy_request_buffering on;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
        }}}}
"""


@dataclass(frozen=True, kw_only=True)
class NginxProxy(Nginx):
    """The same nginx in front of *backend*: it receives each request, and sends it on."""

    backend: str

    def configuration(self) -> str:
        start, _, rest = _CONFIGURATION.partition("        location /files/ {{\n")
        end = rest.partition("        }}\n")[2]
        return start + _PROXY.format(backend=self.backend) + end


def _build(program: Path) -> str:
    """Return *program*'s description of its build; no text if it does not run."""
    try:
        done = subprocess.run(
            [program, "-V"],
            capture_output=True,
            text=True,
            timeout=30,
            check=False,
        )
    except OSError:
        return ""
    return done.stderr


NGINX = Nginx(
    name="nginx",
    protocols=("plain",),
    hashes="none",
    syncs="none",
    carriers=(Carrier.PLAIN, Carrier.TLS, Carrier.HTTP2),
    settings="DAV PUT, a worker per core, body buffers of 1 MiB, temporary files on "
    "the same filesystem, no access log",
)
