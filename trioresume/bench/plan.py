"""The plan of a run: drawn from the seed, and the same each time.

Sizes are drawn in the order of the uploads. Each upload's cuts come from a random
generator of its own. So they depend only on the seed and the upload's number, not on
the number of processes or on the server.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

from trioresume.bench.content import SLOT
from trioresume.bench.results import Fault
from trioresume.bench.settings import FaultPlace, Faults, Settings, SizeKind, Sizes

__all__ = ["Cuts", "Planned", "PlannedCut", "cuts_of", "plan"]

MAX_CUTS = 100_000
"""The most cuts of one upload. It only bounds memory; no real run has so many."""


@dataclass(frozen=True, slots=True)
class PlannedCut:
    """A cut that happens when *after* bytes of content were sent, over all attempts."""

    after: int
    fault: Fault


@dataclass(frozen=True, slots=True)
class Planned:
    """A planned upload. Its content starts at *position* of the sequence."""

    number: int
    name: str
    size: int
    position: int


def plan(settings: Settings) -> list[Planned]:
    """Return all uploads of a run, in order."""
    dice = random.Random(f"sizes {settings.seed}")
    planned = []
    position = 0
    for number in range(settings.total):
        size = _size(settings.sizes, dice)
        name = f"bench-{settings.seed}-{number}"
        planned.append(Planned(number, name, size, position))
        # An upload without content takes a slot too, so that positions differ.
        position += max(1, -(-size // SLOT)) * SLOT
    return planned


def _size(sizes: Sizes, dice: random.Random) -> int:
    match sizes.kind:
        case SizeKind.FIXED:
            return sizes.minimum
        case SizeKind.UNIFORM:
            return dice.randint(sizes.minimum, sizes.maximum)
        case SizeKind.LOGNORMAL:
            drawn = dice.lognormvariate(math.log(sizes.median), sizes.sigma)
            return int(min(max(drawn, sizes.minimum), sizes.maximum))


def cuts_of(faults: Faults, seed: int, number: int, size: int) -> list[PlannedCut]:
    """Return the cuts of upload *number*: a Poisson process along its bytes."""
    if faults.mean_bytes is None:
        return []
    dice = random.Random(f"cuts {seed} {number}")
    cuts: list[PlannedCut] = []
    after = 0.0
    while len(cuts) < MAX_CUTS:
        after += dice.expovariate(1 / faults.mean_bytes)
        if after >= size:
            break
        fault = Fault(dice.choice(faults.kinds), dice.choice(faults.places))
        cuts.append(PlannedCut(int(after), fault))
    return cuts


class Cuts:
    """Decides when an upload is cut. It knows no connections.

    A cut in the body happens at its byte. A cut in a head happens in the next request's
    head, after the body cuts that are planned before it. A cut of the response happens
    at the end of the first request that ends at or beyond its byte.
    """

    def __init__(self, planned: list[PlannedCut]) -> None:
        self._left = list(planned)

    def at_head(self) -> Fault | None:
        """Return the cut for the head of a request that begins now; None if there is none."""
        for index, cut in enumerate(self._left):
            if cut.fault.place is FaultPlace.HEAD:
                return self._left.pop(index).fault
            if cut.fault.place is FaultPlace.BODY:
                break
        return None

    def before_cut(self, sent: int) -> int | None:
        """Return how many bytes may follow the *sent* ones before a cut; None without a cut."""
        for cut in self._left:
            if cut.fault.place is FaultPlace.BODY:
                return max(0, cut.after - sent)
        return None

    def at_body(self) -> Fault:
        """Return the cut whose byte was reached."""
        for index, cut in enumerate(self._left):
            if cut.fault.place is FaultPlace.BODY:
                return self._left.pop(index).fault
        raise AssertionError("no cut in the body is left")

    def at_response(self, sent: int) -> Fault | None:
        """Return the cut that loses the response to a request that ends after *sent* bytes."""
        for index, cut in enumerate(self._left):
            if cut.fault.place is FaultPlace.RESPONSE and cut.after <= sent:
                return self._left.pop(index).fault
        return None
