"""The pictures of the documentation are those that the script draws."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from docs import generate, pictures

SVG = "{http://www.w3.org/2000/svg}"


@pytest.mark.parametrize("name", pictures.PICTURES)
def test_picture_on_file_is_the_drawn_one(name: str) -> None:
    """If this fails: ``python -m docs.pictures``."""
    drawn = pictures.PICTURES[name]()
    assert pictures.DIRECTORY.joinpath(f"{name}.svg").read_text("utf-8") == drawn
    root = ET.fromstring(drawn)
    width, height = float(root.attrib["width"]), float(root.attrib["height"])
    assert (root.findtext(f"{SVG}title") or "").strip()
    assert len(root.findtext(f"{SVG}desc") or "") > 50
    for text in root.iter(f"{SVG}text"):
        # A letter is at most about three fifths as wide as it is high.
        half = len(text.text or "") * float(text.attrib["font-size"]) * 0.62 / 2
        x = float(text.attrib["x"])
        shift = {"start": half, "end": -half, "middle": 0.0}[text.attrib["text-anchor"]]
        assert x + shift - half >= 0, text.text
        assert x + shift + half <= width, text.text
        assert 0 < float(text.attrib["y"]) < height


def test_every_setting_is_in_one_group() -> None:
    """The reference of the configuration leaves none out, and says what each means."""
    text = generate.settings()
    names = [name for group in generate.SETTINGS.values() for name in group]
    assert sorted(names) == sorted(generate.CONFIG_FIELDS)
    for name in names:
        _, _, after = text.partition(f"`~trioresume.Config.{name}`")
        meaning = after.partition("\n: ")[2].partition("\n")[0]
        assert len(meaning) > 10, name
    assert not list(generate.statements_in(text))


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("Refused (G7, 507).", "Refused (507)."),
        ("One (R5, R30).", "One."),
        ("A part (413; 400 in a patch: B7).", "A part (413; 400 in a patch)."),
        ("Two (C2 to C4), or (x).", "Two, or (x)."),
        ("It is HTTP/2 (ALPN).", "It is HTTP/2 (ALPN)."),
    ],
)
def test_numbers_of_statements_are_left_out(text: str, kept: str) -> None:
    assert generate.without_citations(text) == kept
