"""Templates for names: what they give, and that no value leads out of its segment."""

from __future__ import annotations

import pytest
from hypothesis import given, settings, strategies as st

from trioresume.protocol.filenames import name_fault
from trioresume.protocol.name_templates import (
    FIELDS,
    NameTemplate,
    numbered,
    split_suffix,
)

VALUES = {
    "year": "2026",
    "month": "11",
    "day": "30",
    "principal": "DNS:a/b",
    "id": "0123",
    "digest": "1e20ab",
    "name": "photo.of me.tar.gz",
    "stem": "photo.of me",
    "suffix": ".tar.gz",
    "random": "r4nd0m",
}


@pytest.mark.parametrize(
    ("template", "name"),
    [
        ("{year}/{month}/{digest}{suffix}", "2026/11/1e20ab.tar.gz"),
        ("in-{day}/{principal}/{stem}-{id}", "in-30/DNS:a_b/photo.of me-0123"),
        ("{name}", "photo.of me.tar.gz"),
        ("{random}.bin", "r4nd0m.bin"),
        (".{name}", "_photo.of me.tar.gz"),
        ("{suffix}", "_tar.gz"),
        ("{id}. ", "0123"),
    ],
)
def test_template_gives_the_name(template: str, name: str) -> None:
    """Each field is its value, without what no name should have."""
    assert NameTemplate(template).render(VALUES) == name


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("", "segment is empty"),
        ("/{name}", "segment is empty"),
        ("{name}/", "segment is empty"),
        ("a//{name}", "segment is empty"),
        ("../{name}", "no file can have"),
        ("./{name}", "no file can have"),
        (".git/{name}", "no file can have"),
        ("con/{name}", "no file can have"),
        ("a\\{name}", "backslash"),
        ("a\n{name}", "control"),
        ("fixed", "without a field"),
        ("{}", "no field ''"),
        ("{owner}", "no field 'owner'"),
        ("{name.__class__}", "a brace"),
        ("{name[0]}", "a brace"),
        ("{name!r}", "a brace"),
        ("{name:>9}", "a brace"),
        ("{{name}}", "a brace"),
        ("{name", "a brace"),
        ("name}", "a brace"),
        ("{0}", "a brace"),
        ("/".join(["{id}"] * 9), "more than 8"),
    ],
)
def test_template_with_a_fault_is_refused(template: str, reason: str) -> None:
    """At the start, with the reason: no attribute, index or conversion is a field."""
    with pytest.raises(ValueError, match=reason):
        NameTemplate(template)


@settings(max_examples=60)
@given(
    st.lists(
        st.sampled_from([*(f"{{{field}}}" for field in FIELDS), ".", " ", "a", "/"]),
        min_size=1,
        max_size=10,
    ),
    st.fixed_dictionaries(
        {
            f: st.text("./\\:\x00\u202e ab\xe9", max_size=12)
            | st.just("..")
            | st.just("\xe9" * 300)
            for f in FIELDS
        }
    ),
)
def test_no_value_makes_a_segment(parts: list[str], values: dict[str, str]) -> None:
    """Promise 8: as many segments as the template has, each a harmless name."""
    text = "".join(parts)
    try:
        template = NameTemplate(text)
    except ValueError:
        return
    segments = template.render(values).split("/")
    assert len(segments) == text.count("/") + 1
    for segment in segments:
        assert segment
        assert not segment.startswith(".")
        assert "\\" not in segment
        assert name_fault(segment) is None


def test_suffix_is_what_programs_go_by() -> None:
    """The last one, or two for an archive; the two parts are the whole."""
    for name, suffix in (
        ("a.jpg", ".jpg"),
        ("a.b.jpg", ".jpg"),
        ("a.tar.gz", ".tar.gz"),
        ("a.TAR.xz", ".TAR.xz"),
        ("a", ""),
        ("a. b", ""),
        (".profile", ""),
        ("a." + "b" * 17, ""),
    ):
        assert split_suffix(name) == (name.removesuffix(suffix), suffix)


def test_number_comes_before_the_suffix() -> None:
    """Of the last segment, whose length stays within the limit."""
    assert numbered("a.b/c.tar.gz", "2") == "a.b/c-2.tar.gz"
    assert numbered("a.b/c", "2") == "a.b/c-2"
    long = numbered("x/" + "\xe9" * 125 + ".jpeg", "12")
    assert long.endswith("\xe9-12.jpeg")
    assert name_fault(long.removeprefix("x/")) is None
