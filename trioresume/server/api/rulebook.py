"""The rules in force: which one governs a request, and what follows from it.

A service without rules has no :class:`Rulebook`, and asks nothing for a request. So rules can
be changed while it runs, but not switched on.

A path that two programs could read in two ways is refused (400): otherwise a rule might be
avoided by writing the path in another way. See :mod:`trioresume.protocol.path_patterns`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from trioresume.errors import CallerError, PeerError, ProblemCode
from trioresume.protocol.path_patterns import (
    PathPattern,
    TextPattern,
    path_segments,
)
from trioresume.server.api.config import Principal, upload_limits
from trioresume.server.api.rules import several

if TYPE_CHECKING:
    from trioresume.protocol.dialects import UploadLimits
    from trioresume.protocol.heads import RequestHead
    from trioresume.server.api.config import Authenticator, Config, Rejection
    from trioresume.server.api.rules import Rule

__all__ = ["Rulebook", "Terms"]

_READING = ("GET", "HEAD")
_WRITING = ("DELETE", "PATCH", "POST", "PUT")
_STORING = ("PATCH", "POST", "PUT")
_ALLOWED = {"read-only": _READING, "write-only": _WRITING}


@dataclass(frozen=True, slots=True, eq=False)
class Terms:
    """What holds for a request: its rule, if there is one, and the settings with its values."""

    config: Config
    limits: UploadLimits
    """The limits that the client is told."""
    rule: Rule | None = None
    media_types: Sequence[TextPattern] = ()

    def check(self, head: RequestHead, *, is_partial: bool) -> None:
        """Raise :class:`PeerError` if the rule refuses *head*, the head of a whole upload.

        405 and 403 for the method, 413 for the length, 415 for the media type. Nothing is
        known of the type of a partial upload (D7 in docs/supported-protocols.md).
        """
        self.check_method(head.method)
        most = self.config.max_upload_size
        if most is not None and head.length is not None and head.length > most:
            raise PeerError(
                ProblemCode.CONTENT_TOO_LARGE, f"at most {most} bytes are accepted"
            )
        if is_partial or self.rule is None or not self.media_types:
            return
        if not head.has_content and head.method not in _STORING:
            return
        if not any(kind.matches(head.media_type) for kind in self.media_types):
            wanted = ", ".join(several(self.rule.media_types))
            raise PeerError(
                ProblemCode.UNSUPPORTED_MEDIA_TYPE,
                f"the content has to be of the type {wanted}",
                fields=(("accept", wanted),),
            )

    def check_method(self, method: str) -> None:
        """Raise :class:`PeerError` (403, 405) if the rule does not allow *method*."""
        access = "all" if self.rule is None else self.rule.access
        if access == "all" or method == "OPTIONS":
            return
        if access == "none":
            raise PeerError(ProblemCode.FORBIDDEN, "nothing is allowed here")
        reads = method in _READING
        if reads is not (access == "read-only"):
            allowed = ", ".join(sorted((*_ALLOWED[access], "OPTIONS")))
            raise PeerError(
                ProblemCode.METHOD_NOT_ALLOWED,
                f"{access}: {method} is not allowed here",
                fields=(("allow", allowed),),
            )


class _Compiled:
    """A rule whose patterns can be matched."""

    def __init__(self, rule: Rule, config: Config) -> None:
        self.rule = rule
        self._methods = frozenset(several(rule.methods))
        self._paths = [PathPattern(path) for path in rule.paths]
        names = rule.principals
        self._names = None if names is None else [TextPattern(name) for name in names]
        config = replace(
            config,
            **{
                name: value
                for name in _SETTINGS
                if (value := getattr(rule, name)) is not None
            },
        )
        types = [TextPattern(kind) for kind in several(rule.media_types)]
        self.terms = Terms(config, upload_limits(config), rule, types)

    def governs(self, method: str, path: Sequence[str]) -> bool:
        """Whether the rule is about *method* and the decoded segments of a *path*."""
        if self._methods and method not in self._methods:
            return False
        return any(pattern.matches(path) for pattern in self._paths)

    def concerns(self, principal: str | None) -> bool:
        """Whether the rule is about this sender."""
        if self._names is None or principal is None:
            return self._names is None
        return any(name.matches(principal) for name in self._names)


MOST_KEPT = 1024
LONGEST_KEPT = 256
"""Requests of which it is kept what was found, and the most characters of one: its method, path
and sender."""

_SETTINGS = (
    "file_lifetime",
    "incomplete_lifetime",
    "max_stored_bytes_per_principal",
    "max_upload_size",
)
"""The fields of a rule that take the place of a setting of the same name."""
_OF_FILES = ("file_lifetime", "name_template", "on_success", "public_download")
"""The fields of a rule that only the file service knows."""


class Rulebook:
    """Finds the rule for a request."""

    def __init__(self, config: Config, *, serves_files: bool) -> None:
        self._config = config
        self._serves_files = serves_files
        self._default = Terms(config, upload_limits(config))
        self._rules = self._compile(config)
        self._found: dict[tuple[str, str, str | None], Terms | None] = {}
        """What was found lately: one upload asks several times."""

    def _compile(self, config: Config) -> list[_Compiled]:
        for number, rule in enumerate(config.rules, 1):
            for name in _OF_FILES if not self._serves_files else ():
                if getattr(rule, name) not in (None, False):
                    raise CallerError(
                        f"rule {number}: {name}: only the file service has files"
                    )
        return [_Compiled(rule, config) for rule in config.rules]

    def replace(self, rules: Sequence[Rule]) -> None:
        """Let *rules* be in force from now on, instead of all earlier ones.

        Raises :class:`~trioresume.errors.CallerError`, and changes nothing then.
        """
        self._rules = self._compile(replace(self._config, rules=tuple(rules)))
        self._found.clear()

    def terms(self, method: str, path: str, principal: str | None) -> Terms:
        """Return what holds for a request.

        Raises :class:`PeerError` (400) for a *path* that can be read in two ways.
        """
        found = self._find(method, path, principal)
        if found is None:
            raise PeerError(
                ProblemCode.MALFORMED_REQUEST,
                "the path has an empty segment, a '.' or '..', an encoded slash, or"
                " bytes that are not UTF-8",
            )
        return found

    def terms_of_upload(self, method: str, target: str, principal: str | None) -> Terms:
        """Return what holds for a recorded upload, whatever path it was once sent to."""
        path = target.partition("?")[0]
        return self._find(method, path, principal) or self._default

    def _find(self, method: str, path: str, principal: str | None) -> Terms | None:
        """Return what holds; None for a path that can be read in two ways."""
        asked = (method, path, principal)
        if asked in self._found:
            return self._found[asked]
        segments = path_segments(path)
        found = None if segments is None else self._default
        for each in self._rules if segments is not None else ():
            if each.concerns(principal) and each.governs(method, segments or ()):
                found = each.terms
                break
        if len(method) + len(path) + len(principal or "") <= LONGEST_KEPT:
            if len(self._found) >= MOST_KEPT:
                del self._found[next(iter(self._found))]
            self._found[asked] = found
        return found

    def check(
        self, head: RequestHead, principal: str | None, *, is_partial: bool = False
    ) -> Terms:
        """Return what holds for *head*, which describes a whole upload.

        Raises :class:`PeerError` if a rule refuses it: see :meth:`Terms.check`.
        """
        terms = self.terms(head.method, head.path, principal)
        terms.check(head, is_partial=is_partial)
        if head.method == "POST":
            for method in head.methods_meant:
                other = replace(head, method=method)
                terms_then = self.terms(method, head.path, principal)
                terms_then.check(other, is_partial=is_partial)
        return terms

    def owner_of_download(self, head: RequestHead) -> str | None:
        """Return whose file *head* asks for, if this needs no credentials."""
        if head.method not in _READING:
            return None
        segments = path_segments(head.path)
        if segments is None:
            return None
        for each in self._rules:
            if each.rule.public_download and each.governs(head.method, segments):
                (owner,) = each.rule.principals or ()
                # An earlier rule for the owner's request decides, even if it is not public.
                if self._find(head.method, head.path, owner) is each.terms:
                    return owner
        return None

    def with_public_downloads(self, config: Config) -> Config:
        """Return *config* with an authenticator that knows the public downloads."""
        if config.authenticate is None:
            return config
        authenticate = _PublicDownloads(
            self, config.authenticate, config.operation_path
        )
        return replace(config, authenticate=authenticate)


class _PublicDownloads:
    """An authenticator: a public download counts as a request of the file's owner.

    Every other request is given to *inner*. Nothing below *operation_path* is public.
    """

    def __init__(
        self, rulebook: Rulebook, inner: Authenticator, operation_path: str
    ) -> None:
        self._rulebook = rulebook
        self._inner = inner
        self._operation_path = operation_path
        self.asks_again: bool = getattr(inner, "asks_again", False)

    async def __call__(self, head: RequestHead) -> Principal | Rejection:
        if not head.path.startswith(self._operation_path):
            owner = self._rulebook.owner_of_download(head)
            if owner is not None:
                return Principal(owner)
        return await self._inner(head)
