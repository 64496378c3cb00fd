"""File names: what is dangerous is removed, and nothing else."""

from __future__ import annotations

import sys
import unicodedata

import pytest
from hypothesis import given, strategies as st

from tests.protocol.test_disposition import KEPT
from trioresume.protocol.filenames import MAX_NAME_BYTES, name_fault, safe_filename

DEVICES = ["CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$", "CLOCK$"]
DEVICES += [f"{kind}{digit}" for kind in ("COM", "LPT") for digit in "0123456789¹²³"]


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("report.pdf", "report.pdf"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:\\fakepath\\photo.jpg", "photo.jpg"),
        ("../..", None),
        ("a/", None),
        (".", None),
        ("...", None),
        ("a\r\nSet-Cookie: b", "aSet-Cookie: b"),
        ("a\0b", "ab"),
        ("a\x1b[2Jb", "a[2Jb"),
        ("a\x85b\x9bc\x7fd\te", "abcde"),
        ("cod\u202egpj.exe", "codgpj.exe"),
        ("name. . ", "name"),
        ("name.\x00", "name"),
        (" \t", None),
        ("", None),
        ("a\ud800b", "ab"),
        ("C\x00ON", "_CON"),
        ("_CON", "_CON"),
        ("console.log", "console.log"),
        ("com10", "com10"),
        ("COM", "COM"),
        ("my.con", "my.con"),
        ("\u212aON", "\u212aON"),
    ],
)
def test_names_are_made_safe(name: str, safe: str | None) -> None:
    """G12, G14: one component, no controls, no reversal, nothing that Windows changes."""
    assert safe_filename(name) == safe


@pytest.mark.parametrize("name", KEPT)
def test_what_is_not_dangerous_stays(name: str) -> None:
    """Joiners, blanks, marks, code points that no version of Unicode has assigned yet."""
    assert safe_filename(name) == name
    assert name_fault(name) is None


def test_every_character_outside_the_list_stays() -> None:
    """All of Unicode: the list is fixed, whatever Python's tables say of the others."""
    removed = {
        code
        for code in range(sys.maxunicode + 1)
        if safe_filename(f"a{chr(code)}b") != f"a{chr(code)}b"
    }
    controls = {*range(0x20), *range(0x7F, 0xA0)}
    directions = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}
    surrogates = set(range(0xD800, 0xE000))
    assert removed == controls | directions | surrogates | {ord("/"), ord("\\")}
    assert {code for code in removed if unicodedata.category(chr(code)) == "Cc"} == (
        controls
    )


@pytest.mark.parametrize("device", DEVICES)
def test_device_names_are_no_devices_any_more(device: str) -> None:
    """With any suffix, in any case, with spaces before the suffix."""
    for name in (device, device.lower(), f"{device}.txt", f"{device}.tar.gz"):
        assert safe_filename(name) == f"_{name}"
    assert safe_filename(f"{device}  .txt") == f"_{device}  .txt"
    assert safe_filename(f"{device}:stream") == f"_{device}:stream"
    assert safe_filename(f"{device}. ") == f"_{device}"
    assert safe_filename(f"x/{device}") == f"_{device}"
    assert safe_filename(f"{device}x") == f"{device}x"


@pytest.mark.parametrize(
    "suffix",
    [
        ".png",
        ".tar.gz",
        ".tar.zst",
        ".user.js",
        ".c",
        ".d.ts",
        ".документ",
        ".min.js.map",
    ],
)
@pytest.mark.parametrize("letter", ["a", "é", "語", "\U0001f600"])
def test_cut_keeps_the_suffix(suffix: str, letter: str) -> None:
    """The suffix says which program opens the file; no character is cut in two."""
    safe = safe_filename(letter * 400 + suffix)
    assert safe is not None
    stem = safe.removesuffix(suffix)
    assert stem + suffix == safe
    assert stem == letter * len(stem)
    assert MAX_NAME_BYTES - 4 < len(safe.encode()) <= MAX_NAME_BYTES


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("é" * 200, "é" * 127),
        ("a" * 300 + ".", "a" * 255),
        ("a" + "." * 300 + "b", "a"),
        ("a" * 250 + " " * 50 + "x", "a" * 250),
        ("x." + "y" * 300, "x." + "y" * 253),
        ("." + "y" * 300, "." + "y" * 254),
        ("One. " * 60 + "txt", ("One. " * 60)[:255].rstrip(" .")),
        ("con" + " " * 300 + "x.txt", "_con" + " " * 247 + ".txt"),
    ],
)
def test_cut_without_a_suffix(name: str, safe: str) -> None:
    """A cut makes no new danger: no dot or space at the end, no device."""
    assert safe_filename(name) == safe
    assert len(safe.encode()) <= MAX_NAME_BYTES


@given(st.text(alphabet=st.characters(categories=None), max_size=400))
def test_safe_names_are_safe(name: str) -> None:
    """Whatever was sent, and once more changes nothing."""
    safe = safe_filename(name)
    if safe is not None:
        assert safe_filename(safe) == safe
        assert name_fault(safe) is None
        assert len(safe.encode()) <= MAX_NAME_BYTES
        assert not set(safe) & set("/\\\r\n\0\u202e")
        assert safe not in (".", "..")


def test_faults_say_why() -> None:
    """What the file service refuses, it explains."""
    assert "control" in (name_fault("a\nb") or "")
    assert "direction" in (name_fault("a\u2067b") or "")
    assert "255" in (name_fault("é" * 128) or "")
