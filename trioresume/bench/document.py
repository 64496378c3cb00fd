"""The JSON document of a run, as ``trioresume bench --json`` writes it, and its schema.

It has all records of :mod:`~trioresume.bench.results`, so nothing is lost.
``"summary"`` has the figures that follow from them, so a reader in another language
need not compute percentiles. Names end with their units.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Annotated, Any

from trioresume.bench.records import (
    BadRecord,
    Bytes,
    BytesPerSecond,
    CpuSeconds,
    Unit,
    from_plain,
    members,
    to_plain,
)
from trioresume.bench.results import FORMAT, Latency, Results

__all__ = ["Summary", "from_json", "json_schema", "summary", "to_json"]

PerGib = Annotated[float, Unit("cpu_seconds_per_gib")]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The figures that follow from a run's records; None if a figure has no data.

    *failures* counts failed uploads by their ``ending``. *checked* counts finished
    uploads that passed the check, by the kind of check. *cuts* counts the generator's
    cuts by ``kind/place``. *busiest_generator* is the part of the time, 0 to 1, in
    which the generator's busiest process kept a core busy.
    """

    uploads: int
    done: int
    failed: int
    failures: Mapping[str, int]
    stopped: int
    checked: Mapping[str, int]
    wrong: int
    unchecked: int
    ok: bool
    sent: Bytes
    sent_again: Bytes
    stored: Bytes
    throughput: BytesPerSecond
    goodput: BytesPerSecond
    cuts: Mapping[str, int]
    kills: int
    resume: Latency | None
    offset_query: Latency | None
    upload_duration: Latency | None
    fairness: float | None
    generator_was_limit: bool
    busiest_generator: float | None
    generator_user: CpuSeconds
    generator_system: CpuSeconds
    server_user: PerGib | None
    server_system: PerGib | None
    server_total: PerGib | None
    server_peak_resident: Bytes | None


def summary(results: Results) -> Summary:
    """Return the figures of *results*. The property of the same name explains each."""
    return Summary(
        uploads=len(results.uploads),
        done=len(results.done),
        failed=sum(results.failures.values()),
        failures={ending.value: n for ending, n in results.failures.items()},
        stopped=results.stopped,
        checked={by.value: n for by, n in results.checks.items()},
        wrong=len(results.wrong),
        unchecked=results.unchecked,
        ok=results.ok,
        sent=results.sent,
        sent_again=results.sent_again,
        stored=results.stored,
        throughput=results.throughput,
        goodput=results.goodput,
        cuts={f"{f.kind.value}/{f.place.value}": n for f, n in results.cuts.items()},
        kills=len(results.kills),
        resume=results.resume,
        offset_query=results.offset_query,
        upload_duration=results.upload_seconds,
        fairness=results.fairness,
        generator_was_limit=results.generator_was_limit,
        busiest_generator=max((g.busy for g in results.generators), default=None),
        generator_user=sum(g.user for g in results.generators),
        generator_system=sum(g.system for g in results.generators),
        server_user=results.server_user_per_gib,
        server_system=results.server_system_per_gib,
        server_total=results.server_cpu_per_gib,
        server_peak_resident=results.server.peak_resident if results.server else None,
    )


def to_json(results: Results) -> str:
    """Return *results* and their :class:`Summary` as one line of JSON.

    Values of header fields are left out, because they may be credentials.
    """
    document = {**to_plain(results), "summary": to_plain(summary(results))}
    return json.dumps(document, allow_nan=False)


def from_json(text: str | bytes) -> Results:
    """Read the output of :func:`to_json`. Raises :class:`~trioresume.bench.records.BadRecord`."""
    try:
        document = json.loads(text)
    except ValueError as exc:
        raise BadRecord(f"no JSON: {exc}") from exc
    if not isinstance(document, Mapping) or document.get("format") != FORMAT:
        raise BadRecord(f"no results in format {FORMAT}")
    return from_plain(Results, document)


# -------------------------------------------------------------------------- schema


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of :func:`to_json`, made from the records.

    Members may be added without a new ``format``. Readers ignore members that they do not know.
    """
    definitions: dict[str, Any] = {}
    document = _record_schema(Results, definitions)
    document["properties"]["format"] = {"const": FORMAT}
    document["properties"]["summary"] = _schema(Summary, definitions)
    document["required"].append("summary")
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Results of trioresume bench",
        **document,
        "$defs": dict(sorted(definitions.items())),
    }


_PRIMITIVES = {bool: "boolean", int: "integer", float: "number", str: "string"}


def _schema(kind: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if kind in _PRIMITIVES:
        return {"type": _PRIMITIVES[kind]}
    if kind is types.NoneType:
        return {"type": "null"}
    if origin in (types.UnionType, typing.Union):
        return {"anyOf": [_schema(argument, definitions) for argument in arguments]}
    if origin is Mapping:
        return {
            "type": "object",
            "additionalProperties": _schema(arguments[1], definitions),
        }
    if origin is tuple and arguments[-1] is Ellipsis:
        return {"type": "array", "items": _schema(arguments[0], definitions)}
    if origin is tuple:
        return {
            "type": "array",
            "prefixItems": [_schema(argument, definitions) for argument in arguments],
            "items": False,
            "minItems": len(arguments),
        }
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        if kind.__name__ not in definitions:
            definitions[
                kind.__name__
            ] = {}  # a placeholder, in case the record contains its own type
            definitions[kind.__name__] = _record_schema(kind, definitions)
        return {"$ref": f"#/$defs/{kind.__name__}"}
    assert issubclass(kind, Enum)
    return {"enum": [member.value for member in kind]}


def _record_schema(kind: type, definitions: dict[str, Any]) -> dict[str, Any]:
    properties = {m.name: _schema(m.type, definitions) for m in members(kind)}
    return {"type": "object", "properties": properties, "required": list(properties)}
