"""Stored files as plain objects, in the object store of a cluster.

The object is composed by the object store before the file's response is recorded. A crash in
between composes it again, under the same name. The object belongs to whoever reads the bucket:
it stays when the file is deleted or expires, unless a rule of the bucket removes it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Literal

import trio

from trioresume.errors import CallerError
from trioresume.protocol.filenames import content_disposition_attachment
from trioresume.protocol.name_templates import NameTemplate
from trioresume.store.cluster_store import ClusterStore
from trioresume.store.objects.places import ObjectPlace
from trioresume.store.port import OperationId, request_key

if TYPE_CHECKING:
    from trioresume.server.api.handler import Request
    from trioresume.store.port import ContentKey, FileRecord, Store

__all__ = ["PLAIN_OBJECT", "ObjectFiles", "ObjectPlacing"]

PLAIN_OBJECT = "plain-object"
"""The field of a file that has the bucket and the name of its object. It is not sent."""

_LONGEST_SIGNED = 7 * 24 * 3600
"""Seconds: S3 signs no address for longer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectFiles:
    """How each stored file becomes a plain object that others can read.

    *name* is a template as for names of files, such as ``{year}/{month}/{digest}{suffix}``. Or
    it is called with each request, and returns an :class:`ObjectPlace`, or None for a file that
    becomes no object; it must return the same place when it is called again for a request, and
    must not block. *bucket* is for templates; None is the service's own. An object of the same
    name is replaced.

    *location* says what ``Location`` has: the ``file`` in this service, the ``object``, or a
    ``signed`` address of it, which works for *signed_for* seconds. With *redirects* downloads
    of such files are redirected to signed addresses (307), so that their bytes do not pass
    through this service.
    """

    name: str | Callable[[Request], ObjectPlace | None] = (
        "{year}/{month}/{digest}{suffix}"
    )
    bucket: str | None = None
    location: Literal["file", "object", "signed"] = "file"
    signed_for: float = 3600.0
    redirects: bool = False

    def __post_init__(self) -> None:
        if self.location not in ("file", "object", "signed"):
            raise CallerError(
                f"the location is file, object or signed, not {self.location!r}"
            )
        if not 1 <= self.signed_for <= _LONGEST_SIGNED:
            raise CallerError(
                f"an address is signed for 1 to {_LONGEST_SIGNED} seconds"
            )
        if isinstance(self.name, str):
            try:
                NameTemplate(self.name)
            except ValueError as exc:
                raise CallerError(f"the name of objects: {exc}") from exc


class ObjectPlacing:
    """Makes the objects of one service. Raises :class:`CallerError` without an object store."""

    def __init__(self, settings: ObjectFiles, store: Store) -> None:
        if not isinstance(store, ClusterStore) or store.plain is None:
            raise CallerError(
                "files become objects only with an object store (--objects)"
            )
        self._settings = settings
        self._store = store
        self._plain = store.plain
        name = settings.name
        self._template = NameTemplate(name) if isinstance(name, str) else None

    async def place(
        self, request: Request, file: FileRecord, naming: dict[str, str]
    ) -> FileRecord:
        """Make the object of *file*, if it is to be one; return the file, which names it.

        Raises :class:`StorageError`; then nothing is left of the object. If this is
        cancelled, the object may be made all the same.
        """
        place = self._place_of(request, file, naming)
        if place is None:
            return file
        key = request_key(OperationId(request.operation_id or ""))
        stop = threading.Event()
        try:
            # Not one of the store's threads, since composing a large file takes its time.
            await trio.to_thread.run_sync(
                partial(self._make, key, file, place, stop.is_set),
                abandon_on_cancel=True,
            )
        finally:
            stop.set()
        named = f"{place.bucket}/{place.name}"
        return replace(file, fields=file.fields.plus({PLAIN_OBJECT: named}))

    def _place_of(
        self, request: Request, file: FileRecord, naming: dict[str, str]
    ) -> ObjectPlace | None:
        if self._template is None:
            assert callable(self._settings.name)
            return self._settings.name(request)
        return ObjectPlace(
            bucket=self._settings.bucket or self._plain.address.bucket,
            name=self._template.render(naming),
            content_type=file.fields.get("content-type"),
            disposition=content_disposition_attachment(
                file.fields.get("filename", file.name)
            ),
        )

    def _make(
        self,
        key: ContentKey,
        file: FileRecord,
        place: ObjectPlace,
        stop: Callable[[], bool],
    ) -> None:
        if file.content.digest is None:
            self._plain.put(file.content.inline or b"", place)
            return
        with self._store.sources(key, file.content) as sources:
            self._plain.compose(sources, place, stop=stop)

    async def location(self, file: FileRecord) -> str | None:
        """Return what ``Location`` has for *file*; None for its address in this service."""
        named = file.fields.get(PLAIN_OBJECT)
        if named is None or self._settings.location == "file":
            return None
        if self._settings.location == "object":
            return self._plain.url(_place(named))
        return await self._signed(file, named)

    async def redirect(self, file: FileRecord) -> str | None:
        """Return where a download of *file* is to go; None if it stays here."""
        named = file.fields.get(PLAIN_OBJECT)
        if named is None or not self._settings.redirects:
            return None
        return await self._signed(file, named)

    async def _signed(self, file: FileRecord, named: str) -> str:
        name = file.fields.get("filename", file.name)
        place = replace(
            _place(named),
            content_type=file.fields.get("content-type"),
            disposition=content_disposition_attachment(name),
        )
        # The credentials may have to be fetched, for example of the machine's role.
        return await trio.to_thread.run_sync(
            self._plain.signed, place, self._settings.signed_for
        )


def _place(named: str) -> ObjectPlace:
    bucket, _, name = named.partition("/")
    return ObjectPlace(bucket=bucket, name=name)
