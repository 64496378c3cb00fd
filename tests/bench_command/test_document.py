"""The JSON document: it matches its schema, has the figures, and comes back whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.bench_command import invented
from trioresume.bench import Ending, Results, from_json, to_json
from trioresume.bench.document import json_schema
from trioresume.bench.records import HIDDEN

COMMITTED = Path(__file__).parents[2] / "docs/reference/bench-results.schema.json"


@pytest.fixture
def results() -> Results:
    base = invented.with_kills(invented.results())
    return invented.with_uploads(
        base, invented.wrong(base, 2), invented.failing(base, 3, Ending.TIMEOUT, "late")
    )


def strict(schema: Any) -> Any:
    """*schema* that takes no member it does not name."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    if "properties" in closed:
        closed["additionalProperties"] = False
    return closed


def test_document_matches_its_schema(results: Results) -> None:
    """Every member is there and of its type, and there is no other."""
    schema = strict(json_schema())
    jsonschema.Draft202012Validator.check_schema(schema)
    jsonschema.validate(json.loads(to_json(results)), schema)
    bare = replace(results, uploads=(), server=None, server_name=None, generators=())
    jsonschema.validate(json.loads(to_json(bare)), schema)


def test_schema_refuses_what_is_no_document(results: Results) -> None:
    """The schema says something."""
    document = json.loads(to_json(results))
    for change in (
        {"format": 2},
        {"seconds": "9"},
        {"kills": [{"down_seconds": None, "up_seconds": 1}]},
    ):
        with pytest.raises(jsonschema.ValidationError):
            jsonschema.validate(document | change, json_schema())


def test_published_schema_is_the_code_s() -> None:
    """The file in the documentation is what the code makes."""
    assert json.loads(COMMITTED.read_text("utf-8")) == json_schema()


def test_document_comes_back_whole(results: Results) -> None:
    """Reading gives the same records and the same figures; only secrets are gone."""
    read = from_json(to_json(results))
    settings = replace(results.settings, headers=(("Authorization", HIDDEN),))
    assert read == replace(results, settings=settings)
    assert json.loads(to_json(read)) == json.loads(to_json(results))


def test_summary_is_what_the_results_say(results: Results) -> None:
    """The computed figures are the properties of the same name."""
    said = json.loads(to_json(results))["summary"]
    assert said["throughput_bytes_per_second"] == results.throughput
    assert said["goodput_bytes_per_second"] == results.goodput
    assert said["sent_again_bytes"] == results.sent_again
    assert results.resume is not None
    assert said["resume"]["p99_seconds"] == results.resume.p99
    assert said["failures"] == {"timeout": 1}
    assert (said["failed"], said["wrong"], said["done"]) == (1, 1, 15)
    assert said["ok"] is False
    assert said["server_total_cpu_seconds_per_gib"] == results.server_cpu_per_gib


def test_numbers_have_their_units_in_their_names() -> None:
    """A number is a count, or its name ends with what it counts."""
    counts = {
        "format",
        "count",
        "number",
        "process",
        "status",
        "pid",
        "server_pid",
        "cpus",
        "seed",
        "at_once",
        "total",
        "processes",
        "streams",
        "retries",
        "interop_version",
        "uploads",
        "done",
        "failed",
        "stopped",
        "wrong",
        "unchecked",
        "kills",
        "failures",
        "checked",
        "cuts",
        "finished",
    }
    ratios = {"fairness", "busiest_generator", "sigma"}
    endings = ("bytes", "seconds", "byte_offset", "bytes_per_second", "seconds_per_gib")
    schema = json_schema()
    for record in (schema, *schema["$defs"].values()):
        for name, kind in record["properties"].items():
            if '"integer"' in json.dumps(kind) or '"number"' in json.dumps(kind):
                assert name in counts | ratios or name.endswith(endings), name
