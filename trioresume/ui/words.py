"""The words of a language that an operator adds to the page, from a file of JSON.

The file is an object with the same keys as ``trioresume/ui/src/words.en.json``. A key that is
missing is shown in English. A word has the same ``{names}`` as the English one, and may have
several forms for a count, named as in Unicode's plural rules::

    {"language": "Français", "pause": "Suspendre",
     "found": {"one": "{count} fichier trouvé.", "other": "{count} fichiers trouvés."}}
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trioresume.errors import CallerError

__all__ = ["MAX_SIZE", "read_words"]

MAX_SIZE = 256 * 1024
"""The most bytes of a file of words; the English one has 4 KiB."""

_FORMS = frozenset(("zero", "one", "two", "few", "many", "other"))
_NAME = re.compile(r"\{(\w+)\}")


def read_words(path: Path, english: Mapping[str, Any]) -> dict[str, Any]:
    """Return the words in the file *path*, of which *english* is the complete model.

    Raises :class:`~trioresume.errors.CallerError` that says what is wrong with the file.
    """
    try:
        content = path.read_bytes()[: MAX_SIZE + 1]
    except OSError as exc:
        raise CallerError(f"{path} cannot be read: {exc.strerror}") from exc
    if len(content) > MAX_SIZE:
        raise CallerError(f"{path} has more than {MAX_SIZE} bytes")
    try:
        words = json.loads(content)
    except ValueError as exc:
        raise CallerError(f"{path} is not JSON: {exc}") from exc
    if not isinstance(words, dict):
        raise CallerError(f"{path} is not a JSON object")
    if unknown := sorted(set(words) - set(english)):
        raise CallerError(f"{path}: the page has no word {', '.join(unknown)}")
    for key, word in words.items():
        _check(path, key, word, _names(english[key]))
    return words


def _check(path: Path, key: str, word: object, known: set[str]) -> None:
    if isinstance(word, dict):
        if "other" not in word or not word.keys() <= _FORMS:
            raise CallerError(
                f"{path}: {key} needs the form 'other', and may have others of "
                f"{', '.join(sorted(_FORMS))}"
            )
        forms = list(word.values())
    else:
        forms = [word]
    if not all(isinstance(form, str) for form in forms):
        raise CallerError(f"{path}: {key} is not a text")
    if foreign := _names(word) - known:
        raise CallerError(
            f"{path}: {key} has a name that the English text has not: "
            f"{', '.join(sorted(foreign))}"
        )


def _names(word: object) -> set[str]:
    forms = word.values() if isinstance(word, dict) else [word]
    return {name for form in forms for name in _NAME.findall(str(form))}
