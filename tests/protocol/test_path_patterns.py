"""Patterns for paths and names: what they match, and that no path avoids them."""

from __future__ import annotations

import re
import time

import pytest
from hypothesis import given, settings, strategies as st

from trioresume.protocol.path_patterns import (
    PathPattern,
    TextPattern,
    path_segments,
)


def matches(pattern: str, path: str) -> bool:
    segments = path_segments(path)
    assert segments is not None, path
    return PathPattern(pattern).matches(segments)


@pytest.mark.parametrize(
    ("pattern", "yes", "no"),
    [
        ("/", "/ /a /a/b /a/", ""),
        ("/files/", "/files /files/ /files/a /files/a/b", "/ /file /filesx /x/files"),
        ("/files/a", "/files/a /files/a/ /files/%61", "/files /files/ab /files/a/b"),
        ("/files/*", "/files/a /files/.b", "/files /files/a/b"),
        ("/files/*.jpg", "/files/a.jpg /files/.jpg", "/files/a.jpeg /files/a/b.jpg"),
        ("/a?c", "/abc /a%C3%A4c", "/ac /abbc"),
        ("/a/**/z", "/a/z /a/b/z /a/b/c/z /a/z/z", "/a /a/b /a/zz /b/z"),
        ("/**/x/**/y", "/x/y /a/x/b/y /x/x/y/y", "/y/x /x /y"),
        ("/x/*/y/**", "/x/1/y /x/1/y/2/3", "/x/y /x/1/2/y"),
        ("/%41", "/%2541", "/A"),
        ("/a.b+(c)", "/a.b+(c)", "/axb+(c)"),
    ],
)
def test_pattern_matches_these_paths_and_not_those(
    pattern: str, yes: str, no: str
) -> None:
    """Stars stay within a segment, ``**`` is whole segments, a slash at the end is both."""
    for path in yes.split():
        assert matches(pattern, path), path
    for path in no.split():
        assert not matches(pattern, path), path


@pytest.mark.parametrize(
    "path",
    [
        "*",
        "",
        "a",
        "//",
        "/a//b",
        "//a",
        "/a//",
        "/.",
        "/..",
        "/a/../b",
        "/a/%2e%2e/b",
        "/a/%2E./b",
        "/a/..;x=1/b",
        "/a/.;/b",
        "/a%2fb",
        "/a%5Cb",
        "/a\\b",
        "/a%00",
        "/a%0a",
        "/%ff",
        "/%C3",
        "/%E2%80%AEgpj.exe",
    ],
)
def test_path_with_two_readings_has_no_segments(path: str) -> None:
    """What one server takes for another path is compared with no pattern."""
    assert path_segments(path) is None


@pytest.mark.parametrize("path", ["/...", "/.a", "/a;b", "/a%20b", "/%25", "/a..b"])
def test_unusual_path_with_one_reading_has_segments(path: str) -> None:
    """Only what is ambiguous is refused."""
    assert path_segments(path) is not None


@pytest.mark.parametrize(
    "pattern", ["", "a", "/a//b", "/a**", "/**b", "/a/../b", "/.", "/a\\b", "/***"]
)
def test_pattern_that_no_path_can_match_is_refused(pattern: str) -> None:
    """A rule that never applies would be a hole that nobody sees."""
    with pytest.raises(ValueError, match=r"segment|alone|begins"):
        PathPattern(pattern)


@settings(max_examples=60)
@given(
    st.text("ab*?", max_size=8),
    st.text("abc", max_size=12),
)
def test_text_pattern_is_what_a_regular_expression_says(
    pattern: str, text: str
) -> None:
    """The quick matcher and the slow one agree."""
    slow = "".join({"*": ".*", "?": "."}.get(c, c) for c in pattern)
    assert TextPattern(pattern).matches(text) == bool(re.fullmatch(slow, text))


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from(["a", "b", "*", "**"]), min_size=1, max_size=6),
    st.lists(st.sampled_from(["a", "b", "ab"]), max_size=7),
)
def test_path_pattern_is_what_a_regular_expression_says(
    pattern: list[str], path: list[str]
) -> None:
    """So do they for segments."""
    slow = "".join(
        r"(/[^/]*)*" if s == "**" else r"/[^/]*" if s == "*" else f"/{s}"
        for s in pattern
    )
    quick = PathPattern("/" + "/".join(pattern)).matches(path)
    assert quick == bool(re.fullmatch(slow, "".join(f"/{s}" for s in path)))


def test_hostile_path_costs_little() -> None:
    """Each further star would multiply the time of a regular expression by 16,000."""
    began = time.process_time()
    assert not TextPattern("*a*a*a*a*a*a*b").matches("a" * 16_000)
    segments = path_segments("/a" * 8_000)
    assert segments is not None
    assert not PathPattern("/**/a/**/a/**/a/**/b").matches(segments)
    assert time.process_time() - began < 1
