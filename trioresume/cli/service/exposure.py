"""Who may use the server, in lines for the log at its start and for ``trioresume config check``."""

from __future__ import annotations

import ipaddress
import os
import shutil
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import trioresume
from trioresume.cli.service.plan import Plan
from trioresume.cli.units import size

__all__ = ["dangers", "facts", "public_downloads"]


def facts(plan: Plan, urls: Sequence[str]) -> Iterator[str]:
    """Yield a line each about addresses, senders, durability and free space."""
    config = plan.config
    yield f"listening at {', '.join(urls)}{_spoken(config, urls)}"
    yield f"who may use it: {plan.senders or 'anybody'}"
    yield from public_downloads(plan)
    path = os.path.abspath(config.data_dir)
    survived = (
        "a power loss"
        if config.durability == "disk"
        else "the end of the process, but no power loss"
    )
    yield f"data in {path}; what is acknowledged survives {survived}"
    yield f"room: {_room(config, path)}"


def public_downloads(plan: Plan) -> Iterator[str]:
    """Yield one line for each option and each rule that lets anybody read files."""
    if plan.downloads == "public":
        yield (
            "anybody who knows the name and the owner of a file may read it:"
            " --downloads public"
        )
    for rule in plan.config.rules:
        if rule.public_download:
            owner = "".join(rule.principals or ())
            yield f"anybody may read the files of {owner} at {', '.join(rule.paths)}"


def _spoken(config: trioresume.Config, urls: Sequence[str]) -> str:
    if not any(url.startswith("https:") for url in urls):
        return ", without TLS"
    oldest = ""
    if isinstance(config.ssl, trioresume.TLSSettings):
        oldest = f" {config.ssl.min_version} or newer"
    versions = "HTTP/1.1 and HTTP/2" if config.http2 else "HTTP/1.1"
    return f" (https: TLS{oldest}, {versions})"


def _room(config: trioresume.Config, path: str) -> str:
    while not os.path.isdir(path):
        path = os.path.dirname(path)
    parts = [f"{size(shutil.disk_usage(path).free)} free"]
    if config.max_stored_bytes is not None:
        parts.append(f"at most {size(config.max_stored_bytes)} in all")
    if config.max_stored_bytes_per_principal is not None:
        each = size(config.max_stored_bytes_per_principal)
        parts.append(f"at most {each} for each sender")
    if config.max_upload_size is not None:
        parts.append(f"at most {size(config.max_upload_size)} in an upload")
    return ", ".join(parts)


def dangers(plan: Plan, urls: Sequence[str]) -> Iterator[str]:
    """Yield a line for each setting that is dangerous unless it is intended."""
    config = plan.config
    public = [url for url in urls if not _is_local(url)]
    if public and plan.senders is None and plan.keeps_files:
        yield (
            f"anybody who reaches {', '.join(public)} may upload, read and delete files:"
            " see --tokens-file"
        )
    plain = [url for url in public if url.startswith("http:")]
    # In front of these is somebody who speaks TLS.
    has_proxy = config.trusted_proxies or (config.public_url or "").startswith("https:")
    if plain and plan.senders is not None and not has_proxy:
        yield (
            f"without TLS, others can read the credentials that are sent to"
            f" {', '.join(plain)}: see --ssl-certfile, or --trusted-proxy for a proxy"
        )
    if config.unix_socket_mode & 0o002 and plan.senders is None and plan.keeps_files:
        sockets = [url for url in urls if "//unix:" in url]
        if sockets:
            yield f"every user of this machine may use {', '.join(sockets)}"


def _is_local(url: str) -> bool:
    """Return whether only this machine reaches *url*."""
    if "//unix:" in url:
        return True
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host.partition("%")[0]).is_loopback
    except ValueError:
        return host == "localhost"
