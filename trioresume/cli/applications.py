"""``--app MODULE:NAME`` of ``trioresume serve``: an application instead of the file service."""

from __future__ import annotations

import importlib
import sys
from functools import reduce
from typing import Any, Literal, TypedDict

import click

import trioresume

__all__ = ["AppOptions", "application_target"]


class AppOptions(TypedDict):
    """The options of ``trioresume serve`` about an application, as click passes them on."""

    app: str | None
    wsgi: bool
    app_loop: Literal["asyncio", "trio"]
    app_threads: int


def application_target(options: AppOptions) -> trioresume.Target | None:
    """Return the application as a target; None without one.

    The present directory is searched for its module first, as ``python -m`` does. Raises
    :class:`click.UsageError` if there is no such application; an error within its module is
    the application's own, and is raised as it is.
    """
    name = options["app"]
    if name is None:
        if options["wsgi"]:
            raise click.UsageError("--wsgi needs --app")
        return None
    app = _load(name)
    if options["wsgi"]:
        return trioresume.WSGITarget(app, threads=options["app_threads"])
    return trioresume.ASGITarget(app, loop=options["app_loop"])


def _load(name: str) -> Any:
    module_name, _, attributes = name.partition(":")
    if not module_name or not attributes:
        raise click.UsageError(f"--app {name!r} does not look like MODULE:NAME")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as exc:
        if exc.name is None or not f"{module_name}.".startswith(f"{exc.name}."):
            raise  # a module that the application itself needs
        raise click.UsageError(f"--app: there is no module {exc.name!r}") from exc
    try:
        app = reduce(getattr, attributes.split("."), module)
    except AttributeError:
        raise click.UsageError(f"--app: {module_name} has no {attributes!r}") from None
    if not callable(app):
        raise click.UsageError(f"--app: {name} is no application")
    return app
