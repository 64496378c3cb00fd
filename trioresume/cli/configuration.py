"""``trioresume config``: whether ``serve`` would work with its options, and what they are.

Both commands take the options of ``serve``, and have them read by the code of ``serve``: the
command line, the environment and the configuration file. ``serve`` then hands its plan over
instead of starting it. So what is checked and shown is what would be served.
"""

from __future__ import annotations

import enum
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import click
from click.core import ParameterSource

import trioresume
from trioresume.cli.help import Command, CommandGroup
from trioresume.cli.options import (
    CONFIG,
    CONFIG_FILE,
    Duration,
    ExitCode,
    Mode,
    Secret,
    Size,
)
from trioresume.cli.service.exposure import dangers, public_downloads
from trioresume.cli.service.plan import PLAN_TAKER, Plan
from trioresume.cli.service.workers import Workers
from trioresume.text import printable

__all__ = ["config"]

_serve_options = click.argument(
    "options", nargs=-1, type=click.UNPROCESSED, metavar="[OPTIONS OF SERVE]..."
)
_PASSED_ON = {"ignore_unknown_options": True}


@click.group(cls=CommandGroup)
def config() -> None:
    """Check or show the configuration of 'trioresume serve'."""


@contextmanager
def _planned(options: Sequence[str]) -> Iterator[tuple[click.Context, Plan]]:
    """Have ``serve`` read *options*; give its context and its plan to the block."""
    root = click.get_current_context().find_root()
    assert isinstance(root.command, click.Group)
    command = root.command.get_command(root, "serve")
    assert command is not None
    plans: list[Plan] = []
    with command.make_context("serve", [*options], parent=root) as context:
        context.meta[PLAN_TAKER] = plans.append
        try:
            command.invoke(context)
            yield context, plans[0]
        finally:
            del context.meta[PLAN_TAKER]


@config.command(
    cls=Command,
    context_settings=_PASSED_ON,
    examples=(
        "trioresume config check --config trioresume.toml",
        "trioresume config check --bind 0.0.0.0:443 --ssl-certfile fullchain.pem",
    ),
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print JSON objects, one per line."
)
@_serve_options
def check(as_json: bool, options: tuple[str, ...]) -> ExitCode:
    """Report what would stop the server from starting, or make it fail later.

    Reads the configuration as 'serve' does, and looks at certificates, tokens, the data
    directory, the disk, the addresses, the limit of open files and the clock. Changes
    nothing, and may run while the server runs. Prints one line for each finding. The exit
    code is 0 if there is no error; a warning is not an error. The exit code is 2 if an option
    itself is wrong, as for 'serve'.
    """
    is_wrong = False
    with _planned(options) as (context, plan):
        for finding in _findings(plan, context.params.get("access_log")):
            is_wrong = is_wrong or finding.severity == "error"
            if as_json:
                row = {"severity": finding.severity, "text": finding.text}
                click.echo(json.dumps(row))
            else:
                click.echo(f"{finding.severity:<8} {printable(finding.text)}")
    return ExitCode.FAILED if is_wrong else ExitCode.DONE


def _findings(plan: Plan, access_log: str | None) -> Iterator[trioresume.Finding]:
    # Where a socket of another program listens is not known.
    binds = [bind for bind in plan.config.bind if "fd:" not in bind]
    urls = [_url(bind, plan.config) for bind in binds]
    yield trioresume.Finding("ok", f"who may use it: {plan.senders or 'anybody'}")
    for public in public_downloads(plan):
        yield trioresume.Finding("note", public)
    for danger in dangers(plan, urls):
        yield trioresume.Finding("warning", danger)
    yield from trioresume.check_config(plan.config)
    yield from _directories(plan)
    logs = [] if access_log in (None, "-") else [Path(str(access_log))]
    for path in [*logs, *([] if plan.log_file is None else [plan.log_file])]:
        target = path if path.exists() else path.absolute().parent
        if os.access(target, os.W_OK):
            yield trioresume.Finding("ok", f"{path} can be written")
        else:
            yield trioresume.Finding("error", f"{path} cannot be written")
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        yield trioresume.Finding(
            "note",
            "this is root: the check says what root may do, not the service's user",
        )


def _directories(plan: Plan) -> Iterator[trioresume.Finding]:
    """Look at the directories into which files are put."""
    if isinstance(plan.target, trioresume.FileService):
        try:
            plan.target.check(plan.config)
        except trioresume.CallerError as exc:
            yield trioresume.Finding("error", str(exc).replace("_", "-", 1))


def _url(bind: str, config: trioresume.Config) -> str:
    """Return *bind* with the scheme that it will have."""
    if "://" in bind:
        return bind
    return f"{'http' if config.ssl is None else 'https'}://{bind}"


class _Form(enum.Enum):
    TEXT = enum.auto()
    TOML = enum.auto()
    JSON = enum.auto()


_ORIGINS = {
    ParameterSource.COMMANDLINE: "option",
    ParameterSource.ENVIRONMENT: "environment",
    ParameterSource.DEFAULT_MAP: "file",
    ParameterSource.DEFAULT: "default",
}


@config.command(
    cls=Command,
    context_settings=_PASSED_ON,
    examples=(
        "trioresume config show --config trioresume.toml",
        "trioresume config show --toml > trioresume.toml",
    ),
)
@click.option(
    "--toml", "form", flag_value=_Form.TOML, help="Print a configuration file."
)
@click.option("--json", "form", flag_value=_Form.JSON, help="Print a JSON object.")
@_serve_options
def show(form: _Form | None, options: tuple[str, ...]) -> None:
    """Show each option of the server with its value, and where the value comes from.

    The origin is an option of the command line, a variable of the environment, the
    configuration file, or the default. Secrets are not shown, only the files they are in.
    With --toml the output is a configuration file with the same meaning.
    """
    with _planned(options) as (context, _):
        rows = list(_rows(context))
        rules = context.meta.get(CONFIG, {}).get("rule", [])
        file = context.meta.get(CONFIG_FILE)
    if form is _Form.JSON:
        settings = {
            name: {"value": value, "origin": origin} for name, value, origin in rows
        }
        click.echo(json.dumps({"serve": settings, "rule": rules}, indent=2))
    elif form is _Form.TOML:
        for line in _toml(rows, rules):
            click.echo(line)
    else:
        for name, value, origin in rows:
            shown = "-" if value is None else _text(value)
            click.echo(f"{name:<32}  {origin:<11}  {shown}")
        if rules:
            click.echo(f"{len(rules)} rules in {printable(str(file))}")


_Value = bool | int | str | list[str] | None
_Row = tuple[str, _Value, str]


def _rows(context: click.Context) -> Iterator[_Row]:
    """Yield name, value and origin of each option of ``serve``."""
    for option in context.command.params:
        name = max(option.opts, key=len).removeprefix("--")
        if not isinstance(option, click.Option) or name in ("config", "help"):
            continue
        source = context.get_parameter_source(option.name or "")
        origin = _ORIGINS.get(source or ParameterSource.DEFAULT, "default")
        yield name, _plain(option, context.params.get(option.name or "")), origin


def _plain(option: click.Option, value: object) -> _Value:
    """Return *value* as one would write it into the file; None if there is none."""
    if isinstance(value, tuple | list):
        return [str(_plain(option, each)) for each in value] or None
    if value is None or value == "":
        return None
    if isinstance(value, Secret):
        return value.path
    if isinstance(value, int) and isinstance(option.type, Workers):
        text = option.type.text(value)
        return value if text.isdigit() else text
    if isinstance(value, int | float) and isinstance(option.type, Duration | Size):
        return option.type.text(value)
    if isinstance(option.type, Mode) and isinstance(value, int):
        return f"{value:o}"
    if isinstance(value, bool | int):
        return value
    return str(value)  # no URL has a password: serve refuses that


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return " ".join(map(_text, value))
    return printable(str(value))


def _toml(rows: Sequence[_Row], rules: Sequence[dict[str, object]]) -> Iterator[str]:
    """Yield the lines of a configuration file. The common options stand before the table."""
    common = [row for row in rows if row[0] in ("log-level", "log-format")]
    yield from _toml_lines(common)
    yield ""
    yield "[serve]"
    yield from _toml_lines([row for row in rows if row not in common])
    for rule in rules:
        yield ""
        yield "[[rule]]"
        for key, value in rule.items():
            yield f"{key} = {_toml_value(value)}"


def _toml_lines(rows: Sequence[_Row]) -> Iterator[str]:
    for name, value, origin in rows:
        if value is None:
            yield f"# {name} is not set"
        else:
            yield f"{name} = {_toml_value(value)}  # {origin}"


def _toml_value(value: object) -> str:
    # JSON's strings, numbers, Booleans and lists are TOML's, but for one character.
    return json.dumps(value).replace("\x7f", "\\u007f")
