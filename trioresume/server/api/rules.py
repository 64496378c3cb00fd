"""Rules: what the service allows and keeps, by path, sender and method.

The first rule that matches a request decides, and no other rule is asked. What the rule does
not set is as the service's own settings say. If no rule matches, those settings hold alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Literal

from trioresume.errors import CallerError
from trioresume.protocol.name_templates import NameTemplate
from trioresume.protocol.path_patterns import PathPattern
from trioresume.server.api.on_success import Action

__all__ = ["Rule", "several"]

_ACCESSES = ("all", "read-only", "write-only", "none")
_METHOD = re.compile(r"[A-Z][A-Z0-9_-]{0,31}")
_MEDIA_TYPE = re.compile(r"\*/\*|[a-z0-9!#$&^_.+*-]{1,64}/[a-z0-9!#$&^_.+*-]{1,64}")
_WILD = re.compile(r"[*?]")


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One rule. ``path``, ``principal`` and ``methods`` say to which requests it applies.

    Sizes are in bytes, times in seconds. A text stands for a sequence of this one text.
    Raises :class:`~trioresume.errors.CallerError` for a value that makes no sense; the error
    begins with the name of the field.
    """

    path: str | Sequence[str] = "/"
    """Paths, decoded: ``/files/`` with everything below it, ``/files/*.jpg``, ``/a/**/b``.

    ``*`` and ``?`` stay within a segment; ``**`` is any number of whole segments."""
    principal: str | Sequence[str] | None = None
    """Names of senders, with ``*`` and ``?``; None: every sender, also one without a name."""
    methods: str | Sequence[str] = ()
    """Methods, such as ``POST``; empty: all."""

    access: Literal["all", "read-only", "write-only", "none"] = "all"
    """What is allowed (405 for the rest, 403 for ``none``).

    ``read-only``: GET, HEAD and OPTIONS. ``write-only``: everything but GET and HEAD.
    ``none``: OPTIONS, which tells only the protocols."""
    media_types: str | Sequence[str] = ()
    """Media types of content, ``image/*``; empty: all. Other content is refused (415).

    What the client states is compared. Nobody looks into the content."""
    public_download: bool = False
    """Whether GET and HEAD need no credentials: the file service then serves the files of
    ``principal``, which is one name without ``*`` and ``?``."""
    max_upload_size: int | None = None
    """The longest content, instead of ``Config.max_upload_size``."""
    incomplete_lifetime: float | None = None
    """How long an unfinished upload is kept, instead of ``Config.incomplete_lifetime``."""
    max_stored_bytes_per_principal: int | None = None
    """Space for all uploads and files of the sender, wherever they are (507)."""
    file_lifetime: float | None = None
    """How long the file service keeps a file, instead of ``Config.file_lifetime``."""
    name_template: str | None = None
    """How the file service names the files of POST, instead of its own ``name_template``."""

    on_success: str | None = None
    """What the file service does with a stored file, instead of its own ``on_success``."""

    def __post_init__(self) -> None:
        if not self.paths:
            raise CallerError("path: at least one is needed")
        for path in self.paths:
            try:
                PathPattern(path)
            except ValueError as exc:
                raise CallerError(f"path: {path!r}: {exc}") from exc
        if any(not name for name in self.principals or ()):
            raise CallerError("principal: a name is not empty")
        if self.principal is not None and not self.principals:
            raise CallerError("principal: at least one is needed")
        for method in several(self.methods):
            if _METHOD.fullmatch(method) is None:
                raise CallerError(f"methods: {method!r} is not a method in capitals")
        for media_type in several(self.media_types):
            if _MEDIA_TYPE.fullmatch(media_type) is None:
                raise CallerError(
                    f"media_types: {media_type!r} is not like 'image/png' or 'image/*'"
                )
        if self.access not in _ACCESSES:
            raise CallerError(f"access: one of {', '.join(_ACCESSES)}")
        if self.name_template is not None:
            try:
                NameTemplate(self.name_template)
            except ValueError as exc:
                raise CallerError(f"name_template: {exc}") from exc
        if self.on_success is not None:
            try:
                Action.parse(self.on_success)
            except ValueError as exc:
                raise CallerError(f"on_success: {exc}") from exc
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, bool) or not isinstance(value, (int, float)):
                continue
            if not (value > 0 and math.isfinite(value)):
                raise CallerError(f"{setting.name}: a finite number above 0 is needed")
        if self.public_download:
            self._check_public()

    def _check_public(self) -> None:
        names = self.principals or ()
        if len(names) != 1 or _WILD.search(names[0]):
            raise CallerError(
                "public_download: principal has to be one name, whose files are served"
            )
        if self.access in ("write-only", "none"):
            raise CallerError(f"public_download: access is {self.access!r}")
        methods = several(self.methods)
        if methods and not {"GET", "HEAD"} & set(methods):
            raise CallerError("public_download: methods has neither GET nor HEAD")

    @property
    def paths(self) -> tuple[str, ...]:
        """``path`` as a sequence."""
        return several(self.path)

    @property
    def principals(self) -> tuple[str, ...] | None:
        """``principal`` as a sequence; None for every sender."""
        return None if self.principal is None else several(self.principal)


def several(value: str | Iterable[str]) -> tuple[str, ...]:
    """Return *value* as a sequence. A text is a sequence of one."""
    return (value,) if isinstance(value, str) else tuple(value)
