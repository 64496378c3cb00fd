"""Settings: bounds are checked when they are made."""

from __future__ import annotations

import math
from dataclasses import fields
from typing import Any

import pytest

from trioresume import CallerError, Config
from trioresume.server.uploads.locations import root_of

NUMBERS = [
    setting.name
    for setting in fields(Config)
    if isinstance(setting.default, (int, float))
    and not isinstance(setting.default, bool)
]


@pytest.mark.parametrize("name", [*NUMBERS, "max_upload_size", "file_lifetime"])
@pytest.mark.parametrize("value", [-1, -0.001, math.inf, -math.inf, math.nan])
def test_number_must_be_finite_and_not_negative(name: str, value: float) -> None:
    """NaN compares false with everything and is refused all the same."""
    settings: dict[str, Any] = {name: value}
    with pytest.raises(CallerError, match=name):
        Config(**settings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("chunk_size", 0),
        ("receive_memory", 0),
        ("storage_threads", 0),
        ("bind", ()),
        ("operation_path", "/"),
        ("operation_path", ""),
        ("operation_path", "/operations"),
        ("operation_path", "operations/"),
        ("durability", "none"),
        ("public_url", ""),
        ("public_url", "foo"),
        ("public_url", "up.example"),
        ("public_url", "//up.example"),
        ("public_url", "/up"),
        ("public_url", "ftp://up.example"),
        ("public_url", "https://"),
        ("public_url", "https:///up"),
        ("public_url", "https://up.example:"),
        ("public_url", "https://up.example:65536"),
        ("public_url", "https://up.example/a b"),
        ("public_url", "https://up.example/?a=b"),
        ("public_url", "https://up.example/#a"),
        ("public_url", "https://user@up.example"),
        ("public_url", "https://up.example\n"),
        ("public_url", "https://\u00fcp.example"),
        ("ui", "files/"),
        ("ui", "//files/"),
        ("ui", "/ui/files/"),
    ],
)
def test_setting_that_makes_no_sense_is_refused(name: str, value: Any) -> None:
    """At once, and not when the first request comes."""
    with pytest.raises(CallerError, match=name.partition("_")[0]):
        Config(**{name: value})


@pytest.mark.parametrize(
    ("url", "root"),
    [
        ("https://up.example", "https://up.example"),
        ("HTTP://up.example:8080/", "HTTP://up.example:8080"),
        ("https://[2001:db8::1]:65535/a/b/", "https://[2001:db8::1]:65535/a/b"),
        ("http://10.0.0.1/~x", "http://10.0.0.1/~x"),
    ],
)
def test_public_url_stands_before_a_path(url: str, root: str) -> None:
    """With a slash at its end or without: a location has one there."""
    assert root_of(Config(public_url=url)) == root


def test_page_and_operations_do_not_share_a_path() -> None:
    """Only if there is a page."""
    assert Config(operation_path="/ui/operations/").ui is None
    with pytest.raises(CallerError, match="operation_path"):
        Config(operation_path="/ui/operations/", ui="/files/")


def test_defaults_are_within_bounds() -> None:
    """And times that mean "at once" or "never" are allowed where they make sense."""
    assert Config().durability == "disk"
    assert Config(grace_timeout=0, drain_size=0, max_wait=0).grace_timeout == 0
