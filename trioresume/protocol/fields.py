"""Reads and writes field values: numbers, lists, ranges, tags, media types, dates.

Three rules hold in this module:

* **Numbers are bounded before they are read** (G6): at most 15 ASCII digits. Such a
  number fits a structured-field Integer (RFC 9651, section 3.3.1), a double and a
  64-bit column, and is cheap to convert.
* **Splitting is linear.** The patterns use possessive quantifiers and alternatives
  that begin with different characters. So they never backtrack.
* **Refuse or ignore, as the field needs it.** Malformed input is a :class:`PeerError`
  where a wrong guess would damage data (``Content-Range``, ``If-Match``). It counts as
  absent where the field is only a wish (``Prefer``, ``Range``, dates).

Statement numbers such as G6 are defined in docs/supported-protocols.md.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from email.utils import formatdate, parsedate_to_datetime
from functools import lru_cache
from typing import TYPE_CHECKING, Literal
from urllib.parse import quote, unquote_to_bytes

from trioresume.errors import PeerError, ProblemCode

if TYPE_CHECKING:
    from collections.abc import Mapping

__all__ = [
    "MAX_DIGITS",
    "QUOTED_STRING",
    "TOKEN",
    "EntityTag",
    "MediaType",
    "decode_ext_value",
    "format_ext_value",
    "format_http_date",
    "header_safe",
    "maybe_integer",
    "parse_entity_tag",
    "parse_entity_tags",
    "parse_http_date",
    "parse_integer",
    "parse_media_type",
    "parse_parameters",
    "quote_string",
    "split_list",
    "unquote_string",
]

MAX_DIGITS = 15
"""The longest number accepted anywhere on the wire (G6)."""

TOKEN = r"[!#$%&'*+\-.^_`|~0-9A-Za-z]++"
"""RFC 9110, section 5.6.2, as a pattern."""

QUOTED_STRING = r'"(?:[^"\\]++|\\.)*+"'
"""RFC 9110, section 5.6.4, as a pattern. The text has no CR, LF or NUL any more."""

_INTEGER = re.compile(r"[0-9]{1,15}")
_ESCAPED = re.compile(r"\\(.)", re.DOTALL)
_OWS = " \t"


# ---------------------------------------------------------------- numbers and text


def parse_integer(
    text: str,
    *,
    what: str = "number",
    problem: ProblemCode = ProblemCode.MALFORMED_REQUEST,
) -> int:
    """Read ``1*DIGIT``, at most 15 digits (G6). A sign or a space is an error.

    Raises :class:`PeerError` with *problem*.
    """
    # Not str.isdigit, which accepts the digits of every script.
    if _INTEGER.fullmatch(text) is None:
        raise PeerError(
            problem, f"the {what} is not a whole number of at most {MAX_DIGITS} digits"
        )
    return int(text)


def maybe_integer(value: str | None) -> int | None:
    """Return a field's value as a number; None if it is absent or malformed."""
    try:
        return None if value is None else parse_integer(value)
    except PeerError:
        return None


def header_safe(value: str) -> bool:
    """Whether *value* may stand in a field of a response (G4).

    False for control characters other than the tab, because CR, LF and NUL could end
    the field and begin another. False for characters that latin-1 does not have.
    """
    return _HEADER_SAFE.fullmatch(value) is not None


_HEADER_SAFE = re.compile(r"[\t\x20-\x7e\x80-\xff]*+")


def split_list(value: str, separator: Literal[",", ";"] = ",") -> list[str]:
    """Return the members of a list without the spaces around them. Drop empty ones.

    A separator within a quoted string does not count. A quoted string that never ends
    takes the rest of *value*. RFC 9110, section 5.6.1.2.
    """
    members = (part.strip(_OWS) for part in _SPLITTERS[separator].findall(value))
    return [member for member in members if member]


_SPLITTERS: dict[str, re.Pattern[str]] = {
    separator: re.compile(rf'(?:[^"{separator}]++|"(?:[^"\\]++|\\.)*+"?+)++', re.DOTALL)
    for separator in ",;"
}


def unquote_string(text: str) -> str:
    """Return the text that a token or a quoted string stands for."""
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _ESCAPED.sub(r"\1", text[1:-1])
    return text


def quote_string(text: str) -> str:
    """Return *text*, which is printable ASCII, as a quoted string."""
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'


def format_ext_value(text: str) -> str:
    """Return *text* as an ext-value (RFC 8187, section 3.2); it need not be ASCII."""
    return f"UTF-8''{quote(text, safe=_ATTR_CHARS)}"


def decode_ext_value(value: str) -> str | None:
    """Return the text of an ext-value (RFC 8187, section 3.2); None if it is malformed.

    An ext-value is ``charset'language'percent-encoded``.
    """
    charset, _, rest = value.partition("'")
    encoded = rest.partition("'")[2]
    if charset.lower() not in ("utf-8", "iso-8859-1"):
        return None
    try:
        return unquote_to_bytes(encoded).decode(charset)
    except UnicodeDecodeError:
        return None


# RFC 8187, section 3.2.1: attr-char, beyond letters and digits.
_ATTR_CHARS = "!#$&+-.^_`|~"


def parse_parameters(members: list[str]) -> dict[str, str] | None:
    """Read ``name=value`` pairs, names in lower case. None if one is malformed or repeated.

    A repeated parameter is refused, because two recipients may disagree on which one
    counts. With ``boundary`` they would read one patch in two ways.
    """
    parameters: dict[str, str] = {}
    for member in members:
        match = _PARAMETER.fullmatch(member)
        if match is None or match[1].lower() in parameters:
            return None
        parameters[match[1].lower()] = unquote_string(match[2])
    return parameters


_PARAMETER = re.compile(rf"({TOKEN})=({TOKEN}|{QUOTED_STRING})", re.DOTALL)


# ---------------------------------------------------------------- entity tags


@dataclass(frozen=True, slots=True)
class EntityTag:
    """A validator (RFC 9110, section 8.8.3). ``opaque`` is the text between the quotes."""

    opaque: str
    weak: bool = False

    def matches_strongly(self, other: EntityTag) -> bool:
        """Section 8.8.3.2: equal, and neither is weak."""
        return not self.weak and not other.weak and self.opaque == other.opaque

    def matches_weakly(self, other: EntityTag) -> bool:
        """Section 8.8.3.2: equal, weak or not."""
        return self.opaque == other.opaque

    def __str__(self) -> str:
        return f'{"W/" if self.weak else ""}"{self.opaque}"'


# In a tag a backslash does not escape, and a comma may stand inside the quotes.
# split_list would read both wrong, so tags have a pattern of their own.
_ENTITY_TAG = r'(W/)?+"([\x21\x23-\x7e\x80-\xff]*+)"'
_ONE_TAG = re.compile(_ENTITY_TAG)
_NEXT_TAG = re.compile(rf"[ \t,]*+{_ENTITY_TAG}[ \t]*+(?:,[ \t,]*+|\Z)")


def parse_entity_tag(value: str) -> EntityTag | None:
    """Read one tag; None if it is malformed."""
    match = _ONE_TAG.fullmatch(value)
    return None if match is None else EntityTag(match[2], match[1] is not None)


def parse_entity_tags(value: str) -> tuple[EntityTag, ...] | Literal["*"]:
    """Read the value of ``If-Match`` or ``If-None-Match``: ``*`` or a list of tags.

    Raises :class:`PeerError` (400) if it is malformed: such a precondition must not
    count as met.
    """
    if value.strip(_OWS) == "*":
        return "*"
    tags: list[EntityTag] = []
    position = 0
    while position < len(value) or not tags:
        match = _NEXT_TAG.match(value, position)
        if match is None:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST, "the list of entity tags is malformed"
            )
        tags.append(EntityTag(match[2], match[1] is not None))
        position = match.end()
    return tuple(tags)


# ---------------------------------------------------------------- media types


@dataclass(frozen=True, slots=True)
class MediaType:
    """A media type (RFC 9110, section 8.3.1): lower case, parameters unquoted."""

    type: str
    subtype: str
    parameters: Mapping[str, str] = field(default_factory=dict)

    @property
    def essence(self) -> str:
        """``type/subtype``, without the parameters."""
        return f"{self.type}/{self.subtype}"


_ESSENCE = re.compile(rf"({TOKEN})/({TOKEN})")


def parse_media_type(value: str) -> MediaType | None:
    """Read a ``Content-Type``; None if it or one of its parameters is malformed."""
    members = split_list(value, ";")
    match = _ESSENCE.fullmatch(members[0]) if members else None
    parameters = parse_parameters(members[1:])
    if match is None or parameters is None:
        return None
    return MediaType(match[1].lower(), match[2].lower(), parameters)


# ---------------------------------------------------------------- dates


# Cached, because every response of one second has the same date.
@lru_cache(maxsize=64)
def format_http_date(seconds: int) -> str:
    """Return whole Unix seconds as an IMF-fixdate (RFC 9110, section 5.6.7)."""
    return formatdate(seconds, usegmt=True)


# email.utils accepts far more than the three forms of an HTTP-date. This pattern lets
# only those three through: IMF-fixdate, RFC 850 and asctime.
_MONTH = r"[A-Z][a-z]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}"
_HTTP_DATE = re.compile(
    rf"[A-Z][a-z]{{2}}, [0-9]{{2}} {_MONTH} [0-9]{{4}} {_TIME} GMT"
    rf"|[A-Z][a-z]{{5,8}}, [0-9]{{2}}-{_MONTH}-[0-9]{{2}} {_TIME} GMT"
    rf"|[A-Z][a-z]{{2}} {_MONTH} [0-9 ][0-9] {_TIME} [0-9]{{4}}"
)


def parse_http_date(value: str) -> int | None:
    """Return a date in Unix seconds; None if it is invalid, which means: ignore it."""
    if _HTTP_DATE.fullmatch(value) is None:
        return None
    # The asctime form names no zone and means GMT too. A ValueError is a value out of
    # range, such as 30 February. An OverflowError is an absurd year.
    text = value if value.endswith("GMT") else f"{value} GMT"
    try:
        return int(parsedate_to_datetime(text).timestamp())
    except (ValueError, OverflowError):
        return None
