"""What an operator may change of the page: what is taken, and what is refused with a reason."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.ui.pages import make_page
from trioresume import CallerError, PageAppearance
from trioresume.ui.build import HERE
from trioresume.ui.colors import color_sheet, contrast
from trioresume.ui.page import load_page
from trioresume.ui.words import MAX_SIZE, read_words


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"title": "x" * 201}, "200 characters"),
        ({"title": "a\u202eb"}, "printable"),
        ({"color": "red"}, "#1f6f5c: 'red'"),
        ({"color": "#12345"}, "must look like"),
        ({"color": "#1f6f5c;"}, "must look like"),
        ({"languages": "fr.json"}, "sequence of files"),
        ({"languages": ["french.txt"]}, "named after its language"),
        ({"languages": ["../F.json"]}, "named after its language"),
        ({"languages": ["a/fr.json", "b/fr.json"]}, "has a file already"),
    ],
)
def test_wrong_setting_is_refused_with_its_reason(
    settings: dict[str, Any], reason: str
) -> None:
    with pytest.raises(CallerError, match=re.escape(reason)):
        PageAppearance(**settings)


def colors(sheet: str) -> list[tuple[int, int, int]]:
    found = re.findall(r"#([0-9a-f]{2})([0-9a-f]{2})([0-9a-f]{2})", sheet)
    return [(int(r, 16), int(g, 16), int(b, 16)) for r, g, b in found]


@pytest.mark.parametrize(
    "color", ["#000000", "#ffffff", "#FFD000", "#0000ff", "#808080", "#1f6f5c"]
)
def test_every_color_can_be_read(color: str) -> None:
    """On its grounds, in both color schemes; a color that could be read stays as it is."""
    light, light_tint, dark, dark_tint = colors(color_sheet(color))
    for ground in ((0xF6, 0xF7, 0xF6), (255, 255, 255), light_tint):
        assert contrast(light, ground) >= 4.5
    for ground in ((0x14, 0x19, 0x18), (0x1D, 0x24, 0x23), dark_tint):
        assert contrast(dark, ground) >= 4.5
    if color == "#1f6f5c":
        assert light == (0x1F, 0x6F, 0x5C)


def test_grounds_are_those_of_the_style_sheet() -> None:
    """The contrasts are computed for them."""
    sheet = (HERE / "src/style.css").read_text("utf-8")
    assert re.findall(r"--(?:ground|card): (#\w+)", sheet) == [
        "#f6f7f6",
        "#ffffff",
        "#141918",
        "#1d2423",
    ]


def test_contrast_is_that_of_the_guidelines() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.01)


ENGLISH: dict[str, Any] = json.loads((HERE / "src/words.en.json").read_text("utf-8"))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "cannot be read"),
        (b"{", "is not JSON"),
        (b"\xff", "is not JSON"),
        (b"[]", "is not a JSON object"),
        (b" " * (MAX_SIZE + 1), "more than"),
        (b'{"paws": "x"}', "has no word paws"),
        (b'{"pause": 1}', "pause is not a text"),
        (b'{"found": {"one": "x"}}', "needs the form 'other'"),
        (b'{"found": {"other": "x", "two ": "y"}}', "needs the form 'other'"),
        (b'{"found": {"other": []}}', "found is not a text"),
        (b'{"limit": "bis {count}"}', "has not: count"),
    ],
)
def test_wrong_words_are_refused_with_their_reason(
    content: bytes | None, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "fr.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CallerError, match=re.escape(reason)) as error:
        read_words(path, ENGLISH)
    assert str(path) in str(error.value)


def test_german_has_every_word_and_every_name_of_the_english_ones() -> None:
    """And so would be accepted from an operator, too."""
    path = HERE / "src/words.de.json"
    german = read_words(path, ENGLISH)
    assert german.keys() == ENGLISH.keys()
    name = re.compile(r"\{\w+\}")
    for key, word in ENGLISH.items():
        assert isinstance(german[key], type(word)), key
        for form in word if isinstance(word, dict) else [None]:
            texts = [w if form is None else w[form] for w in (word, german[key])]
            assert set(name.findall(texts[0])) == set(name.findall(texts[1])), key


def test_every_word_is_used_and_every_used_word_is_there() -> None:
    """By the page's script and its markup."""
    source = "".join(
        path.read_text("utf-8")
        for path in (HERE / "src").iterdir()
        if path.suffix in (".js", ".html") and path.name != "words.js"
    )
    for key in ENGLISH:
        assert f'"{key}"' in source or key == "language", key
    said = set(re.findall(r'\bsay\("(\w+)"', source))
    said |= set(re.findall(r'data-say(?:-\w+)?="(\w+)"', source))
    assert said <= ENGLISH.keys()


def test_page_has_what_was_wished(tmp_path: Path) -> None:
    """Escaped: a title is text, and a placeholder in it is none."""
    folder = make_page(tmp_path / "made")
    words = tmp_path / "pt-BR.json"
    words.write_text('{"language": "Português", "pause": "Pausar"}', "utf-8")
    appearance = PageAppearance(
        title="<b>{{endpoint}}", color="#123456", languages=[words]
    )
    files = load_page("../files/", appearance, folder)
    index = files[""].content.decode()
    assert "<title>&lt;b&gt;{{endpoint}}</title>" in index
    assert 'data-title="&lt;b&gt;{{endpoint}}"' in index
    assert "{&quot;pt-BR&quot;: &quot;Portugu" in index
    assert json.loads(files["words.pt-BR.json"].content)["pause"] == "Pausar"
    assert b"--accent: #123456" in files["colors.css"].content
    plain = load_page("../files/", folder=folder)
    assert plain["colors.css"].content == b""
    assert b'data-title=""' in plain[""].content
    assert not [name for name in plain if name.startswith("words")]
