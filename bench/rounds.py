"""The order of the runs of one round."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

__all__ = ["order"]

W = TypeVar("W")
C = TypeVar("C")


def order(
    works: Sequence[W],
    cases: Sequence[C],
    dice: random.Random,
    suits: Callable[[W, C], bool] = lambda work, case: True,
) -> Iterator[tuple[W, C]]:
    """Yield the works with their cases in random order, the cases of one work together.

    *suits* says whether a case can do a work. The runs of one work follow each other,
    because a machine's speed drifts and these runs are compared.
    """
    for work in dice.sample(works, len(works)):
        suited = [case for case in cases if suits(work, case)]
        for case in dice.sample(suited, len(suited)):
            yield work, case
