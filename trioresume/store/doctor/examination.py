"""The examination of what a cluster is built on."""

from __future__ import annotations

from collections.abc import Iterator

from trioresume.errors import CallerError
from trioresume.store.doctor.findings import ProbeResult
from trioresume.store.objects.address import ObjectsAddress, parse_address

__all__ = ["examine"]


def examine(
    *, catalog: str | None = None, objects: str | None = None
) -> Iterator[ProbeResult]:
    """Probe the database of *catalog* and the bucket of *objects*, one thing after the other.

    *catalog* is a URL such as ``postgresql://user@host/database``, and *objects* one such as
    ``s3://bucket/prefix``. The findings come as they are made, which takes some seconds. The
    probes put a few small objects and make a table for the moment, and remove them. Blocks.
    Raises :class:`CallerError` for a URL that is none, and if the extra ``cluster`` is not
    installed.
    """
    address = None if objects is None else parse_address(objects)
    if catalog is not None and not catalog.startswith(("postgresql://", "postgres://")):
        raise CallerError("the catalog is at postgresql://…, or postgres://…")
    return _findings(catalog, address)


def _findings(
    catalog: str | None, address: ObjectsAddress | None
) -> Iterator[ProbeResult]:
    try:
        from trioresume.store.doctor.bucket import examine_bucket
        from trioresume.store.doctor.database import examine_database
    except ImportError as exc:
        raise CallerError(
            'install the extra for clusters: pip install "trioresume[cluster]"'
        ) from exc
    if catalog is not None:
        yield from examine_database(catalog)
    if address is not None:
        yield from examine_bucket(address)
