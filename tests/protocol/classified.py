"""The dialect of a request, as the server finds it."""

from __future__ import annotations

from trioresume.protocol.dialects import ServerDialect, classify, early_dialect
from trioresume.protocol.heads import RequestHead


def classified(head: RequestHead, *, on_upload: bool) -> ServerDialect:
    """The dialect of *head*: first by its mark alone, then by its resource, too."""
    return classify(head, early_dialect(head), on_upload=on_upload)
