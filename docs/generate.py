"""The parts of the documentation that are made from the code, as Markdown.

A page has ``{generated} name argument…``; :func:`markdown` calls the function of
that name here. What is made at each build cannot fall behind the code.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from operator import itemgetter
from pathlib import Path

import click
from sphinx.pycode import ModuleAnalyzer

import trioresume.cli
from trioresume import Config
from trioresume.cli import units
from trioresume.cli.help import default_text, sections_of, spelling
from trioresume.cli.options import ExitCode
from trioresume.errors import ProblemCode
from trioresume.protocol.dialects.rufh.versions import UNVERSIONED, VERSIONS
from trioresume.protocol.operation import (
    Effect,
    OperationState,
    rows,
)
from trioresume.protocol.problem_help import HELP
from trioresume.store.catalog.schema import migrate

ROOT = Path(__file__).parent.parent

STATEMENT = re.compile(r"\b(?P<section>[RBCDEG])(?P<number>[1-9][0-9]?)\b")
STATEMENT_RANGE = re.compile(
    r"\b(?P<section>[RBCDEG])(?P<first>[1-9][0-9]?)(?: to |-|\u2013)(?P=section)(?P<last>[1-9][0-9]?)\b"
)


def table(heads: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """A Markdown table; a bar in a cell is escaped, a line end becomes a space."""
    lines = [list(heads)]
    lines.append(["---"] * len(lines[0]))
    lines.extend([_cell(cell) for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def attribute_docs(module: str, owner: str) -> dict[str, str]:
    """The strings below the attributes of class *owner*."""
    docs = ModuleAnalyzer.for_module(module).find_attr_docs()
    return {
        name: " ".join(" ".join(text).split()).replace("``", "`")
        for (scope, name), text in docs.items()
        if scope == owner
    }


def problem_codes() -> str:
    """A section for every problem code, whose anchor is the code."""
    parts: list[str] = []
    for code, words in sorted(HELP.items()):
        problems = [problem for problem in ProblemCode if problem.code == code]
        statuses = " or ".join(str(problem.status) for problem in problems)
        parts += [f"({code})=", f"### `{code}`, {statuses}"]
        parts += [f"{problem.title}." for problem in problems]
        parts += [f"**Cause.** {_options_as_code(words.cause)}"]
        parts += [f"**Cure.** {_options_as_code(words.cure)}"]
    return "\n\n".join(parts)


def _options_as_code(text: str) -> str:
    """*text* with options such as --min-free-space, and what is quoted, as code."""
    return re.sub(r"'([^']{3,})'|(?<!\S)(--[a-z-]+[a-z])", r"`\1\2`", text)


def exit_codes() -> str:
    """Every exit status with its meaning."""
    docs = attribute_docs("trioresume.cli.options", "ExitCode")
    return table(("status", "meaning"), ((c.value, docs[c.name]) for c in ExitCode))


# The settings of a program.

SETTINGS: dict[str, tuple[str, ...]] = {
    "Where it listens": ("bind", "unix_socket_mode", "ssl", "http2", "h2c", "backlog"),
    "Where things are kept, and how safely": (
        "data_dir",
        "catalog",
        "objects",
        "durability",
        "chunk_size",
        "receive_memory",
        "storage_threads",
        "retain_content",
    ),
    "Who may do what": (
        "authenticate",
        "rules",
        "cors_origins",
        "cors_credentials",
        "cors_max_age",
        "cors_request_fields",
        "cors_response_fields",
    ),
    "Who is told": ("hooks", "watch"),
    "The upload page": ("ui", "ui_appearance"),
    "Addresses, and proxies in front": (
        "operation_path",
        "public_url",
        "root_path",
        "relative_locations",
        "trusted_proxies",
        "forwarded_fields",
        "interim_responses",
        "continue_without_expect",
    ),
    "How long things are kept": (
        "incomplete_lifetime",
        "max_upload_lifetime",
        "response_lifetime",
        "indeterminate_lifetime",
        "tombstone_lifetime",
        "file_lifetime",
        "retry_interval",
    ),
    "Limits of space": (
        "max_upload_size",
        "max_stored_bytes",
        "max_stored_bytes_per_principal",
        "max_open_uploads_per_principal",
        "min_free_space",
        "min_resumable_size",
        "max_append_size",
        "min_append_size",
        "digest_budget",
    ),
    "Limits of connections and requests": (
        "max_connections",
        "max_connections_per_address",
        "max_streams",
        "max_header_size",
        "max_header_fields",
        "max_ranges",
        "max_wait",
        "drain_size",
    ),
    "Limits of time": (
        "header_timeout",
        "keep_alive_timeout",
        "body_timeout",
        "min_body_rate",
        "send_timeout",
        "drain_timeout",
        "acknowledge_interval",
        "grace_timeout",
    ),
    "For particular clients": (
        "check_interop_version",
        "lenient_range_unit",
        "strict_metadata",
    ),
}
"""The settings of :class:`trioresume.Config` by what they are about."""

CONFIG_FIELDS = {field.name: field for field in dataclasses.fields(Config)}

_PARENTHESES = re.compile(r"\s*\(([^()]*)\)")
_ONLY_CITATIONS = re.compile(r"[RBCDEG][0-9]+(?:\s*(?:to|,|-)\s*[RBCDEG][0-9]+)*")


def without_citations(text: str) -> str:
    """*text* without numbers of statements in parentheses, such as R21: readers lack the list."""

    def shortened(match: re.Match[str]) -> str:
        if not STATEMENT.search(match[1]):
            return match[0]
        parts = [
            re.sub(r":\s*[RBCDEG][0-9]+\Z", "", part.strip())
            for part in re.split(r"[,;](?=\s)", match[1])
        ]
        kept = "; ".join(p for p in parts if not _ONLY_CITATIONS.fullmatch(p))
        space = match[0][: len(match[0]) - len(match[0].lstrip())]
        return f"{space}({kept})" if kept else ""

    return _PARENTHESES.sub(shortened, text)


def settings() -> str:
    """The settings of ``Config`` in groups: name, default and meaning."""
    docs = attribute_docs("trioresume.server.api.config", "Config")
    parts: list[str] = []
    for title, names in SETTINGS.items():
        parts.append(f"### {title}")
        for name in names:
            default = _shown_default(CONFIG_FIELDS[name])
            meaning = re.sub(
                r":class:`~?([\w.]+)`",
                r"{py:class}`\1`",
                without_citations(docs.get(name, "")),
            )
            parts.append(
                f"{{py:attr}}`~trioresume.Config.{name}`{default}\n: {meaning}"
            )
    return "\n\n".join(parts)


def _shown_default(field: dataclasses.Field[object]) -> str:
    if field.default is dataclasses.MISSING:
        return ""
    value = field.default
    if field.name == "unix_socket_mode":
        return " = `0o660`"
    if isinstance(value, int) and value > 1024 and value % 1024 == 0:
        return f" = `{value}` ({units.size(value)})"
    return f" = `{value!r}`"


# The state machine.


def state_diagram() -> str:
    """The state table as a drawing: each state, the events that leave it, and where to."""
    width = max(len(f"{e.value}, {p.value}" if p else e.value) for _, e, p, _ in rows())
    lines: list[str] = []
    for state in OperationState:
        lines.append(state.value)
        leaving = [row[1:] for row in rows() if row[0] is state]
        for index, (event, policy, transition) in enumerate(leaving):
            branch = "└─" if index == len(leaving) - 1 else "├─"
            name = event.value if policy is None else f"{event.value}, {policy.value}"
            before = "".join(f"{effect.value}, " for effect in transition.before)
            after = "".join(f", {effect.value}" for effect in transition.after)
            arrow = f"{name} ".ljust(width + 1, "─")
            change = f"[{transition.state.value}]"
            lines.append(f"  {branch} {arrow}─► {before}{change}{after}")
    return "\n".join(["```text", *lines, "```"])


def states() -> str:
    """What each state means."""
    docs = attribute_docs("trioresume.protocol.operation", "OperationState")
    return table(
        ("state", "meaning"), ((s.value, docs[s.name]) for s in OperationState)
    )


def effects() -> str:
    """What each effect asks for."""
    docs = attribute_docs("trioresume.protocol.operation", "Effect")
    return table(("effect", "meaning"), ((e.value, docs[e.name]) for e in Effect))


def catalog_schema() -> str:
    """The catalog's tables, as SQLite reports them."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    migrate(connection)
    statements = connection.execute(
        "SELECT sql FROM sqlite_master WHERE sql IS NOT NULL ORDER BY rowid"
    ).fetchall()
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    connection.close()
    lines = [f"-- version {version}", *(f"{sql};" for (sql,) in statements)]
    return "\n".join(["```sql", *lines, "```"])


# The drafts.


def draft_versions() -> str:
    """What is particular to each version of the drafts, from the table in the code."""
    rows = [
        [
            version.number or "none",
            version.drafts or "the RFC to be",
            f"`{version.completeness_field.title()}`",
            "`application/partial-upload`" if version.needs_media_type else "any",
            version.head_status,
            version.partial_status,
            "yes" if version.shows_progress else "no",
            f"with `{version.lifetime_limit}`" if version.limits else "no",
            "ends the upload" if version.invalidates else "refused",
            404 if version.forgets else 410,
        ]
        for version in [*VERSIONS.values(), UNVERSIONED]
    ]
    heads = (
        "interop version",
        "draft",
        "completeness",
        "append's media type",
        "`HEAD`",
        "append in part",
        "progress in `104`",
        "`Upload-Limit`",
        "too long",
        "gone",
    )
    return table(heads, rows)


# Crashes.


def crash_matrix() -> str:
    """What is found after a crash, by what was done last: rows that the tests check."""
    # Here, because the rows are made of what the tests are made of.
    from tests.store.crashes.crash_matrix import ROWS

    rows = ((r.words, r.killed.words, r.unpowered.words) for r in ROWS)
    heads = ("the last thing that was done", "after a kill", "after a power loss")
    return table(heads, rows)


# The command line.


def command(*names: str) -> str:
    """Usage, description and options of the command with *names*, those of its groups first."""
    subcommand: click.Command = trioresume.cli.main
    context = click.Context(
        subcommand, info_name="trioresume", **subcommand.context_settings
    )
    rest = list(names)
    while rest:
        assert isinstance(subcommand, click.Group)
        name, found, rest = subcommand.resolve_command(context, rest)
        assert found is not None
        subcommand = found
        context = click.Context(subcommand, info_name=name, parent=context)
    usage = " ".join(["trioresume", *names, *subcommand.collect_usage_pieces(context)])
    parts = [f"```text\n{usage}\n```", inspect.cleandoc(subcommand.help or "")]
    for title, options in sections_of(subcommand, context):
        parts.append(f"**{title}**")
        rows = (_option_row(option, context) for option in options)
        options_table = table(("option", "meaning", "default", "environment"), rows)
        # Its class lets docs/static/narrow.css show each row as a block on a narrow screen.
        parts.append(f":::{{container}} options\n{options_table}\n:::")
    examples = "\n".join(f"$ {each}" for each in getattr(subcommand, "examples", ()))
    parts.append(f"```text\n{examples}\n```")
    return "\n\n".join(parts)


def _option_row(
    option: click.Option, context: click.Context
) -> tuple[str, str, str, str]:
    default = default_text(option, context)
    return (
        f"`{spelling(option, context)}`",
        option.help or "",
        f"`{default}`" if default else "",
        f"`{option.envvar}`",
    )


# What the tests prove.


def statements_in(text: str) -> Iterator[str]:
    """The numbers of the statements that *text* cites; a range cites each in it."""
    for match in STATEMENT_RANGE.finditer(text):
        for number in range(int(match["first"]), int(match["last"]) + 1):
            yield f"{match['section']}{number}"
    for match in STATEMENT.finditer(text):
        yield match[0]


def evidence() -> dict[str, list[str]]:
    """For each statement the tests that cite it, as ``path::test``."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        source = path.read_text("utf-8")
        lines = source.splitlines()
        for node in ast.walk(ast.parse(source)):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            if not node.name.startswith("test_"):
                continue
            first = min([node.lineno, *(d.lineno for d in node.decorator_list)])
            text = "\n".join(lines[first - 1 : node.end_lineno])
            for statement in sorted(set(statements_in(text))):
                name = f"{path.relative_to(ROOT)}::{node.name}"
                found.setdefault(statement, []).append(name)
    return found


def statement_order(statement: str) -> tuple[int, int]:
    """The key that sorts statements as they are listed."""
    return "RBCDEG".index(statement[0]), int(statement[1:])


def evidence_list() -> str:
    """For each statement the tests that cite it, by file."""
    lines: list[str] = []
    for statement, names in sorted(
        evidence().items(), key=lambda item: statement_order(item[0])
    ):
        lines.append(f"{statement}")
        pairs = [name.split("::") for name in names]
        for index, (path, tests) in enumerate(groupby(pairs, key=itemgetter(0))):
            found = ", ".join(f"`{test}`" for _, test in tests)
            lines.append(f"{':' if index == 0 else ' '} - `{path}`: {found}")
        lines.append("")
    return "\n".join(lines)


# Clients of other people.


def http_clients() -> str:
    """What each HTTP client was seen to do."""
    return _clients("HTTP_TRIALS")


def tus_clients() -> str:
    """What each library for tus was seen to do."""
    return _clients("TUS_TRIALS")


def _clients(trials: str) -> str:
    from tests.e2e.compat import registry

    columns: dict[str, str] = getattr(registry, trials)
    rows: list[list[str]] = []
    notes: list[str] = []
    for client in registry.CLIENTS:
        if not set(client.trials) & set(columns):
            continue
        row = [client.name, client.version, client.carrier]
        for trial in columns:
            limit = registry.LIMITS.get((client.key, trial))
            if limit is not None and limit not in notes:
                notes.append(limit)
            number = notes.index(limit) + 1 if limit is not None else 0
            row.append(
                ""
                if trial not in client.trials
                else f"no ({number})"
                if number
                else "yes"
            )
        rows.append(row)
    lines = [table(("client", "version", "over", *columns.values()), rows), ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


def asgi_servers() -> str:
    """Which ASGI servers carry which dialect over which version of HTTP, as tests have seen."""
    from tests.asgi import registry

    rows: list[list[str]] = []
    notes: list[str] = []
    for server in registry.SERVERS:
        for version in server.versions:
            row = [server.name, version]
            for trial in registry.TRIALS:
                limit = registry.LIMITS.get((server.name, version, trial))
                if limit is not None and limit not in notes:
                    notes.append(limit)
                row.append("yes" if limit is None else f"no ({notes.index(limit) + 1})")
            rows.append(row)
    lines = [table(("server", "HTTP", *registry.TRIALS.values()), rows), ""]
    lines += [f"{number}. {note}" for number, note in enumerate(notes, 1)]
    return "\n".join(lines)


GENERATORS: dict[str, Callable[..., str]] = {
    generator.__name__: generator
    for generator in (
        asgi_servers,
        catalog_schema,
        command,
        crash_matrix,
        draft_versions,
        effects,
        evidence_list,
        exit_codes,
        http_clients,
        problem_codes,
        settings,
        state_diagram,
        states,
        tus_clients,
    )
}


def markdown(name: str, *arguments: str) -> str:
    """What ``{generated} name arguments`` stands for."""
    return GENERATORS[name](*arguments)
