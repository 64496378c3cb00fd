"""Where the objects are: ``s3://bucket/prefix?endpoint=…``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, unquote, urlsplit

from trioresume.errors import CallerError

__all__ = ["CHECKSUMS", "ObjectsAddress", "parse_address"]

CHECKSUMS = ("crc64nvme", "sha256")
"""How the object store verifies what it gets. CRC-64/NVME takes a third of the CPU of SHA-256."""

_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"[A-Za-z0-9!_.*'()-]+(/[A-Za-z0-9!_.*'()-]+)*")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectsAddress:
    """A place in an S3-compatible object store."""

    bucket: str
    prefix: str = ""
    """Without a slash at either end. All objects' names begin with it."""
    endpoint: str | None = None
    """A URL; None for Amazon's own of the region."""
    region: str | None = None
    checksum: str = CHECKSUMS[0]
    virtual_host: bool = False
    """Whether the bucket is named in the host, and not in the path."""

    def full_name(self, name: str) -> str:
        """Return an object's name with the prefix."""
        return f"{self.prefix}/{name}" if self.prefix else name

    def __str__(self) -> str:
        where = f" at {self.endpoint}" if self.endpoint else ""
        return f"s3://{self.bucket}/{self.prefix}{where}"


def parse_address(url: str) -> ObjectsAddress:
    """Parse *url*. Raises :class:`CallerError`, whose message says what is wrong.

    Credentials are not part of it: they come from the environment (``AWS_ACCESS_KEY_ID`` and
    ``AWS_SECRET_ACCESS_KEY``, or what the machine's role gives), so that no list of processes
    and no log shows them.
    """
    parts = urlsplit(url)
    if parts.scheme != "s3":
        # The address may have a secret, so it is not repeated.
        raise CallerError("objects are at s3://BUCKET/PREFIX")
    if "@" in parts.netloc:
        raise CallerError(
            "credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not into"
            " the address of the objects"
        )
    if _BUCKET.fullmatch(parts.netloc) is None:
        raise CallerError(f"{parts.netloc!r} is not the name of a bucket")
    prefix = unquote(parts.path).strip("/")
    if prefix and (
        _PREFIX.fullmatch(prefix) is None or {".", ".."} & set(prefix.split("/"))
    ):
        raise CallerError(f"{prefix!r} cannot be a prefix of objects")
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    unknown = options.keys() - {"endpoint", "region", "checksum", "style"}
    if unknown or parts.fragment:
        named = ", ".join(sorted(unknown)) or "a fragment"
        raise CallerError(
            f"the address of the objects has {named}; it may have endpoint, region, checksum"
            " and style"
        )
    endpoint = options.get("endpoint")
    if endpoint is not None and "@" in urlsplit(endpoint).netloc:
        raise CallerError(
            "credentials belong into AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not into"
            " the endpoint of the objects"
        )
    if endpoint is not None and urlsplit(endpoint).scheme not in ("http", "https"):
        raise CallerError(f"the endpoint {endpoint!r} is not an http or https URL")
    checksum = options.get("checksum", CHECKSUMS[0])
    if checksum not in CHECKSUMS:
        raise CallerError(f"the checksum is {' or '.join(CHECKSUMS)}, not {checksum!r}")
    style = options.get("style", "path" if endpoint else "host")
    if style not in ("path", "host"):
        raise CallerError(f"the style is path or host, not {style!r}")
    return ObjectsAddress(
        bucket=parts.netloc,
        prefix=prefix,
        endpoint=endpoint,
        region=options.get("region"),
        checksum=checksum,
        virtual_host=style == "host",
    )
