"""A batch of submissions as one value of JSON, for the function ``apply`` of the schema.

The hashes of recipes are computed here, because PostgreSQL has no BLAKE3. The function then
checks that the recipe lists exactly the chunks that the catalog has. So a plan that was made
from outdated rows is a conflict, and never a wrong recipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from trioresume.errors import CallerError, StaleWriter, StorageConflict, UsageExceeded
from trioresume.store.catalog.catalog import (
    content_columns,
    namespace_of,
    pack_fields,
    response_columns,
)
from trioresume.store.port import (
    MOST_DEAD_EVENTS,
    SERVICE_CLOCK,
    BuryEvent,
    Content,
    ContentKey,
    CreateOperation,
    DropEvents,
    EndOperation,
    ForgetOperation,
    FreezeContent,
    HoldBack,
    JoinContents,
    LetCount,
    LimitUsage,
    MoveOperation,
    Mutation,
    PostponeEvent,
    PublishFile,
    RecordEvent,
    RecordOffset,
    RecordResponse,
    RecordTail,
    RemoveFile,
    ReviveEvents,
    SealChunk,
    SetExpiry,
    SetFileExpiry,
    SetLength,
    SetMeta,
    SetReserved,
    SetState,
    changed_operations,
    check_key,
    is_response_key,
    recipes,
    request_key,
)
from trioresume.store.port.recipes import AnyRecipe, Digest, JoinedRecipe

__all__ = ["Listed", "Plan", "conflict_from", "freezes_listed", "recipe_json"]

_CHARGING = (
    CreateOperation,
    SetReserved,
    LimitUsage,
    MoveOperation,
    FreezeContent,
    JoinContents,
    SetState,
    RecordResponse,
    EndOperation,
    ForgetOperation,
    PublishFile,
    RemoveFile,
)
"""The mutations that may change what somebody uses."""

Json = dict[str, Any]


@dataclass(slots=True)
class Listed:
    """The sealed chunks of content under construction: its parts, and the chunks after them."""

    chunk_size: int
    parts: list[Digest] = field(default_factory=list)
    pieces: dict[int, tuple[Digest, int]] = field(default_factory=dict)
    """Digests and lengths, by index; those after a gap as well."""


def freezes_listed(
    batch: Sequence[Sequence[Mutation]],
) -> list[ContentKey]:
    """Return the keys whose chunks a plan must know: frozen, but not whole in a submission."""
    return [
        mutation.key
        for submission in batch
        for mutation in submission
        if isinstance(mutation, FreezeContent)
        and _leading_seals(submission, mutation) is None
    ]


def _leading_seals(
    submission: Sequence[Mutation], frozen: FreezeContent
) -> list[SealChunk] | None:
    """Return the seals that *submission* begins with, if they are all of the content."""
    seals: list[SealChunk] = []
    for mutation in submission:
        if mutation is frozen:
            break
        if not isinstance(mutation, SealChunk):
            return None
        seals.append(mutation)
    is_whole = (
        not is_response_key(frozen.key)
        and 0 < len(seals) <= recipes.PART_CHUNKS
        and sum(seal.length for seal in seals) == frozen.content.length
        and all(
            (seal.key, seal.index) == (frozen.key, index)
            and seal.length
            == (seals[0].length if seal is not seals[-1] else seal.length)
            for index, seal in enumerate(seals)
        )
        and seals[-1].length <= seals[0].length
    )
    return seals if is_whole else None


class Plan:
    """Makes the JSON of a batch. *listed* has the chunks of :func:`freezes_listed`."""

    def __init__(
        self,
        batch: Sequence[Sequence[Mutation]],
        *,
        chunk_size: int,
        listed: dict[ContentKey, Listed],
    ) -> None:
        self._chunk_size = chunk_size
        self._listed = listed
        self._locks: set[str] = set()
        self._chunks: set[Digest] = set()
        self._ops: set[str] = set()
        self._sealed: set[str] = set()
        self._files: set[tuple[str, str]] = set()
        self._has_limits = False
        submissions = [self._submission(submission) for submission in batch]
        self.json: Json = {
            "part": recipes.PART_CHUNKS,
            "chunk_size": chunk_size,
            "ops": sorted(self._ops),
            "locks": sorted(self._locks),
            "chunks": sorted(digest.hex() for digest in self._chunks),
            "sealed": sorted(self._sealed),
            "files": sorted(self._files),
            "charges": any(each["charges"] for each in submissions),
            "limits": self._has_limits,
            "submissions": submissions,
        }

    def _submission(self, submission: Sequence[Mutation]) -> Json:
        created: set[str] = set()
        files: set[tuple[str, str]] = set()
        for mutation in submission:
            match mutation:
                case CreateOperation(record):
                    check_key(request_key(record.id))
                    created.add(record.id)
                case PublishFile(file):
                    files.add((namespace_of(file.owner), file.name))
                case RemoveFile(owner, name) | SetFileExpiry(owner, name):
                    files.add((namespace_of(owner), name))
                case LimitUsage(principal):
                    self._has_limits = True
                    space = namespace_of(principal)
                    self._locks.add(f"account {space}")
                    if mutation.most_total is not None:
                        self._locks.add("account *")
                case _:
                    pass
        operations = set(map(str, changed_operations(submission)))
        self._ops |= operations | created
        self._files |= files
        self._locks.update(f"file {space} {name}" for space, name in files)
        return {
            # Who creates an operation owns it, so nobody has to own it before.
            "owned": sorted(operations),
            "ops": sorted(operations | created),
            "files": sorted(files),
            "charges": any(isinstance(m, _CHARGING) for m in submission),
            "m": list(self._mutations(submission)),
        }

    def _mutations(self, submission: Sequence[Mutation]) -> Iterable[Json]:
        whole: list[SealChunk] = []
        for mutation in submission:
            if isinstance(mutation, FreezeContent):
                whole = _leading_seals(submission, mutation) or []
                break
        for mutation in submission:
            if isinstance(mutation, SealChunk):
                self._chunks.add(mutation.digest)
                self._sealed.add(mutation.key)
                # What is not listed begins in this batch.
                known = self._listed.setdefault(mutation.key, Listed(self._chunk_size))
                known.pieces.setdefault(
                    mutation.index, (mutation.digest, mutation.length)
                )
                if whole:
                    continue
            if whole and isinstance(mutation, FreezeContent):
                yield self._whole(mutation, whole)
                whole = []
            else:
                yield self._mutation(mutation)

    def _whole(self, frozen: FreezeContent, seals: Sequence[SealChunk]) -> Json:
        listed = Listed(
            seals[0].length if len(seals) > 1 else self._chunk_size,
            pieces={seal.index: (seal.digest, seal.length) for seal in seals},
        )
        # A single chunk may be of content that was begun with another chunk size. Then
        # the name shows it.
        made = self._freeze(frozen, listed)
        if made["digest"] is None and len(seals) == 1:
            known = self._listed.get(frozen.key)
            if known is not None:
                listed.chunk_size = known.chunk_size
                made = self._freeze(frozen, listed)
        return {
            **made,
            "k": "whole",
            "size": listed.chunk_size,
            "seals": [[seal.digest.hex(), seal.length] for seal in seals],
        }

    def _freeze(self, frozen: FreezeContent, listed: Listed | None) -> Json:
        listed = listed or Listed(self._chunk_size)
        size, part = listed.chunk_size, recipes.PART_CHUNKS
        first = len(listed.parts) * part
        digests: list[Digest] = []
        length = first * size
        while (piece := listed.pieces.get(first + len(digests))) is not None:
            digests.append(piece[0])
            length += piece[1]
        rest: list[recipes.Recipe] = []
        joined: JoinedRecipe | None = None
        digest: Digest | None = None
        try:
            if digests or not listed.parts:
                rest = recipes.cut(size, length - first * size, digests)
            names = [*listed.parts, *(recipe.digest for recipe in rest)]
            joined = recipes.join(size, length, names)
            digest = names[0] if joined is None else joined.digest
        except ValueError:
            pass  # a chunk in the middle is short: the name cannot be right
        is_right = frozen.content == Content(length, None, digest)
        return {
            "k": "freeze",
            "key": frozen.key,
            "length": frozen.content.length,
            "digest": digest.hex() if is_right and digest else None,
            "parts": len(listed.parts),
            "rest": [recipe_json(recipe) for recipe in rest],
            "joined": None if joined is None else recipe_json(joined),
        }

    def _mutation(self, mutation: Mutation) -> Json:
        match mutation:
            case SealChunk(key, index, digest, length):
                return {
                    "k": "seal",
                    "key": key,
                    "i": index,
                    "d": digest.hex(),
                    "l": length,
                }
            case RecordTail(key, offset, parts):
                objects = [[part.name, part.offset, part.length] for part in parts]
                return {"k": "tail", "key": key, "offset": offset, "objects": objects}
            case RecordOffset(key, offset):
                named = None if is_response_key(key) else key
                return {"k": "offset", "key": named, "offset": offset, "back": False}
            case HoldBack(key, offset):
                return {"k": "offset", "key": key, "offset": offset, "back": True}
            case LetCount(key):
                return {"k": "count", "key": key}
            case CreateOperation():
                return _create(mutation)
            case SetLength(id, length):
                return {"k": "length", "op": id, "v": length}
            case SetReserved(id, reserved):
                return {"k": "reserved", "op": id, "v": reserved}
            case SetExpiry(id, expires_at):
                return {"k": "expires", "op": id, "v": expires_at}
            case SetState(id, state):
                return {"k": "state", "op": id, "v": state}
            case MoveOperation(id, principal, target):
                return {"k": "move", "op": id, "principal": principal, "target": target}
            case LimitUsage(principal, most_bytes, most_open, most_total):
                return {
                    "k": "limit",
                    "ns": namespace_of(principal),
                    "bytes": most_bytes,
                    "open": most_open,
                    "total": most_total,
                }
            case FreezeContent(key):
                return self._freeze(mutation, self._listed.get(key))
            case JoinContents():
                return _join(mutation)
            case RecordResponse(id, response, expires_at, keep):
                head, *body = _columns(response_columns(response))
                return {
                    "k": "response",
                    "op": id,
                    "expires_at": expires_at,
                    "keep": keep,
                    "head": head,
                    **dict(zip(("length", "inline", "digest"), body, strict=True)),
                }
            case EndOperation(id, expires_at):
                return {"k": "end", "op": id, "v": expires_at}
            case ForgetOperation(id):
                return {"k": "forget", "op": id}
            case PublishFile():
                return _publish(mutation)
            case RemoveFile(owner, name, expected):
                return {
                    "k": "remove",
                    "ns": namespace_of(owner),
                    "name": name,
                    "expected": _expected(expected),
                }
            case SetFileExpiry(owner, name, file_expires_at):
                ns = namespace_of(owner)
                return {
                    "k": "file_expires",
                    "ns": ns,
                    "name": name,
                    "v": file_expires_at,
                }
            case SetMeta(name, value):
                kind = (
                    "clock" if name == SERVICE_CLOCK and _is_reading(value) else "meta"
                )
                return {"k": kind, "name": name, "value": value}
            case RecordEvent(event):
                return {
                    "k": "event",
                    "id": event.id,
                    "op": event.operation,
                    "kind": event.kind,
                    "at": event.recorded_at,
                    "dated": event.dated,
                    "payload": event.payload.hex(),
                }
            case DropEvents(seqs, dead):
                return {"k": "drop_dead" if dead else "drop", "seqs": seqs}
            case PostponeEvent(seq, due_at, error):
                return {"k": "postpone", "seq": seq, "due": due_at, "error": error}
            case BuryEvent(seq, error):
                return {
                    "k": "bury",
                    "seq": seq,
                    "error": error,
                    "most": MOST_DEAD_EVENTS,
                }
            case ReviveEvents(seqs, now):
                return {"k": "revive", "seqs": seqs, "now": now}


def _hex(value: object) -> object:
    return value.hex() if isinstance(value, bytes) else value


def _columns(values: Iterable[object]) -> list[object]:
    return [_hex(value) for value in values]


def recipe_json(recipe: AnyRecipe) -> Json:
    count = (
        len(recipe.parts) if isinstance(recipe, JoinedRecipe) else recipe.chunk_count
    )
    return {
        "d": recipe.digest.hex(),
        "l": recipe.length,
        "n": count,
        "b": recipe.serialised.hex(),
    }


def _create(mutation: CreateOperation) -> Json:
    record = mutation.record
    content = _columns(content_columns(record.content))
    response = _columns(response_columns(record.response))
    return {
        "k": "create",
        "id": record.id,
        "state": record.state,
        "method": record.method,
        "target": record.target,
        "fields": pack_fields(record.fields).hex(),
        "principal": record.principal,
        "keep_incomplete": record.keep_incomplete,
        "created_at": record.created_at,
        "expires_at": record.expires_at,
        "length": record.length,
        "content_length": content[0],
        "content_inline": content[1],
        "content_digest": content[2],
        "response_head": response[0],
        "response_length": response[1],
        "response_inline": response[2],
        "response_digest": response[3],
        "explicit_completion": record.explicit_completion,
        "reserved": record.reserved,
    }


def _join(mutation: JoinContents) -> Json:
    recipe, content = mutation.recipe, mutation.content
    return {
        "k": "join",
        "op": mutation.operation,
        "recipe": None if recipe is None else recipe_json(recipe),
        "parts": [] if recipe is None else [part.hex() for part in recipe.parts],
        "length": content.length,
        "digest": _hex(content.digest),
    }


def _publish(mutation: PublishFile) -> Json:
    file = mutation.file
    length, inline, digest = _columns(content_columns(file.content))
    return {
        "k": "publish",
        "ns": namespace_of(file.owner),
        "name": file.name,
        "owner": file.owner,
        "fields": pack_fields(file.fields).hex(),
        "modified_at": file.modified_at,
        "expires_at": file.expires_at,
        "length": length,
        "inline": inline,
        "digest": digest,
        "expected": _expected(mutation.expected),
    }


def _expected(expected: Content | str | None) -> object:
    if isinstance(expected, Content):
        return _columns(content_columns(expected))
    if expected not in (None, "anything"):
        raise CallerError(
            f"expected is a Content, None or 'anything', not {expected!r}"
        )
    return expected


def _is_reading(value: str) -> bool:
    try:
        now, date = value.split(" ")
        float(now), float(date)
    except ValueError:
        return False
    return True


def conflict_from(result: Sequence[str] | None) -> StorageConflict | None:
    """Return the error of one submission, from the answer of ``apply``."""
    if result is None:
        return None
    code, reason = result
    match code:
        case "TR002":
            return StaleWriter(reason)
        case "TR004":
            return UsageExceeded(reason)
    return StorageConflict(reason)
