"""The page's style sheet of an operator's color, made so that everybody can read it.

Text needs a contrast of 4.5 to its ground (WCAG 2.2, success criterion 1.4.3). A color that
has less is mixed with black, or with white in dark mode, until it has.
"""

from __future__ import annotations

__all__ = ["color_sheet", "contrast"]

_LEAST = 4.5
_STEPS = 40

# The grounds on which the color stands: --ground and --card of style.css.
_LIGHT = ((0xF6, 0xF7, 0xF6), (0xFF, 0xFF, 0xFF))
_DARK = ((0x14, 0x19, 0x18), (0x1D, 0x24, 0x23))
_BLACK = (0, 0, 0)
_WHITE = (255, 255, 255)

_Color = tuple[int, int, int]


def color_sheet(color: str | None) -> str:
    """Return the style sheet for *color*, ``#rrggbb``; an empty one for None."""
    if color is None:
        return ""
    wanted = (int(color[1:3], 16), int(color[3:5], 16), int(color[5:7], 16))
    light = _rules(wanted, _LIGHT, _BLACK)
    dark = _rules(wanted, _DARK, _WHITE)
    return (
        f":root {{ {light} }}\n"
        f"@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}\n"
    )


def _rules(wanted: _Color, grounds: tuple[_Color, ...], towards: _Color) -> str:
    steps = (_mixed(wanted, towards, step / _STEPS) for step in range(_STEPS))
    accent = next((each for each in steps if _is_clear(each, grounds)), towards)
    return f"--accent: {_hex(accent)}; --accent-ground: {_hex(_tint(accent, grounds))};"


def _is_clear(accent: _Color, grounds: tuple[_Color, ...]) -> bool:
    """Whether text in *accent* can be read on all grounds, those of buttons included."""
    all_grounds = (*grounds, _tint(accent, grounds))
    return all(contrast(accent, ground) >= _LEAST for ground in all_grounds)


def _tint(accent: _Color, grounds: tuple[_Color, ...]) -> _Color:
    """Return the ground of a button that the pointer is on."""
    return _mixed(grounds[-1], accent, 0.1)


def _mixed(one: _Color, other: _Color, share: float) -> _Color:
    red, green, blue = (
        round(a + (b - a) * share) for a, b in zip(one, other, strict=True)
    )
    return red, green, blue


def _hex(color: _Color) -> str:
    return "#" + bytes(color).hex()


def contrast(one: _Color, other: _Color) -> float:
    """Return the contrast of two colors, 1 to 21 (WCAG 2.2)."""
    dark, light = sorted((_luminance(one), _luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def _luminance(color: _Color) -> float:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (part / 255 for part in color)
    )
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue
