"""The options of ``trioresume serve`` about the page for browsers."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypedDict, TypeVar, cast

import click

import trioresume
from trioresume.cli.options import switch

__all__ = ["PageOptions", "ui_options"]


class PageOptions(TypedDict):
    """What the page's options say."""

    ui: bool
    appearance: trioresume.PageAppearance


_OPTIONS: tuple[Callable[[Callable[..., Any]], Callable[..., Any]], ...] = (
    switch("--ui", default=False, help="Serve an upload page for browsers at /ui/."),
    click.option(
        "--ui-title",
        default="",
        help='Title of this page. [default: "Upload files", in the language shown]',
    ),
    click.option(
        "--ui-color",
        metavar="#RRGGBB",
        help="Color of its buttons and links; it is made darker or lighter where it would be "
        "hard to read.",
    ),
    click.option(
        "--ui-language",
        metavar="FILE",
        type=click.Path(path_type=Path, dir_okay=False),
        multiple=True,
        help="File such as fr.json with the page's words in one more language; may be "
        "repeated. It has English and German.",
    ),
)

_P = ParamSpec("_P")
_R = TypeVar("_R")


def ui_options(
    command: Callable[Concatenate[PageOptions, _P], _R],
) -> Callable[_P, _R]:
    """Decorator: add these options to *command*, which gets them as its first argument."""

    @functools.wraps(command)
    def with_page(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        title: Any = kwargs.pop("ui_title")
        color: Any = kwargs.pop("ui_color")
        languages: Any = kwargs.pop("ui_language")
        ui: Any = kwargs.pop("ui")
        try:
            appearance = trioresume.PageAppearance(
                title=title, color=color, languages=languages
            )
        except trioresume.CallerError as exc:
            raise click.UsageError(str(exc)) from exc
        page = PageOptions(ui=ui, appearance=appearance)
        if appearance != trioresume.PageAppearance() and not ui:
            raise click.UsageError("--ui-title, --ui-color and --ui-language need --ui")
        return command(page, *args, **kwargs)

    wrapped: Callable[..., Any] = with_page
    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return cast("Callable[_P, _R]", wrapped)
