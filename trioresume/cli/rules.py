"""The tables ``[[rule]]`` of the configuration file.

::

    [[rule]]
    path = "/files/photos/"
    methods = ["PUT"]
    media-types = ["image/*"]
    max-upload-size = "20MiB"

A key is a field of :class:`trioresume.Rule`, with hyphens. A size and a duration are written
as in an option.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import trio

import trioresume
from trioresume.cli.options import CONFIG, CONFIG_FILE, Duration, Size
from trioresume.text import decode_text

__all__ = ["RulesFile", "configured_rules", "rules_of", "with_file"]

_KEYS = {
    field.name.replace("_", "-"): field.name
    for field in dataclasses.fields(trioresume.Rule)
}
_TEXTS = ("path", "principal", "methods", "media-types")
_KINDS: dict[str, click.ParamType[Any]] = {
    "max-upload-size": Size(minimum=1),
    "max-stored-bytes-per-principal": Size(minimum=1),
    "file-lifetime": Duration(minimum=1),
    "incomplete-lifetime": Duration(minimum=1),
}


def configured_rules() -> tuple[trioresume.Rule, ...]:
    """Return the rules of this command's configuration file. A bad rule is a usage error."""
    meta = click.get_current_context().meta
    try:
        return rules_of(meta.get(CONFIG, {}))
    except ValueError as exc:
        raise click.UsageError(f"{meta[CONFIG_FILE]}: {exc}") from exc


def with_file(message: str) -> str:
    """Name this command's configuration file in a *message* about one of its rules."""
    if not message.startswith("rule "):
        return message
    path = click.get_current_context().meta[CONFIG_FILE]
    return f"{path}: {message.replace('_', '-')}"


class RulesFile:
    """The configuration file *path* as the place of the rules of a running *server*."""

    def __init__(self, path: Path, server: trioresume.Server) -> None:
        self._path = path
        self._server = server

    async def reload(self) -> None:
        """Read the rules again. After an error the server keeps those that it has.

        Raises :class:`~trioresume.CallerError`, which names the file, the rule and the key.
        """
        try:
            rules = await trio.to_thread.run_sync(self._read)
            self._server.replace_rules(rules)
        except OSError as exc:
            reason = exc.strerror or str(exc)
            raise trioresume.CallerError(f"{self._path}: {reason}") from exc
        except (ValueError, trioresume.CallerError) as exc:
            raise trioresume.CallerError(f"{self._path}: {exc}") from exc

    def _read(self) -> tuple[trioresume.Rule, ...]:
        return rules_of(tomllib.loads(decode_text(self._path.read_bytes())))


def rules_of(document: Mapping[str, object]) -> tuple[trioresume.Rule, ...]:
    """Return the rules in a configuration *document*. Raises :class:`ValueError`."""
    tables = document.get("rule", [])
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ValueError("'rule' must be tables, each with the heading [[rule]]")
    return tuple(_rule(number, table) for number, table in enumerate(tables, 1))


def _rule(number: int, table: Mapping[str, object]) -> trioresume.Rule:
    values: dict[str, Any] = {}
    for key, value in table.items():
        if key not in _KEYS:
            raise ValueError(f"rule {number}: there is no key {key!r}")
        try:
            values[_KEYS[key]] = _value(key, value)
        except (ValueError, click.BadParameter) as exc:
            reason = exc.message if isinstance(exc, click.BadParameter) else exc
            raise ValueError(f"rule {number}: {key}: {reason}") from exc
    try:
        return trioresume.Rule(**values)
    except trioresume.CallerError as exc:
        name, _, reason = str(exc).partition(": ")
        raise ValueError(f"rule {number}: {name.replace('_', '-')}: {reason}") from exc


def _value(key: str, value: object) -> object:
    """Return *value* in the form that the rule wants. Raise ValueError for a wrong kind."""
    if key in _KINDS:
        if isinstance(value, bool) or not isinstance(value, str | int | float):
            raise ValueError("a number or a string is needed")
        return _KINDS[key].convert(str(value), None, None)
    if key in _TEXTS:
        items = value if isinstance(value, list) else [value]
        if not items or not all(isinstance(item, str) for item in items):
            raise ValueError("a string, or several in brackets, is needed")
        return tuple(items)
    if key == "public-download":
        if not isinstance(value, bool):
            raise ValueError("true or false is needed")
    elif not isinstance(value, str):
        raise ValueError("a string is needed")
    return value
