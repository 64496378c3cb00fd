"""The variables ``TRIORESUME_…``: none of them is passed over in silence.

A misspelt key in the configuration file is an error, and so is a misspelt variable. An
empty one is an error too: ``TRIORESUME_SERVE_TOKENS_FILE=`` would open a service to
everybody, while whoever wrote it wanted tokens.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping

import click

__all__ = ["ENVIRONMENT_PREFIX", "check_environment"]

ENVIRONMENT_PREFIX = "TRIORESUME"

_OTHERS = re.compile(
    rf"{ENVIRONMENT_PREFIX}_(?:BUILD_UI|BENCH_CACHE|SEED|POWER_\w+|E2E_\w+)"
)
"""Variables of this project's build, benchmarks and tests."""

# Kubernetes tells every container the addresses of every service, in variables that are
# named after it: of a service called "trioresume" these.
_SERVICE_LINK = re.compile(
    rf"{ENVIRONMENT_PREFIX}(?:_[A-Z0-9]+)*?_(?:SERVICE_HOST|SERVICE_PORT(?:_\w+)?"
    r"|PORT(?:_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)?)"
)
_SERVICE_ADDRESS = re.compile(r"(?:tcp|udp|sctp)(?:://.*)?|[0-9]+|[0-9a-fA-F.:]+")


def check_environment(ctx: click.Context, environ: Mapping[str, str]) -> None:
    """Refuse variables that are empty, or that no option has.

    Raises :class:`click.UsageError`. Other commands' variables are theirs to check.
    """
    known = {
        name
        for option in ctx.command.params
        if isinstance(option, click.Option)
        for name in _names(option.envvar)
    }
    others = tuple(f"{ENVIRONMENT_PREFIX}_{name.upper()}_" for name in _others(ctx))
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
            hint = f"; is {near[0]} meant?" if near else ""
            raise click.UsageError(
                f"no option of this command has the variable {name}{hint}", ctx
            )


def _names(envvar: object) -> Iterator[str]:
    if isinstance(envvar, str):
        yield envvar
    elif isinstance(envvar, list | tuple):
        yield from map(str, envvar)


def _others(ctx: click.Context) -> Iterator[str]:
    """The names of the other commands."""
    group = ctx.parent.command if ctx.parent else None
    if ctx.parent and isinstance(group, click.Group):
        for name in group.list_commands(ctx.parent):
            if name != ctx.info_name:
                yield name


def _is_service_link(name: str, value: str) -> bool:
    """Whether Kubernetes made it: by its name, and an address or a port for a value."""
    if _SERVICE_LINK.fullmatch(name) is None:
        return False
    # TRIORESUME_SERVE_PORT=8080 is somebody's guess at an option; the link has a scheme.
    if name.endswith("_PORT") and not name.endswith(("_SERVICE_PORT", "_TCP_PORT")):
        return "://" in value or name.count("_PORT") > 1
    return _SERVICE_ADDRESS.fullmatch(value) is not None
