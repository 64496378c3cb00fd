"""The file service: the default target, which stores files and serves them.

=========================  =====================================================
``POST {base}``            stores under a new, unguessable name: 201, ``Location``
``PUT {base}NAME``         stores under NAME: 201 or 204; ``If-Match``, ``If-None-Match``
``GET``, ``HEAD``          with Range and preconditions, as a harmless attachment (G14)
``DELETE {base}NAME``      204; ``If-Match``
=========================  =====================================================

POST gives a name of random characters, or one that a template makes: see
:mod:`trioresume.protocol.name_templates`. If another file has that name already, a number is
put in; if it has the same content, too, it is the file.

Each principal has a separate namespace, in which the files of others do not exist.
A name is a key in the catalog and never a path on disk (G12).

The service is transactional: a file appears in the same commit that records the
upload's response. Preconditions are checked twice: before any content is asked for,
and in that commit.

Numbers such as G12 and B13 are statements of docs/supported-protocols.md.
"""

from __future__ import annotations

import json
import secrets
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote_to_bytes

import trio

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.conditional import Outcome, evaluate
from trioresume.protocol.dialects.server import METHOD_OVERRIDE, is_patch_of_bytes
from trioresume.protocol.digests import repr_digest
from trioresume.protocol.filenames import content_disposition_attachment, name_fault
from trioresume.protocol.heads import Fields
from trioresume.protocol.name_templates import NameTemplate, numbered, split_suffix
from trioresume.server.api.handler import (
    CallPolicy,
    RecordedWith,
    Representation,
    Request,
    Response,
)
from trioresume.server.api.on_success import Action
from trioresume.server.routes.representation import SANDBOX
from trioresume.server.uploads.locations import root_of
from trioresume.server.uploads.target_call import content_etag_of
from trioresume.store.port import FileRecord, PublishFile, RemoveFile
from trioresume.targets.object_files import (
    PLAIN_OBJECT,
    ObjectFiles,
    ObjectPlacing,
)
from trioresume.targets.on_success.worker import OnSuccess
from trioresume.text import new_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Config
    from trioresume.server.api.handler import Services
    from trioresume.store.port import Mutation

__all__ = ["FileService"]

_ALLOWED_ON_FILES = "DELETE, GET, HEAD, OPTIONS, PUT"
_ON_PRESENT_FILES = ("DELETE", "GET", "HEAD")
MOST_NUMBERED = 9
"""A name that is taken gets a number up to this one, and then random characters."""
_KEPT_FIELDS = ("content-type", "content-encoding", "content-language")


class FileService:
    """A :class:`~trioresume.Target` that keeps uploads as files.

    *base* is the path of the collection of files. *name_template* makes the names of files
    that are sent with POST, such as ``{year}/{month}/{digest}{suffix}``; None: names are
    random. *on_success* puts each stored file into a directory, too: ``copy:DIR``,
    ``link:DIR`` or ``move:DIR``. With *names_owner* the locations of files name their owners,
    for :class:`~trioresume.Downloads`. With *objects* each file becomes a plain object as well,
    which needs the object store of a cluster. Raises :class:`~trioresume.errors.CallerError` unless
    *base* starts and ends with ``/``, and for a template or an action that is none.
    """

    policy = CallPolicy.TRANSACTIONAL

    def __init__(
        self,
        base: str = "/files/",
        *,
        name_template: str | None = None,
        on_success: str | None = None,
        names_owner: bool = False,
        objects: ObjectFiles | None = None,
    ) -> None:
        if not (base.startswith("/") and base.endswith("/")):
            raise CallerError("the base path must start and end with '/'")
        self._base = base
        self._name_template = name_template
        self._names_owner = names_owner
        self._objects = objects
        self._placing: ObjectPlacing | None = None
        if name_template is not None:
            try:
                _template(name_template)
            except ValueError as exc:
                raise CallerError(f"name_template: {exc}") from exc
        self._action: Action | None = None
        if on_success is not None:
            try:
                self._action = Action.parse(on_success)
            except ValueError as exc:
                raise CallerError(f"on_success: {exc}") from exc
        self._services: Services

    def attach(self, services: Services) -> None:
        self._services = services
        rules = services.rulebook is not None
        self._on_success = OnSuccess(
            services, records=rules or self._action is not None
        )
        self._chooses_names = rules or self._name_template is not None
        if self._objects is not None:
            self._placing = ObjectPlacing(self._objects, services.storage.store)

    def check(self, config: Config) -> None:
        """Raise :class:`~trioresume.errors.CallerError` if a directory cannot be used.

        These are the directories of ``on_success``, of this service and of the rules. Blocks.
        """
        texts = [rule.on_success for rule in config.rules]
        actions = [Action.parse(text) for text in texts if text is not None]
        if self._action is not None:
            actions.append(self._action)
        for action in actions:
            action.check(config.data_dir)

    @asynccontextmanager
    async def running(self, config: Config) -> AsyncIterator[None]:
        """Put files into directories while the block runs.

        Raises :class:`~trioresume.errors.CallerError` as :meth:`check` does.
        """
        await trio.to_thread.run_sync(self.check, config)
        async with (
            self._on_success.running() if self._services.part.keeps else nullcontext()
        ):
            yield

    # Before the content.

    async def admit(
        self, head: RequestHead, principal: str | None
    ) -> Response | Representation | None:
        """Refuse a request that cannot succeed; answer one that needs no content."""
        name = self._name(head.path, head.method)
        allowed = "OPTIONS, POST" if name is None else _ALLOWED_ON_FILES
        if head.method == "OPTIONS":
            return Response(200, {"allow": allowed})
        if head.method not in allowed.split(", "):
            appends = name is not None and is_patch_of_bytes(head)
            if appends and await self._find(principal, name or "") is None:
                # 404 tells the client of an upload to begin again; 405 would not.
                raise PeerError(ProblemCode.NOT_FOUND)
            raise PeerError(
                ProblemCode.METHOD_NOT_ALLOWED, fields=(("allow", allowed),)
            )
        if head.method in ("POST", "PUT"):
            for field in ("content-range", "content-offset"):
                if field in head.fields:
                    # RFC 9110, section 14.5, and B13: such content is only part of a file.
                    raise PeerError(
                        ProblemCode.MALFORMED_REQUEST,
                        f"{head.method} with {field.title()} is not supported: its"
                        " content is the whole file",
                    )
        if name is None:
            if (head.fields.get(METHOD_OVERRIDE) or "post").lower() != "post":
                raise PeerError(
                    ProblemCode.METHOD_NOT_ALLOWED,
                    "X-HTTP-Method-Override is not supported here",
                    fields=(("allow", allowed),),
                )
            return None
        file = await self._find(principal, name)
        if head.method in ("GET", "HEAD"):
            if file is None:
                raise PeerError(ProblemCode.NOT_FOUND)
            if self._placing is not None:
                there = await self._placing.redirect(file)
                if there is not None:
                    fields = {"location": there, "cache-control": "no-store"}
                    return Response(307, fields)
            return self._represent(file)
        self._check(head, file)
        return None

    def check_part(self, head: RequestHead) -> None:
        """A part of a later upload begins where a POST is taken, at the collection."""
        if self._name(head.path) is not None:
            raise PeerError(
                ProblemCode.METHOD_NOT_ALLOWED, fields=(("allow", _ALLOWED_ON_FILES),)
            )

    def named(self, head: RequestHead, name: str) -> RequestHead | None:
        """Return the head that stores a POST under *name*, if there is no such file yet."""
        if head.method != "POST" or self._name(head.path) is not None:
            return None
        target = f"{self._base}{quote(name, safe='')}"
        unless = head.fields.without("if-match", "if-none-match")
        fields = unless.plus({"if-none-match": "*"})
        return replace(head, method="PUT", target=target, fields=fields)

    def _name(self, path: str, method: str = "") -> str | None:
        """Return the file's name in *path*, or None for the collection.

        Raises :class:`PeerError`: 404 for a path with more segments, or with ``..``
        (G12). Only a template makes names of several segments, so only requests for a file
        that is there may have such a path. A name that no file can have is a 400 for a
        request that stores a file, and a 404 for any other request, because no such file
        exists.
        """
        if path == self._base.removesuffix("/"):
            return None
        if not path.startswith(self._base):
            raise PeerError(ProblemCode.NOT_FOUND)
        encoded = path[len(self._base) :]
        if not encoded:
            return None
        stores = method == "PUT"
        refused = ProblemCode.BAD_FILE_NAME if stores else ProblemCode.NOT_FOUND
        segments = encoded.split("/") if method in _ON_PRESENT_FILES else [encoded]
        return "/".join([_decoded(segment, refused) for segment in segments])

    async def _find(self, principal: str | None, name: str) -> FileRecord | None:
        storage = self._services.storage
        return await storage.run(storage.store.file, principal, name)

    def _represent(self, file: FileRecord) -> Representation:
        filename = file.fields.get("filename", file.name)
        kept = file.fields.without("filename", PLAIN_OBJECT)
        if "content-type" not in kept:
            kept = kept.plus({"content-type": "application/octet-stream"})
        return Representation(
            content=file.content,
            fields=kept.plus(
                {
                    **SANDBOX,
                    "content-disposition": content_disposition_attachment(filename),
                    "vary": "Authorization",
                }
            ),
            etag=content_etag_of(file.content),
            last_modified=self._modified(file),
        )

    def _modified(self, file: FileRecord) -> float:
        """Return the date of publication, but at most now (RFC 9110, section 8.8.2.1).

        The machine's clock may have been wrong at the publication.
        """
        return min(file.modified_at, self._services.clock.date())

    def _check(self, head: RequestHead, file: FileRecord | None) -> None:
        if head.method == "DELETE" and file is None:
            raise PeerError(ProblemCode.NOT_FOUND)
        outcome = evaluate(
            head.method,
            head.fields,
            etag=None if file is None else content_etag_of(file.content),
            last_modified=None if file is None else self._modified(file),
            exists=file is not None,
        )
        if outcome is not Outcome.PROCEED:
            raise PeerError(ProblemCode.PRECONDITION_FAILED)

    # With the content.

    async def respond(self, request: Request) -> RecordedWith:
        """Publish or remove the file in the commit that records the response."""
        name = self._name(request.head.path, request.head.method)
        if name is None and self._chooses_names:
            return await self._publish_new(request)
        if name is None:
            new = new_name()
            return await self._publish(request, self._record(request, new), None)
        current = await self._find(request.principal, name)
        self._check(request.head, current)
        if request.head.method == "DELETE":
            assert current is not None
            remove = RemoveFile(request.principal, name, current.content)
            return RecordedWith(Response(204), (remove,))
        return await self._publish(request, self._record(request, name), current)

    async def _publish_new(self, request: Request) -> RecordedWith:
        """Publish the file of a POST, under a name that this chooses."""
        template = self._name_template
        if self._services.rulebook is not None:
            rule = self._services.rulebook.check(request.head, request.principal).rule
            if rule is not None and rule.name_template is not None:
                template = rule.name_template
        if template is None:
            new = new_name()
            return await self._publish(request, self._record(request, new), None)
        name = _template(template).render(self._naming(request))
        # If others take the name at this moment, they would take the numbers, too.
        tries = 1 if request.earlier_conflicts else MOST_NUMBERED
        for number in range(1, tries + 1):
            numbered_name = name if number == 1 else numbered(name, str(number))
            current = await self._find(request.principal, numbered_name)
            if current is None or current.content == request.body.content:
                file = self._record(request, numbered_name)
                return await self._publish(request, file, current)
        name = numbered(name, secrets.token_hex(8))
        return await self._publish(request, self._record(request, name), None)

    def _naming(self, request: Request) -> dict[str, str]:
        """Return the value of each field of a template."""
        name = request.head.filename or "file"
        stem, suffix = split_suffix(name)
        today = datetime.fromtimestamp(self._services.clock.date(), tz=UTC)
        operation = (request.operation_id or secrets.token_hex(16)).encode()
        return {
            "year": f"{today.year:04}",
            "month": f"{today.month:02}",
            "day": f"{today.day:02}",
            "principal": request.principal or "anonymous",
            # Its client keeps the operation's own name secret.
            "id": sha256(operation).hexdigest()[:32],
            "digest": content_etag_of(request.body.content).strip('"'),
            "name": name,
            "stem": stem,
            "suffix": suffix,
            "random": new_name(),
        }

    def _record(self, request: Request, name: str) -> FileRecord:
        fields = [(n, v) for n, v in request.head.fields if n in _KEPT_FIELDS]
        if request.digests:
            # It is told with each download, so that its client can compare.
            fields.append(("repr-digest", repr_digest(request.digests)))
        filename = request.head.filename
        if filename is not None:
            # Kept as text of the client: it is not a field that is sent as it is.
            fields.append(("filename", filename))
        clock = self._services.clock
        lifetime = self._services.config.file_lifetime
        file = FileRecord(
            owner=request.principal,
            name=name,
            content=request.body.content,
            fields=Fields(fields),
            modified_at=clock.date(),
            expires_at=None if lifetime is None else clock.now() + lifetime,
        )
        if self._services.rulebook is None:
            return file
        return self._follow_rules(request, file)

    def _follow_rules(self, request: Request, file: FileRecord) -> FileRecord:
        """Return *file* with the lifetime that a rule gives it.

        Raises :class:`PeerError` if a rule would refuse the request at the file's own path.
        """
        lifetime = self._ruled(request, file.name, "file_lifetime")
        if lifetime is None:
            return file
        return replace(file, expires_at=self._services.clock.now() + lifetime)

    def _ruled(self, request: Request, name: str, field: str) -> Any:
        """Return a value of the rule of the file's own path, or else of the request's.

        A file of POST has another path than its request. None if neither rule sets it.
        """
        rulebook, sender = self._services.rulebook, request.principal
        if rulebook is None:
            return None
        own = replace(request.head, target=self._base + quote(name))
        for terms in (
            rulebook.check(own, sender),
            rulebook.terms(request.method, request.path, sender),
        ):
            if terms.rule is not None and getattr(terms.rule, field) is not None:
                return getattr(terms.rule, field)
        return None

    async def _publish(
        self, request: Request, file: FileRecord, current: FileRecord | None
    ) -> RecordedWith:
        placing = self._placing
        if placing is not None:
            file = await placing.place(request, file, self._naming(request))
        etag = content_etag_of(file.content)
        publish = PublishFile(file, None if current is None else current.content)
        effects: tuple[Mutation, ...] = (publish,)
        action = self._action
        if self._services.rulebook is not None:
            ruled = self._ruled(request, file.name, "on_success")
            action = action if ruled is None else Action.parse(ruled)
        if action is not None:
            effects = (publish, self._on_success.record(action, file))
        if current is not None and request.method == "PUT":
            return RecordedWith(Response(204, {"etag": etag}), effects)
        root = root_of(self._services.config)
        location = f"{root}{self._base}{quote(file.name)}"
        if self._names_owner and file.owner is not None:
            location += f"?owner={quote(file.owner, safe='')}"
        if placing is not None:
            location = await placing.location(file) or location
        described = {
            "location": location,
            "length": file.content.length,
            "digest": request.body.digest,
        }
        fields = {
            "location": location,
            "etag": etag,
            "content-type": "application/json",
        }
        body = json.dumps(described).encode() + b"\n"
        status = 201 if current is None else 200
        return RecordedWith(Response(status, fields, body), effects)


_template = lru_cache(maxsize=64)(NameTemplate)


def _decoded(encoded: str, refused: ProblemCode) -> str:
    """Return a segment of a name. Raises :class:`PeerError` with *refused*, or 404."""
    try:
        name = unquote_to_bytes(encoded).decode()
    except UnicodeDecodeError:
        raise PeerError(refused, "the name is not UTF-8") from None
    if name in ("", ".", "..") or "/" in name or "\\" in name:
        raise PeerError(
            ProblemCode.NOT_FOUND,
            "the name is not one segment of a path: there are no folders here; send the file"
            " with POST to the collection, or under a name without a slash",
        )
    fault = name_fault(name)
    if fault is not None:
        raise PeerError(refused, fault)
    return name
