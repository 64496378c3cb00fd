"""The port's contract for limits of what is stored, over every implementation (G7)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.store.helpers import OP, Stand, do, record
from trioresume.errors import UsageExceeded
from trioresume.store.port import (
    CreateOperation,
    LimitUsage,
    Mutation,
    OperationId,
    SetReserved,
    Store,
)

ROW = 4096
SECOND = OperationId("operation-2")


def refusal(store: Store, *mutations: Mutation) -> str | None:
    """Apply *mutations*; return the name of the limit that refused them."""
    (error,) = store.apply([mutations])
    if error is None:
        return None
    assert isinstance(error, UsageExceeded)
    return str(error)


def upload(id: OperationId, principal: str, reserved: int) -> CreateOperation:
    return CreateOperation(
        replace(record(principal=principal), id=id, reserved=reserved)
    )


@pytest.mark.parametrize(
    ("limit", "name"),
    [
        (LimitUsage("a", most_bytes=2 * ROW + 99), "bytes"),
        (LimitUsage("a", most_open=1), "open"),
        (LimitUsage("a", most_total=2 * ROW + 99), "total"),
        (LimitUsage("b", most_total=2 * ROW + 99), "total"),
        (LimitUsage("a", most_bytes=0, most_open=1), "open"),
    ],
)
def test_submission_beyond_a_limit_does_not_happen(
    stand: Stand, limit: LimitUsage, name: str
) -> None:
    """The whole submission is refused, and the error names the limit."""
    store = stand.store
    do(store, upload(OP, "a", 50))
    assert refusal(store, upload(SECOND, "a", 50), limit) == name
    assert store.operation(SECOND) is None
    assert store.usage("a").bytes == ROW + 50


@pytest.mark.parametrize(
    "limit",
    [
        LimitUsage("a", most_bytes=2 * ROW + 100, most_open=2),
        LimitUsage("a", most_total=2 * ROW + 100),
        LimitUsage("a"),
        LimitUsage("b", 0, 0),
        LimitUsage(None, 0, 0),
    ],
)
def test_submission_within_the_limits_happens(stand: Stand, limit: LimitUsage) -> None:
    """What is used may be as much as the limit; accounts of others do not matter."""
    do(stand.store, upload(OP, "a", 50))
    do(stand.store, upload(SECOND, "a", 50), limit)
    assert stand.store.usage("a").open_uploads == 2


def test_limit_counts_the_mutations_before_it_only(stand: Stand) -> None:
    """Its place in the submission says what it is about."""
    limit = LimitUsage("a", most_bytes=ROW + 10)
    do(stand.store, upload(OP, "a", 10), limit, SetReserved(OP, 20))
    assert stand.store.usage("a").bytes == ROW + 20
    assert refusal(stand.store, limit) == "bytes"
    do(stand.store, SetReserved(OP, 5), limit)


def test_submissions_of_one_batch_are_limited_one_after_the_other(
    stand: Stand,
) -> None:
    """The first ones that fit happen; the refused one takes nothing from those after it."""
    limit = LimitUsage("a", most_bytes=2 * ROW + 20)
    ids = [OperationId(f"operation-{number}") for number in range(4)]
    sizes = [10, 100, 5, 5]
    batch: list[list[Mutation]] = [
        [upload(each, "a", size), limit] for each, size in zip(ids, sizes, strict=True)
    ]
    errors = stand.store.apply(batch)
    assert [error is None for error in errors] == [True, False, True, False]
    assert stand.store.usage("a").bytes == 2 * ROW + 15
