"""Check the variables ``TRIORESUME_…``. No wrong variable is ignored.

A misspelt variable is an error, as is a misspelt key in the configuration file. An empty
variable is an error too: ``TRIORESUME_SERVE_TOKENS_FILE=`` would open the server to
everybody, although its author wanted tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import click

__all__ = ["ENVIRONMENT_PREFIX", "check_environment", "command_path"]

ENVIRONMENT_PREFIX = "TRIORESUME"

_OTHERS = re.compile(
    rf"{ENVIRONMENT_PREFIX}_(?:BUILD_UI|BENCH_CACHE|SEED|POWER_\w+|E2E_\w+)"
)
"""Variables of this project's build, benchmarks and tests."""

# Kubernetes tells every container the addresses of every service, in variables that are
# named after the service. These are the variables of a service called "trioresume".
_SERVICE_LINK = re.compile(
    rf"{ENVIRONMENT_PREFIX}(?:_[A-Z0-9]+)*?_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)(?:://.*)?|[0-9]+|[0-9a-fA-F.:]+")


def check_environment(ctx: click.Context, environ: Mapping[str, str]) -> None:
    """Refuse variables that are empty, or that belong to no option.

    Raises :class:`click.UsageError`. Each command checks only its own variables.
    """
    known = {
        name
        for option in ctx.command.params
        if isinstance(option, click.Option)
        for name in _names(option.envvar)
    }
    others = tuple(
        f"{ENVIRONMENT_PREFIX}_{name.upper().replace(' ', '_')}_"
        for name in _others(ctx)
    )
    for name, value in sorted(environ.items()):
        if name in known:
            if not value.strip():
                raise click.UsageError(
                    f"the variable {name} is empty: give it a value, or remove it", ctx
                )
        elif not name.upper().startswith(f"{ENVIRONMENT_PREFIX}_"):
            continue
        elif not (
            name.startswith(others)
            or _OTHERS.fullmatch(name)
            or _is_service_link(name, value)
        ):
            near = difflib.get_close_matches(name.upper(), known, n=1, cutoff=0.7)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise click.UsageError(
                f"the variable {name} belongs to no option of this command{hint}", ctx
            )


def _names(envvar: object) -> Iterator[str]:
    if isinstance(envvar, str):
        yield envvar
    elif isinstance(envvar, list | tuple):
        yield from map(str, envvar)


def _others(ctx: click.Context) -> Iterator[str]:
    """The names of the other commands, each behind those of its groups."""
    step = ctx
    while step.parent is not None:
        parent = step.parent
        groups = command_path(parent) if parent.parent is not None else []
        if isinstance(parent.command, click.Group):
            for name in parent.command.list_commands(parent):
                # No command of "config" has variables: TRIORESUME_CONFIG is an option's.
                if name not in (step.info_name, "config"):
                    yield "_".join((*groups, name))
        step = parent


def command_path(ctx: click.Context) -> list[str]:
    """Return the names of the command and of its groups, without the program's name."""
    names: list[str] = []
    step: click.Context | None = ctx
    while step is not None and (step.parent is not None or not names):
        names.insert(0, step.info_name or "")
        step = step.parent
    return names


def _is_service_link(name: str, value: str) -> bool:
    """Return whether Kubernetes made the variable, by its name and its value."""
    if _SERVICE_LINK.fullmatch(name) is None:
        return False
    # TRIORESUME_SERVE_PORT=8080 is a user's guess at an option: Kubernetes' value has a
    # scheme.
    if name.endswith("_PORT") and not name.endswith(("_SERVICE_PORT", "_TCP_PORT")):
        return "://" in value or name.count("_PORT") > 1
    return _SERVICE_ADDRESS.fullmatch(value) is not None
