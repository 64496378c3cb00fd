"""The options of ``trioresume serve`` about the file service."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, cast

import click

import trioresume

__all__ = ["FilesOptions", "check_unused", "file_service", "files_options"]


class FilesOptions(TypedDict):
    """The settings of the file service, as its arguments."""

    name_template: str | None
    on_success: str | None


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    click.option(
        "--name-template",
        metavar="TEMPLATE",
        help="How to name files that are sent with POST, such as "
        "'{year}/{month}/{digest}{suffix}'. [default: random names]",
    ),
    click.option(
        "--on-success",
        metavar="ACTION:DIR",
        help="Put each stored file into the directory: copy:DIR, link:DIR (without a copy "
        "where that is possible) or move:DIR (and remove it here).",
    ),
)


def file_service(
    base_path: str, files: FilesOptions, *, names_owner: bool
) -> trioresume.FileService:
    """Return the file service. With *names_owner* locations name the owner.

    An option that the file service cannot have is a usage error.

    Raises :class:`~trioresume.CallerError` for a *base_path* that cannot be.
    """
    try:
        return trioresume.FileService(base_path, names_owner=names_owner, **files)
    except trioresume.CallerError as exc:
        name, separator, reason = str(exc).partition(": ")
        if not separator or name not in files:
            raise
        raise click.UsageError(f"--{name.replace('_', '-')}: {reason}") from exc


def check_unused(files: FilesOptions) -> None:
    """Refuse the options if there is no file service."""
    for name, value in files.items():
        if value is not None:
            option = name.replace("_", "-")
            raise click.UsageError(f"--{option} is for the file service")


_P = ParamSpec("_P")
_R = TypeVar("_R")


def files_options(
    command: Callable[Concatenate[FilesOptions, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add the options to *command*, which gets them as its first argument."""

    @functools.wraps(command)
    def with_files(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        values = {name: kwargs.pop(name) for name in FilesOptions.__annotations__}
        return command(cast("FilesOptions", values), *args, **kwargs)

    wrapped = cast("Callable[_P, _R]", with_files)
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped
