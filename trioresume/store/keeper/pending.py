"""What the service still has to do for its files, as the tasks in the outbox say.

The payload of a task is a JSON object. For a file it has ``owner`` and ``name``, and
``action`` and ``directory`` for what is to be done.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from trioresume.store.catalog.outbox import TASKS

__all__ = ["pending_actions"]

MOST_LISTED = 10_000
"""Tasks that are looked at: the oldest ones, which wait for the same reason as the others."""

Owned = tuple[str | None, str]


def pending_actions(rows: Callable[..., Sequence[Sequence[Any]]]) -> dict[Owned, str]:
    """Return what is to be done, in words, by the owner and the name of the file."""
    found: dict[Owned, str] = {}
    tasks = rows(
        f"SELECT payload, attempts, error FROM events WHERE {TASKS} ORDER BY seq LIMIT ?",
        MOST_LISTED,
    )
    for payload, attempts, error in tasks:
        try:
            task = json.loads(payload)
            owner, name = task["owner"], task["name"]
            text = f"{task['action']} to {task['directory']}"
        except (ValueError, KeyError, TypeError):
            continue  # a later version's
        found[owner, name] = f"{text}, waits: {error}" if attempts else text
    return found
